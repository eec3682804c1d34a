package lxd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	gopath "path"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/wire"
	"github.com/golxd/lxd/simplestreams"
)

// Via says who fetches an image from elsewhere.
type Via string

// The ways of an import.
const (
	// ViaAuto lets the server fetch the image, and where that fails the client.
	// It is the default.
	ViaAuto Via = ""
	// ViaServer lets the server fetch it, or gives the server's error.
	ViaServer Via = "server"
	// ViaClient streams it through this client.
	ViaClient Via = "client"
)

// SourceError says what is wrong with a file that an image was to be fetched
// from.
type SourceError struct {
	URL        string // without user name and query
	StatusCode int    // of the HTTP answer; 0 if it is not what is wrong
	Problem    string
	Err        error // may be nil
}

// Error names the file.
func (e *SourceError) Error() string {
	s := e.URL + ": " + e.Problem
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the cause.
func (e *SourceError) Unwrap() error { return e.Err }

// Is matches [ErrNotFound] for a 404, and [ErrForbidden] for a 401 or 403.
func (e *SourceError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.StatusCode == http.StatusNotFound
	case ErrForbidden:
		return e.StatusCode == http.StatusForbidden || e.StatusCode == http.StatusUnauthorized
	}
	return false
}

// CreateFromURLOptions describe an image to fetch from a URL.
type CreateFromURLOptions struct {
	Public bool
	// AutoUpdate has the server look for newer versions at the URL. It needs
	// the server to fetch the image.
	AutoUpdate bool
	// Filename is what the image's file is called. Default: up to the server,
	// or the URL's last element where the client fetches it.
	Filename   string
	Properties map[string]string
	Profiles   []string
	Aliases    []Alias
	// ReuseAliases moves aliases here that stand for other images. Default:
	// they are an ErrExists.
	ReuseAliases bool
	ExpiresAt    time.Time

	// Fingerprint is the SHA-256 that the content must have. Nothing is fetched
	// if the server has the image. Default: what the URL's headers say; where
	// the client fetches from a URL without them, the content is only compared
	// with what the server has received.
	Fingerprint string

	Via Via
	// HTTPClient fetches the URL where the client does. It is not modified.
	// Default: one that takes the proxy from the environment.
	HTTPClient *http.Client

	// Wait returns when the image is there. Default: when the server has
	// accepted the work; Image.Wait does the rest.
	Wait bool

	Progress func(Progress)
}

// CreateFromURL makes an image of the file at an http or https URL. The server
// fetches it by its own protocol: the URL must answer HEAD with the headers
// LXD-Image-Hash and LXD-Image-URL (for Incus: Incus-Image-Hash and
// Incus-Image-URL). Where the server cannot or may not (LXD 6.9 and up), or the
// URL is a plain file, the client streams it over.
func (m *Images) CreateFromURL(ctx context.Context, imageURL string, opts *CreateFromURLOptions) (*Image, error) {
	var o CreateFromURLOptions
	if opts != nil {
		o = *opts
	}
	u, err := checkSourceURL("url", imageURL)
	if err != nil {
		return nil, err
	}
	imp := &importing{
		images: m, via: o.Via, fingerprint: strings.ToLower(o.Fingerprint), autoUpdate: o.AutoUpdate,
		want: wanted{
			public: o.Public, autoUpdate: o.AutoUpdate, filename: o.Filename, properties: maps.Clone(o.Properties),
			profiles: slices.Clone(o.Profiles), expiresAt: o.ExpiresAt, aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases,
		},
	}
	if err := imp.check("CreateFromURLOptions"); err != nil {
		return nil, err
	}
	imp.server = func(ctx context.Context) (*Image, error) {
		return m.importImage(ctx, &wire.ImagePost{Source: &wire.ImageSource{Type: "url", Mode: "pull", URL: imageURL}}, &imp.want, nil, nil)
	}
	imp.client = func(ctx context.Context) (*Image, error) {
		return m.fetchURL(ctx, u, &o, imp)
	}
	imp.meter = meter(PhaseServer, -1, o.Progress)
	defer imp.meter.Stop()
	return imp.run(ctx, o.Wait)
}

