package lxd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/daemon"
	"github.com/golxd/lxd/internal/wire"
)

// ImageType tells images of containers from those of virtual machines.
type ImageType string

// The image types.
const (
	Container      ImageType = "container"
	VirtualMachine ImageType = "virtual-machine"
)

// Image is an image on a server. The fields are what the server said when it
// was read. AutoUpdate, ExpiresAt, Profiles, Properties and Public can be
// changed and sent back with Update; the others are the server's.
//
// An Image must not be used from several goroutines at once while its fields
// are changed; its methods otherwise may.
type Image struct {
	Aliases      []Alias   `json:"aliases"`
	Architecture string    `json:"architecture"` // such as "x86_64"
	AutoUpdate   bool      `json:"auto_update"`
	Cached       bool      `json:"cached"`
	CreatedAt    time.Time `json:"created_at"` // zero: unknown
	ExpiresAt    time.Time `json:"expires_at"` // zero: never
	Filename     string    `json:"filename"`
	Fingerprint  string    `json:"fingerprint"`  // SHA-256 of the content, 64 hexadecimal digits
	LastUsedAt   time.Time `json:"last_used_at"` // zero: never
	// Profiles are what instances made of the image get by default.
	Profiles []string `json:"profiles"`
	// Project is the one the image was found in.
	Project      string            `json:"project"`
	Properties   map[string]string `json:"properties"`
	Public       bool              `json:"public"`
	Size         int64             `json:"size"` // bytes
	Type         ImageType         `json:"type"`
	UpdateSource *UpdateSource     `json:"update_source,omitempty"` // nil: none
	UploadedAt   time.Time         `json:"uploaded_at"`

	// ReleaseCodename and ReleaseTitle are set by LXD 6.9 and up.
	ReleaseCodename string `json:"release_codename,omitempty"`
	ReleaseTitle    string `json:"release_title,omitempty"`
	// Locations are the cluster members that have the image, set by newer
	// Incus.
	Locations []string `json:"locations,omitempty"`

	client  *Client
	secret  string   // that this image was read with
	read    uint64   // the sum of the changeable fields as they were read
	pending *pending // work under way; nil for none
}

// UpdateSource is where an image is updated from.
type UpdateSource struct {
	Alias       string    `json:"alias"`
	Certificate string    `json:"certificate"` // of the source, PEM
	Protocol    string    `json:"protocol"`    // lxd, incus or simplestreams
	Server      string    `json:"server"`      // URL
	ImageType   ImageType `json:"image_type"`
	// ImageRegistry is the name of a registry in place of server and protocol,
	// on servers with the extension image_registries.
	ImageRegistry string `json:"image_registry,omitempty"`
}

// adopt makes a decoded image one of the client's.
func (i *Image) adopt(c *Client) *Image {
	for _, t := range []*time.Time{&i.CreatedAt, &i.ExpiresAt, &i.LastUsedAt, &i.UploadedAt} {
		// Both the Unix epoch and the year 1 mean never.
		if t.Unix() == 0 || t.Year() <= 1 {
			*t = time.Time{}
		}
	}
	if i.Properties == nil {
		i.Properties = map[string]string{}
	}
	if i.Type == "" {
		i.Type = Container
	}
	i.client = c
	if i.Project == "" {
		i.Project = c.Project()
	} else if i.Project != c.Project() {
		i.client = c.InProject(i.Project)
	}
	i.read = i.attributes().sum()
	return i
}

// Images manages the images of a client's project.
type Images struct {
	client *Client
}

// ListOptions narrow a list. All conditions must hold; a zero field is none.
type ListOptions struct {
	// AllProjects lists the images of all projects (extension
	// images_all_projects). Image.Project tells which one an image is of.
	AllProjects bool

	Architecture string // such as "x86_64"
	Type         ImageType
	Public       *bool
	Cached       *bool
	AutoUpdate   *bool
	// Properties must all be there with these values.
	Properties map[string]string

	// Filter is an expression in the server's own language, such as
	// "properties.os eq ubuntu and not type eq container". A value that holds
	// a space is put in double quotes; string values are regular expressions,
	// matched whole and without regard to case. On LXD 5.0.2 conditions on
	// booleans never match; the fields above work everywhere.
	Filter string
}

