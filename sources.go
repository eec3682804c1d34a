package lxd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/simplestreams"
)

// Source is where an image comes from: [FromFile], [FromReader], [FromURL],
// [FromSimplestreams], [FromImage], [FromInstance] or [OpenSource]. Other packages may
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
	Public bool
	// AutoUpdate lets the server update the image from its source, which must be a
	// simplestreams server or a public image with an alias of another server. Of a URL
	// the servers store it without effect. Other sources are refused with an
	// [*InputError], or an error that matches ErrUnsupported.
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
// Image.Copy), with the same checks and errors.
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
	return source.CreateIn(ctx, m, &o)
}

// refuseAutoUpdate returns an error for a source that the server cannot read again.
func (o *CreateFromOptions) refuseAutoUpdate(source fmt.Stringer) error {
	if o.AutoUpdate {
		return invalid("CreateFromOptions.AutoUpdate", "needs a source that the server can read, not %s", source)
	}
	return nil
}

// FromFileOptions describe an image file.
type FromFileOptions struct {
	// Rootfs is the path of the root file system or disk of a split image, whose
	// metadata tarball is the file.
	Rootfs string
	// Type is the type of a split image; see CreateOptions.Type.
	Type ImageType
}

type fileSource struct {
	path string
	opts FromFileOptions
}

// FromFile returns a source that is a file: a unified image or, with Rootfs, a split
// one. Resolve reads it to compute the fingerprint; nothing is sent if the server has
// the image.
func FromFile(path string, opts *FromFileOptions) Source {
	s := &fileSource{path: path}
	if opts != nil {
		s.opts = *opts
	}
	return s
}

func (s *fileSource) String() string { return "file " + s.path }

// open opens the files; rootfs is nil if there is none.
func (s *fileSource) open() (image, rootfs *os.File, err error) {
	if s.path == "" {
		return nil, nil, invalid("path", "is empty")
	}
	if image, err = os.Open(s.path); err != nil || s.opts.Rootfs == "" {
		return image, nil, err
	}
	if rootfs, err = os.Open(s.opts.Rootfs); err != nil {
		return nil, nil, errors.Join(err, image.Close())
	}
	return image, rootfs, nil
}

// Resolve returns the fingerprint and the size.
func (s *fileSource) Resolve(ctx context.Context, _ *Client) (*SourceImage, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	image, rootfs, err := s.open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close() }()
	o := CreateOptions{Type: s.opts.Type}
	if rootfs != nil {
		defer func() { _ = rootfs.Close() }()
		o.Rootfs = rootfs
	}
	return resolveReader(ctx, image, &o)
}

// resolveReader computes the fingerprint of an image that can be read again, and leaves
// its readers where they are. Others it does not read.
func resolveReader(ctx context.Context, image io.Reader, o *CreateOptions) (*SourceImage, error) {
	resolved := &SourceImage{Type: o.Type, Size: o.Size + o.RootfsSize}
	readers := []io.Reader{image}
	if o.Rootfs != nil {
		readers = append(readers, o.Rootfs)
	}
	positions := make([]int64, len(readers))
	for n, r := range readers {
		source, err := content.NewSource(r, -1)
		if err != nil {
			return nil, err
		}
		if !source.Replayable() {
			return resolved, nil
		}
		if positions[n], err = r.(io.Seeker).Seek(0, io.SeekCurrent); err != nil {
			return nil, fmt.Errorf("read the image: %w", err)
		}
	}
	body, err := o.content(ctx, image)
	if err != nil {
		return nil, err
	}
	resolved.Type, resolved.Size = o.Type, body.Size()
	if resolved.Fingerprint, err = body.HashAhead(ctx, func(int) {}); err != nil {
		return nil, fmt.Errorf("read the image: %w", err)
	}
	for n, r := range readers {
		if _, err := r.(io.Seeker).Seek(positions[n], io.SeekStart); err != nil {
			return nil, fmt.Errorf("rewind the reader: %w", err)
		}
	}
	return resolved, nil
}

// CreateIn uploads the file, unless the server has the image.
func (s *fileSource) CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error) {
	image, rootfs, err := s.open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close() }()
	from := &readerSource{name: s.String(), image: image, opts: CreateOptions{Type: s.opts.Type, Dedupe: true}}
	if rootfs != nil {
		defer func() { _ = rootfs.Close() }()
		from.opts.Rootfs = rootfs
	}
	return from.CreateIn(ctx, images, opts)
}

// FromReaderOptions describe the content of a reader.
type FromReaderOptions struct {
	// Rootfs is the root file system or disk of a split image, whose metadata tarball
	// is the reader.
	Rootfs io.Reader
	// Type is the type of a split image; see CreateOptions.Type.
	Type ImageType
	// Size and RootfsSize are the lengths in bytes of readers that are not seekable,
	// if they are known.
	Size       int64
	RootfsSize int64
	// Fingerprint is the fingerprint that the image must have, if it is known.
	Fingerprint string
}

type readerSource struct {
	name  string
	image io.Reader
	opts  CreateOptions
}

// FromReader returns a source that is a reader, from its current position; see
// [Images.Create]. A reader that is not seekable can be used once, and Resolve does
// not read it.
func FromReader(image io.Reader, opts *FromReaderOptions) Source {
	s := &readerSource{name: "a reader", image: image}
	if opts != nil {
		s.opts = CreateOptions{Rootfs: opts.Rootfs, Type: opts.Type, Size: opts.Size, RootfsSize: opts.RootfsSize, Fingerprint: opts.Fingerprint}
	}
	return s
}

func (s *readerSource) String() string { return s.name }

// Resolve returns the fingerprint of a seekable reader, and the size if it is known.
func (s *readerSource) Resolve(ctx context.Context, _ *Client) (*SourceImage, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := s.opts.check(s.image); err != nil {
		return nil, err
	}
	if s.opts.Fingerprint != "" {
		return &SourceImage{Fingerprint: s.opts.Fingerprint, Type: s.opts.Type, Size: s.opts.Size + s.opts.RootfsSize}, nil
	}
	o := s.opts
	return resolveReader(ctx, s.image, &o)
}

// CreateIn uploads the content, unless the server has it and it can be read again.
func (s *readerSource) CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error) {
	if err := opts.refuseAutoUpdate(s); err != nil {
		return nil, err
	}
	o := s.opts
	o.Public, o.Filename, o.Properties, o.Profiles, o.Aliases = opts.Public, opts.Filename, opts.Properties, opts.Profiles, opts.Aliases
	o.ReuseAliases, o.DeleteReplaced, o.ExpiresAt, o.IfExists = opts.ReuseAliases, opts.DeleteReplaced, opts.ExpiresAt, opts.IfExists
	o.Wait, o.CancelOnDone, o.Progress = opts.Wait, opts.CancelOnDone, opts.Progress
	return images.Create(ctx, s.image, &o)
}

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
	Certificate  string
	AllowHTTP    bool
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
			Type: opts.Type, Certificate: opts.Certificate, AllowHTTP: opts.AllowHTTP, Via: opts.Via, Cache: opts.Cache,
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
	if _, err := checkSourceURL("server", s.server); err != nil {
		return nil, err
	}
	if err := s.opts.check(s.alias); err != nil {
		return nil, err
	}
	streams, image, err := target.Images.resolveStream(ctx, s.server, s.alias, &s.opts, false)
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
	return images.CreateFromSimplestreams(ctx, s.server, s.alias, &o)
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