func checkSourceURL(field, raw string) (*url.URL, error) {
	if raw == "" {
		return nil, invalid(field, "is empty")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, invalid(field, "is not a URL")
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return nil, invalid(field, "%q is not an http or https URL", cleanURL(u))
	}
	return u, nil
}

// cleanURL is a URL without what may be secret in it.
func cleanURL(u *url.URL) string {
	clean := *u
	clean.User, clean.RawQuery, clean.Fragment = nil, "", ""
	return clean.String()
}

// importing is an image on its way from elsewhere, by the server or by the
// client.
type importing struct {
	images      *Images
	via         Via
	fingerprint string // that it must have; "" for any
	autoUpdate  bool
	want        wanted
	server      func(context.Context) (*Image, error) // begins it by the server
	client      func(context.Context) (*Image, error) // does it by the client
	meter       *progress.Meter
}

func (imp *importing) check(options string) error {
	switch imp.via {
	case ViaAuto, ViaServer, ViaClient:
	default:
		return invalid(options+".Via", "is %q", imp.via)
	}
	if imp.autoUpdate && imp.via == ViaClient {
		return invalid(options+".AutoUpdate", "needs the server to fetch the image; it is set with Via: ViaClient")
	}
	if imp.fingerprint != "" {
		if err := checkFullFingerprint(options+".Fingerprint", imp.fingerprint); err != nil {
			return err
		}
	}
	if err := checkFilename(options+".Filename", imp.want.filename); err != nil {
		return err
	}
	if err := checkNames(options+".Profiles", imp.want.profiles); err != nil {
		return err
	}
	if _, ok := imp.want.properties[""]; ok {
		return invalid(options+".Properties", "has an empty name")
	}
	return checkAliases(options+".Aliases", imp.want.aliases)
}

