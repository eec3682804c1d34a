package lxdtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// upload is an image that was received but is not in the store yet.
type upload struct {
	metadata    string // the path of the only file or of the metadata tarball
	rootfs      string // the path of the root file system of a split image
	kind        string // of a split image: container or virtual-machine
	filename    string // the file name of the root file system's part
	fingerprint string
	size        int64
	invalid     error // the error with which its operation fails
	borrowed    bool  // its files are not the server's and must not be removed
}

// newPath returns a path in the server's directory for a file of an image.
func (s *Server) newPath() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spooled++
	return filepath.Join(s.dir, fmt.Sprintf("image-%d", s.spooled))
}

const spoolBuffer = 256 << 10

// spoolBuffers has the buffers of spool, which are much larger than most images of tests.
var spoolBuffers = sync.Pool{New: func() any { return new([spoolBuffer]byte) }}

// spool writes a stream to a new file and to sum. If the stream fails, or panics as a fault
// does that breaks the connection, the file is removed.
func (s *Server) spool(body io.Reader, sum hash.Hash) (path string, size int64, err error) {
	file, err := os.OpenFile(s.newPath(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", 0, err
	}
	complete := false
	defer func() {
		if !complete {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	buffer := spoolBuffers.Get().(*[spoolBuffer]byte) //nolint:errcheck,forcetypeassert // It has nothing else.
	size, err = io.CopyBuffer(onlyWriter{io.MultiWriter(file, sum)}, onlyReader{body}, buffer[:])
	spoolBuffers.Put(buffer)
	if err = errors.Join(err, file.Close()); err != nil {
		return "", 0, err
	}
	complete = true
	return file.Name(), size, nil
}

// onlyWriter and onlyReader hide ReadFrom and WriteTo, so that io.CopyBuffer
// uses its buffer.
type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }

// discard removes the files of an upload that does not become an image.
func (u *upload) discard() {
	if u.borrowed {
		return
	}
	for _, path := range []string{u.metadata, u.rootfs} {
		if path != "" {
			_ = os.Remove(path)
		}
	}
}

// receive spools the whole body of an upload, as the daemons do before they
// respond. An error means that the body did not arrive completely.
func (s *Server) receive(r *http.Request) (*upload, error) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		return s.receiveUnified(r.Body)
	}
	return s.receiveSplit(r.Body, params["boundary"])
}

// receiveUnified spools a unified image, or one file of a split one.
func (s *Server) receiveUnified(body io.Reader) (*upload, error) {
	sum := sha256.New()
	path, size, err := s.spool(body, sum)
	if err != nil {
		return nil, err
	}
	return &upload{metadata: path, size: size, fingerprint: hex.EncodeToString(sum.Sum(nil))}, nil
}

// receiveSplit spools a split image. An error in the form is stored in the
// upload, so that its operation fails; only an incomplete body is returned as an
// error.
func (s *Server) receiveSplit(body io.Reader, boundary string) (*upload, error) {
	watched := &errorRecorder{Reader: body}
	u := &upload{}
	complete := false
	defer func() {
		if !complete { // also if reading panics, see spool
			u.discard()
		}
	}()
	u.invalid = s.receiveParts(u, multipart.NewReader(watched, boundary))
	if watched.err == nil {
		_, _ = io.Copy(io.Discard, watched)
	}
	if watched.err != nil {
		return nil, watched.err
	}
	complete = true
	return u, nil
}

// errorRecorder records the error that ended a stream, except io.EOF.
type errorRecorder struct {
	io.Reader
	err error
}

// Read reads from the stream and records its error.
func (w *errorRecorder) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		w.err = err
	}
	return n, err
}

var errMultipart = daemonErrorf("Invalid multipart image")

// receiveParts spools the parts of a split image: metadata, then rootfs.
func (s *Server) receiveParts(u *upload, form *multipart.Reader) error {
	sum := sha256.New()
	part, err := form.NextRawPart()
	if err != nil {
		return err
	}
	if part.FormName() != "metadata" {
		return errMultipart
	}
	var n int64
	if u.metadata, n, err = s.spool(part, sum); err != nil {
		return err
	}
	u.size = n
	part, err = form.NextRawPart()
	if err != nil {
		return err
	}
	switch part.FormName() {
	case "rootfs":
		u.kind = "container"
	case "rootfs.img":
		u.kind = "virtual-machine"
	default:
		return errMultipart
	}
	u.filename = part.FileName()
	if u.rootfs, n, err = s.spool(part, sum); err != nil {
		return err
	}
	u.size += n
	u.fingerprint = hex.EncodeToString(sum.Sum(nil))
	return nil
}

