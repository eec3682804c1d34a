package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/simplestreams"
)

// ImageType is the type of the instances that an image is for: [Container] or
// [VirtualMachine].
type ImageType = simplestreams.ImageType

// The image types.
const (
	Container      = simplestreams.Container
	VirtualMachine = simplestreams.VirtualMachine
)

// Image is an image on a server. The fields have the values that the server
// reported when the image was read. AutoUpdate, ExpiresAt, Profiles, Properties
// and Public can be changed and sent to the server with Update; the server sets
// the others.
//
// The methods of an Image are safe for concurrent use, unless its fields are
// changed at the same time.
type Image struct {
	Aliases      []Alias   `json:"aliases"`
	Architecture string    `json:"architecture"` // such as "x86_64"
	AutoUpdate   bool      `json:"auto_update"`
	Cached       bool      `json:"cached"`
	CreatedAt    time.Time `json:"created_at"`   // zero: unknown
	ExpiresAt    time.Time `json:"expires_at"`   // zero: never
	Filename     string    `json:"filename"`     // the last path element of the server's; it may be empty
	Fingerprint  string    `json:"fingerprint"`  // SHA-256 of the content, 64 hexadecimal digits
	LastUsedAt   time.Time `json:"last_used_at"` // zero: never
	// Profiles are the default profiles of instances created from the image.
	Profiles []string `json:"profiles"`
	// Project is the project that has the image. For a client of a project that
	// shares the images of the default project (features.images=false) it is
	// "default", and Client().Project() is the client's.
	Project      string            `json:"project"`
	Properties   map[string]string `json:"properties"`
	Public       bool              `json:"public"`
	Size         int64             `json:"size"` // bytes
	Type         ImageType         `json:"type"`
	UpdateSource *UpdateSource     `json:"update_source,omitempty"` // nil: none
	UploadedAt   time.Time         `json:"uploaded_at"`

	// ReleaseCodename and ReleaseTitle are set by servers with the extension
	// image_extended_metadata (LXD 6.9), for images of a simplestreams server.
	ReleaseCodename string `json:"release_codename,omitempty"`
	ReleaseTitle    string `json:"release_title,omitempty"`
	// Locations are the names of the cluster members that have the image
	// (extension image_locations: Incus 7); "none" is a server that is not
	// clustered.
	Locations []string `json:"locations,omitempty"`
	// AccessEntitlements are those of the requested entitlements that the client
	// has: see [ListOptions] and [Images.GetWithEntitlements].
	AccessEntitlements []string `json:"access_entitlements,omitempty"`

	client  *Client
	secret  string   // the secret that the image was read with; "" for none
	read    uint64   // the sum of the attributes when the image was read
	fixed   fixed    // the sums of the other fields then; zero if it was not read yet
	pending *pending // work under way; nil for none
}

// UpdateSource is the source from which a server updates an image.
type UpdateSource struct {
	Alias       string    `json:"alias"`
	Certificate string    `json:"certificate"` // of the source, PEM
	Protocol    string    `json:"protocol"`    // lxd, incus or simplestreams
	Server      string    `json:"server"`      // URL
	ImageType   ImageType `json:"image_type"`
	// ImageRegistry is the name of a registry. Servers with the extension
	// image_registries set it instead of Server and Protocol.
	ImageRegistry string `json:"image_registry,omitempty"`
}

// bind sets the client of a decoded image, and normalizes its fields.
func (i *Image) bind(c *Client) *Image {
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
	i.Filename = lastElement(i.Filename)
	i.client = c
	if i.Project == "" {
		i.Project = c.Project()
	}
	i.read, i.fixed = i.attributes().sum(), i.fixedFields()
	return i
}

// checkResponse checks that a response is an image, and has the requested
// fingerprint or prefix of one; "" allows any.
func (i *Image) checkResponse(want string) error {
	i.Fingerprint = strings.ToLower(i.Fingerprint)
	if err := checkServerFingerprint(i.Fingerprint); err != nil {
		return fmt.Errorf("it is not an image: %w", err)
	}
	if !strings.HasPrefix(i.Fingerprint, strings.ToLower(want)) {
		return fmt.Errorf("it is image %s, not %s", i.Fingerprint, strings.ToLower(want))
	}
	return nil
}

