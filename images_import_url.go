package lxd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	gopath "path"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/wire"
)

// CreateFromURLOptions describe an image to fetch from a URL.
type CreateFromURLOptions struct {
	Public bool
	// AutoUpdate sets the image's attribute of that name. No server looks for
	// newer versions because of it: none records a URL as the source of an
	// image (LXD 5.0.2, Incus 6.0.4).
	AutoUpdate bool
	// Filename is what the image's file is called. Default: none where the
	// server fetches it, the one that the source tells or the URL's last
	// element where the client does.
	Filename string
	// Properties are put over those in the image's own metadata.
	Properties map[string]string
	// Profiles are what instances of the image get. Default: "default".
	Profiles []string
	// Aliases are names for the image. Default: none.
	Aliases []Alias
	// ReuseAliases moves aliases here that stand for other images. Default:
	// they are an ErrExists.
	ReuseAliases bool
	// ExpiresAt is when the server may delete the image if it is cached.
	// Default: as the image's own metadata says.
	ExpiresAt time.Time

	// Fingerprint is the SHA-256 that the content must have. Nothing is fetched
	// if the server has the image. Default: what the URL's headers say; where
	// the client fetches from a URL without them, the content is only compared
	// with what the server has received.
	Fingerprint string

	Via Via
	// HTTPClient fetches the URL where the client does. It is not modified.
	// Default: one that takes the proxy from the environment.
	HTTPClient *http.Client
	// StallTimeout is how long the source may take to send its next byte where
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

// CreateFromURL makes an image of the file at an http or https URL. The server
// fetches it by its own protocol: the URL must answer HEAD with the headers
// LXD-Image-Hash and LXD-Image-URL (for Incus: Incus-Image-Hash and
// Incus-Image-URL). Where the server cannot or may not (LXD 6.9 and up), or the
// URL is a plain file or carries the other family's headers only, the client
// streams it over, in one pass. Content that is not what the headers or
// Fingerprint say is a [*FingerprintError]; another fault of the source is a
// [*SourceError]; neither leaves an image on the server.
//
// Where the server has the image already, it gets what the options ask for.
// Where an image was made but an alias could not be, both the Image and the
// error are given. Redirects are followed, but not from https to http, unless
// Fingerprint tells what must come. A user name and password in the URL are
// used, and go to no other host.
func (m *Images) CreateFromURL(ctx context.Context, imageURL string, opts *CreateFromURLOptions) (*Image, error) {
	var o CreateFromURLOptions
	if opts != nil {
		o = *opts
	}
	u, err := checkSourceURL("url", imageURL)
	if err != nil {
		return nil, err
	}
	imp := &importJob{
		images: m, via: o.Via, fingerprint: strings.ToLower(o.Fingerprint),
		spec: imageSpec{
			attributes: attributes{AutoUpdate: o.AutoUpdate, ExpiresAt: o.ExpiresAt, Profiles: o.Profiles, Properties: o.Properties, Public: o.Public}.clone(),
			filename:   o.Filename, aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases,
		},
	}
	if err := imp.check("CreateFromURLOptions"); err != nil {
		return nil, err
	}
	imp.server = func(ctx context.Context) (*Image, error) {
		return imp.begin(ctx, &wire.ImageSource{Type: "url", Mode: "pull", URL: imageURL})
	}
	imp.client = func(ctx context.Context) (*Image, error) {
		return m.fetchURL(ctx, u, &o, imp)
	}
	imp.resolve = func(ctx context.Context) (string, error) {
		source := newSource(&o, u, m.client.t)
		defer source.close()
		info, err := m.client.serverInfo(ctx, false)
		if err != nil {
			return "", err
		}
		return source.probe(ctx, info)
	}
	imp.meter, imp.report = meter(PhaseServer, -1, o.Progress), o.Progress
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
		return nil, invalid(field, "%q is not an http or https URL", redact.URL(u))
	}
	return u, nil
}

// fetchURL streams the file at a URL to the server.
func (m *Images) fetchURL(ctx context.Context, u *url.URL, o *CreateFromURLOptions, imp *importJob) (*Image, error) {
	info, err := m.client.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	source := newSource(o, u, m.client.t)
	defer source.close()
	fingerprint, err := source.probe(ctx, info)
	if err != nil {
		return nil, err
	}
	switch {
	case imp.fingerprint == "":
	case fingerprint != "" && fingerprint != imp.fingerprint:
		return nil, &FingerprintError{Want: imp.fingerprint, Got: fingerprint, Err: &SourceError{URL: redact.URL(u), Problem: "it announces another image"}}
	default:
		fingerprint = imp.fingerprint
	}
	if fingerprint != "" {
		existing, err := m.Get(ctx, fingerprint)
		if err == nil {
			return imp.useExisting(ctx, existing)
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	source.verified = fingerprint != ""
	if err := source.open(ctx); err != nil {
		return nil, err
	}
	body := bufio.NewReaderSize(source, 64<<10)
	if err := source.checkStart(body); err != nil {
		return nil, err
	}
	image, err := content.NewSource(struct{ io.Reader }{body}, source.size)
	if err != nil {
		return nil, err
	}
	spec := imp.spec
	if spec.filename == "" {
		spec.filename = source.filename()
	}
	return imp.upload(ctx, content.Unified(image), fingerprint, spec)
}

// filename is what the source calls the image.
func (s *source) filename() string {
	if s.name != "" {
		return s.name
	}
	if base := gopath.Base(s.url.Path); base != "/" && base != "." && checkFilename("", base) == nil {
		return base
	}
	return ""
}

// checkStart refuses what is not an image but a page or an empty file.
func (s *source) checkStart(body *bufio.Reader) error {
	start, err := body.Peek(512)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case len(start) == 0:
		return s.bad("the file is empty")
	}
	// An image is an archive or a disk, whatever its server calls it.
	if kind := http.DetectContentType(start); strings.HasPrefix(kind, "text/") {
		return s.bad(fmt.Sprintf("it is text (%s), not an image", kind))
	}
	return nil
}
