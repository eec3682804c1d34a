package lxd

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/retry"
)

// The defaults of WatchOptions.Interval.
const (
	defaultInterval = 10 * time.Minute
	clusterInterval = 30 * time.Second
)

// maxStale is how many images and aliases are read one by one; of more, all are, and
// none is noted, so that a slow loop needs no memory.
const maxStale = 100

// watchJob is one loop over Watch. One goroutine receives events, and notes what they
// are about; that of the loop reads it, and yields the difference.
type watchJob struct {
	WatchOptions

	images *Images
	list   ListOptions
	wide   bool // events of all projects are needed
	known  map[imageKey]*Image
	synced bool

	wake  chan struct{} // something is stale
	mu    sync.Mutex
	stale stale
}

// imageKey identifies an image of one or, with AllProjects, of all projects.
type imageKey struct{ project, fingerprint string }

// aliasKey identifies an alias.
type aliasKey struct{ project, name string }

// stale is what must be read again.
type stale struct {
	all     bool
	images  map[imageKey]bool
	aliases map[aliasKey]bool
	renamed map[string]string // the old name of an alias, by the new one
	ended   error             // of the events
}

func (w *watchJob) check(ctx context.Context) error {
	if err := w.images.check(ctx); err != nil {
		return err
	}
	if err := checkOneOf("WatchOptions.Type", w.Type, "", Container, VirtualMachine); err != nil {
		return err
	}
	architecture, err := checkArchitecture("WatchOptions.Architecture", w.Architecture)
	if err != nil {
		return err
	}
	w.list = ListOptions{AllProjects: w.AllProjects, Type: w.Type, Architecture: architecture, Properties: w.Properties}
	return nil
}

func (w *watchJob) run(ctx context.Context, yield func(ImageChange, error) bool) {
	if err := w.findEvents(ctx); err != nil {
		yield(ImageChange{}, err)
		return
	}
	if w.Interval == 0 {
		server, err := w.images.client.serverInfo(ctx, false)
		if err != nil {
			yield(ImageChange{}, err)
			return
		}
		if w.Interval = defaultInterval; server.Clustered {
			w.Interval = clusterInterval
		}
	}
	receiving, cancel := context.WithCancel(ctx)
	var receiver sync.WaitGroup
	receiver.Go(func() { w.receive(receiving) })
	defer receiver.Wait()
	defer cancel()

	var tick <-chan time.Time
	if w.Interval > 0 {
		ticker := time.NewTicker(w.Interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-w.wake:
		case <-tick:
			w.note(func(s *stale) { s.all = true })
		}
		if !w.update(ctx, yield) {
			return
		}
	}
}

// findEvents determines of which projects events are needed. The images of the default
// project can be changed in each project that shares them, and the event then is of that
// project (LXD 5.0.2, Incus 6.0.4 and 7.0.2).
func (w *watchJob) findEvents(ctx context.Context) error {
	c := w.images.client
	if w.wide = true; w.AllProjects || c.Project() == "default" {
		return nil
	}
	projects, err := c.Projects(ctx)
	if err != nil {
		return err
	}
	w.wide = !slices.ContainsFunc(projects, func(p Project) bool { return p.Name == c.Project() && p.OwnImages() })
	return nil
}