// Client returns the client that the image's methods use. Its project is the one
// that the image was read or created in; with ListOptions.AllProjects, that of the
// image.
func (i *Image) Client() *Client {
	if i == nil {
		return nil
	}
	return i.client
}

// replace replaces all fields by those of the image with, which was read later.
// It keeps the pending work.
func (i *Image) replace(with *Image) {
	work := i.pending
	*i = *with
	i.pending = work
}

// check returns an error if the image does not come from a server.
func (i *Image) check() error {
	if i == nil || i.client == nil {
		return invalid("image", "does not come from a client; use Images.Get")
	}
	return checkFingerprint("Image.Fingerprint", i.Fingerprint)
}

// checkExists returns an error if the image does not come from a server, or if the
// server may not have it yet: the call that creates it was not waited for.
func (i *Image) checkExists() error {
	if err := i.check(); err != nil {
		return err
	}
	if i.pending != nil && i.UploadedAt.IsZero() {
		return invalid("image", "%.12s may not exist yet: call Image.Wait first, or set Wait in the options of the call that creates it", i.Fingerprint)
	}
	return nil
}

// UpdateOptions has no options yet.
type UpdateOptions struct{}

// Update sends what was changed of AutoUpdate, ExpiresAt, Profiles, Properties and
// Public since this Image was read, then reads the image again. A zero ExpiresAt
// means never; nil Profiles leave the profiles unchanged; a property without a value
// is removed. A change of another field is an [*InputError].
//
// If the image was changed on the server since this Image was read, nothing is sent
// and the error matches [ErrConflict], unless the image already is as requested. See
// [Images.Update], which then reads it again and repeats the change. The updates of
// one Client, and of those that InProject returns, wait for each other, so that none
// is lost.
//
// Other clients may change the image in the same moment: the daemons compare the
// ETag and write in two steps (LXD 5.0.2, 6.9, Incus 6.0.4, 7.0.2), and each of two
// such writes may overwrite the other. If the image that is read again does not have
// the change, the error matches ErrConflict. A write that the server completes after
// that can still overwrite it unseen.
func (i *Image) Update(ctx context.Context, _ *UpdateOptions) error {
	if err := i.checkExists(); err != nil {
		return err
	}
	if err := checkContext(ctx); err != nil {
		return err
	}
	if err := i.checkChanges(); err != nil {
		return err
	}
	unlock, err := i.client.t.updates.lock(ctx, i.Fingerprint)
	if err != nil {
		return i.client.t.connectionError(ctx, &request{method: http.MethodPut, path: path("images", i.Fingerprint)}, err)
	}
	defer unlock()
	// The servers' ETag covers neither profiles nor expiry (LXD 5.0.2, Incus
	// 6.0.4), so the attributes are compared too.
	now, etag, err := i.client.Images.get(ctx, i.Fingerprint, nil)
	if err != nil {
		return err
	}
	to, from := i.attributes(), now.attributes()
	if to.matches(from) {
		i.replace(now)
		return nil
	}
	if now.read != i.read {
		return i.conflict("the image was changed by somebody else")
	}
	err = i.client.changeAttributes(ctx, i.Fingerprint, to, from, etag)
	if err != nil && !errors.Is(err, ErrConflict) && !maybeSeen(err) {
		return err
	}
	now, _, gerr := i.client.Images.get(ctx, i.Fingerprint, nil)
	switch {
	case gerr != nil && err == nil:
		// The image was changed; only reading it again failed.
		i.read = to.sum()
		return nil
	case gerr != nil:
		return err
	case err != nil && !to.matches(now.attributes()):
		return err
	case err == nil && !now.attributes().hasChanges(from, to):
		return i.conflict("the change was overwritten by that of somebody else in the same moment")
	}
	i.replace(now)
	return nil
}

// conflict returns an ErrConflict.
func (i *Image) conflict(message string) error {
	return &Error{
		StatusCode: http.StatusPreconditionFailed, Method: http.MethodPut, Path: path("images", i.Fingerprint),
		Message: message, Hint: "read it again, and repeat the change",
	}
}

