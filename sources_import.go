package lxd

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/simplestreams"
)

// FromURLOptions configure a URL source; see [CreateFromURLOptions].
type FromURLOptions struct {
	Fingerprint  string
	Via          Via
	HTTPClient   *http.Client
	StallTimeout time.Duration
}

type urlSource struct {
	url  string
	opts CreateFromURLOptions
}

// FromURL returns a source that is the file at a URL; see [Images.CreateFromURL].
func FromURL(imageURL string, opts *FromURLOptions) Source {
	s := &urlSource{url: imageURL}
	if opts != nil {
		s.opts = CreateFromURLOptions{Fingerprint: opts.Fingerprint, Via: opts.Via, HTTPClient: opts.HTTPClient, StallTimeout: opts.StallTimeout}
	}
	return s
}

func (s *urlSource) String() string {
	u, err := url.Parse(s.url)
	if err != nil {
		return "a malformed URL"
	}
	return "URL " + redact.URL(u)
}

// Resolve returns the fingerprint in the headers of the response to a HEAD request, if
// there is one.
func (s *urlSource) Resolve(ctx context.Context, target *Client) (*SourceImage, error) {
	if err := target.check(ctx); err != nil {
		return nil, err
	}
	u, err := checkSourceURL("url", s.url)
	if err != nil {
		return nil, err
	}
	fingerprint, err := target.Images.resolveURL(ctx, u, &s.opts)
	if err != nil {
		return nil, err
	}
	if s.opts.Fingerprint != "" {
		fingerprint = s.opts.Fingerprint
	}
	return &SourceImage{Fingerprint: fingerprint}, nil
}

// CreateIn imports the file.
func (s *urlSource) CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error) {
	o := s.opts
	o.Public, o.AutoUpdate, o.Filename, o.Properties, o.Profiles, o.Aliases = opts.Public, opts.AutoUpdate, opts.Filename, opts.Properties, opts.Profiles, opts.Aliases
	o.ReuseAliases, o.DeleteReplaced, o.ExpiresAt, o.IfExists = opts.ReuseAliases, opts.DeleteReplaced, opts.ExpiresAt, opts.IfExists
	o.Wait, o.CancelOnDone, o.Progress = opts.Wait, opts.CancelOnDone, opts.Progress
	return images.CreateFromURL(ctx, s.url, &o)
}

// FromSimplestreamsOptions configure a simplestreams source; see
// [CreateFromSimplestreamsOptions].
type FromSimplestreamsOptions struct {
	Type         ImageType
	Architecture string
	Certificate  string
	AllowHTTP    bool
	Verifier     simplestreams.Verifier
	Via          Via
	Cache        simplestreams.Cache
	HTTPClient   *http.Client
	StallTimeout time.Duration
}

type streamSource struct {
	server, alias string
	opts          CreateFromSimplestreamsOptions
}

// FromSimplestreams returns a source that is an alias of a simplestreams server; see
// [Images.CreateFromSimplestreams].
func FromSimplestreams(server, alias string, opts *FromSimplestreamsOptions) Source {
	s := &streamSource{server: server, alias: alias}
	if opts != nil {
		s.opts = CreateFromSimplestreamsOptions{
			Type: opts.Type, Architecture: opts.Architecture, Certificate: opts.Certificate, AllowHTTP: opts.AllowHTTP, Verifier: opts.Verifier, Via: opts.Via, Cache: opts.Cache,
			HTTPClient: opts.HTTPClient, StallTimeout: opts.StallTimeout,
		}
	}
	return s
}

func (s *streamSource) String() string {
	u, err := url.Parse(s.server)
	if err != nil {
		return fmt.Sprintf("%q of a malformed URL", s.alias)
	}
	return fmt.Sprintf("%q of %s", s.alias, redact.URL(u))
}

