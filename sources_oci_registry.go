package lxd

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/wire"
)

// ociRegistry reads from a registry what the fingerprint of an image is computed from.
type ociRegistry struct {
	source        *source // its URL is that of the current request
	base          *url.URL
	user          *url.Userinfo // nil for none
	authorization string        // the header; "" until the registry has asked for it
}

func newOCIRegistry(registry *url.URL, t *transport, client *http.Client) *ociRegistry {
	r := &ociRegistry{base: new(url.URL), user: registry.User}
	*r.base = *registry
	// The credentials are sent only when the registry has asked for them.
	r.base.User = nil
	r.source = newSource(&CreateFromURLOptions{HTTPClient: client}, r.base, t)
	r.source.secrets = redact.HideURL(registry)
	return r
}

// The media types of manifests and indexes.
var ociManifestTypes = []string{
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
}

// ociManifest is a manifest, or an index of the manifests of several architectures.
type ociManifest struct {
	Layers []struct {
		Digest string `json:"digest"`
		Size   int64  `json:"size"`
	} `json:"layers"`
	Manifests []struct {
		Digest   string `json:"digest"`
		Platform struct {
			Architecture string `json:"architecture"`
			OS           string `json:"os"`
			Variant      string `json:"variant"`
		} `json:"platform"`
	} `json:"manifests"`
}

// find returns what the registry says of an image for a server with these
// architectures, its own first.
func (r *ociRegistry) find(ctx context.Context, image string, architectures []string) (*SourceImage, error) {
	name, digest, pinned := strings.Cut(image, "@")
	name, tag, _ := strings.Cut(name, ":")
	reference := tag
	switch {
	case pinned:
		reference = digest
	case tag == "":
		reference = "latest"
	}
	manifest, err := r.manifest(ctx, name, reference)
	if err != nil {
		return nil, err
	}
	found := &SourceImage{Type: Container}
	if len(manifest.Manifests) > 0 {
		if len(architectures) == 0 {
			return found, nil
		}
		digest, err := manifest.choose(architectures[0])
		if err != nil {
			return nil, err
		}
		found.Architecture = architectures[0]
		if manifest, err = r.manifest(ctx, name, digest); err != nil {
			return nil, err
		}
	}
	if len(manifest.Layers) == 0 {
		return found, nil // a manifest of another kind
	}
	// Incus 7.0.2 hashes the digests of the layers.
	hash := sha256.New()
	for _, layer := range manifest.Layers {
		_, _ = io.WriteString(hash, layer.Digest)
		found.Size += layer.Size
	}
	found.Fingerprint = hex.EncodeToString(hash.Sum(nil))
	return found, nil
}

// ociArchitectures are the architectures and variants, best first, that skopeo chooses
// from an index for an architecture of the daemons. Without a variant any is good.
var ociArchitectures = map[string][]string{
	"x86_64": {"amd64"}, "i686": {"386"}, "aarch64": {"arm64"},
	"armv8l": {"arm/v8", "arm/v7", "arm/v6", "arm/v5", "arm/"}, "armv7l": {"arm/v7", "arm/v6", "arm/v5", "arm/"}, "armv6l": {"arm/v6", "arm/v5", "arm/"},
	"ppc64": {"ppc64"}, "ppc64le": {"ppc64le"}, "s390x": {"s390x"}, "mips": {"mips"}, "mips64": {"mips64"},
	"riscv64": {"riscv64"}, "loongarch64": {"loong64"},
}

// choose returns the digest of the manifest for an architecture of the daemons.
func (m *ociManifest) choose(architecture string) (digest string, err error) {
	for _, wanted := range ociArchitectures[architecture] {
		for _, entry := range m.Manifests {
			platform := entry.Platform.Architecture
			if strings.Contains(wanted, "/") {
				platform += "/" + entry.Platform.Variant
			}
			if entry.Platform.OS == "linux" && platform == wanted {
				return entry.Digest, nil
			}
		}
	}
	var others []string
	for _, entry := range m.Manifests {
		others = append(others, entry.Platform.OS+"/"+entry.Platform.Architecture)
	}
	slices.Sort(others)
	return "", fmt.Errorf("%w for %s; it exists for %s", ErrNotFound, architecture, strings.Join(slices.Compact(others), ", "))
}

