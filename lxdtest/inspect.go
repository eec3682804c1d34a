package lxdtest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// Request is a request that the server has received.
type Request struct {
	Method string
	Path   string // escaped, as it was sent
	Query  string // encoded, as it was sent
	Header http.Header
	TLS    bool

	server *Server
	body   int64
	text   []byte
	done   bool
}

// maxText is the number of bytes of a request's body that are kept for Text.
const maxText = 64 << 10

// Text returns the part of the request's body that has arrived so far, up to 64
// KiB. It returns nil for uploads: octet streams and forms.
func (r *Request) Text() []byte {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	return slices.Clone(r.text)
}

// isUpload reports whether the body of a request is an image.
func (r *Request) isUpload() bool {
	kind := r.Header.Get("Content-Type")
	return strings.HasPrefix(kind, "application/octet-stream") || strings.HasPrefix(kind, "multipart/")
}

// BodyBytes returns the number of bytes of the request's body that have arrived
// so far.
func (r *Request) BodyBytes() int64 {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	return r.body
}

// Done reports whether the server has finished with the request, by a response
// or by breaking the connection.
func (r *Request) Done() bool {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	return r.done
}

// Status returns the HTTP status of the response, or 0 if none was sent.
func (r *Request) Status() int { return 0 }

// ResponseBytes returns the number of bytes of the response's body.
func (r *Request) ResponseBytes() int64 { return 0 }

// Duration returns how long the server has worked on the request.
func (r *Request) Duration() time.Duration { return 0 }

// countedBody is a request body that records in seen what is read from it.
type countedBody struct {
	io.ReadCloser
	seen *Request
}

// Read reads from the body and records it.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.seen.server.mu.Lock()
		b.seen.body += int64(n)
		if free := maxText - len(b.seen.text); free > 0 && !b.seen.isUpload() {
			b.seen.text = append(b.seen.text, p[:min(n, free)]...)
		}
		b.seen.server.mu.Unlock()
	}
	return n, err
}

// record adds a request to the list.
func (s *Server) record(r *http.Request) *Request {
	seen := &Request{
		Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery,
		Header: r.Header.Clone(), TLS: r.TLS != nil, server: s,
	}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &countedBody{ReadCloser: r.Body, seen: seen}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) == maxRequests {
		s.requests = slices.Delete(s.requests, 0, maxRequests/2)
	}
	s.requests = append(s.requests, seen)
	return seen
}

// maxRequests is the number of requests at which the older half is dropped.
const maxRequests = 10_000

// Requests returns the requests received so far, in order of arrival. At 10,000
// the server drops the oldest half.
func (s *Server) Requests() []*Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// ForgetRequests empties the list that Requests returns.
func (s *Server) ForgetRequests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// Accepted returns the number of connections accepted so far, across restarts.
func (s *Server) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Open returns the number of open connections. One that its client has closed
// counts until the server has noticed.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Image is an image in the server's store.
type Image struct {
	Project      string
	Fingerprint  string
	Filename     string
	Type         string // container or virtual-machine
	Architecture string
	Size         int64
	Public       bool
	AutoUpdate   bool
	Cached       bool
	Properties   map[string]string
	Profiles     []string
	Aliases      []string
	ExpiresAt    time.Time // zero for never
	CreatedAt    time.Time
	UploadedAt   time.Time
	LastUsedAt   time.Time // zero for never
}

// Images returns the images of all projects, sorted by fingerprint.
func (s *Server) Images() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	var images []Image
	for _, img := range s.sortedImages("", true) {
		images = append(images, s.inspect(img))
	}
	return images
}

// Image returns the image of the default project with this full fingerprint.
func (s *Server) Image(fingerprint string) (Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.images[imageKey{defaultProject, fingerprint}]
	if img == nil {
		return Image{}, false
	}
	return s.inspect(img), true
}

// inspect copies an image; the caller holds the lock.
func (s *Server) inspect(img *image) Image {
	out := Image{
		Project: img.key.project, Fingerprint: img.key.fingerprint, Filename: img.filename, Type: img.kind,
		Architecture: img.architecture, Size: img.size, Public: img.public, AutoUpdate: img.autoUpdate,
		Cached: img.cached, Properties: maps.Clone(img.properties), Profiles: slices.Clone(img.profiles),
		ExpiresAt: img.expires, CreatedAt: img.created, UploadedAt: img.uploaded, LastUsedAt: img.lastUsed,
	}
	for _, a := range s.sortedAliases(img.key.project) {
		if a.target == img.key.fingerprint {
			out.Aliases = append(out.Aliases, a.key.name)
		}
	}
	return out
}

