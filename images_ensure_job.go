package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ensureJob is one call of Ensure.
type ensureJob struct {
	EnsureOptions

	images   *Images
	source   Source
	done     *Ensured
	resolved *SourceImage // what the source says; nil if it was not asked
	created  *Image       // nil if none was
	replaced *Image       // that the first alias had; nil if it is not known
}

func (e *ensureJob) check() error {
	if e.source == nil && e.Policy != EnsureNever {
		return invalid("source", "is nil")
	}
	if len(e.Aliases) == 0 {
		return invalid("EnsureOptions.Aliases", "is empty")
	}
	if err := checkOneOf("EnsureOptions.Policy", e.Policy, EnsureNewest, EnsureMissing, EnsureNever); err != nil {
		return err
	}
	if err := checkOneOf("EnsureOptions.Type", e.Type, "", Container, VirtualMachine); err != nil {
		return err
	}
	architecture, err := checkArchitecture("EnsureOptions.Architecture", e.Architecture)
	if err != nil {
		return err
	}
	e.Architecture = architecture
	names := map[string]bool{}
	for _, alias := range e.Aliases {
		if err := checkAlias("EnsureOptions.Aliases", alias.Name); err != nil {
			return err
		}
		if names[alias.Name] {
			return invalid("EnsureOptions.Aliases", "has %q twice", alias.Name)
		}
		names[alias.Name] = true
	}
	switch {
	case e.Previous != "" && names[e.Previous]:
		return invalid("EnsureOptions.Previous", "%q is one of Aliases", e.Previous)
	case e.Keep < 0:
		return invalid("EnsureOptions.Keep", "is negative")
	case e.Keep > 0 && !e.DeleteReplaced:
		return invalid("EnsureOptions.Keep", "is set without DeleteReplaced")
	}
	if e.Previous != "" {
		if err := checkAlias("EnsureOptions.Previous", e.Previous); err != nil {
			return err
		}
	}
	spec := imageSpec{attributes: attributes{Profiles: e.Profiles, Properties: e.Properties}}
	if e.ExpiresAt != nil {
		spec.ExpiresAt = *e.ExpiresAt
	}
	return spec.check("EnsureOptions")
}

func (e *ensureJob) run(ctx context.Context) error {
	image, fingerprint, err := e.find(ctx)
	if err != nil {
		return err
	}
	names, err := e.names(ctx, image)
	if err != nil {
		return err
	}
	if image == nil {
		e.note(EnsureChange{Action: EnsureCreated, Fingerprint: fingerprint, Source: e.source.String()})
		if !e.DryRun {
			if image, err = e.create(ctx); err != nil {
				e.done.Changes = nil
				return e.stillServes(ctx, err)
			}
			e.created = image
			e.done.Changes[0].Fingerprint = image.Fingerprint
		}
	}
	if image != nil {
		if e.AutoUpdate != nil && *e.AutoUpdate && !image.updatable() {
			return fmt.Errorf("update image %.12s: %w: the server does not know a source of it with newer images; delete it, so that it is created from its source", image.Fingerprint, ErrUnsupported)
		}
		if image, err = e.update(ctx, image, e.set); err != nil {
			return err
		}
		fingerprint = image.Fingerprint
	}
	if err := e.name(ctx, names, fingerprint); err != nil {
		return err
	}
	e.done.Image = image
	if len(e.done.Changes) > 0 && image != nil && !e.DryRun {
		if e.done.Image, err = e.images.Get(ctx, fingerprint); err != nil {
			return err
		}
		if e.created != nil {
			e.done.Image.transfer = e.created.transfer
		}
	}
	if e.DeleteReplaced {
		return e.retire(ctx)
	}
	return nil
}

// checkKind returns an error if an image of this type and architecture is not the
// requested one. What is "" is not known.
func (e *ensureJob) checkKind(of string, kind ImageType, architecture string) error {
	if (e.Type == "" || kind == "" || kind == e.Type) && (e.Architecture == "" || architecture == "" || architecture == e.Architecture) {
		return nil
	}
	return fmt.Errorf("%s is for %s on %s, not for %s on %s: %w", of, cmp.Or(string(kind), "any type"), cmp.Or(architecture, "any architecture"),
		cmp.Or(string(e.Type), "any type"), cmp.Or(e.Architecture, "any architecture"), ErrNotFound)
}

func (e *ensureJob) note(change EnsureChange) { e.done.Changes = append(e.done.Changes, change) }