// All lists the images with all their attributes, in one request. No match is
// an empty list. An untrusted client gets ErrForbidden unless
// Options.PublicOnly is set. A list that takes more than 512 MiB of memory,
// about 100,000 images, is an [ErrTooLarge]; use Each.
func (m *Images) All(ctx context.Context, opts *ListOptions) ([]*Image, error) {
	var images []*Image
	err := m.list(ctx, opts, maxList, func(*request) { images = []*Image{} }, func(image *Image) bool {
		images = append(images, image)
		return true
	})
	if err != nil {
		return nil, err
	}
	return images, nil
}

// Each iterates over the same images, decoding them one at a time while they
// arrive, so in constant memory. An error is the last thing it yields, with a
// nil image. It holds a connection while the loop runs. Ranging again lists
// again.
func (m *Images) Each(ctx context.Context, opts *ListOptions) iter.Seq2[*Image, error] {
	var o ListOptions
	if opts != nil {
		o = *opts
		o.Properties = maps.Clone(opts.Properties)
	}
	return func(yield func(*Image, error) bool) {
		var current *request
		err := m.list(ctx, &o, 0, func(req *request) { current = req }, func(image *Image) bool {
			current.noRetry = true // what was yielded cannot be taken back
			return yield(image, nil)
		})
		if err != nil {
			yield(nil, err)
		}
	}
}

// list decodes the images one after another until yield is false. begin is
// called at the start of every attempt. The limit is for the whole answer; 0
// means that no image is kept.
func (m *Images) list(ctx context.Context, opts *ListOptions, limit int64, begin func(*request), yield func(*Image) bool) error {
	var o ListOptions
	if opts != nil {
		o = *opts
	}
	c := m.client
	if o.AllProjects {
		if err := c.need(ctx, "list the images of all projects", "images_all_projects"); err != nil {
			return err
		}
	}
	req := &request{method: http.MethodGet, path: path("images"), query: o.query(c), header: c.demandTrust()}
	private := false
	_, err := c.t.call(ctx, req, &list{
		limit: limit, size: int64(reflect.TypeFor[Image]().Size()),
		begin: func() { begin(req) },
		element: func(dec *jsontext.Decoder) error {
			image := &Image{}
			if err := wire.UnmarshalElement(dec, image); err != nil {
				return err
			}
			if err := image.hold(""); err != nil {
				return unfit(err)
			}
			private = private || !image.Public
			if o.match(image.adopt(c)) && !yield(image) {
				return &yieldStopped{}
			}
			return nil
		},
	})
	var stopped *yieldStopped
	switch {
	case errors.As(err, &stopped):
		return nil
	case err == nil && !private:
		return c.checkTrust(ctx)
	}
	return err
}

// demandTrust asks a server for 403 in place of the public images only.
func (c *Client) demandTrust() http.Header {
	if c.t.unix || c.public {
		return nil
	}
	// Those of all families are sent, to spare a GET /1.0.
	header := http.Header{}
	for _, prefix := range daemon.Unknown.Prefixes() {
		header.Set("X-"+prefix+"-authenticated", "true")
	}
	return header
}

// checkTrust tells a server without private images from one that hides them:
// old servers do not know the header of demandTrust.
func (c *Client) checkTrust(ctx context.Context) error {
	if c.t.unix || c.public {
		return nil
	}
	s, err := c.serverInfo(ctx, false)
	if err != nil {
		return err
	}
	if s.Trusted {
		return nil
	}
	return &Error{
		StatusCode: http.StatusForbidden, Method: http.MethodGet, Path: path("images"), Message: "only the public images were listed",
		Hint: "the server does not trust this client; give Options a client certificate or token that it trusts, or set Options.PublicOnly",
	}
}

func (o *ListOptions) query(c *Client) url.Values {
	q := url.Values{"recursion": {"1"}}
	switch {
	case o.AllProjects:
		q.Set("all-projects", "true")
	case c.project != "":
		q.Set("project", c.project)
	}
	var clauses []string
	add := func(field, value string) {
		if clause, ok := filterClause(field, value); ok {
			clauses = append(clauses, clause)
		}
	}
	add("architecture", o.Architecture)
	add("type", string(o.Type))
	for _, name := range slices.Sorted(maps.Keys(o.Properties)) {
		add("properties."+name, o.Properties[name])
	}
	if o.Filter != "" {
		clauses = append(clauses, o.Filter)
	}
	if len(clauses) > 0 {
		q.Set("filter", strings.Join(clauses, " and "))
	}
	return q
}