// checkChanges returns an error for changes that Update does not send.
func (i *Image) checkChanges() error {
	for name := range i.Properties {
		if name == "" {
			return invalid("Image.Properties", "has an empty name")
		}
	}
	switch now := i.fixedFields(); {
	case i.fixed == (fixed{}):
		return nil // it was not read from a server yet
	case now.aliases != i.fixed.aliases:
		return invalid("Image.Aliases", "was changed, which Update does not send; use AddAlias, SetAlias or DeleteAlias")
	case now.filename != i.fixed.filename:
		return invalid("Image.Filename", "was changed, but the server sets it")
	case now != i.fixed:
		return invalid("Image", "was changed in a field that the server sets; Update sends AutoUpdate, ExpiresAt, Profiles, Properties and Public")
	}
	return nil
}

// DeleteOptions are the options of [Image.Delete].
type DeleteOptions struct {
	// Wait makes Delete return when the image is deleted. The default is to return
	// when the server has accepted the work.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while Delete waits for it (with Wait). By default it continues.
	CancelOnDone bool
}

// Delete removes the image and its aliases from the server.
func (i *Image) Delete(ctx context.Context, opts *DeleteOptions) error {
	if err := i.check(); err != nil {
		return err
	}
	op, err := i.client.start(ctx, &request{method: http.MethodDelete, path: path("images", i.Fingerprint), query: i.client.query()}, i.settleDeletion)
	if errors.Is(err, errDeletedBefore) {
		return nil
	}
	if err != nil {
		return err
	}
	if i.pending != nil {
		i.pending.release(ctx) // nobody can wait for it any more
	}
	i.pending = newPending(op, -1, func(ctx context.Context, failure error, _ *progress.Meter) (*Image, error) {
		if failure != nil && i.settleDeletion(ctx) == nil {
			// It was gone before (LXD 4.0), or somebody else has deleted it meanwhile.
			failure = fmt.Errorf("image %s: %w: %w", i.Fingerprint, ErrNotFound, failure)
		}
		return nil, failure
	})
	if opts == nil || !opts.Wait {
		return nil
	}
	_, err = i.pending.waitInCall(ctx, i, nil, opts.CancelOnDone)
	return err
}

// settleDeletion determines the outcome of a deletion whose operation the server
// has forgotten.
func (i *Image) settleDeletion(ctx context.Context) error {
	_, err := i.client.Images.Get(ctx, i.Fingerprint)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return errUnsettled
}

// RefreshOptions are the options of [Image.Refresh].
type RefreshOptions struct {
	// Wait makes Refresh return when the server has looked for a newer image, and
	// fetched it if there is one. The default is to return when the server has
	// accepted the work.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while Refresh waits for it (with Wait). By default it continues.
	CancelOnDone bool
	// Fresh makes the client look for a newer image in the index of a simplestreams
	// source, as the server may read the index from its cache; see Refresh. Refresh
	// then returns when it is done, as with Wait. If the server's cache does not have
	// the newer image, the client uploads it; it then has no UpdateSource, and is not
	// updated. For a source with another protocol, which the servers do not cache,
	// Fresh changes nothing.
	Fresh bool
}

