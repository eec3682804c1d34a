package lxdtest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// instanceKey names an instance or a snapshot.
type instanceKey struct{ project, name string }

// instance is an instance or snapshot to publish an image from, or one that a client
// has created. It is never modified; a change replaces it.
type instance struct {
	key       instanceKey
	running   bool
	vm        bool
	content   []byte
	baseImage string // the fingerprint of its image; "" if it has none
}

// InstanceOptions are the settings of an instance.
type InstanceOptions struct {
	// Project is the instance's project. The default is "default".
	Project string
	// Running makes the instance a running one, which cannot be published.
	Running bool
	// VM makes it a virtual machine. The default is a container.
	VM bool
	// Content is the content of a file in its root. The default is the
	// instance's name.
	Content []byte
}

// instanceURL returns the path of an instance.
func instanceURL(key instanceKey) string {
	at := "/1.0/instances/" + key.name
	if key.project != defaultProject {
		at += "?project=" + key.project
	}
	return at
}

// AddInstance adds an instance to publish an image from, or a snapshot if the
// name has a slash: "web1/snap0". An existing one is replaced. A nil opts means
// a stopped container.
func (s *Server) AddInstance(name string, opts *InstanceOptions) {
	if opts == nil {
		opts = &InstanceOptions{}
	}
	project := opts.Project
	if project == "" {
		project = defaultProject
	}
	content := opts.Content
	if content == nil {
		content = []byte(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := instanceKey{project, name}
	s.instances[key] = &instance{key: key, running: opts.Running, vm: opts.VM, content: bytes.Clone(content)}
}

// instanceJSON is an instance on the wire, with the fields that publishing needs.
type instanceJSON struct {
	Architecture string            `json:"architecture"`
	Config       map[string]string `json:"config"`
	Ephemeral    bool              `json:"ephemeral"`
	Profiles     []string          `json:"profiles"`
	Name         string            `json:"name"`
	Status       string            `json:"status"`
	StatusCode   int               `json:"status_code"`
	Type         string            `json:"type"`
	Project      string            `json:"project"`
	Location     string            `json:"location"`
}

// render copies an instance for the wire.
func (i *instance) render() instanceJSON {
	out := instanceJSON{
		Architecture: "x86_64", Config: map[string]string{}, Profiles: []string{"default"}, Name: i.key.name,
		Status: "Stopped", StatusCode: 102, Type: "container", Project: i.key.project, Location: "none",
	}
	if i.running {
		out.Status, out.StatusCode = "Running", statusRunning
	}
	if i.vm {
		out.Type = "virtual-machine"
	}
	if i.baseImage != "" {
		out.Config["volatile.base_image"] = i.baseImage
	}
	return out
}

// serveInstances handles GET of the instances of a project, or of all that the client
// may see, without snapshots.
func (s *Server) serveInstances(w http.ResponseWriter, r *http.Request) error {
	all := r.URL.Query().Get("all-projects") == "true"
	if all && r.URL.Query().Has("project") {
		return statusErrorf(http.StatusBadRequest, "Cannot specify a project when requesting all projects")
	}
	s.mu.Lock()
	full := []instanceJSON{}
	for key, i := range s.instances {
		listed := key.project == projectParam(r)
		if all {
			listed = s.allowsProject(r, key.project)
		}
		if listed && !strings.Contains(key.name, "/") {
			full = append(full, i.render())
		}
	}
	s.mu.Unlock()
	slices.SortFunc(full, func(a, b instanceJSON) int {
		return cmp.Or(strings.Compare(a.Project, b.Project), strings.Compare(a.Name, b.Name))
	})
	if r.URL.Query().Get("recursion") != "" && r.URL.Query().Get("recursion") != "0" {
		writeSync(w, full)
		return nil
	}
	urls := []string{}
	for _, i := range full {
		urls = append(urls, instanceURL(instanceKey{i.Project, i.Name}))
	}
	writeSync(w, urls)
	return nil
}

var errNoInstance = statusErrorf(http.StatusNotFound, "Instance not found")

// serveInstance handles GET of one instance or snapshot.
func (s *Server) serveInstance(w http.ResponseWriter, r *http.Request, name string) error {
	s.mu.Lock()
	found := s.instances[instanceKey{projectParam(r), name}]
	s.mu.Unlock()
	if found == nil && s.traits.checksInstanceLater {
		return statusErrorf(http.StatusNotFound, s.traits.texts.instance, name, projectParam(r), errNoInstance)
	}
	if found == nil {
		return errNoInstance
	}

	out := found.render()
	writeETag(w, etagOf(out), out)
	return nil
}

// preparePublish returns the instance to publish, or nil. If it does not exist,
// LXD 4.0.13 and 5.0.2 refuse the request; in the other daemons the operation
// fails.
func (s *Server) preparePublish(r *http.Request, source *imagesSource) (*instance, error) {
	if source.Name == "" {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.instances[instanceKey{projectParam(r), source.Name}]
	if found == nil && !s.traits.checksInstanceLater {
		return nil, errNoInstance
	}
	return found, nil
}

// publishInstance creates an image from an instance.
func (s *Server) publishInstance(ctx context.Context, r *http.Request, op *operation, project string, post imagesPost, from *instance) (*image, error) {
	source := post.Source
	switch {
	case source.Name == "":
		return nil, daemonErrorf("No source provided")
	case s.has("instance_publish_split") && !slices.Contains([]string{"", "unified", "split"}, post.Format):
		return nil, daemonErrorf("Invalid image format")
	case source.Type == "snapshot" && !strings.Contains(source.Name, "/"):
		return nil, daemonErrorf("Not a snapshot")
	case from == nil:
		return nil, statusErrorf(http.StatusNotFound, s.traits.texts.instance, source.Name, projectParam(r), errNoInstance)
	case from.running:
		return nil, daemonErrorf("Cannot export a running instance as an image")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	metadata, rootfs, err := s.pack(from, post)
	if err != nil {
		return nil, err
	}
	progress := "create_image_from_instance_pack_progress"
	if !s.traits.checksInstanceLater {
		progress = "create_image_from_container_pack_progress"
	}
	s.setMetadata(op, map[string]any{
		progress:   "Image pack: 100% (1.00GB/s)",
		"progress": map[string]any{"stage": progress, "percent": "100", "processed": fmt.Sprint(len(metadata) + len(rootfs)), "speed": "1000000000"},
	})
	u, err := s.receiveUnified(bytes.NewReader(metadata))
	if err != nil {
		return nil, err
	}
	if s.splits(post) {
		if u.rootfs, u.size, err = s.spool(bytes.NewReader(rootfs), sha256.New()); err != nil {
			u.discard()
			return nil, err
		}
		u.kind, u.size, u.fingerprint = "container", int64(len(metadata)+len(rootfs)), Fingerprint(metadata, rootfs)
		if from.vm {
			u.kind = "virtual-machine"
		}
	}
	if s.existing(project, u.fingerprint) != nil {
		// The operation's metadata has no fingerprint.
		u.discard()
		return nil, daemonErrorf("The image already exists: %s", u.fingerprint)
	}
	spec := imageSpec{
		project: project, public: post.Public, autoUpdate: post.AutoUpdate, filename: post.Filename,
		properties: post.Properties, profiles: post.Profiles, expires: post.ExpiresAt, setExpiry: true,
	}
	if err := s.store(ctx, r, op, u, spec); err != nil {
		return nil, err
	}
	img := s.existing(project, u.fingerprint)
	if img == nil {
		return nil, errNoImage
	}
	return img, nil
}

// pack returns the files of an instance's image: one tarball, or the metadata and
// the root file system of a split image. They are compressed with gzip unless the
// request asks for none; a disk is not compressed.
func (s *Server) pack(from *instance, post imagesPost) (metadata, rootfs []byte, err error) {
	name, _, _ := strings.Cut(post.Compression, " ")
	switch name {
	case "", "gzip", "pigz", "none":
	case "bzip2", "xz", "lzma", "zstd", "squashfs":
		return nil, nil, fmt.Errorf("lxdtest cannot compress with %q: ask for gzip or none", name)
	default:
		return nil, nil, daemonErrorf("Compression algorithm %q isn't currently supported", name)
	}
	yaml := packedFile{"metadata.yaml", fmt.Appendf(nil, "architecture: x86_64\ncreation_date: %d\n", s.now().Truncate(time.Second).Unix())}
	disk := append(emptyDisk(), from.content...)
	split := s.splits(post)
	switch {
	case split && from.vm:
		metadata, err = packFiles(name, yaml)
		return metadata, disk, err
	case split:
		if metadata, err = packFiles(name, yaml); err == nil {
			rootfs, err = packFiles(name, packedFile{"content", from.content})
		}
		return metadata, rootfs, err
	case from.vm:
		metadata, err = packFiles(name, yaml, packedFile{"rootfs.img", disk})
	default:
		metadata, err = packFiles(name, yaml, packedFile{"rootfs/content", from.content})
	}
	return metadata, nil, err
}

// splits reports whether the instance is published as a split image. A daemon
// without the extension ignores the request's format.
func (s *Server) splits(post imagesPost) bool {
	return s.has("instance_publish_split") && post.Format == "split"
}

// packedFile is a file in a tarball.
type packedFile struct {
	name    string
	content []byte
}

// packFiles returns a tarball, compressed with gzip unless compression is "none".
func packFiles(compression string, files ...packedFile) ([]byte, error) {
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	out := tar.NewWriter(zip)
	if compression == "none" {
		out = tar.NewWriter(&buf)
	}
	for _, file := range files {
		if err := addFile(out, file.name, bytes.NewReader(file.content), int64(len(file.content))); err != nil {
			return nil, err
		}
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	if compression != "none" {
		if err := zip.Close(); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), nil
}