// filterClause writes one condition for the server. The values are regular
// expressions there. What its language cannot express safely is left out: match
// looks at every image anyway, the server's filter only spares sending it.
func filterClause(field, value string) (string, bool) {
	if value == "" || strings.ContainsAny(field, " \"\\") || strings.ContainsAny(value, "\"\\^") {
		return "", false
	}
	var b strings.Builder
	for _, r := range value {
		switch {
		case r < ' ':
			return "", false
		case strings.ContainsRune(".+*?()|[]{}$", r):
			b.WriteString("[" + string(r) + "]") // a backslash would have to pass two parsers
		default:
			b.WriteRune(r)
		}
	}
	quoted := b.String()
	if strings.Contains(quoted, " ") {
		quoted = `"` + quoted + `"` // without a space, the quotes fail to parse
	}
	return field + " eq " + quoted, true
}

func (o *ListOptions) match(i *Image) bool {
	flag := func(want *bool, is bool) bool { return want == nil || *want == is }
	if (o.Architecture != "" && o.Architecture != i.Architecture) || (o.Type != "" && o.Type != i.Type) ||
		!flag(o.Public, i.Public) || !flag(o.Cached, i.Cached) || !flag(o.AutoUpdate, i.AutoUpdate) {
		return false
	}
	for name, want := range o.Properties {
		if is, ok := i.Properties[name]; !ok || is != want {
			return false
		}
	}
	return true
}

// Get reads one image by its fingerprint or a unique prefix of it (LXD 6.5 and
// up: of 12 characters at least). It is an [ErrNotFound] if there is none, and
// an [ErrAmbiguous] if the prefix does not tell which one. Another image than
// the one that was asked for is an [ErrBadResponse].
func (m *Images) Get(ctx context.Context, fingerprint string) (*Image, error) {
	image, _, err := m.get(ctx, fingerprint, nil)
	return image, err
}

func (m *Images) get(ctx context.Context, fingerprint string, extra url.Values) (*Image, string, error) {
	if err := checkFingerprint("fingerprint", fingerprint); err != nil {
		return nil, "", err
	}
	query := m.client.query()
	if len(extra) > 0 {
		query = maps.Clone(query)
		if query == nil {
			query = url.Values{}
		}
		maps.Copy(query, extra)
	}
	req := &request{method: http.MethodGet, path: path("images", strings.ToLower(fingerprint)), query: query}
	image, ans, err := get(ctx, m.client.t, req, func(i *Image) error { return i.hold(fingerprint) })
	if err != nil {
		return nil, "", m.prefixError(ctx, fingerprint, err)
	}
	return image.adopt(m.client), ans.etag, nil
}

// hold checks that what a server sent is an image, and the one that was asked
// for by its fingerprint or a prefix of that; "" is any.
func (i *Image) hold(asked string) error {
	i.Fingerprint = strings.ToLower(i.Fingerprint)
	if err := holdFingerprint(i.Fingerprint); err != nil {
		return fmt.Errorf("it is not an image: %w", err)
	}
	if !strings.HasPrefix(i.Fingerprint, strings.ToLower(asked)) {
		return fmt.Errorf("it is image %s, not %s", i.Fingerprint, strings.ToLower(asked))
	}
	return nil
}

// holdFingerprint checks that what a server sent is a whole fingerprint.
func holdFingerprint(fingerprint string) error {
	if checkFullFingerprint("", fingerprint) != nil {
		return fmt.Errorf("its fingerprint is %.80q, not a SHA-256", fingerprint)
	}
	return nil
}