// Resolve finds the image in the server's index.
func (s *streamSource) Resolve(ctx context.Context, target *Client) (*SourceImage, error) {
	if err := target.check(ctx); err != nil {
		return nil, err
	}
	alias, err := s.opts.check(s.server, s.alias)
	if err != nil {
		return nil, err
	}
	streams, image, err := target.Images.resolveStream(ctx, s.server, alias, &s.opts, false)
	if err != nil {
		return nil, streamError(err)
	}
	return &SourceImage{
		Fingerprint: image.Fingerprint, Type: image.Type, Architecture: image.Architecture,
		Properties: maps.Clone(image.Properties), Size: image.Size, Aliases: slices.Clone(image.Aliases),
	}, streams.Close()
}

// CreateIn imports the image.
func (s *streamSource) CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error) {
	o := s.opts
	o.Public, o.AutoUpdate, o.Filename, o.Properties, o.Profiles, o.Aliases = opts.Public, opts.AutoUpdate, opts.Filename, opts.Properties, opts.Profiles, opts.Aliases
	o.ReuseAliases, o.DeleteReplaced, o.ExpiresAt, o.IfExists = opts.ReuseAliases, opts.DeleteReplaced, opts.ExpiresAt, opts.IfExists
	o.Wait, o.CancelOnDone, o.Progress = opts.Wait, opts.CancelOnDone, opts.Progress
	alias, err := o.check(s.server, s.alias)
	if err != nil {
		return nil, err
	}
	return images.createFromStream(ctx, s.server, alias, opts.resolvedFingerprint(), &o)
}

// InstanceSource returns the alias on its server, which does not expire: the instance
// gets the image that the alias has then. The request chooses the image's type by that
// of the instance, so that Type is not part of the source.
func (s *streamSource) InstanceSource(ctx context.Context, target *Client) (*InstanceSource, error) {
	if err := target.check(ctx); err != nil {
		return nil, err
	}
	o := s.opts
	alias, err := o.check(s.server, s.alias)
	if err != nil {
		return nil, err
	}
	if o.Verifier != nil {
		return nil, invalid("FromSimplestreamsOptions.Verifier", "must be nil for the source of an instance, as no server verifies signatures")
	}
	source, err := target.Images.streamSource(ctx, s.server, alias, &o)
	if err != nil {
		return nil, err
	}
	return &InstanceSource{
		Type: source.Type, Mode: source.Mode, Server: source.Server, Protocol: source.Protocol, Certificate: source.Certificate,
		Alias: source.Alias, ImageRegistry: source.ImageRegistry,
	}, nil
}

// FromInstanceOptions configure an instance source; see [CreateFromInstanceOptions].
type FromInstanceOptions struct {
	Compression string
	Split       bool
}

type instanceSource struct {
	name string
	opts CreateFromInstanceOptions
}

// FromInstance returns a source that is an instance or snapshot of the server that
// creates the image; see [Images.CreateFromInstance].
func FromInstance(instance string, opts *FromInstanceOptions) Source {
	s := &instanceSource{name: instance}
	if opts != nil {
		s.opts = CreateFromInstanceOptions{Compression: opts.Compression, Split: opts.Split}
	}
	return s
}

func (s *instanceSource) String() string { return fmt.Sprintf("instance %q", s.name) }

// Resolve returns nothing: the image does not exist before it is published.
func (s *instanceSource) Resolve(ctx context.Context, target *Client) (*SourceImage, error) {
	if err := target.check(ctx); err != nil {
		return nil, err
	}
	return &SourceImage{}, nil
}

// CreateIn publishes the instance.
func (s *instanceSource) CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error) {
	if err := opts.refuseAutoUpdate(s); err != nil {
		return nil, err
	}
	o := s.opts
	o.Public, o.Filename, o.Properties, o.Profiles, o.Aliases = opts.Public, opts.Filename, opts.Properties, opts.Profiles, opts.Aliases
	o.ReuseAliases, o.DeleteReplaced, o.ExpiresAt, o.IfExists = opts.ReuseAliases, opts.DeleteReplaced, opts.ExpiresAt, opts.IfExists
	o.Wait, o.CancelOnDone, o.Progress = opts.Wait, opts.CancelOnDone, opts.Progress
	return images.CreateFromInstance(ctx, s.name, &o)
}
