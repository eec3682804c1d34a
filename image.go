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
)

// ImageType is the type of the instances that an image is for.
type ImageType string

// The image types.
const (
	Container      ImageType = "container"
	VirtualMachine ImageType = "virtual-machine"
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
	CreatedAt    time.Time `json:"created_at"` // zero: unknown
	ExpiresAt    time.Time `json:"expires_at"` // zero: never
	Filename     string    `json:"filename"`
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
	i.client = c
	if i.Project == "" {
		i.Project = c.Project()
	}
	i.read = i.attributes().sum()
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

// UpdateOptions has no options yet.
type UpdateOptions struct{}

// Update sends AutoUpdate, ExpiresAt, Profiles, Properties and Public, then
// reads the image again. If any of these was changed on the server since this
// Image was read, nothing is sent and the error matches [ErrConflict]. A change that
// somebody else makes in the same moment may still be overwritten: the daemons
// compare and write in two steps (LXD 5.0.2, Incus 6.0.4). A zero ExpiresAt means
// never; a nil Profiles leaves the profiles unchanged.
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
	// 6.0.4), so the attributes are compared too.
	now, etag, err := i.client.Images.get(ctx, i.Fingerprint, nil)
	if err != nil {
		return err
	}
	if now.read != i.read {
		if i.attributes().equalOf(now) {
			// An earlier call, whose response was lost, has made this change.
			i.replace(now)
			return nil
		}
		return &Error{
			StatusCode: http.StatusPreconditionFailed, Method: http.MethodPut, Path: path("images", i.Fingerprint),
			Message: "the image was changed by somebody else", Hint: "read it again, and repeat the change",
		}
	}
	putErr := i.client.putAttributes(ctx, i.Fingerprint, i.attributes(), now.attributes(), etag)
	if putErr != nil && !maybeSeen(putErr) {
		return putErr
	}
	now, _, err = i.client.Images.get(ctx, i.Fingerprint, nil)
	if putErr != nil && (err != nil || !i.attributes().equalOf(now)) {
		return putErr
	}
	if err != nil {
		// The image was changed; only reading it again failed.
		i.read = i.attributes().sum()
		return nil //nolint:nilerr // see above
	}
	i.replace(now)
	return nil
}

// DeleteOptions are the options of [Image.Delete].
type DeleteOptions struct {
	// Wait makes Delete return when the image is deleted. The default is to return
	// when the server has accepted the work.
	Wait bool
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
	return i.Wait(ctx)
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
}

// Refresh makes the server look for a newer version of the image at its source
// (UpdateSource), and fetch it if there is one. The newer version is another
// image: it has another fingerprint, and receives this one's aliases. With Wait,
// or after Image.Wait, the boolean "refreshed" in the metadata of
// Image.Operation reports whether there was one.
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
	work := newPending(op, -1, func(ctx context.Context, failure error, _ *progress.Meter) (*Image, error) {
		var failed *OperationError
		if errors.As(failure, &failed) && !errors.Is(failure, ErrCancelled) {
			now, err := i.client.Images.Get(ctx, i.Fingerprint)
			if err == nil && now.UpdateSource == nil {
				return nil, failed.missing("the image has no source to look at: it was not imported by the server")
			}
		}
		return nil, failure
	})
	work.before = i.pending
	i.pending = work
	if opts == nil || !opts.Wait {
		return nil
	}
	return i.Wait(ctx)
}

// AddAlias adds an alias to the image. If another image has the name, or this one
// with another description, the error matches [ErrExists]; see SetAlias.
func (i *Image) AddAlias(ctx context.Context, name, description string) error {
	return i.changeAlias(ctx, name, description, func(ctx context.Context, alias Alias) error {
		err := i.aliases().Create(ctx, alias)
		if errors.Is(err, ErrExists) {
			existing, gerr := i.aliases().Get(ctx, name)
			if gerr == nil && existing.Target == i.Fingerprint && existing.Description == description {
				return nil
			}
		}
		return err
	})
}

// SetAlias makes the alias point to this image, whether it is new or points to
// another one. An existing alias is moved in one request.
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

// DeleteAlias deletes an alias of the image. If there is no alias of that name,
// the error matches [ErrNotFound]; if it points to another image, [ErrConflict].
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
	i.Aliases = slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == name })
	return nil
}

func (i *Image) aliases() *Aliases {
	if i == nil || i.client == nil {
		return &Aliases{} // unused: check returns an error first
	}
	return i.client.Aliases
}