// prefixError finds out whether a server refused a prefix: LXD 5.0.2 answers
// 500 to an ambiguous one, LXD 6.5 and up 400 to a short one.
func (m *Images) prefixError(ctx context.Context, prefix string, err error) error {
	var e *Error
	if len(prefix) == 64 || !errors.As(err, &e) || errors.Is(err, ErrBadResponse) || (e.StatusCode != http.StatusBadRequest && e.StatusCode != http.StatusInternalServerError) {
		return err
	}
	if e.StatusCode == http.StatusInternalServerError {
		matches, u := 0, ""
		_, lerr := m.client.t.call(ctx, &request{method: http.MethodGet, path: path("images"), query: m.client.query()}, &list{
			limit: maxList, // of what is read: none of it is kept
			begin: func() { matches = 0 },
			element: func(dec *jsontext.Decoder) error {
				if err := wire.UnmarshalElement(dec, &u); err != nil {
					return err
				}
				name, _, _ := strings.Cut(u[strings.LastIndexByte(u, '/')+1:], "?")
				if strings.HasPrefix(strings.ToLower(name), strings.ToLower(prefix)) {
					matches++
				}
				return nil
			},
		})
		if lerr != nil || matches < 2 {
			return err
		}
	}
	ambiguous := *e
	ambiguous.kind, ambiguous.Hint = ErrAmbiguous, "give more digits of the fingerprint"
	return &ambiguous
}

// GetByAlias reads the image that an alias stands for.
func (m *Images) GetByAlias(ctx context.Context, alias string) (*Image, error) {
	a, err := m.client.Aliases.Get(ctx, alias)
	if err != nil {
		return nil, err
	}
	return m.Get(ctx, a.Target)
}