// Refresh makes the server look for a newer version of the image at its source
// (UpdateSource), and fetch it if there is one. The newer version is another
// image: it has another fingerprint, and receives this one's aliases; the server
// deletes this one.
//
// With Wait, Refresh returns the newer image, or this one if there is none. Without
// Wait, it returns an Image that has this one's attributes, and after its Wait those
// of the newer image, if there is one. If the image has no source, the error (with
// Wait, or of Image.Wait) matches [ErrNotFound].
//
// LXD 5.0.2, 6.9, Incus 6.0.4 and 7.0.2 keep the index of a simplestreams server for an
// hour: a newer image may be found only then. See RefreshOptions.Fresh.
func (i *Image) Refresh(ctx context.Context, opts *RefreshOptions) (*Image, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	var o RefreshOptions
	if opts != nil {
		o = *opts
	}
	if err := i.client.need(ctx, "refresh an image", "image_force_refresh"); err != nil {
		return nil, err
	}
	if o.Fresh {
		if newer, err := i.refreshFresh(ctx); newer != nil || err != nil {
			return newer, err
		}
	}
	op, err := i.client.start(ctx, &request{method: http.MethodPost, path: path("images", i.Fingerprint, "refresh"), query: i.client.query()}, nil)
	if err != nil {
		return nil, err
	}
	old := *i
	work := newPending(op, -1, func(_ context.Context, failure error, _ *progress.Meter) (*Image, error) {
		return nil, old.refreshFailure(failure)
	})
	work.before = i.pending
	i.pending = work
	current := old
	current.pending = newPending(op, -1, func(ctx context.Context, failure error, _ *progress.Meter) (*Image, error) {
		if refreshed, _ := op.Status().Metadata["refreshed"].(bool); failure != nil || !refreshed {
			return nil, old.refreshFailure(failure)
		}
		return old.newer(ctx)
	})
	current.pending.before = old.pending
	if !o.Wait {
		return &current, nil
	}
	if _, err = current.pending.waitInCall(ctx, &current, nil, o.CancelOnDone); err != nil {
		return nil, err
	}
	if current.Fingerprint == i.Fingerprint {
		return i, nil
	}
	return &current, nil
}

// refreshFailure adds to the failure of a refresh that the image has no source: the
// daemons' statuses differ (LXD 404; Incus 6.0.4 and 7.0.2 400 or 404).
func (i *Image) refreshFailure(failure error) error {
	if failure == nil || i.UpdateSource != nil || i.UploadedAt.IsZero() || errors.Is(failure, ErrCancelled) {
		return failure
	}
	var failed *OperationError
	if errors.As(failure, &failed) {
		return failed.missing("the image has no source: the server has not imported it")
	}
	return fmt.Errorf("image %s has no source: %w: %w", i.Fingerprint, ErrNotFound, failure)
}

