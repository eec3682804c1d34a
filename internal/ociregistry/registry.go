// Package ociregistry is an OCI registry in memory, for tests.
package ociregistry

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Media types of the OCI image specification.
const (
	TypeIndex    = "application/vnd.oci.image.index.v1+json"
	TypeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// Options configure a Registry.
type Options struct {
	// Username and Password are required of each request.
	Username, Password string
	// Tokens makes the registry require a token, which it issues to whoever has the
	// password, as that of Docker does. With no password it issues them to everybody.
	Tokens bool
}

// Registry serves images over https. Close ends it.
type Registry struct {
	*httptest.Server

	opts  Options
	token string

	mu    sync.Mutex
	blobs map[string]blob   // by digest
	tags  map[string]string // digests by "name:tag"
	paths []string
}

type blob struct {
	mediaType string
	data      []byte
}

// New starts a registry on loopback.
func New(opts Options) *Registry {
	r := &Registry{opts: opts, token: rand.Text(), blobs: map[string]blob{}, tags: map[string]string{}}
	r.Server = httptest.NewUnstartedServer(r)
	r.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust its certificate
	r.StartTLS()
	return r
}

// Image is an image of one architecture.
type Image struct {
	Digest string   // of the manifest, "sha256:…"
	Layers []string // their digests
}

// Fingerprint returns the fingerprint of the image in Incus.
func (i Image) Fingerprint() string {
	sum := sha256.Sum256([]byte(strings.Join(i.Layers, "")))
	return hex.EncodeToString(sum[:])
}

// Created is when each image was created.
var Created = time.Date(2024, time.March, 1, 12, 30, 0, 0, time.UTC)

// Add adds an image with one layer for each of the files, whose names are their
// content, and returns it. The architecture is that of Go, such as "amd64".
func (r *Registry) Add(name, tag, architecture string, files ...string) Image {
	var image Image
	var layers []map[string]any
	var diffs []string
	for _, file := range files {
		plain, packed := layer(file)
		digest := r.add(typeLayer, packed)
		image.Layers, diffs = append(image.Layers, digest), append(diffs, digestOf(plain))
		layers = append(layers, map[string]any{"mediaType": typeLayer, "digest": digest, "size": len(packed)})
	}
	config := encode(map[string]any{
		"created": Created, "architecture": architecture, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/init"}, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	image.Digest = r.add(TypeManifest, encode(map[string]any{
		"schemaVersion": 2, "mediaType": TypeManifest,
		"config": map[string]any{"mediaType": typeConfig, "digest": r.add(typeConfig, config), "size": len(config)},
		"layers": layers,
	}))
	r.tag(name, tag, image.Digest)
	return image
}

// AddIndex adds an index of images, by their architectures.
func (r *Registry) AddIndex(name, tag string, images map[string]Image) (digest string) {
	manifests := []map[string]any{}
	for architecture, image := range images {
		r.mu.Lock()
		size := len(r.blobs[image.Digest].data)
		r.mu.Unlock()
		manifests = append(manifests, map[string]any{
			"mediaType": TypeManifest, "digest": image.Digest, "size": size,
			"platform": map[string]any{"architecture": architecture, "os": "linux"},
		})
	}
	digest = r.add(TypeIndex, encode(map[string]any{"schemaVersion": 2, "mediaType": TypeIndex, "manifests": manifests}))
	r.tag(name, tag, digest)
	return digest
}

// Requests returns the paths of all requests.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.paths...)
}

func (r *Registry) tag(name, tag, digest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags[name+":"+tag] = digest
}

func (r *Registry) add(mediaType string, data []byte) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	digest := digestOf(data)
	r.blobs[digest] = blob{mediaType, data}
	return digest
}

// ServeHTTP serves the API.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.paths = append(r.paths, req.URL.Path)
	r.mu.Unlock()
	if req.URL.Path == "/token" {
		if !r.hasPassword(req) {
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
			return
		}
		writeJSON(w, "application/json", encode(map[string]any{"token": r.token}))
		return
	}
	if !r.allowed(req) {
		challenge := `Basic realm="registry"`
		if r.opts.Tokens {
			challenge = fmt.Sprintf(`Bearer realm=%q,service="registry",scope="repository:%s:pull"`, r.URL+"/token", repository(req.URL))
		}
		w.Header().Set("WWW-Authenticate", challenge)
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return
	}
	name, kind, ref := split(req.URL)
	r.mu.Lock()
	digest, ok := ref, true
	if kind == "manifests" && !strings.HasPrefix(ref, "sha256:") {
		digest, ok = r.tags[name+":"+ref]
	}
	found, exists := r.blobs[digest]
	r.mu.Unlock()
	switch {
	case req.URL.Path == "/v2/":
		writeJSON(w, "application/json", []byte("{}"))
	case kind == "tags":
		writeJSON(w, "application/json", encode(map[string]any{"name": name, "tags": r.tagsOf(name)}))
	case !ok || !exists:
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
	default:
		w.Header().Set("Docker-Content-Digest", digest)
		writeJSON(w, found.mediaType, found.data)
	}
}

func (r *Registry) tagsOf(name string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	tags := []string{}
	for tag := range r.tags {
		if tag, ok := strings.CutPrefix(tag, name+":"); ok {
			tags = append(tags, tag)
		}
	}
	return tags
}

func (r *Registry) hasPassword(req *http.Request) bool {
	username, password, _ := req.BasicAuth()
	return username == r.opts.Username && password == r.opts.Password
}

func (r *Registry) allowed(req *http.Request) bool {
	if r.opts.Tokens {
		return req.Header.Get("Authorization") == "Bearer "+r.token
	}
	return r.hasPassword(req)
}

// split returns the parts of /v2/NAME/manifests/REF, /v2/NAME/blobs/DIGEST or
// /v2/NAME/tags/list.
func split(u *url.URL) (name, kind, ref string) {
	parts := strings.Split(strings.TrimPrefix(u.Path, "/v2/"), "/")
	if len(parts) < 3 {
		return "", "", ""
	}
	n := len(parts)
	return strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]
}

func repository(u *url.URL) string {
	name, _, _ := split(u)
	return name
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(encode(map[string]any{"errors": []map[string]any{{"code": code, "message": message}}}))
}

func writeJSON(w http.ResponseWriter, mediaType string, data []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	_, _ = w.Write(data)
}

// layer returns a tarball of one file, and the same compressed.
func layer(file string) (plain, packed []byte) {
	var tarball, compressed bytes.Buffer
	w := tar.NewWriter(&tarball)
	must(w.WriteHeader(&tar.Header{Name: file, Mode: 0o755, Size: int64(len(file)), ModTime: Created}))
	_, err := w.Write([]byte(file))
	must(err)
	must(w.Close())
	z := gzip.NewWriter(&compressed)
	_, err = z.Write(tarball.Bytes())
	must(err)
	must(z.Close())
	return tarball.Bytes(), compressed.Bytes()
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	must(err)
	return data
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
