package lxd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/wire"
)

// OCIProtocol is the [RemoteInfo.Protocol] of an OCI registry, which only serves
// images; see [FromOCI].
const OCIProtocol = "oci"

// FromOCIOptions configure an OCI source.
type FromOCIOptions struct {
	// Username and Password are those of the registry. They may also be in its URL. The
	// server stores them, readable, in the update source of the image; that of a
	// public image can be read by everybody who can connect to the server (Incus 7.0.2).
	Username, Password string
	// HTTPClient is used by Resolve. It is not modified. The default uses the proxy
	// from the environment.
	HTTPClient *http.Client
}

type ociSource struct {
	registry, image string
	opts            FromOCIOptions
	// credentials returns the user name and the password, at the time of use; nil for
	// those of the options and of the URL.
	credentials func(context.Context) (*url.Userinfo, error)
}

// FromOCI returns a source that is an image of an OCI registry, such as
// "https://docker.io": name[:tag][@digest], for example "nginx:latest" or
// "grafana/grafana@sha256:…". The default tag is "latest".
//
// The server pulls the image itself, and must be able to connect to the registry. It
// must be Incus with the extension instance_oci (7.0.2; not 6.0.4) and the command
// skopeo: otherwise the error matches ErrUnsupported. If the registry does not have the
// image, it matches ErrNotFound; if it wants other credentials, ErrUnauthorized.
//
// The image is a container, with the properties architecture, description, id and
// type=oci. Its fingerprint is that of the digests of its layers, not of its content, so
// it cannot be exported, and only CopyPull copies it. With AutoUpdate the server
// replaces it when the tag has another image. A pull cannot be cancelled (Incus 7.0.2).
//
// Resolve asks the registry, from this client, for the image that the server would
// pull, and computes its fingerprint. If this client cannot connect to the registry, or
// the registry wants credentials and there are none, the result has no fingerprint and
// the error is nil: the server may be able to. Images.Ensure then lets the server pull
// the image, which changes nothing if the server has it; ErrorIfExists is an error that
// matches ErrUnsupported.
func FromOCI(registry, image string, opts *FromOCIOptions) Source {
	s := &ociSource{registry: registry, image: image}
	if opts != nil {
		s.opts = *opts
	}
	return s
}

func (s *ociSource) String() string {
	u, err := url.Parse(s.registry)
	if err != nil {
		return fmt.Sprintf("%q of a malformed URL", s.image)
	}
	return fmt.Sprintf("%q of %s", s.image, redact.URL(u))
}

// Resolve asks the registry for the image.
func (s *ociSource) Resolve(ctx context.Context, target *Client) (*SourceImage, error) {
	server, registry, err := s.prepare(ctx, target)
	if err != nil {
		return nil, err
	}
	return s.lookUp(ctx, target, server, registry)
}

// CreateIn lets the server pull the image.
func (s *ociSource) CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error) {
	imp := &importJob{
		images: images, via: ViaServer, updates: opts.AutoUpdate,
		spec: imageSpec{
			attributes: attributes{AutoUpdate: opts.AutoUpdate, ExpiresAt: opts.ExpiresAt, Profiles: opts.Profiles, Properties: opts.Properties, Public: opts.Public}.clone(),
			filename:   opts.Filename, aliases: slices.Clone(opts.Aliases), reuse: opts.ReuseAliases, replaced: opts.DeleteReplaced, ifExists: opts.IfExists,
		},
	}
	if err := imp.check("CreateFromOptions"); err != nil {
		return nil, err
	}
	if opts.AutoUpdate && strings.Contains(s.image, "@") {
		return nil, invalid("CreateFromOptions.AutoUpdate", "needs a tag: a digest is that of a single image")
	}
	server, registry, err := s.prepare(ctx, images.client)
	if err != nil {
		return nil, err
	}
	if opts.Public && registry.User != nil {
		return nil, invalid("CreateFromOptions.Public", "would show the credentials of %s to everybody: the server stores them with the image", redact.URL(registry))
	}
	if opts.IfExists == ErrorIfExists {
		// The server does not say whether it had the image.
		switch resolved, err := s.lookUp(ctx, images.client, server, registry); {
		case err != nil:
			return nil, err
		case resolved.Fingerprint == "":
			return nil, fmt.Errorf("pull %s: %w: ErrorIfExists needs the fingerprint, which this client cannot find out", s, ErrUnsupported)
		}
	}
	imp.server = func(ctx context.Context) (*Image, error) {
		return imp.begin(ctx, &wire.ImageSource{Type: "image", Mode: "pull", Protocol: OCIProtocol, Server: registry.String(), Alias: s.image})
	}
	imp.resolve = func(ctx context.Context) (string, error) {
		resolved, err := s.lookUp(ctx, images.client, server, registry)
		if err != nil {
			return "", err
		}
		return resolved.Fingerprint, nil
	}
	imp.explained = s.explain
	imp.meter, imp.report = meter(PhaseServer, -1, opts.Progress), opts.Progress
	return imp.run(ctx, opts.Wait, opts.CancelOnDone)
}