// note notes what is stale, and wakes the loop.
func (w *watchJob) note(change func(*stale)) {
	w.mu.Lock()
	change(&w.stale)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what is stale, which then is not any more.
func (w *watchJob) take() stale {
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := w.stale
	w.stale = stale{}
	return taken
}

// receive notes what the events are about. A client that may not have the events of all
// projects has those of its own.
func (w *watchJob) receive(ctx context.Context) {
	err := w.receiveOf(ctx, w.wide)
	if errors.Is(err, ErrForbidden) && w.wide && !w.AllProjects {
		err = w.receiveOf(ctx, false)
	}
	w.note(func(s *stale) { s.ended = err })
}

func (w *watchJob) receiveOf(ctx context.Context, wide bool) error {
	for event, err := range w.images.client.Events(ctx, &EventsOptions{AllProjects: wide, ImagesOnly: true}) {
		switch {
		case err != nil:
			return err
		case event.Type == EventConnected:
			w.note(func(s *stale) { s.all = true })
		case event.Lifecycle != nil:
			w.noteLifecycle(event.Project, event.Lifecycle)
		case event.Operation != nil && event.Operation.StatusCode == statusSuccess:
			w.noteOperation(event.Project, event.Operation)
		}
	}
	return nil
}

// noteLifecycle notes the image or alias that an event is about.
func (w *watchJob) noteLifecycle(project string, l *Lifecycle) {
	if !w.AllProjects {
		project = ""
	}
	fingerprint, alias := l.Fingerprint(), l.Alias()
	w.note(func(s *stale) {
		switch {
		case alias != "":
			s.addAlias(aliasKey{project, alias}, l.OldName())
		case fingerprint != "":
			s.addImage(imageKey{project, fingerprint})
		default:
			s.all = true
		}
	})
}

// noteOperation notes the images of an operation that has succeeded. The lifecycle event
// of a deletion is sent before the image is gone (Incus 6.0.4 and 7.0.2). LXD 6.9 has the
// image in its metadata, where others have it in the resources.
func (w *watchJob) noteOperation(project string, state *OperationStatus) {
	if !strings.Contains(strings.ToLower(state.Description), "image") {
		return
	}
	if !w.AllProjects {
		project = ""
	}
	entity, _ := state.Metadata["entity_url"].(string)
	created, _ := state.Metadata["fingerprint"].(string)
	fingerprints := []string{created, imageInPath(entity)}
	for _, path := range state.Resources["images"] {
		fingerprints = append(fingerprints, imageInPath(path))
	}
	fingerprints = slices.DeleteFunc(fingerprints, func(fingerprint string) bool { return fingerprint == "" })
	w.note(func(s *stale) {
		for _, fingerprint := range fingerprints {
			s.addImage(imageKey{project, fingerprint})
		}
		s.all = s.all || len(fingerprints) == 0
	})
}

func (s *stale) addImage(key imageKey) {
	if s.images == nil {
		s.images = map[imageKey]bool{}
	}
	s.images[key] = true
	s.limit()
}

// limit replaces what was noted by all if it is too much.
func (s *stale) limit() {
	if len(s.images)+len(s.aliases) > maxStale {
		*s = stale{all: true, ended: s.ended}
	}
}

func (s *stale) addAlias(key aliasKey, old string) {
	if s.aliases == nil {
		s.aliases, s.renamed = map[aliasKey]bool{}, map[string]string{}
	}
	s.aliases[key] = true
	if old != "" {
		s.renamed[key.name] = old
		s.aliases[aliasKey{key.project, old}] = true
	}
	s.limit()
}

// update reads what is stale, and yields the difference. It returns false if the loop
// has ended.
func (w *watchJob) update(ctx context.Context, yield func(ImageChange, error) bool) bool {
	retries := w.images.client.t.retriesFor(endless)
	if !w.synced {
		retries = w.images.client.t.retry.Begin()
	}
	refusals := w.images.client.t.retry.Begin()
	for {
		s := w.take()
		if s.ended != nil {
			yield(ImageChange{}, s.ended)
			return false
		}
		changes, err := w.read(ctx, &s)
		if err == nil {
			return w.yield(ctx, changes, yield)
		}
		switch {
		case errors.Is(err, ErrUnavailable) && retry.Transient(err):
			err = retries.Pause(ctx, err)
		case isServerError(err):
			// The members of a cluster respond so while they elect a leader.
			err = refusals.Pause(ctx, err)
		}
		if err != nil {
			yield(ImageChange{}, err)
			return false
		}
		w.note(func(s *stale) { s.all = true })
	}
}

// yield yields the changes, and at the end of the first reading ImagesSynced. If ctx
// ends, the others are not yielded: the end of the events follows.
func (w *watchJob) yield(ctx context.Context, changes []ImageChange, yield func(ImageChange, error) bool) bool {
	for _, change := range changes {
		if ctx.Err() != nil {
			return true
		}
		change.Image = change.Image.own() // Former is not used any more
		if !yield(change, nil) {
			return false
		}
	}
	if w.synced {
		return true
	}
	w.synced = true
	return yield(ImageChange{Kind: ImagesSynced}, nil)
}

// read reads what is stale, and returns the difference to what is known.
func (w *watchJob) read(ctx context.Context, s *stale) ([]ImageChange, error) {
	now := map[imageKey]*Image{} // nil for an image that does not exist
	if s.all || w.known == nil {
		for key := range w.known {
			now[key] = nil
		}
		for image, err := range w.images.Each(ctx, &w.list) {
			if err != nil {
				return nil, err
			}
			now[w.key(image)] = image
		}
		return w.apply(now, s.renamed), nil
	}
	keys := maps.Clone(s.images)
	if keys == nil {
		keys = map[imageKey]bool{}
	}
	fingerprints, names := map[string]bool{}, map[string]bool{}
	for key := range keys {
		fingerprints[key.fingerprint] = true
	}
	for alias := range s.aliases {
		names[alias.name] = true
	}
	for key, image := range w.known {
		// The project of an event may be one that shares the images of another.
		if fingerprints[key.fingerprint] || slices.ContainsFunc(image.Aliases, func(a Alias) bool { return names[a.Name] }) {
			keys[key] = true
		}
	}
	for alias := range s.aliases {
		target, err := w.in(alias.project).Aliases.Get(ctx, alias.name)
		switch {
		case err == nil:
			keys[imageKey{alias.project, target.Target}] = true
		case !w.isMissing(err):
			return nil, err
		}
	}
	for key := range keys {
		image, err := w.in(key.project).Images.Get(ctx, key.fingerprint)
		switch {
		case err == nil && w.list.match(image):
			now[w.key(image)] = image
		case err == nil || w.isMissing(err):
			now[key] = nil
		default:
			return nil, err
		}
	}
	return w.apply(now, s.renamed), nil
}

// in returns the client of a project; "" is that of the images.
func (w *watchJob) in(project string) *Client {
	if project == "" {
		return w.images.client
	}
	return w.images.client.InProject(project)
}

// isMissing reports whether an image or alias does not exist; of all projects, one may
// be gone with its images.
func (w *watchJob) isMissing(err error) bool {
	return isMissing(err) || w.AllProjects && errors.Is(err, ErrNotFound)
}

func (w *watchJob) key(image *Image) imageKey {
	if w.AllProjects {
		return imageKey{image.Project, image.Fingerprint}
	}
	return imageKey{"", image.Fingerprint}
}

// apply makes the images that were read the known ones, and returns the changes: images
// that are removed, those that have changed, those that are added.
func (w *watchJob) apply(now map[imageKey]*Image, renamed map[string]string) []ImageChange {
	if w.known == nil {
		w.known = map[imageKey]*Image{}
	}
	var changes []ImageChange
	lost, got := map[aliasKey]string{}, map[aliasKey]string{}
	for key, image := range now {
		former := w.known[key]
		change := ImageChange{Image: image, Former: former}
		switch {
		case image == nil && former == nil:
			continue
		case image == nil:
			change.Kind = ImageRemoved
			delete(w.known, key)
		case former == nil:
			change.Kind = ImageAdded
			if !w.synced {
				change.Kind = ImagePresent
			}
			w.known[key] = image
		default:
			change.Kind, change.Fields = ImageChanged, changedFields(former, image)
			w.known[key] = image
			if len(change.Fields) == 0 {
				continue
			}
		}
		for name := range aliasesWithout(former, image) {
			lost[aliasKey{key.project, name}] = key.fingerprint
		}
		for name := range aliasesWithout(image, former) {
			got[aliasKey{key.project, name}] = key.fingerprint
		}
		changes = append(changes, change)
	}
	for n := range changes {
		w.finish(&changes[n], lost, got, renamed)
	}
	slices.SortStableFunc(changes, func(a, b ImageChange) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.any().Fingerprint, b.any().Fingerprint))
	})
	return changes
}