func (imp *importing) run(ctx context.Context, wait bool) (*Image, error) {
	if imp.fingerprint != "" && !imp.autoUpdate {
		existing, err := imp.images.Get(ctx, imp.fingerprint)
		if err == nil {
			return existing, existing.assign(ctx, imp.want.aliases, imp.want.reuse)
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	if !imp.want.reuse {
		if err := imp.images.client.Aliases.checkFree(ctx, imp.want.aliases, imp.fingerprint); err != nil {
			return nil, err
		}
	}
	if imp.via == ViaClient {
		return imp.byClient(ctx, wait)
	}
	image, err := imp.server(ctx)
	if err != nil {
		if !imp.mayFallBack(ctx, err) {
			return nil, err
		}
		return imp.fallBack(ctx, err, wait)
	}
	finish := image.finish
	image.finish = func(ctx context.Context, image *Image) error {
		started := image.op.Status().CreatedAt
		err := finish(ctx, image)
		if err != nil {
			if !imp.mayFallBack(ctx, err) {
				return err
			}
			streamed, err := imp.fallBack(ctx, err, true)
			if err != nil {
				return err
			}
			image.replace(streamed)
			return nil
		}
		if imp.fingerprint != "" && image.Fingerprint != imp.fingerprint {
			mismatch := error(&FingerprintError{Want: imp.fingerprint, Got: image.Fingerprint})
			if !image.UploadedAt.Before(started) {
				mismatch = errors.Join(mismatch, image.Delete(ctx, &DeleteOptions{Wait: true}))
			}
			return mismatch
		}
		return nil
	}
	if !wait {
		return image, nil
	}
	stop := image.op.watch(ctx, imp.meter)
	err = image.Wait(ctx)
	stop()
	if err != nil {
		return nil, err
	}
	return image, nil
}

func (imp *importing) byClient(ctx context.Context, wait bool) (*Image, error) {
	image, err := imp.client(ctx)
	if err != nil || !wait {
		return image, err
	}
	imp.meter.Phase(PhaseServer, 0, max(image.Size, -1))
	if err := image.Wait(ctx); err != nil {
		return nil, err
	}
	return image, nil
}

// mayFallBack says whether the client may do better than the server did.
func (imp *importing) mayFallBack(ctx context.Context, err error) bool {
	if imp.via != ViaAuto || ctx.Err() != nil || errors.Is(err, ErrCancelled) || errors.Is(err, ErrExists) {
		return false
	}
	var refused *Error
	var failed *OperationError
	switch {
	case errors.As(err, &failed):
		return true
	case errors.As(err, &refused):
		return refused.StatusCode >= 400 && !errors.Is(err, ErrForbidden) && !errors.Is(err, ErrUnavailable)
	}
	return errors.Is(err, ErrUnsupported)
}

func (imp *importing) fallBack(ctx context.Context, cause error, wait bool) (*Image, error) {
	if imp.autoUpdate {
		return nil, fmt.Errorf("%w: the client could fetch the image, but the server could not update it: %w", cause, ErrUnsupported)
	}
	imp.images.client.t.log.DebugContext(ctx, "lxd server cannot import, the client does", "error", cause)
	image, err := imp.byClient(ctx, wait)
	if err != nil {
		return nil, fmt.Errorf("by the client: %w (and by the server: %w)", err, cause)
	}
	return image, nil
}

// upload sends what the client fetches.
func (imp *importing) upload(ctx context.Context, body *content.Content, fingerprint, filename string) (*Image, error) {
	want := imp.want
	if want.filename == "" {
		want.filename = filename
	}
	u := &upload{images: imp.images, content: body, fingerprint: fingerprint, hash: true, verify: true, want: want, meter: imp.meter}
	return u.run(ctx, false)
}

// fetchURL streams the file at a URL to the server.
func (m *Images) fetchURL(ctx context.Context, u *url.URL, o *CreateFromURLOptions, imp *importing) (*Image, error) {
	client := sourceClient(o.HTTPClient)
	defer client.CloseIdleConnections()
	from, fingerprint, err := probe(ctx, client, u)
	if err != nil {
		return nil, err
	}
	if imp.fingerprint != "" {
		if fingerprint != "" && fingerprint != imp.fingerprint {
			return nil, &FingerprintError{Want: imp.fingerprint, Got: fingerprint, Err: &SourceError{URL: cleanURL(u), Problem: "it announces another image"}}
		}
		fingerprint = imp.fingerprint
	}
	res, err := sourceGet(ctx, client, http.MethodGet, from)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if kind := res.Header.Get("Content-Type"); strings.HasPrefix(kind, "text/") {
		return nil, &SourceError{URL: cleanURL(from), Problem: fmt.Sprintf("it is %s, not an image", kind)}
	}
	source, err := content.NewSource(&sourceReader{res.Body, cleanURL(from)}, res.ContentLength)
	if err != nil {
		return nil, err
	}
	filename := dispositionName(res.Header.Get("Content-Disposition"))
	if filename == "" {
		if base := gopath.Base(from.Path); base != "/" && base != "." && checkFilename("", base) == nil {
			filename = base
		}
	}
	return imp.upload(ctx, content.Unified(source), fingerprint, filename)
}

// sourceReader names the file in the errors of its body.
type sourceReader struct {
	body io.Reader
	url  string
}

func (r *sourceReader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	if err != nil && !(errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF)) {
		err = &SourceError{URL: r.url, Problem: "the transfer broke off", Err: err}
	}
	return n, err
}

func sourceClient(given *http.Client) *http.Client {
	if given != nil {
		clone := *given
		return &clone
	}
	pool := newPool(defaultDialer().DialContext, &connections{}, nil, http.ProxyFromEnvironment)
	return &http.Client{Transport: pool}
}

// probe asks a URL as the daemons do. It gives where the image is, and its
// fingerprint if that is announced; a URL that announces nothing is taken for
// the image itself.
func probe(ctx context.Context, client *http.Client, u *url.URL) (from *url.URL, fingerprint string, err error) {
	res, err := sourceGet(ctx, client, http.MethodHead, u)
	if err != nil {
		var failed *SourceError
		if errors.As(err, &failed) && (failed.StatusCode == http.StatusMethodNotAllowed || failed.StatusCode == http.StatusNotImplemented || failed.StatusCode == http.StatusForbidden) {
			return u, "", nil // it does not speak HEAD; GET tells
		}
		return nil, "", err
	}
	_ = res.Body.Close()
	for _, family := range []string{"LXD", "Incus"} {
		hash, location := res.Header.Get(family+"-Image-Hash"), res.Header.Get(family+"-Image-URL")
		if hash == "" && location == "" {
			continue
		}
		bad := func(format string, args ...any) error {
			return &SourceError{URL: cleanURL(u), Problem: family + "-Image-" + fmt.Sprintf(format, args...)}
		}
		if checkFullFingerprint("", hash) != nil {
			return nil, "", bad("Hash is %q, not a whole SHA-256", hash)
		}
		target, err := url.Parse(location)
		if err != nil || !target.IsAbs() || (target.Scheme != "http" && target.Scheme != "https") || target.Hostname() == "" {
			return nil, "", bad("URL is not an absolute URL")
		}
		return target, strings.ToLower(hash), nil
	}
	return u, "", nil
}

func sourceGet(ctx context.Context, client *http.Client, method string, u *url.URL) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, &SourceError{URL: cleanURL(u), Problem: "cannot be asked for"}
	}
	req.Header.Set("User-Agent", "golxd/"+Version)
	if method == http.MethodHead {
		for _, family := range []string{"LXD", "Incus"} {
			req.Header.Set(family+"-Server-Version", Version)
			req.Header.Set(family+"-Server-Architectures", "x86_64, aarch64")
		}
	}
	res, err := client.Do(req)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // its text holds the whole URL
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, &SourceError{URL: cleanURL(u), Problem: "cannot be fetched", Err: err}
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, &SourceError{URL: cleanURL(res.Request.URL), StatusCode: res.StatusCode, Problem: "the server answers " + res.Status}
	}
	return res, nil
}

