package lxdtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

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
	names := s.aliasesByImage()
	for _, img := range s.sortedImages("", true) {
		images = append(images, inspect(img, names[img.key]))
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
	return inspect(img, s.aliasesOf(img)), true
}

// inspect copies an image with its aliases; the caller holds the lock.
func inspect(img *image, aliases []imageAliasJSON) Image {
	out := Image{
		Project: img.key.project, Fingerprint: img.key.fingerprint, Filename: img.filename, Type: img.kind,
		Architecture: img.architecture, Size: img.size, Public: img.public, AutoUpdate: img.autoUpdate,
		Cached: img.cached, Properties: maps.Clone(img.properties), Profiles: slices.Clone(img.profiles),
		ExpiresAt: img.expires, CreatedAt: img.created, UploadedAt: img.uploaded, LastUsedAt: img.lastUsed,
	}
	for _, a := range aliases {
		out.Aliases = append(out.Aliases, a.Name)
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
	u, err := s.receiveFiles(file, opts)
	if err == nil {
		err = s.addUpload(u, opts)
	}
	if err != nil {
		return "", fmt.Errorf("lxdtest: add image: %w", err)
	}
	return u.fingerprint, nil
}

// AddImageFile is like AddImage for an image on disk: the file of a unified image, or the
// metadata tarball and the root file system of a split one, otherwise rootfs is "". The files
// are read once and are not copied. They must not change while the server runs, which never
// changes or removes them. A rootfs that is a qcow2 disk is that of a virtual machine.
// The Rootfs of opts must be nil.
func (s *Server) AddImageFile(file, rootfs string, opts *AddOptions) (fingerprint string, err error) {
	if opts == nil {
		opts = &AddOptions{}
	}
	u, err := openUpload(file, rootfs, opts)
	if err == nil {
		s.mu.Lock()
		// Never released: no image is the last one that uses the files.
		s.use(&image{metadata: u.metadata, rootfs: u.rootfs})
		s.mu.Unlock()
		err = s.addUpload(u, opts)
	}
	if err != nil {
		return "", fmt.Errorf("lxdtest: add image: %w", err)
	}
	return u.fingerprint, nil
}

// openUpload returns an upload of files on disk.
func openUpload(file, rootfs string, opts *AddOptions) (*upload, error) {
	if opts.Rootfs != nil {
		return nil, errors.New("AddOptions.Rootfs is not for an image on disk: give the path of its file")
	}
	u := &upload{borrowed: true}
	var err error
	if u.metadata, err = filepath.Abs(file); err != nil {
		return nil, err
	}
	paths := []string{u.metadata}
	if rootfs != "" {
		if u.rootfs, err = filepath.Abs(rootfs); err != nil {
			return nil, err
		}
		paths = append(paths, u.rootfs)
		if u.kind = "container"; opts.VM || isDisk(u.rootfs) {
			u.kind = "virtual-machine"
		}
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		u.size += info.Size()
	}
	u.fingerprint, err = fileFingerprint(paths...)
	return u, err
}

// isDisk reports whether a file is a qcow2 disk.
func isDisk(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	magic := make([]byte, 4)
	_, err = io.ReadFull(file, magic)
	return err == nil && string(magic) == "QFI\xfb"
}

// addUpload adds an image with the settings of AddOptions.
func (s *Server) addUpload(u *upload, opts *AddOptions) error {
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
	s.mu.Lock()
	missing := s.projects[spec.project] == nil
	s.mu.Unlock()
	if missing {
		u.discard()
		return fmt.Errorf("no project %q", spec.project)
	}
	if err := s.store(s.ctx, nil, nil, u, spec); err != nil {
		return err
	}
	img := s.existing(spec.project, u.fingerprint)
	if img == nil {
		return errNoImage
	}
	return s.addAliases(nil, nil, img, spec.aliases)
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