// aliasesWithout returns the names of the aliases of a that b does not have.
func aliasesWithout(a, b *Image) map[string]bool {
	names := map[string]bool{}
	if a != nil {
		for _, alias := range a.Aliases {
			names[alias.Name] = true
		}
	}
	if b != nil {
		for _, alias := range b.Aliases {
			delete(names, alias.Name)
		}
	}
	return names
}

// any returns the image of a change.
func (c ImageChange) any() *Image {
	if c.Image != nil {
		return c.Image
	}
	return c.Former
}

// rank is the place of a change among those of one reading: what loses an alias comes
// before what gets it.
func rank(c ImageChange) int {
	switch {
	case c.Kind == ImageRemoved:
		return 0
	case c.Kind == ImageChanged && !slices.ContainsFunc(c.Aliases, func(a AliasChange) bool { return a.From != "" && a.To == c.Image.Fingerprint && a.From != a.To }):
		return 1
	case c.Kind == ImageChanged:
		return 2
	}
	return 3
}

// finish sets the aliases of a change.
func (w *watchJob) finish(c *ImageChange, lost, got map[aliasKey]string, renamed map[string]string) {
	project := w.key(c.any()).project
	for _, name := range slices.Sorted(maps.Keys(aliasesWithout(c.Former, c.Image))) {
		c.Aliases = append(c.Aliases, AliasChange{Name: name, From: c.Former.Fingerprint, To: got[aliasKey{project, name}]})
	}
	for _, name := range slices.Sorted(maps.Keys(aliasesWithout(c.Image, c.Former))) {
		key := aliasKey{project, name}
		change := AliasChange{Name: name, From: lost[key], To: c.Image.Fingerprint}
		if old := renamed[name]; old != "" && lost[aliasKey{project, old}] == c.Image.Fingerprint {
			change.OldName, change.From = old, c.Image.Fingerprint
			c.Aliases = slices.DeleteFunc(c.Aliases, func(a AliasChange) bool { return a.Name == old })
		}
		c.Aliases = append(c.Aliases, change)
	}
}