// fileFingerprint returns the fingerprint of an image that consists of these
// files.
func fileFingerprint(paths ...string) (string, error) {
	sum := sha256.New()
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(sum, file)
		if err := errors.Join(err, file.Close()); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// imageSpec are the attributes that a request specifies for a new image.
type imageSpec struct {
	project              string
	public               bool
	autoUpdate           bool
	filename             string
	fingerprint          string // the required fingerprint, "" for any
	properties           map[string]string
	propertiesFromHeader bool     // the properties are from an upload's header
	profiles             []string // nil for the default profile
	aliases              []imageAliasJSON
	expires              time.Time
	source               *updateSource
	cached               bool              // it was fetched to create an instance
	setExpiry            bool              // set expires even if it is zero
	replaceProperties    map[string]string // if non-nil, replaces the properties of the metadata
}

// specFromHeaders returns the attributes in the headers of an upload; like the
// daemons it ignores the headers of the other family.
func (s *Server) specFromHeaders(r *http.Request) (imageSpec, error) {
	header := func(name string) string { return r.Header.Get(s.traits.uploadHeader + name) }
	spec := imageSpec{
		public: isTrue(header("public")), filename: header("filename"), fingerprint: header("fingerprint"),
	}
	if text := header("properties"); text != "" {
		values, err := url.ParseQuery(text)
		if err != nil {
			return spec, err
		}
		spec.properties = map[string]string{}
		for key := range values {
			spec.properties[key] = values.Get(key)
		}
		spec.propertiesFromHeader = len(values) > 0
	}
	if text := header("profiles"); text != "" && !s.traits.dropsProfiles {
		values, err := url.ParseQuery(text)
		if err != nil {
			return spec, err
		}
		spec.profiles = values["profile"]
	}
	if text := header("aliases"); text != "" && s.has("image_import_alias") {
		values, err := url.ParseQuery(text)
		if err != nil {
			return spec, err
		}
		for _, name := range values["alias"] {
			spec.aliases = append(spec.aliases, imageAliasJSON{Name: name})
		}
	}
	return spec, nil
}

// isTrue reads a boolean as the daemons do.
func isTrue(text string) bool {
	switch strings.ToLower(text) {
	case "true", "1", "yes", "on":
		return true
	}
	return false
}

// serveCreate creates an image from an upload, or from the source in a JSON body.
func (s *Server) serveCreate(w http.ResponseWriter, r *http.Request) error {
	secret := r.Header.Get(s.traits.uploadHeader + "secret")
	s.mu.Lock()
	project, err := s.imageProject(r)
	token := s.findToken(secret)
	s.mu.Unlock()
	if !s.allows(r) && token == nil {
		return errForbidden
	}
	if err != nil {
		return err
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "application/json" {
		return s.serveCreateFrom(w, r, project)
	}
	spec, specErr := s.specFromHeaders(r)
	spec.project = project
	if err := s.withLock(func() error { return s.checkPublic(project, spec.public) }); err != nil {
		return err
	}
	if token != nil && !token.allowsUpload(project, spec.fingerprint) {
		return errForbidden
	}
	received, err := s.receive(r)
	if err != nil {
		return statusErrorf(http.StatusInternalServerError, "%v", err)
	}
	if specErr != nil {
		received.invalid = specErr
	}
	if token != nil {
		if err := s.useToken(r, token, &spec); err != nil {
			received.invalid = err
		}
	}
	var metadata map[string]any
	if token != nil {
		metadata = map[string]any{"secret": newSecret()}
	}
	s.startTask(w, r, task{
		description: "Downloading image",
		project:     projectParam(r),
		metadata:    metadata,
		run: func(ctx context.Context, op *operation) error {
			if err := s.store(ctx, r, op, received, spec); err != nil {
				return err
			}
			img := s.existing(project, received.fingerprint)
			if img == nil {
				return errNoImage
			}
			// If an alias exists already, the operation fails, but the image is
			// kept.
			return s.addAliases(r, op, img, spec.aliases)
		},
	})
	return nil
}

// store adds an upload to the store as an image; on errors it discards the
// upload.
func (s *Server) store(ctx context.Context, r *http.Request, op *operation, u *upload, spec imageSpec) (err error) {
	defer func() {
		if err != nil {
			u.discard()
		}
	}()
	if u.invalid != nil {
		return u.invalid
	}
	if spec.fingerprint != "" && spec.fingerprint != u.fingerprint {
		return daemonErrorf(s.traits.texts.hash, u.fingerprint, spec.fingerprint)
	}
	found, err := s.traits.readMetadata(ctx, u.metadata, u.fingerprint)
	if err != nil {
		return err
	}
	if spec.propertiesFromHeader && found.noProperties && spec.replaceProperties == nil {
		s.crashWith("assignment to entry in nil map: an upload with properties of an image whose metadata.yaml has none")
		return errRestarted
	}
	s.mu.Lock()
	lost := op != nil && s.fire(kindLoseInsert)
	s.mu.Unlock()
	if lost {
		// The other request set nothing.
		spec = imageSpec{project: spec.project}
	}
	img := &image{
		key:          imageKey{spec.project, u.fingerprint},
		filename:     spec.filename,
		kind:         found.kind,
		architecture: found.architecture,
		size:         u.size,
		public:       spec.public,
		autoUpdate:   spec.autoUpdate,
		properties:   found.properties,
		profiles:     spec.profiles,
		expires:      found.expires,
		created:      found.created,
		uploaded:     s.now(),
		source:       spec.source,
		cached:       spec.cached,
		metadata:     u.metadata,
		rootfs:       u.rootfs,
		suffix:       found.suffix,
	}
	if u.rootfs != "" {
		img.kind = u.kind
		if u.filename != "" {
			// The name in the form takes precedence over the one in the header.
			img.filename = u.filename
		}
	}
	if spec.replaceProperties != nil {
		img.properties = map[string]string{}
		for key, value := range spec.replaceProperties {
			img.properties[key] = value
		}
	}
	for key, value := range spec.properties {
		img.properties[key] = value
	}
	if spec.setExpiry || !spec.expires.IsZero() {
		img.expires = spec.expires
		img.zeroExpiry = img.expires.IsZero()
	}
	if img.profiles == nil {
		img.profiles = []string{"default"}
	}
	if lost {
		if err := s.commit(ctx, r, nil, img); err != nil {
			return err
		}
		u.metadata, u.rootfs = "", "" // they are the image's
		return daemonErrorf("%s", s.traits.texts.insert)
	}
	return s.commit(ctx, r, op, img)
}

// commit adds an image to the store and publishes an event. op is nil if that is
// not the work of an operation.
func (s *Server) commit(ctx context.Context, r *http.Request, op *operation, img *image) error {
	name := func() {
		s.setFinal(op, map[string]any{"fingerprint": img.key.fingerprint, "size": fmt.Sprint(img.size)})
	}
	if !s.traits.namesImageLast {
		name()
	}
	s.mu.Lock()
	var stall, fail *Injection
	if op != nil {
		stall, fail = s.fireFault(kindStallImage), s.fireFault(kindFailImage)
	}
	s.mu.Unlock()
	switch {
	case stall != nil && !stall.wait(ctx):
		return ctx.Err()
	case fail != nil:
		return daemonErrorf("%s", fail.fault.message)
	}
	s.mu.Lock()
	err := s.checkNew(img)
	if err == nil {
		err = s.addImage(op, img)
	}
	s.mu.Unlock()
	if s.traits.namesImageLast && (err == nil || errors.Is(err, errDuplicate)) {
		name()
	}
	if err != nil {
		return err
	}
	s.publishLifecycle(r, "image-created", imageURL(img.key), img.key.project, map[string]any{"type": img.kind})
	return nil
}

// checkNew refuses an image that cannot be added; the caller holds the lock.
func (s *Server) checkNew(img *image) error {
	if s.images[img.key] != nil {
		return errDuplicate
	}
	if img.kind == "" {
		return daemonErrorf("Invalid instance type")
	}
	if err := s.checkPublic(img.key.project, img.public); err != nil {
		return err
	}
	return s.checkProfiles(img.key.project, img.profiles)
}

// setAliases adds aliases to an image; the caller holds the lock and has checked
// that they do not exist.
func (s *Server) setAliases(img *image, aliases []imageAliasJSON) {
	for _, a := range aliases {
		key := aliasKey{img.key.project, a.Name}
		s.aliases[key] = &alias{key: key, target: img.key.fingerprint, description: a.Description}
	}
}
