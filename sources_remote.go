package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/golxd/lxd/internal/near"
)

// FromImageOptions select an image of another server, and how it is copied.
type FromImageOptions struct {
	// Type and Architecture select one of several images with the name; see
	// ResolveOptions.
	Type         ImageType
	Architecture string
	// Mode is how the content is copied. The default is CopyAuto.
	Mode CopyMode
}

type imageSource struct {
	client *Client
	ref    string
	opts   FromImageOptions
}

// FromImage returns a source that is an image of another server, or of another project:
// an alias, a fingerprint or a prefix of one, as [Images.Resolve] finds it. See
// [Image.Copy].
func FromImage(client *Client, ref string, opts *FromImageOptions) Source {
	s := &imageSource{client: client, ref: ref}
	if opts != nil {
		s.opts = *opts
	}
	return s
}

func (s *imageSource) String() string {
	if s.client == nil {
		return fmt.Sprintf("image %q of no server", s.ref)
	}
	return fmt.Sprintf("image %q of %s", s.ref, s.client.Endpoint())
}

// find returns the image on the other server: the one with the fingerprint, or if that
// is "" the one that ref stands for now.
func (s *imageSource) find(ctx context.Context, fingerprint string) (*Image, error) {
	if err := s.client.check(ctx); err != nil {
		return nil, err
	}
	image, err := s.client.Images.Resolve(ctx, cmp.Or(fingerprint, s.ref), &ResolveOptions{Type: s.opts.Type, Architecture: s.opts.Architecture})
	if !isMissing(err) || fingerprint != "" {
		return image, err
	}
	aliases, lerr := s.client.Aliases.All(ctx)
	if lerr != nil {
		return nil, err
	}
	similar := near.Names(s.ref, func(yield func(string) bool) {
		for _, alias := range aliases {
			if !yield(alias.Name) {
				return
			}
		}
	})
	if len(similar) == 0 {
		return nil, err
	}
	return nil, fmt.Errorf("%w (similar: %s)", err, strings.Join(similar, ", "))
}

// Resolve returns what the other server says of the image.
func (s *imageSource) Resolve(ctx context.Context, _ *Client) (*SourceImage, error) {
	image, err := s.find(ctx, "")
	if err != nil {
		return nil, err
	}
	resolved := &SourceImage{
		Fingerprint: image.Fingerprint, Type: image.Type, Architecture: image.Architecture, Properties: image.Properties, Size: image.Size,
	}
	for _, alias := range image.Aliases {
		resolved.Aliases = append(resolved.Aliases, alias.Name)
	}
	return resolved, nil
}

// CreateIn copies the image.
func (s *imageSource) CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error) {
	image, err := s.find(ctx, opts.resolvedFingerprint())
	if err != nil {
		return nil, err
	}
	o := &CopyOptions{
		Mode: s.opts.Mode, Filename: opts.Filename, Properties: opts.Properties,
		Profiles: opts.Profiles, Aliases: opts.Aliases, ReuseAliases: opts.ReuseAliases, DeleteReplaced: opts.DeleteReplaced,
		IfExists: opts.IfExists, Wait: opts.Wait, CancelOnDone: opts.CancelOnDone, Progress: opts.Progress,
	}
	if opts.Public {
		o.Public = &opts.Public
	}
	if opts.AutoUpdate {
		o.AutoUpdate = &opts.AutoUpdate
	}
	if !opts.ExpiresAt.IsZero() {
		o.ExpiresAt = &opts.ExpiresAt
	}
	copied, err := image.Copy(ctx, images.client, o)
	if copied == nil {
		return nil, err
	}
	return copied.Image, err
}

// InstanceSource returns the image that ref stands for now; see [Image.InstanceSource].
func (s *imageSource) InstanceSource(ctx context.Context, target *Client) (*InstanceSource, error) {
	image, err := s.find(ctx, "")
	if err != nil {
		return nil, err
	}
	return image.InstanceSource(ctx, &InstanceSourceOptions{Target: target})
}