// find returns the image that the aliases are to have. If the server does not have it,
// the image is nil, and the fingerprint "" if it is not known.
func (e *ensureJob) find(ctx context.Context) (*Image, string, error) {
	name := e.Aliases[0].Name
	if e.Policy != EnsureNewest {
		image, err := e.images.GetByAlias(ctx, name)
		switch {
		case err == nil:
			e.done.Image = image
			return image, image.Fingerprint, e.checkKind(fmt.Sprintf("alias %q", name), image.Type, image.Architecture)
		case !isMissing(err) || e.Policy == EnsureNever:
			return nil, "", err
		}
	}
	resolved, err := e.source.Resolve(ctx, e.images.client)
	switch {
	case err != nil:
		return nil, "", e.stillServes(ctx, fmt.Errorf("%s: %w", e.source, err))
	case resolved == nil:
		return nil, "", nil
	}
	if err := e.checkKind(e.source.String(), resolved.Type, resolved.Architecture); err != nil {
		return nil, "", e.stillServes(ctx, err)
	}
	if resolved.Fingerprint == "" {
		return nil, "", nil
	}
	e.resolved = resolved
	fingerprint := strings.ToLower(resolved.Fingerprint)
	if err := checkFullFingerprint("fingerprint of "+e.source.String(), fingerprint); err != nil {
		return nil, "", err
	}
	image, err := e.images.Get(ctx, fingerprint)
	switch {
	case isMissing(err):
		return nil, fingerprint, nil
	case err == nil:
		err = e.checkKind(e.source.String(), image.Type, image.Architecture)
	}
	return image, fingerprint, err
}

// stillServes adds to an error of the source which image the first alias still has.
func (e *ensureJob) stillServes(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if image, gerr := e.images.GetByAlias(ctx, e.Aliases[0].Name); gerr == nil {
		e.done.Image = image
		return fmt.Errorf("%w; alias %q still has image %.12s", err, e.Aliases[0].Name, image.Fingerprint)
	}
	return err
}

// create brings the image, without a name.
func (e *ensureJob) create(ctx context.Context) (*Image, error) {
	o := &CreateFromOptions{Profiles: e.Profiles, Resolved: e.resolved, Wait: true, CancelOnDone: e.CancelOnDone, Progress: e.Progress}
	if e.Public != nil {
		o.Public = *e.Public
	}
	if e.AutoUpdate != nil {
		o.AutoUpdate = *e.AutoUpdate
	}
	if e.ExpiresAt != nil {
		o.ExpiresAt = *e.ExpiresAt
	}
	image, err := e.images.CreateFrom(ctx, e.source, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.source, err)
	}
	err = e.checkKind(e.source.String(), image.Type, image.Architecture)
	if err != nil && len(image.Aliases) == 0 && image.isNewOf(image.Operation()) {
		err = errors.Join(err, image.Delete(ctx, &DeleteOptions{Wait: true}))
	}
	return image, err
}

// set sets the attributes of the options.
func (e *ensureJob) set(i *Image) {
	if e.Public != nil {
		i.Public = *e.Public
	}
	if e.AutoUpdate != nil {
		i.AutoUpdate = *e.AutoUpdate
	}
	if e.ExpiresAt != nil {
		i.ExpiresAt = *e.ExpiresAt
	}
	if len(e.Profiles) > 0 {
		i.Profiles = slices.Clone(e.Profiles)
	}
	addProperties(i, e.Properties)
	if e.DeleteReplaced && i.Properties[ReplacedProperty] == e.Aliases[0].Name {
		delete(i.Properties, ReplacedProperty) // it is the current one again
	}
}

// mark marks an image that is about to lose the first alias. An image that is not yet
// named is never marked: another program might delete it.
func (e *ensureJob) mark(i *Image) {
	addProperties(i, map[string]string{ReplacedProperty: e.Aliases[0].Name})
}

func addProperties(i *Image, properties map[string]string) {
	all := maps.Clone(i.Properties)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, properties)
	i.Properties = all
}

// update changes an image if change is a change of it.
func (e *ensureJob) update(ctx context.Context, image *Image, change func(*Image)) (*Image, error) {
	changed := *image
	if change(&changed); changed.attributes().matches(image.attributes()) {
		return image, nil
	}
	if image != e.created { // its creation includes its attributes, which a dry run cannot compare
		e.note(EnsureChange{Action: EnsureUpdated, Fingerprint: image.Fingerprint})
	}
	if e.DryRun {
		return image, nil
	}
	return e.images.update(ctx, image, func(i *Image) error { change(i); return nil }, nil)
}

// ensuredName is an alias that does not have the image yet.
type ensuredName struct {
	Alias        // Target is that of now, "" if the alias does not exist
	etag  string // of that state
	first bool   // of the options' aliases
}

// names returns the aliases that image does not have; nil has none. They are read before
// the image is created, so that a change by somebody else in the meantime is seen.
func (e *ensureJob) names(ctx context.Context, image *Image) ([]ensuredName, error) {
	var names []ensuredName
	for n, want := range e.Aliases {
		if image != nil && slices.ContainsFunc(image.Aliases, func(a Alias) bool { return a.Name == want.Name }) {
			continue
		}
		alias, etag, err := e.images.client.Aliases.get(ctx, want.Name)
		switch {
		case isMissing(err):
			alias = Alias{Name: want.Name, Description: want.Description}
		case err != nil:
			return nil, err
		}
		names = append(names, ensuredName{alias, etag, n == 0})
	}
	return names, nil
}

