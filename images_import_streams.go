package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/wire"
	"github.com/golxd/lxd/simplestreams"
)

// CreateFromSimplestreamsOptions describe an image to fetch from a simplestreams
// server.
type CreateFromSimplestreamsOptions struct {
	Public bool
	// AutoUpdate has the server look for newer versions of what the alias stands
	// for. It needs the server to fetch the image: where only the client could,
	// or the server had the image from elsewhere, the error is an
	// ErrUnsupported.
	AutoUpdate bool
	// Type tells which image is meant where the alias has both. Default:
	// Container.
	Type ImageType
	// Filename is what the image's file is called. Default: up to the server,
	// or the name of the metadata file where the client fetches.
	Filename string
	// Properties are put over those in the index.
	Properties map[string]string
	// Profiles are what instances of the image get. Default: "default".
	Profiles []string
	// Aliases are names for the image on the server. Default: none.
	Aliases []Alias
	// ReuseAliases moves aliases here that stand for other images. Default:
	// they are an ErrExists.
	ReuseAliases bool
	// ExpiresAt is when the server may delete the image if it is cached.
	// Default: as the index says.
	ExpiresAt time.Time

	// Certificate is the simplestreams server's, PEM, or that of the authority
	// that signed it, if the system does not trust it. Registries have their
	// own.
	Certificate string
	// AllowHTTP lets the client fetch over plain http. The servers decide for
	// themselves.
	AllowHTTP bool

	Via Via
	// Cache keeps the index where the client reads it. Default: none.
	Cache simplestreams.Cache
	// HTTPClient fetches where the client does. It is not modified. Default: one
	// that takes the proxy from the environment.
	HTTPClient *http.Client
	// StallTimeout is how long the server may take to send its next byte where
	// the client fetches. The default is the client's Options.StallTimeout.
	// Negative: as long as ctx lets.
	StallTimeout time.Duration

	// Wait returns when the image is there. Default: when the server has
	// accepted the work; Image.Wait does the rest.
	Wait bool

	// Progress is told of the phase server, and of send where the client
	// fetches.
	Progress func(Progress)
}

// CreateFromSimplestreams makes an image of one that a simplestreams server
// has, by an alias, "alias/architecture", a fingerprint or a prefix of one. The
// server fetches it. One that takes only registries (extension
// image_registries) does through a registry of that URL; where there is none,
// or the server fails, the client fetches it with package simplestreams, whose
// errors name the file that is at fault. Content that is not what the index
// says is a [*FingerprintError]. A failed import leaves no image on the server.
//
// Both ways give the same fingerprint, properties, expiry and aliases. The date
// of creation and the architecture are the index's where the server fetches,
// and those of the image's own metadata where the client does; only what the
// server fetched has an UpdateSource. Where the server has the image already,
// it gets what the options ask for.
//
// The two families of daemons look at different items of one tree. A server
// takes those of its own family (Incus 6.0.4 does not see lxd.tar.xz); where a
// tree has none of them, the client takes those of the other.
func (m *Images) CreateFromSimplestreams(ctx context.Context, server, alias string, opts *CreateFromSimplestreamsOptions) (*Image, error) {
	var o CreateFromSimplestreamsOptions
	if opts != nil {
		o = *opts
	}
	if _, err := checkSourceURL("server", server); err != nil {
		return nil, err
	}
	if err := o.check(alias); err != nil {
		return nil, err
	}
	imp := &importJob{
		images: m, via: o.Via,
		updates: o.AutoUpdate,
		spec: imageSpec{
			attributes: attributes{AutoUpdate: o.AutoUpdate, ExpiresAt: o.ExpiresAt, Profiles: o.Profiles, Properties: o.Properties, Public: o.Public}.clone(),
			filename:   o.Filename, aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases,
		},
	}
	if err := imp.check("CreateFromSimplestreamsOptions"); err != nil {
		return nil, err
	}
	imp.server = func(ctx context.Context) (*Image, error) { return m.importStream(ctx, server, alias, &o, imp) }
	imp.client = func(ctx context.Context) (*Image, error) {
		image, err := m.fetchStream(ctx, server, alias, &o, imp)
		return image, streamError(err)
	}
	imp.resolve = func(ctx context.Context) (string, error) {
		streams, image, err := m.resolveStream(ctx, server, alias, &o, true)
		if err != nil {
			return "", err
		}
		return image.Fingerprint, streams.Close()
	}
	imp.meter, imp.report = meter(PhaseServer, -1, o.Progress), o.Progress
	defer imp.meter.Stop()
	return imp.run(ctx, o.Wait)
}

func (o *CreateFromSimplestreamsOptions) check(alias string) error {
	if err := checkAlias("alias", alias); err != nil {
		return err
	}
	if o.AutoUpdate && checkFullFingerprint("", alias) == nil {
		return invalid("CreateFromSimplestreamsOptions.AutoUpdate", "needs an alias: a fingerprint stands for one version for ever")
	}
	if o.Type != "" && o.Type != Container && o.Type != VirtualMachine {
		return invalid("CreateFromSimplestreamsOptions.Type", "is %q, not %q or %q", o.Type, Container, VirtualMachine)
	}
	if o.Certificate != "" {
		if _, err := parseCertificate([]byte(o.Certificate)); err != nil {
			return invalid("CreateFromSimplestreamsOptions.Certificate", "%v", err)
		}
	}
	return nil
}