// Files returns the files of an image of the default project: one file, or the
// metadata and the root file system.
func (s *Server) Files(fingerprint string) ([][]byte, error) {
	s.mu.Lock()
	img := s.images[imageKey{defaultProject, fingerprint}]
	s.mu.Unlock()
	if img == nil {
		return nil, fmt.Errorf("lxdtest: no image %s", fingerprint)
	}
	var files [][]byte
	for _, path := range []string{img.metadata, img.rootfs} {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("lxdtest: %w", err)
		}
		files = append(files, data)
	}
	return files, nil
}

// Aliases returns the aliases of the default project: fingerprints by name.
func (s *Server) Aliases() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	aliases := map[string]string{}
	for key, a := range s.aliases {
		if key.project == defaultProject {
			aliases[key.name] = a.target
		}
	}
	return aliases
}

// Running returns the descriptions of the running operations, without tokens.
func (s *Server) Running() []string { return s.runningOf("task") }

// Tokens returns the descriptions of the tokens that were neither used nor
// cancelled: image secrets, upload tokens and trust tokens.
func (s *Server) Tokens() []string { return s.runningOf("token") }

// runningOf returns the descriptions of the running operations of a class.
func (s *Server) runningOf(class string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, op := range s.operations {
		if op.class == class && op.status == statusRunning {
			list = append(list, op.description)
		}
	}
	slices.Sort(list)
	return list
}

// AddOptions are the settings of AddImage.
type AddOptions struct {
	// Project is the image's project. The default is "default".
	Project string
	// Rootfs is the root file system of a split image. The default is a unified
	// image.
	Rootfs []byte
	// VM makes a split image a virtual machine image.
	VM bool
	// Public makes the image visible to untrusted clients.
	Public bool
	// Filename is the image's file name.
	Filename string
	// Properties override those in the image's metadata.
	Properties map[string]string
	// Aliases are the image's aliases.
	Aliases []string
	// ExpiresAt is when the image expires. The default is never.
	ExpiresAt time.Time
}

// AddImage adds an image as if it had been uploaded, without a request, and
// returns its fingerprint. A nil opts means a private image without aliases.
func (s *Server) AddImage(file []byte, opts *AddOptions) (fingerprint string, err error) {
	if opts == nil {
		opts = &AddOptions{}
	}
	spec := imageSpec{
		project: opts.Project, public: opts.Public, filename: opts.Filename,
		properties: opts.Properties, expires: opts.ExpiresAt,
	}
	if spec.project == "" {
		spec.project = defaultProject
	}
	for _, name := range opts.Aliases {
		spec.aliases = append(spec.aliases, imageAliasJSON{Name: name})
	}
	u, err := s.receiveFiles(file, opts)
	if err != nil {
		return "", fmt.Errorf("lxdtest: add image: %w", err)
	}
	if err := s.store(s.ctx, nil, nil, u, spec); err != nil {
		return "", fmt.Errorf("lxdtest: add image: %w", err)
	}
	img := s.existing(spec.project, u.fingerprint)
	if img == nil {
		return "", fmt.Errorf("lxdtest: add image: %w", errNoImage)
	}
	if err := s.addAliases(nil, nil, img, spec.aliases); err != nil {
		return "", fmt.Errorf("lxdtest: add image: %w", err)
	}
	return u.fingerprint, nil
}

// AddImageFile is like AddImage for files on disk, which are not copied.
func (s *Server) AddImageFile(file, rootfs string, opts *AddOptions) (fingerprint string, err error) {
	return "", nil
}

// receiveFiles spools the files of AddImage.
func (s *Server) receiveFiles(file []byte, opts *AddOptions) (*upload, error) {
	u, err := s.receiveUnified(bytes.NewReader(file))
	if err != nil || opts.Rootfs == nil {
		return u, err
	}
	rootfs, err := s.receiveUnified(bytes.NewReader(opts.Rootfs))
	if err != nil {
		u.discard()
		return nil, err
	}
	u.rootfs, u.kind = rootfs.metadata, "container"
	if opts.VM {
		u.kind = "virtual-machine"
	}
	u.fingerprint, u.size = Fingerprint(file, opts.Rootfs), u.size+rootfs.size
	return u, nil
}