// name creates the aliases that are missing, and moves those of other images.
func (e *ensureJob) name(ctx context.Context, names []ensuredName, fingerprint string) error {
	for _, name := range names {
		from := name.Target
		if from == fingerprint && from != "" {
			continue
		}
		if name.first && from != "" {
			// Another program may have moved the alias and deleted the image: assign sees it.
			if err := e.prepareMove(ctx, from); err != nil && !isMissing(err) {
				return err
			}
		}
		name.Target = fingerprint
		if !e.DryRun {
			if err := e.assign(ctx, name.Alias, from, name.etag); err != nil {
				return err
			}
		}
		e.note(EnsureChange{Action: EnsureNamed, Fingerprint: fingerprint, Alias: name.Name, From: from})
	}
	return nil
}

// prepareMove gives the image that the first alias has a second name, and marks it,
// before the alias is moved: it is found later even if the move is the last that is done.
func (e *ensureJob) prepareMove(ctx context.Context, from string) error {
	if e.DeleteReplaced {
		old, err := e.images.Get(ctx, from)
		if err != nil {
			return err
		}
		if e.replaced, err = e.update(ctx, old, e.mark); err != nil {
			return err
		}
	}
	if e.Previous == "" {
		return nil
	}
	aliases := e.images.client.Aliases
	previous, err := aliases.Get(ctx, e.Previous)
	switch {
	case err == nil && previous.Target == from:
		return nil
	case err != nil && !isMissing(err):
		return err
	}
	if !e.DryRun {
		if err := aliases.Set(ctx, Alias{Name: e.Previous, Target: from}); err != nil {
			return err
		}
	}
	e.note(EnsureChange{Action: EnsureNamed, Fingerprint: from, Alias: e.Previous, From: previous.Target})
	return nil
}

// assign creates an alias, or moves one that had the target from when the etag was read.
func (e *ensureJob) assign(ctx context.Context, alias Alias, from, etag string) error {
	aliases := e.images.client.Aliases
	err := error(nil)
	if from == "" {
		err = aliases.Create(ctx, alias)
	} else {
		err = aliases.put(ctx, alias.Name, alias, etag)
	}
	if err == nil || !(maybeSeen(err) || errors.Is(err, ErrExists) || errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound)) {
		return err
	}
	now, gerr := aliases.Get(ctx, alias.Name)
	switch {
	case gerr == nil && now.Target == alias.Target:
		return nil
	case maybeSeen(err):
		return err
	case gerr == nil:
		return fmt.Errorf("alias %q was changed by somebody else to image %.12s: %w", alias.Name, now.Target, ErrConflict)
	}
	return fmt.Errorf("alias %q was changed by somebody else: %w", alias.Name, ErrConflict)
}

// retire deletes the marked images that have no alias, but for the last ones.
func (e *ensureJob) retire(ctx context.Context) error {
	marked, err := e.images.All(ctx, &ListOptions{Properties: map[string]string{ReplacedProperty: e.Aliases[0].Name}})
	if err != nil {
		return err
	}
	if e.DryRun { // which has marked and moved nothing
		marked = e.afterDryRun(marked)
	}
	marked = slices.DeleteFunc(marked, func(i *Image) bool { return len(i.Aliases) > 0 })
	slices.SortFunc(marked, func(a, b *Image) int {
		return cmp.Or(b.UploadedAt.Compare(a.UploadedAt), strings.Compare(a.Fingerprint, b.Fingerprint))
	})
	for _, old := range marked[min(e.Keep, len(marked)):] {
		if !e.DryRun {
			if err := old.Delete(ctx, &DeleteOptions{Wait: true}); err != nil && !isMissing(err) {
				return fmt.Errorf("delete the replaced image: %w", err)
			}
		}
		e.note(EnsureChange{Action: EnsureDeleted, Fingerprint: old.Fingerprint})
	}
	return nil
}

// afterDryRun returns the marked images as they would be after the changes.
func (e *ensureJob) afterDryRun(marked []*Image) []*Image {
	if e.replaced != nil && !slices.ContainsFunc(marked, func(i *Image) bool { return i.Fingerprint == e.replaced.Fingerprint }) {
		marked = append(marked, e.replaced)
	}
	for _, image := range marked {
		for _, change := range e.done.Changes {
			switch {
			case change.Action != EnsureNamed:
			case change.From == image.Fingerprint:
				image.Aliases = slices.DeleteFunc(image.Aliases, func(a Alias) bool { return a.Name == change.Alias })
			case change.Fingerprint == image.Fingerprint:
				image.Aliases = append(image.Aliases, Alias{Name: change.Alias})
			}
		}
	}
	return marked
}
