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

// CreateFromURLOptions describe an image to import from a URL.
type CreateFromURLOptions struct {
	Public bool
	// AutoUpdate sets the image's attribute of that name. It does not make the
	// server look for newer versions, as servers do not record a URL as the source
	// of an image (LXD 5.0.2, Incus 6.0.4).
	AutoUpdate bool
	// Filename is the image's filename. The default is none if the server fetches
	// the image; if the client does, it is the filename in the response, or the
	// last element of the URL.
	Filename string
	// Properties are added to those in the image's metadata, and override them.
	Properties map[string]string
	// Profiles are the default profiles of instances created from the image
	// (extension image_profiles). The default is "default".
	Profiles []string
	// Aliases are names for the image. The default is none.
	Aliases []Alias
	// ReuseAliases moves aliases that point to other images to this one. Those images
	// remain, without the alias. By default such an alias is an error that matches
	// ErrExists.
	ReuseAliases bool
	// DeleteReplaced deletes the images that have lost their last alias to
	// ReuseAliases, which must be set.
	DeleteReplaced bool
	// ExpiresAt is when the server may delete the image if it is cached. The
	// default is the expiry in the image's metadata.
	ExpiresAt time.Time

	// Fingerprint is the SHA-256 that the content must have. Nothing is fetched
	// if the server has the image. The default is the fingerprint in the URL's
	// headers. If there is none and the client fetches the image, the content is
	// only compared with what the server has received.
	Fingerprint string

	// IfExists is what happens if the server already has the image. The default is to
	// apply the options that are set to it.
	IfExists IfExists

	Via Via
	// HTTPClient is used if the client fetches the image. It is not modified. The
	// default uses the proxy from the environment.
	HTTPClient *http.Client
	// StallTimeout is how long the source may be silent if the client fetches the
	// image. The default is Options.StallTimeout of the client; negative means no
	// limit.
	StallTimeout time.Duration

	// Wait makes the call return when the image is complete. The default is to
	// return when the server has accepted the work; Image.Wait does the rest.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while the call waits for it (with Wait). By default it continues; the call
	// returns the Image beside the error, with the operation.
	CancelOnDone bool

	// Progress receives the phase server, and send if the client fetches the image.
	Progress func(Progress)
}

// CreateFromURL creates an image from the file at an http or https URL. The server
// fetches it with its own protocol: the response to a HEAD request must have the
// headers LXD-Image-Hash and LXD-Image-URL (for Incus: Incus-Image-Hash and
// Incus-Image-URL). If the server cannot or may not (LXD 6.9 and later), or the URL
// is a plain file or has only the other family's headers, the client streams it to
// the server, in one pass. If the content does not have the fingerprint in the
// headers or in Fingerprint, the error is a [*FingerprintError]; for other errors of
// the source it is a [*SourceError]. No image remains on the server then.
//
// If the server already has the image, the options are applied to it. If the image
// was created but an alias was not, CreateFromURL returns both the Image and the
// error. Redirects are followed, but from https to http only if Fingerprint is set.
// A user name and password in the URL are used, and are not sent to another host.
//
// To keep an alias up to date from the URL, see [Images.Ensure] and [FromURL].
func (m *Images) CreateFromURL(ctx context.Context, imageURL string, opts *CreateFromURLOptions) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
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
			filename:   o.Filename, aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases, replaced: o.DeleteReplaced, ifExists: o.IfExists,
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
	imp.resolve = func(ctx context.Context) (string, error) { return m.resolveURL(ctx, u, &o) }
	imp.meter, imp.report = meter(PhaseServer, -1, o.Progress), o.Progress
	return imp.run(ctx, o.Wait, o.CancelOnDone)
}

// resolveURL returns the fingerprint in the headers of the source; "" if there is none.
func (m *Images) resolveURL(ctx context.Context, u *url.URL, o *CreateFromURLOptions) (fingerprint string, err error) {
	source := newSource(o, u, m.client.t)
	defer source.close()
	info, err := m.client.serverInfo(ctx, false)
	if err != nil {
		return "", err
	}
	err = m.client.t.untilClosed(ctx, func(ctx context.Context) error {
		fingerprint, err = source.probe(ctx, info)
		return err
	})
	return fingerprint, err
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
		return nil, &FingerprintError{Want: imp.fingerprint, Got: fingerprint, Err: &SourceError{URL: redact.URL(u), Problem: "its headers have another fingerprint"}}
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

// filename returns the filename in the response, or the last element of the URL.
func (s *source) filename() string {
	if s.name != "" {
		return s.name
	}
	if base := gopath.Base(s.url.Path); base != "/" && base != "." && checkFilename("", base) == nil {
		return base
	}
	return ""
}

// checkStart returns an error if the file is empty or a text, such as an HTML page.
func (s *source) checkStart(body *bufio.Reader) error {
	start, err := body.Peek(512)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case len(start) == 0:
		return s.bad("the file is empty")
	}
	// An image is an archive or a disk, whatever its Content-Type is.
	if kind := http.DetectContentType(start); strings.HasPrefix(kind, "text/") {
		return s.bad(fmt.Sprintf("it is text (%s), not an image", kind))
	}
	return nil
}