// importStream has the server fetch the image.
func (m *Images) importStream(ctx context.Context, server, alias string, o *CreateFromSimplestreamsOptions, imp *importJob) (*Image, error) {
	info, err := m.client.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	source := &wire.ImageSource{
		Type: "image", Mode: "pull", Server: server, Protocol: "simplestreams", Alias: alias, Certificate: o.Certificate, ImageType: string(o.Type),
	}
	if info.Has("image_registries") {
		registry, err := m.client.Registries.withURL(ctx, server)
		if err != nil {
			return nil, err
		}
		if registry == "" {
			return nil, fmt.Errorf("import from a simplestreams server: %w: it takes image registries only, and has none of that URL; make one with Registries.Create", ErrUnsupported)
		}
		source.Server, source.Protocol, source.Certificate, source.ImageRegistry = "", "", "", registry
	}
	if checkFullFingerprint("", alias) == nil {
		imp.fingerprint = strings.ToLower(alias) // the server must not take another
	}
	return imp.begin(ctx, source)
}

// streamError makes an error of package simplestreams one of this package's too.
func streamError(err error) error {
	var corrupt *simplestreams.HashError
	switch {
	case errors.As(err, &corrupt):
		return &FingerprintError{Want: corrupt.Expected, Got: corrupt.Actual, Err: err}
	case errors.Is(err, simplestreams.ErrNotFound):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, simplestreams.ErrAmbiguous):
		return fmt.Errorf("%w: %w", ErrAmbiguous, err)
	case errors.Is(err, simplestreams.ErrInsecure):
		return fmt.Errorf("%w: set AllowHTTP to allow it", err)
	}
	return err
}

// resolveStream finds the image. The client is to be closed. own says to take
// items of the server's own family only.
func (m *Images) resolveStream(ctx context.Context, server, alias string, o *CreateFromSimplestreamsOptions, own bool) (*simplestreams.Client, *simplestreams.Image, error) {
	info, err := m.client.serverInfo(ctx, false)
	if err != nil {
		return nil, nil, err
	}
	var first error
	for _, family := range info.daemon().Preferred() {
		streams, err := simplestreams.New(server, &simplestreams.Options{
			Family: simplestreams.Family(family.Name), AllowHTTP: o.AllowHTTP, Certificate: o.Certificate, Cache: o.Cache, HTTPClient: o.HTTPClient,
			StallTimeout: cmp.Or(o.StallTimeout, m.client.t.stall), RetryTimeout: m.client.t.retry.Timeout, UserAgent: m.client.t.agent, Logger: m.client.t.log,
		})
		if err != nil {
			return nil, nil, err
		}
		image, err := resolveFor(ctx, streams, alias, simplestreams.Type(o.Type), info.Architectures)
		if err == nil {
			return streams, image, nil
		}
		_ = streams.Close()
		if first == nil {
			first = err
		}
		var unresolved *simplestreams.ResolveError
		if own || !errors.As(err, &unresolved) || errors.Is(err, simplestreams.ErrAmbiguous) {
			break
		}
	}
	return nil, nil, first
}

// resolveFor finds the image for a server of these architectures: one that it
// can run, or else any, as the daemons do.
func resolveFor(ctx context.Context, streams *simplestreams.Client, alias string, kind simplestreams.Type, architectures []string) (*simplestreams.Image, error) {
	if len(architectures) > 0 {
		image, err := streams.Resolve(ctx, alias, &simplestreams.ResolveOptions{Type: kind, Architecture: architectures[0]})
		if err == nil || !errors.Is(err, simplestreams.ErrNotFound) {
			return image, err
		}
	}
	return streams.Resolve(ctx, alias, &simplestreams.ResolveOptions{Type: kind})
}

// fetchStream has the client fetch the image.
func (m *Images) fetchStream(ctx context.Context, server, alias string, o *CreateFromSimplestreamsOptions, imp *importJob) (*Image, error) {
	streams, image, err := m.resolveStream(ctx, server, alias, o, false)
	if err != nil {
		return nil, err
	}
	defer func() { _ = streams.Close() }()
	existing, err := m.Get(ctx, image.Fingerprint)
	if err == nil {
		return imp.useExisting(ctx, existing)
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	download, err := streams.Open(ctx, image, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = download.Close() }()
	// What the index says of an image goes before what its metadata says, as
	// in an import by a server.
	spec := imp.spec
	spec.Properties, spec.exact = maps.Clone(image.Properties), true
	maps.Copy(spec.Properties, imp.spec.Properties)
	if spec.ExpiresAt.IsZero() {
		spec.ExpiresAt = image.ExpiresAt
	}
	if spec.filename == "" && checkFilename("", image.Filename) == nil {
		spec.filename = image.Filename
	}
	body, err := streamContent(image, download, spec.filename)
	if err != nil {
		return nil, err
	}
	return imp.upload(ctx, body, image.Fingerprint, spec)
}

// streamContent makes an upload of a download.
func streamContent(image *simplestreams.Image, download *simplestreams.Download, filename string) (*content.Content, error) {
	first, err := content.NewSource(download.Metadata, download.Metadata.Size())
	if err != nil {
		return nil, err
	}
	if download.Rootfs == nil {
		return content.Unified(first), nil
	}
	second, err := content.NewSource(download.Rootfs, download.Rootfs.Size())
	if err != nil {
		return nil, err
	}
	field := "rootfs"
	if image.Type == simplestreams.VirtualMachine {
		field = "rootfs.img"
	}
	// The server takes the image's name from the rootfs.
	return content.Split(first, download.Metadata.Name(), second, field, cmp.Or(filename, download.Rootfs.Name()))
}
