package lxd

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Source is where an image comes from: [FromFile], [FromReader], [FromURL],
// [FromSimplestreams], [FromOCI], [FromImage], [FromInstance] or [OpenSource]. Other packages may
// implement it. [Images.CreateFrom] creates the image of any Source.
type Source interface {
	// String names the source, without secrets.
	String() string
	// Resolve returns what the source says of its image before it is brought to the
	// server of target. What it does not say is zero. If it has no such image, the
	// error matches ErrNotFound.
	Resolve(ctx context.Context, target *Client) (*SourceImage, error)
	// CreateIn creates the image, as Images.CreateFrom describes it. opts is not nil.
	CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error)
}

// ServerSource is a [Source] that servers can read themselves: an alias of a
// simplestreams server, an image of a registry, or an image of another server.
type ServerSource interface {
	Source
	// InstanceSource is what Images.InstanceSource calls.
	InstanceSource(ctx context.Context, target *Client) (*InstanceSource, error)
}

// SourceImage is what a [Source] says of its image.
type SourceImage struct {
	Fingerprint  string
	Type         ImageType
	Architecture string // such as "x86_64"
	Properties   map[string]string
	Size         int64    // in bytes
	Aliases      []string // the names of the source
}

// CreateFromOptions describe the image to create.
type CreateFromOptions struct {
	// Public makes the image public. An image of another server is also public if it
	// is so there.
	Public bool
	// AutoUpdate lets the server update the image from its source, which must be a
	// simplestreams server, an OCI registry or a public image with an alias of another server. Of a URL
	// the servers store it without effect. Other sources are refused with an
	// [*InputError], or an error that matches ErrUnsupported. An image of another server
	// is also updated if it is so there and that is possible.
	AutoUpdate bool
	// Filename is that of the image. The default is the source's.
	Filename string
	// Properties are added to those of the image, and override them. For an image of
	// another server they replace all.
	Properties map[string]string
	// Profiles are the default profiles of instances created from the image (extension
	// image_profiles). The default is "default".
	Profiles []string
	Aliases  []Alias
	// ReuseAliases moves aliases that point to other images to this one. Those images
	// remain, without the alias. By default such an alias is an error that matches
	// ErrExists.
	ReuseAliases bool
	// DeleteReplaced deletes the images that have lost their last alias to
	// ReuseAliases, which must be set.
	DeleteReplaced bool
	// ExpiresAt is when the image expires. The default is the source's, or never.
	ExpiresAt time.Time

	// Resolved is what Resolve of the source has returned before for this server, if
	// that is known. A file or an image of another server is then not read again to
	// find its fingerprint, and content of another one is a [*FingerprintError].
	Resolved *SourceImage

	// IfExists is what happens if the server already has the image. The default is to
	// apply the options that are set to it.
	IfExists IfExists

	// Wait makes the call return when the image is complete. The default is to return
	// when the server has accepted the work; Image.Wait does the rest.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while the call waits for it (with Wait).
	CancelOnDone bool

	// Progress receives the phases of the source: see the other Create methods.
	Progress func(Progress)
}

// CreateFrom creates an image from a source. It is the same as the method of that
// source (Create, CreateFromURL, CreateFromSimplestreams, CreateFromInstance,
// Image.Copy; FromOCI has none), with the same checks and errors.
func (m *Images) CreateFrom(ctx context.Context, source Source, opts *CreateFromOptions) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	if source == nil {
		return nil, invalid("source", "is nil")
	}
	var o CreateFromOptions
	if opts != nil {
		o = *opts
	}
	if o.Resolved != nil && o.Resolved.Fingerprint != "" {
		if err := checkFullFingerprint("CreateFromOptions.Resolved.Fingerprint", o.Resolved.Fingerprint); err != nil {
			return nil, err
		}
	}
	return source.CreateIn(ctx, m, &o)
}

// resolvedFingerprint is the fingerprint in Resolved; "" if it is not known.
func (o *CreateFromOptions) resolvedFingerprint() string {
	if o.Resolved == nil {
		return ""
	}
	return strings.ToLower(o.Resolved.Fingerprint)
}

// InstanceSource returns what a request that creates an instance, of the image that the
// source has then, must contain. The server fetches the image itself, and keeps it as a
// cached image. If it cannot read the source, the error matches [ErrUnsupported]: create
// the image first, and use [Image.InstanceSource].
func (m *Images) InstanceSource(ctx context.Context, source Source) (*InstanceSource, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	if source == nil {
		return nil, invalid("source", "is nil")
	}
	if s, ok := source.(ServerSource); ok {
		return s.InstanceSource(ctx, m.client)
	}
	return nil, fmt.Errorf("create an instance of %s: %w: the server cannot read it; create the image first (Images.Ensure), and use Image.InstanceSource", source, ErrUnsupported)
}

// refuseAutoUpdate returns an error for a source that the server cannot read again.
func (o *CreateFromOptions) refuseAutoUpdate(source fmt.Stringer) error {
	if o.AutoUpdate {
		return invalid("CreateFromOptions.AutoUpdate", "needs a source that the server can read, not %s", source)
	}
	return nil
}