// OpenSourceOptions configure [OpenSource].
type OpenSourceOptions struct {
	// Options are those of the client of a remote that is an LXD or Incus server; see
	// [Remote]. Family and ConfigDir select the configuration for all remotes.
	Options *Options
	// Type and Architecture select one of several images with the name.
	Type         ImageType
	Architecture string // in any spelling, such as "aarch64" or "arm64"
	// Image configures a remote that is an LXD or Incus server; its Type and
	// Architecture are ignored.
	Image FromImageOptions
	// Simplestreams configures a remote that is a simplestreams server; its Type and
	// Architecture are ignored.
	Simplestreams FromSimplestreamsOptions
	// OCI configures a remote that is an OCI registry. The default user name and
	// password are those of the remote.
	OCI FromOCIOptions
}

// OpenedSource is the source of [OpenSource]. It must be closed.
type OpenedSource struct {
	Source

	client *Client // nil for a simplestreams server or registry
}

// Close closes the connections to the remote. An Image that was not waited for must be
// waited for first.
func (s *OpenedSource) Close() error {
	if s == nil || s.client == nil {
		return nil
	}
	return s.client.Close()
}

// InstanceSource is what Images.InstanceSource calls.
func (s *OpenedSource) InstanceSource(ctx context.Context, target *Client) (*InstanceSource, error) {
	if err := target.check(ctx); err != nil {
		return nil, err
	}
	return target.Images.InstanceSource(ctx, s.Source)
}

// OpenSource returns the source that the lxc and incus command lines know by this name,
// such as "images:debian/13" or "docker:nginx:latest": an image of one of the user's
// remotes, LXD or Incus server, simplestreams server or OCI registry. The credentials of
// a registry are in its address, or those of its credentials helper, a command that is
// run when the image is resolved or created. Without a remote it is an image of the
// default remote. An unknown remote is a [*RemoteError] that matches [ErrNotFound] and
// lists the others. Nothing is sent yet.
func OpenSource(name string, opts *OpenSourceOptions) (*OpenedSource, error) {
	var o OpenSourceOptions
	if opts != nil {
		o = *opts
	}
	remote, ref, named := strings.Cut(name, ":")
	if !named {
		remote, ref = "", name
	}
	switch {
	case ref == "":
		return nil, invalid("name", "%q has no image; write remote:alias", name)
	case named && remote == "":
		return nil, invalid("name", "%q has no remote before the colon", name)
	}
	if err := checkOneOf("OpenSourceOptions.Type", o.Type, "", Container, VirtualMachine); err != nil {
		return nil, err
	}
	architecture, err := checkArchitecture("OpenSourceOptions.Architecture", o.Architecture)
	if err != nil {
		return nil, err
	}
	o.Image.Type, o.Image.Architecture = o.Type, architecture
	o.Simplestreams.Type, o.Simplestreams.Architecture = o.Type, architecture
	client, err := Remote(remote, o.Options)
	if err == nil {
		return &OpenedSource{Source: FromImage(client, ref, &o.Image), client: client}, nil
	}
	var refused *RemoteError
	if !errors.As(err, &refused) || refused.Info == nil {
		return nil, err
	}
	switch refused.Info.Protocol {
	case SimplestreamsProtocol:
		return &OpenedSource{Source: FromSimplestreams(refused.Info.Address, ref, &o.Simplestreams)}, nil
	case OCIProtocol:
		if o.Type == VirtualMachine {
			return nil, invalid("OpenSourceOptions.Type", "is %q, but a registry such as %q has only containers", o.Type, refused.Info.Name)
		}
		if architecture != "" {
			return nil, invalid("OpenSourceOptions.Architecture", "is set, but of a registry such as %q the server pulls the image for its own architecture", refused.Info.Name)
		}
		return &OpenedSource{Source: ociRemote(refused.Info, ref, &o.OCI)}, nil
	}
	return nil, err
}
