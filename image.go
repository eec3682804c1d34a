package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
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
	} else if i.Project != c.Project() {
		i.client = c.InProject(i.Project)
	}
	i.read = i.attributes().sum()
	return i
}

// hold checks that what a server sent is an image, and the one that was asked
// for by its fingerprint or a prefix of that; "" is any.
func (i *Image) checkResponse(asked string) error {
	i.Fingerprint = strings.ToLower(i.Fingerprint)
	if err := checkServerFingerprint(i.Fingerprint); err != nil {
		return fmt.Errorf("it is not an image: %w", err)
	}
	if !strings.HasPrefix(i.Fingerprint, strings.ToLower(asked)) {
		return fmt.Errorf("it is image %s, not %s", i.Fingerprint, strings.ToLower(asked))
	}
	return nil
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
	op, err := i.client.start(ctx, &request{method: http.MethodDelete, path: path("images", i.Fingerprint), query: i.client.query()}, i.settleDeletion)
	if errors.Is(err, errDeletedBefore) {
		return nil
	}
	if err != nil {
		return err
	}
	if i.pending != nil {
		i.pending.release(ctx) // there is nothing more to be done for the image
	}
	i.pending = newPending(op, -1, nil)
	if opts == nil || !opts.Wait {
		return nil
	}
	return i.Wait(ctx)
}

// gone settles a forgotten deletion.
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