// newer returns the image that has replaced this one in a refresh. The operation
// does not contain its fingerprint (LXD 5.0.2, 6.9, Incus 6.0.4, 7.0.2): it has the
// aliases, and otherwise the source.
func (i *Image) newer(ctx context.Context) (*Image, error) {
	for _, alias := range i.Aliases {
		found, err := i.client.Images.GetByAlias(ctx, alias.Name)
		if err == nil && found.Fingerprint != i.Fingerprint {
			return found, nil
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	var newest *Image
	for image, err := range i.client.Images.Each(ctx, nil) {
		if err != nil {
			return nil, err
		}
		same := image.UpdateSource != nil && i.UpdateSource != nil && *image.UpdateSource == *i.UpdateSource && image.Type == i.Type
		if same && image.Fingerprint != i.Fingerprint && (newest == nil || image.UploadedAt.After(newest.UploadedAt)) {
			newest = image
		}
	}
	if newest == nil {
		return nil, fmt.Errorf("image %s was refreshed, but the newer image: %w", i.Fingerprint, ErrNotFound)
	}
	return newest, nil
}

// refreshFresh replaces the image by the newer one of a simplestreams index that the
// client reads now, and returns it, or i if there is none. It returns nil if the
// source is none whose index is cached.
func (i *Image) refreshFresh(ctx context.Context) (*Image, error) {
	m := i.client.Images
	now, err := m.Get(ctx, i.Fingerprint)
	if err != nil {
		return nil, err
	}
	if now.UpdateSource == nil {
		return nil, fmt.Errorf("refresh image %s, which has no source: %w", i.Fingerprint, ErrNotFound)
	}
	source := *now.UpdateSource
	if source.ImageRegistry != "" {
		registry, err := m.client.Registries.Get(ctx, source.ImageRegistry)
		if err != nil {
			return nil, err
		}
		source.Server, source.Protocol = registry.Config["url"], registry.Protocol
	}
	if source.Protocol != "simplestreams" {
		return nil, nil
	}
	o := &CreateFromSimplestreamsOptions{
		Type: now.Type, Certificate: source.Certificate, AllowHTTP: strings.HasPrefix(source.Server, "http://"),
		Public: now.Public, Profiles: now.Profiles, Aliases: now.Aliases, ReuseAliases: true, Via: ViaServer, Wait: true,
	}
	streams, found, err := m.resolveStream(ctx, source.Server, source.Alias, o, true)
	if err != nil {
		return nil, streamError(err)
	}
	if err := streams.Close(); err != nil {
		return nil, err
	}
	if found.Fingerprint == i.Fingerprint {
		return i, nil
	}
	byServer := *o
	byServer.AutoUpdate = now.AutoUpdate
	newer, err := m.createFromStream(ctx, source.Server, source.Alias, found.Fingerprint, &byServer)
	var wrong *FingerprintError
	var failed *OperationError
	if errors.As(err, &wrong) || errors.As(err, &failed) && !errors.Is(err, ErrCancelled) {
		// Its cached index has the old image.
		byClient := *o
		byClient.Via = ViaClient
		newer, err = m.createFromStream(ctx, source.Server, source.Alias, found.Fingerprint, &byClient)
	}
	if err != nil {
		return nil, err
	}
	if err := now.Delete(ctx, &DeleteOptions{Wait: true}); err != nil && !errors.Is(err, ErrNotFound) {
		return newer, fmt.Errorf("delete the replaced image %.12s: %w", i.Fingerprint, err)
	}
	return newer, nil
}

// AddAlias adds an alias to the image. If the image has it, it succeeds, and sets the
// description unless it is empty. If another image has it, the error matches
// [ErrExists]; see SetAlias.
func (i *Image) AddAlias(ctx context.Context, name, description string) error {
	aliases := i.aliases()
	return i.changeAlias(ctx, name, description, func(ctx context.Context, alias Alias) (Alias, error) {
		err := aliases.Create(ctx, alias)
		if !errors.Is(err, ErrExists) {
			return alias, err
		}
		existing, etag, gerr := aliases.get(ctx, name)
		switch {
		case gerr != nil || existing.Target != strings.ToLower(alias.Target):
			return alias, err
		case description == "" || description == existing.Description:
			return existing, nil
		}
		return alias, aliases.put(ctx, name, alias, etag)
	})
}

// SetAlias makes the alias point to this image, whether it is new or points to
// another one. An empty description keeps that of an existing alias.
func (i *Image) SetAlias(ctx context.Context, name, description string) error {
	return i.changeAlias(ctx, name, description, i.aliases().set)
}

func (i *Image) changeAlias(ctx context.Context, name, description string, change func(context.Context, Alias) (Alias, error)) error {
	if err := i.checkExists(); err != nil {
		return err
	}
	alias, err := change(ctx, Alias{Name: name, Description: description, Target: i.Fingerprint})
	if err != nil {
		return err
	}
	i.Aliases = slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == name })
	i.setAliases(append(i.Aliases, Alias{Name: name, Description: alias.Description}))
	return nil
}

// setAliases sets Aliases to what the server has.
func (i *Image) setAliases(aliases []Alias) {
	i.Aliases = aliases
	if i.fixed != (fixed{}) {
		i.fixed.aliases = i.fixedFields().aliases
	}
}

// DeleteAlias deletes an alias of the image. If there is no alias of that name,
// the error matches [ErrNotFound]; if it points to another image, [ErrConflict]. The
// daemons delete without a condition: an alias that somebody else moves between the
// look and the deletion is deleted too.
func (i *Image) DeleteAlias(ctx context.Context, name string) error {
	if err := i.check(); err != nil {
		return err
	}
	alias, err := i.aliases().Get(ctx, name)
	if err != nil {
		return err
	}
	if alias.Target != i.Fingerprint {
		return fmt.Errorf("alias %q points to image %.12s, not %.12s: %w", name, alias.Target, i.Fingerprint, ErrConflict)
	}
	if err := i.aliases().Delete(ctx, name); err != nil {
		return err
	}
	i.setAliases(slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == name }))
	return nil
}

func (i *Image) aliases() *Aliases {
	if i == nil || i.client == nil {
		return &Aliases{} // unused: check returns an error first
	}
	return i.client.Aliases
}