// CreateFromSimplestreamsOptions describe an image to fetch from a simplestreams
// server.
type CreateFromSimplestreamsOptions struct {
	Public bool
	// AutoUpdate has the server look for newer versions. It needs the server to
	// fetch the image.
	AutoUpdate bool
	// Type tells which image is meant where the alias has both. Default:
	// Container.
	Type       ImageType
	Filename   string
	Properties map[string]string
	Profiles   []string
	// Aliases are names for the image on the server. Default: none.
	Aliases []Alias
	// ReuseAliases moves aliases here that stand for other images. Default:
	// they are an ErrExists.
	ReuseAliases bool
	ExpiresAt    time.Time

	// Certificate is the simplestreams server's, PEM, if it is not signed by an
	// authority of the system.
	Certificate string
	// AllowHTTP lets the client fetch over plain http. The servers decide for
	// themselves.
	AllowHTTP bool

	Via Via
	// Cache keeps the index where the client reads it. Default: none.
	Cache simplestreams.Cache
	// HTTPClient fetches where the client does. It is not modified.
	HTTPClient *http.Client

	// Wait returns when the image is there. Default: when the server has
	// accepted the work; Image.Wait does the rest.
	Wait bool

	Progress func(Progress)
}

// CreateFromSimplestreams makes an image of one that a simplestreams server
// has, by an alias, "alias/architecture", a fingerprint or a prefix of one. The
// server fetches it. One that takes only registries (extension
// image_registries) does through a registry of that URL; where there is none,
// or the server fails, the client fetches it with package simplestreams.
func (m *Images) CreateFromSimplestreams(ctx context.Context, server, alias string, opts *CreateFromSimplestreamsOptions) (*Image, error) {
	var o CreateFromSimplestreamsOptions
	if opts != nil {
		o = *opts
	}
	if _, err := checkSourceURL("server", server); err != nil {
		return nil, err
	}
	if err := checkAlias("alias", alias); err != nil {
		return nil, err
	}
	if o.Type != "" && o.Type != Container && o.Type != VirtualMachine {
		return nil, invalid("CreateFromSimplestreamsOptions.Type", "is %q, not %q or %q", o.Type, Container, VirtualMachine)
	}
	if o.Certificate != "" {
		if _, err := parseCertificate([]byte(o.Certificate)); err != nil {
			return nil, invalid("CreateFromSimplestreamsOptions.Certificate", "%v", err)
		}
	}
	imp := &importing{
		images: m, via: o.Via, autoUpdate: o.AutoUpdate,
		want: wanted{
			public: o.Public, autoUpdate: o.AutoUpdate, filename: o.Filename, properties: maps.Clone(o.Properties),
			profiles: slices.Clone(o.Profiles), expiresAt: o.ExpiresAt, aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases,
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
	imp.meter = meter(PhaseServer, -1, o.Progress)
	defer imp.meter.Stop()
	return imp.run(ctx, o.Wait)
}

// importStream has the server fetch the image.
func (m *Images) importStream(ctx context.Context, server, alias string, o *CreateFromSimplestreamsOptions, imp *importing) (*Image, error) {
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
			return nil, fmt.Errorf("import from %s: %w: it takes image registries only, and has none of that URL; make one with Registries.Create", server, ErrUnsupported)
		}
		source.Server, source.Protocol, source.Certificate, source.ImageRegistry = "", "", "", registry
	}
	return m.importImage(ctx, &wire.ImagePost{Source: source}, &imp.want, nil, nil)
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
	}
	return err
}