// InstanceSource returns the image on its registry, with the credentials, which the
// server stores; it does not expire.
func (s *ociSource) InstanceSource(ctx context.Context, target *Client) (*InstanceSource, error) {
	_, registry, err := s.prepare(ctx, target)
	if err != nil {
		return nil, err
	}
	return &InstanceSource{Type: "image", Mode: "pull", Protocol: OCIProtocol, Server: registry.String(), Alias: s.image}, nil
}

// ociName is a name[:tag][@digest], as skopeo parses it.
var ociName = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+|/)[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha(?:256:[0-9a-f]{64}|384:[0-9a-f]{96}|512:[0-9a-f]{128}))?$`)

// prepare checks the source and the server, and returns the registry's URL with the
// credentials.
func (s *ociSource) prepare(ctx context.Context, target *Client) (*Server, *url.URL, error) {
	if err := target.check(ctx); err != nil {
		return nil, nil, err
	}
	u, err := checkSourceURL("registry", s.registry)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case u.Scheme != "https":
		return nil, nil, invalid("registry", "%q is not an https URL", redact.URL(u))
	case u.RawQuery != "" || u.Fragment != "":
		return nil, nil, invalid("registry", "%q has a query or fragment", redact.URL(u))
	case s.image == "":
		return nil, nil, invalid("image", "is empty")
	case !ociName.MatchString(s.image):
		return nil, nil, invalid("image", "%q is not name[:tag][@digest], with a name in lower case", s.image)
	case s.opts.Username == "" && s.opts.Password != "":
		return nil, nil, invalid("FromOCIOptions.Username", "is empty, but Password is set")
	case strings.Contains(s.opts.Username, ":"):
		return nil, nil, invalid("FromOCIOptions.Username", "contains a colon")
	case s.opts.Username != "" && u.User != nil:
		return nil, nil, invalid("FromOCIOptions.Username", "is set, but the registry's URL has a user name too")
	}
	server, err := target.serverInfo(ctx, false)
	if err != nil {
		return nil, nil, err
	}
	if err := server.need("pull "+s.String(), "instance_oci"); err != nil {
		return nil, nil, err
	}
	if s.opts.Username != "" {
		u.User = url.UserPassword(s.opts.Username, s.opts.Password)
	}
	if s.credentials != nil {
		if u.User, err = s.credentials(ctx); err != nil {
			return nil, nil, err
		}
	}
	// Incus joins the URL and the name with a slash.
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return server, u, nil
}

// ociCauses are what words in the error of an operation mean (Incus 7.0.2 with skopeo
// 1.18): those of Incus, of the error codes of registries, and of skopeo.
var ociCauses = []struct {
	words string
	cause error
}{
	{`requires "skopeo"`, ErrUnsupported},
	{"manifest unknown", ErrNotFound},
	{"name unknown", ErrNotFound},
	{"no image found in image index", ErrNotFound},
	{": unauthorized", ErrUnauthorized}, // a name may contain the word, but no space
	{"authentication required", ErrUnauthorized},
	{"invalid username/password", ErrUnauthorized},
	{"access to the resource is denied", ErrUnauthorized},
}

// explain returns what an error of the server means.
func (s *ociSource) explain(failure error) error {
	var failed *OperationError
	if !errors.As(failure, &failed) || errors.Is(failure, ErrCancelled) {
		return failure
	}
	text := strings.ToLower(failed.Message)
	for _, c := range ociCauses {
		if strings.Contains(text, c.words) {
			return fmt.Errorf("pull %s: %w: %w", s, c.cause, failure)
		}
	}
	if strings.Contains(text, "skopeo") {
		hinted := *failed
		hinted.Hint = "the server must be able to connect to the registry, with https and a certificate that it trusts"
		return &hinted
	}
	return failure
}

// lookUp asks the registry for the image that the server would pull.
func (s *ociSource) lookUp(ctx context.Context, target *Client, server *Server, registry *url.URL) (*SourceImage, error) {
	r := newOCIRegistry(registry, target.t, s.opts.HTTPClient)
	defer r.source.close()
	short, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var image *SourceImage
	err := target.t.untilClosed(short, func(ctx context.Context) (err error) {
		image, err = r.find(ctx, s.image, server.Architectures)
		return err
	})
	var failed *SourceError
	switch {
	case err == nil:
		return image, nil
	case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
		return nil, err
	case short.Err() != nil, errors.As(err, &failed) && failed.StatusCode == 0,
		errors.Is(err, ErrUnauthorized) && registry.User == nil:
		target.t.log.DebugContext(ctx, "lxd client cannot ask the registry", "source", s.String(), "error", err)
		return &SourceImage{Type: Container}, nil
	}
	return nil, fmt.Errorf("%s: %w", s, err)
}