// Exists says whether there is an image of that fingerprint (or unique prefix),
// or else of that alias.
func (m *Images) Exists(ctx context.Context, fingerprintOrAlias string) (bool, error) {
	if fingerprintOrAlias == "" {
		return false, invalid("fingerprintOrAlias", "is empty")
	}
	if checkFingerprint("", fingerprintOrAlias) == nil {
		_, err := m.Get(ctx, fingerprintOrAlias)
		if err == nil {
			return true, nil
		}
		// "ace" is a fine alias too, and a short prefix is refused by some.
		if !errors.Is(err, ErrNotFound) && !(errors.Is(err, ErrAmbiguous) && len(fingerprintOrAlias) < 12) {
			return false, err
		}
	}
	_, err := m.client.Aliases.Get(ctx, fingerprintOrAlias)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Client is the client that the image's methods use: that of the image's own
// project.
func (i *Image) Client() *Client { return i.client }

// replace takes over all attributes of another reading of the image.
func (i *Image) replace(with *Image) {
	work := i.pending
	*i = *with
	i.pending = work
}

// check refuses an image that no server has told of.
func (i *Image) check() error {
	if i == nil || i.client == nil {
		return invalid("image", "does not come from a client; use Images.Get")
	}
	return checkFingerprint("Image.Fingerprint", i.Fingerprint)
}

// UpdateOptions are for what may come.
type UpdateOptions struct{}

// Update sends AutoUpdate, ExpiresAt, Profiles, Properties and Public, then
// reads the image again. Nobody's change is lost: if any of these was changed
// on the server since this Image was read, nothing is sent and the error is an
// [ErrConflict]. A zero ExpiresAt means never; a nil Profiles is left as it is.
func (i *Image) Update(ctx context.Context, _ *UpdateOptions) error {
	if err := i.check(); err != nil {
		return err
	}
	for name := range i.Properties {
		if name == "" {
			return invalid("Image.Properties", "has an empty name")
		}
	}
	// The servers' ETag covers neither profiles nor expiry (LXD 5.0.2, Incus
	// 6.0.4), so what was read is compared too.
	now, etag, err := i.client.Images.get(ctx, i.Fingerprint, nil)
	if err != nil {
		return err
	}
	if now.read != i.read {
		return &Error{
			StatusCode: http.StatusPreconditionFailed, Method: http.MethodPut, Path: path("images", i.Fingerprint),
			Message: "the image was changed by somebody else", Hint: "get it again, and repeat the change",
		}
	}
	if err := i.client.putAttributes(ctx, i.Fingerprint, i.attributes(), now.attributes(), etag); err != nil {
		return err
	}
	now, _, err = i.client.Images.get(ctx, i.Fingerprint, nil)
	if err != nil {
		// The change is made; only its reading failed.
		i.read = i.attributes().sum()
		return nil //nolint:nilerr // as said
	}
	i.replace(now)
	return nil
}

// DeleteOptions say how to delete.
type DeleteOptions struct {
	// Wait returns when the image is gone. Default: when the server has
	// accepted the work.
	Wait bool
}

// Delete removes the image and its aliases from the server.
func (i *Image) Delete(ctx context.Context, opts *DeleteOptions) error {
	if err := i.check(); err != nil {
		return err
	}
	op, err := i.client.start(ctx, &request{method: http.MethodDelete, path: path("images", i.Fingerprint), query: i.client.query()}, i.gone)
	if errors.Is(err, errDeletedBefore) {
		return nil
	}
	if err != nil {
		return err
	}
	if i.pending != nil {
		i.pending.giveUp(ctx) // there is nothing more to be done for the image
	}
	i.pending = newPending(op, -1, nil)
	if opts == nil || !opts.Wait {
		return nil
	}
	return i.Wait(ctx)
}

// gone settles a forgotten deletion.
func (i *Image) gone(ctx context.Context) error {
	_, err := i.client.Images.Get(ctx, i.Fingerprint)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return errUnsettled
}

// RefreshOptions say how to refresh.
type RefreshOptions struct {
	// Wait returns when the server has looked for, and fetched, a newer image.
	// Default: when it has accepted the work.
	Wait bool
}

// Refresh makes the server look for a newer version of the image where it came
// from (UpdateSource), and take that if there is one. The newer image is
// another one: it has another fingerprint, and this one's aliases. With Wait,
// or after Image.Wait, the boolean "refreshed" in the metadata of
// Image.Operation tells whether there was one.
func (i *Image) Refresh(ctx context.Context, opts *RefreshOptions) error {
	if err := i.check(); err != nil {
		return err
	}
	if err := i.client.need(ctx, "refresh an image", "image_force_refresh"); err != nil {
		return err
	}
	op, err := i.client.start(ctx, &request{method: http.MethodPost, path: path("images", i.Fingerprint, "refresh"), query: i.client.query()}, nil)
	if err != nil {
		return err
	}
	work := newPending(op, -1, nil)
	work.before = i.pending
	i.pending = work
	if opts == nil || !opts.Wait {
		return nil
	}
	return i.Wait(ctx)
}

// AddAlias gives the image one more name. It is an [ErrExists] if the name is
// taken; see SetAlias.
func (i *Image) AddAlias(ctx context.Context, name, description string) error {
	return i.changeAlias(ctx, name, description, i.aliases().Create)
}

// SetAlias makes the name stand for this image, whether it is new or stood for
// another one. A name that exists is moved in one request.
func (i *Image) SetAlias(ctx context.Context, name, description string) error {
	return i.changeAlias(ctx, name, description, i.aliases().Set)
}

func (i *Image) changeAlias(ctx context.Context, name, description string, change func(context.Context, Alias) error) error {
	if err := i.check(); err != nil {
		return err
	}
	if err := change(ctx, Alias{Name: name, Description: description, Target: i.Fingerprint}); err != nil {
		return err
	}
	i.Aliases = slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == name })
	i.Aliases = append(i.Aliases, Alias{Name: name, Description: description})
	return nil
}

// DeleteAlias takes a name from the image. It is an [ErrNotFound] if the name
// does not exist, and an [ErrConflict] if it stands for another image.
func (i *Image) DeleteAlias(ctx context.Context, name string) error {
	if err := i.check(); err != nil {
		return err
	}
	alias, err := i.aliases().Get(ctx, name)
	if err != nil {
		return err
	}
	if alias.Target != i.Fingerprint {
		return fmt.Errorf("alias %q stands for image %.12s, not %.12s: %w", name, alias.Target, i.Fingerprint, ErrConflict)
	}
	if err := i.aliases().Delete(ctx, name); err != nil {
		return err
	}
	i.Aliases = slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == name })
	return nil
}

func (i *Image) aliases() *Aliases {
	if i == nil || i.client == nil {
		return &Aliases{} // check refuses it before it is used
	}
	return i.client.Aliases
}