// manifest reads the manifest with a tag or digest.
func (r *ociRegistry) manifest(ctx context.Context, name, reference string) (*ociManifest, error) {
	at := *r.base
	if at.Host == "docker.io" || at.Host == "index.docker.io" {
		at.Host = "registry-1.docker.io"
		if at.Path == "" && !strings.Contains(name, "/") {
			name = "library/" + name
		}
	}
	name = strings.TrimPrefix(at.Path+"/"+name, "/")
	at.Path = "/v2/" + name + "/manifests/" + reference
	header := http.Header{"Accept": {strings.Join(ociManifestTypes, ", ")}}
	res, body, err := r.get(ctx, &at, header) //nolint:bodyclose // get closes it.
	if err == nil && res.StatusCode == http.StatusUnauthorized && r.authorization == "" {
		if err = r.authorize(ctx, res.Header.Get("WWW-Authenticate"), name); err == nil && r.authorization != "" {
			res, body, err = r.get(ctx, &at, header) //nolint:bodyclose // get closes it.
		}
	}
	if err != nil {
		return nil, err
	}
	manifest := &ociManifest{}
	return manifest, r.decode(res, body, manifest)
}

// ociChallenge matches a parameter of a WWW-Authenticate header.
var ociChallenge = regexp.MustCompile(`([a-z]+)="([^"]*)"`)

// authorize sets the authorization that the challenge of a registry asks for, if there
// are the credentials: the user name and password themselves, or a token.
func (r *ociRegistry) authorize(ctx context.Context, challenge, name string) error {
	scheme, rest, _ := strings.Cut(challenge, " ")
	basic := ""
	if r.user != nil {
		password, _ := r.user.Password()
		basic = "Basic " + base64.StdEncoding.EncodeToString([]byte(r.user.Username()+":"+password))
	}
	if !strings.EqualFold(scheme, "Bearer") {
		r.authorization = basic
		return nil
	}
	parameters := map[string]string{}
	for _, match := range ociChallenge.FindAllStringSubmatch(rest, -1) {
		parameters[match[1]] = match[2]
	}
	at, err := url.Parse(parameters["realm"])
	if err != nil || at.Scheme != "https" || at.Host == "" {
		return r.source.bad("it asks for a token, but not of an https server")
	}
	query := at.Query()
	query.Set("service", parameters["service"])
	query.Set("scope", "repository:"+name+":pull")
	at.RawQuery = query.Encode()
	header := http.Header{}
	if basic != "" {
		header.Set("Authorization", basic)
	}
	res, body, err := r.get(ctx, at, header) //nolint:bodyclose // get closes it.
	if err != nil {
		return err
	}
	var issued struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := r.decode(res, body, &issued); err != nil {
		return err
	}
	for _, token := range []string{issued.Token, issued.AccessToken} {
		if token != "" {
			r.authorization = "Bearer " + token
			r.source.secrets = redact.Join(r.source.secrets, redact.Hide(token))
			return nil
		}
	}
	return r.source.bad("the response contains no token")
}

// maxManifest is the size that registries allow for a manifest, in bytes.
const maxManifest = 4 << 20

// get reads a document. That the registry is unavailable is retried, but not that this
// client cannot connect to it: only the server must.
func (r *ociRegistry) get(ctx context.Context, at *url.URL, header http.Header) (res *http.Response, body []byte, err error) {
	r.source.url = at
	if r.authorization != "" && header.Get("Authorization") == "" {
		header.Set("Authorization", r.authorization)
	}
	var broken error
	err = r.source.policy.Do(ctx, func() error {
		if res, broken = r.source.send(ctx, http.MethodGet, header); broken != nil {
			return nil
		}
		defer func() { _ = res.Body.Close() }()
		if unavailable(res.StatusCode) {
			return r.source.statusError(res)
		}
		if body, broken = io.ReadAll(io.LimitReader(res.Body, maxManifest+1)); broken != nil {
			broken = r.source.broken("the transfer broke off", broken)
		}
		return nil
	}, nil)
	if err == nil {
		err = broken
	}
	return res, body, err
}

// decode decodes the document of a response.
func (r *ociRegistry) decode(res *http.Response, body []byte, into any) error {
	switch {
	case res.StatusCode == http.StatusUnauthorized, res.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w: %w", ErrUnauthorized, r.source.statusError(res))
	case res.StatusCode != http.StatusOK:
		return r.source.statusError(res)
	case len(body) > maxManifest:
		return r.source.bad(fmt.Sprintf("the response is larger than %d bytes", maxManifest))
	}
	if err := wire.Unmarshal(body, into); err != nil {
		return r.source.broken("the response is not the expected JSON", err)
	}
	return nil
}