// fetchStream has the client fetch the image.
func (m *Images) fetchStream(ctx context.Context, server, alias string, o *CreateFromSimplestreamsOptions, imp *importing) (*Image, error) {
	info, err := m.client.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	streams, err := simplestreams.New(server, &simplestreams.Options{
		Family: simplestreams.Family(info.Family), AllowHTTP: o.AllowHTTP, Certificate: o.Certificate,
		Cache: o.Cache, HTTPClient: o.HTTPClient, UserAgent: m.client.t.agent, Logger: m.client.t.log,
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = streams.Close() }()
	resolve := &simplestreams.ResolveOptions{Type: simplestreams.Type(o.Type)}
	if len(info.Architectures) > 0 {
		resolve.Architecture = info.Architectures[0] // the server's, not this program's
	}
	image, err := streams.Resolve(ctx, alias, resolve)
	if err != nil {
		return nil, err
	}
	existing, err := m.Get(ctx, image.Fingerprint)
	if err == nil {
		return existing, existing.assign(ctx, imp.want.aliases, imp.want.reuse)
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	download, err := streams.Open(ctx, image, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = download.Close() }()
	first, err := content.NewSource(download.Metadata, download.Metadata.Size())
	if err != nil {
		return nil, err
	}
	body := content.Unified(first)
	if download.Rootfs != nil {
		second, err := content.NewSource(download.Rootfs, download.Rootfs.Size())
		if err != nil {
			return nil, err
		}
		field := "rootfs"
		if image.Type == simplestreams.VirtualMachine {
			field = "rootfs.img"
		}
		if body, err = content.Split(first, download.Metadata.Name(), second, field, download.Rootfs.Name()); err != nil {
			return nil, err
		}
	}
	// What the index says of an image goes before what its metadata says, as
	// in an import by a server.
	properties := maps.Clone(image.Properties)
	maps.Copy(properties, imp.want.properties)
	stream := *imp
	stream.want.properties, stream.want.exact = properties, true
	if stream.want.expiresAt.IsZero() {
		stream.want.expiresAt = image.ExpiresAt
	}
	if len(stream.want.profiles) == 0 {
		stream.want.profiles = []string{"default"}
	}
	return stream.upload(ctx, body, image.Fingerprint, "")
}
