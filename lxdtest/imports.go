package lxdtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// imagesPost is the JSON body of a request to create an image from a source.
type imagesPost struct {
	AutoUpdate  bool              `json:"auto_update"`
	Properties  map[string]string `json:"properties"`
	Public      bool              `json:"public"`
	ExpiresAt   time.Time         `json:"expires_at"`
	Profiles    []string          `json:"profiles"`
	Filename    string            `json:"filename"`
	Source      *imagesSource     `json:"source"`
	Compression string            `json:"compression_algorithm"`
	Format      string            `json:"format"`
	Aliases     []imageAliasJSON  `json:"aliases"`

	cached bool // an instance is created from the image
}

// imagesSource is the source of a new image.
type imagesSource struct {
	Alias       string `json:"alias"`
	Certificate string `json:"certificate"`
	Protocol    string `json:"protocol"`
	Server      string `json:"server"`
	ImageType   string `json:"image_type"`
	Mode        string `json:"mode"`
	Type        string `json:"type"`
	URL         string `json:"url"`
	Name        string `json:"name"`
	Fingerprint string `json:"fingerprint"`
	Secret      string `json:"secret"`
	Project     string `json:"project"`
	Registry    string `json:"image_registry"`
}

var errBadSource = statusErrorf(http.StatusInternalServerError, "Invalid images JSON")

// serveCreateFrom creates an image from the source in a JSON body.
func (s *Server) serveCreateFrom(w http.ResponseWriter, r *http.Request, project string) error {
	if !s.allows(r) {
		return errForbidden
	}
	var post imagesPost
	if err := readJSON(r, &post); err != nil {
		return err
	}
	source := post.Source
	if source == nil {
		// The daemons' handler panics, which breaks the connection.
		abort(r)
	}
	s.mu.Lock()
	err := s.checkPublic(project, post.Public)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if source.Mode == "push" && s.has("images_push_relay") {
		return s.servePushToken(w, r, project, post)
	}
	var run func(ctx context.Context, op *operation) (*image, error)
	switch source.Type {
	case "image":
		run = func(ctx context.Context, op *operation) (*image, error) {
			return s.importImage(ctx, r, op, project, post)
		}
	case "url":
		if !s.traits.urlImport {
			return statusErrorf(http.StatusBadRequest, "Image download from client-specified URL is not supported")
		}
		run = func(ctx context.Context, op *operation) (*image, error) {
			return s.importURL(ctx, r, op, project, post)
		}
	case "instance", "container", "virtual-machine", "snapshot":
		inst, err := s.preparePublish(r, source)
		if err != nil {
			return err
		}
		run = func(ctx context.Context, op *operation) (*image, error) {
			return s.publishInstance(ctx, r, op, project, post, inst)
		}
	default:
		return errBadSource
	}
	s.startTask(w, r, task{
		description: "Downloading image",
		project:     projectParam(r),
		run: func(ctx context.Context, op *operation) error {
			img, err := run(ctx, op)
			if err != nil {
				return err
			}
			return s.addAliases(r, op, img, post.Aliases)
		},
	})
	return nil
}

// addAliases adds aliases to an image; it fails if one exists already.
func (s *Server) addAliases(r *http.Request, op *operation, img *image, aliases []imageAliasJSON) error {
	for _, a := range aliases {
		key := aliasKey{img.key.project, a.Name}
		s.mu.Lock()
		switch {
		case op != nil && op.dropped:
			s.mu.Unlock()
			return errRestarted
		case s.aliases[key] != nil:
			s.mu.Unlock()
			return aliasTaken(a.Name)
		}
		s.setAliases(img, []imageAliasJSON{a})
		s.mu.Unlock()
		s.publishLifecycle(r, "image-alias-created", s.aliasURL(key), key.project, map[string]any{"target": img.key.fingerprint})
	}
	return nil
}

// importURL creates an image from a URL: the response to HEAD has the image's
// fingerprint and URL in its headers, from which GET downloads it.
func (s *Server) importURL(ctx context.Context, r *http.Request, op *operation, project string, post imagesPost) (*image, error) {
	if post.Source.URL == "" {
		return nil, daemonErrorf("Missing URL")
	}
	client, err := s.httpClient("")
	if err != nil {
		return nil, err
	}
	prefix := s.traits.importHeader
	res, err := s.request(ctx, client, http.MethodHead, post.Source.URL, http.Header{
		http.CanonicalHeaderKey(prefix + "Server-Architectures"): {"x86_64, i686"},
		http.CanonicalHeaderKey(prefix + "Server-Version"):       {s.traits.version},
	}, nil)
	if err != nil {
		return nil, err
	}
	_ = res.Body.Close()
	// The daemons ignore the status and check only the headers.
	fingerprint, location := res.Header.Get(prefix+"Image-Hash"), res.Header.Get(prefix+"Image-URL")
	if fingerprint == "" {
		return nil, daemonErrorf("Missing %sImage-Hash header", prefix)
	}
	if location == "" {
		return nil, daemonErrorf("Missing %sImage-URL header", prefix)
	}
	unlock, err := s.lockDownload(ctx, fingerprint)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if img := s.existing(project, fingerprint); img != nil {
		return s.useExisting(op, img, post)
	}
	u, err := s.fetch(ctx, op, client, location, "")
	if err != nil {
		return nil, err
	}
	if u.fingerprint != fingerprint {
		u.discard()
		return nil, daemonErrorf("Hash mismatch for %q: %s != %s", location, u.fingerprint, fingerprint)
	}
	return s.storeDownload(ctx, r, op, u, project, post, nil)
}

// existing returns the image of a project with a fingerprint or a prefix of it,
// or nil.
func (s *Server) existing(project, fingerprint string) *image {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fingerprint == "" {
		return nil
	}
	img, err := s.findImage(project, fingerprint)
	if err != nil {
		return nil
	}
	return img
}

// useExisting completes an import whose image already exists: it sets the
// requested attributes on that image.
func (s *Server) useExisting(op *operation, img *image, post imagesPost) (*image, error) {
	s.mu.Lock()
	err := s.override(img, post)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.setFinal(op, map[string]any{"fingerprint": img.key.fingerprint, "size": fmt.Sprint(img.size)})
	return img, nil
}

// aliasTaken returns the error of an operation that cannot add an alias.
func aliasTaken(name string) error {
	return daemonErrorf("Alias already exists: %s", name)
}

// overrides reports whether a request sets attributes of the image that it
// imports. If so, the daemons set the file name too, even if it is empty.
func (p *imagesPost) overrides() bool {
	return p.Public || p.AutoUpdate || p.Filename != "" || len(p.Properties) > 0 || len(p.Profiles) > 0
}

// override sets the requested attributes on an existing image; the caller holds
// the lock.
func (s *Server) override(img *image, post imagesPost) error {
	if post.Profiles != nil && !s.traits.dropsProfiles {
		if err := s.checkProfiles(img.key.project, post.Profiles); err != nil {
			return err
		}
		img.profiles = post.Profiles
	}
	if post.Public {
		img.public = true
	}
	if post.AutoUpdate {
		img.autoUpdate = true
	}
	if post.overrides() {
		img.filename = post.Filename
	}
	if !post.ExpiresAt.IsZero() {
		img.expires = post.ExpiresAt
	}
	if len(post.Properties) > 0 {
		properties := map[string]string{}
		for key, value := range img.properties {
			properties[key] = value
		}
		for key, value := range post.Properties {
			properties[key] = value
		}
		img.properties = properties
	}
	return nil
}

// storeDownload adds a downloaded image to the store. The attributes in info,
// which is what the source reports, take precedence over the image's metadata;
// info may be nil.
func (s *Server) storeDownload(ctx context.Context, r *http.Request, op *operation, u *upload, project string, post imagesPost, info *imageJSON) (*image, error) {
	spec := imageSpec{
		project: project, public: post.Public, autoUpdate: post.AutoUpdate, filename: post.Filename,
		properties: post.Properties, profiles: post.Profiles, expires: post.ExpiresAt, cached: post.cached,
	}
	if info != nil {
		u.filename = "" // info takes precedence over the form
		spec.replaceProperties = info.Properties
		spec.source = info.UpdateSource
		if !post.overrides() {
			spec.filename = info.Filename
		}
		if spec.expires.IsZero() && info.ExpiresAt.Unix() > 0 {
			spec.expires = info.ExpiresAt
		}
	}
	// The image may have been created during the download; that is not an error.
	if img := s.existing(project, u.fingerprint); img != nil {
		u.discard()
		return s.useExisting(op, img, post)
	}
	if s.traits.dropsProfiles {
		spec.profiles = nil
	}
	if err := s.withLock(func() error { return s.checkProfiles(project, spec.profiles) }); err != nil {
		// The daemons store the image before they set what was requested.
		spec.profiles, spec.properties, spec.filename, spec.autoUpdate = nil, nil, "", false
		if !post.ExpiresAt.IsZero() {
			spec.expires = time.Time{}
		}
		if err := s.store(ctx, r, nil, u, spec); err != nil {
			return nil, err
		}
		return nil, err
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

// importImage creates an image from another image server.
func (s *Server) importImage(ctx context.Context, r *http.Request, op *operation, project string, post imagesPost) (*image, error) {
	source := *post.Source
	if s.has("image_registries") && (source.Registry != "" || source.Protocol == "simplestreams" || source.Server == "") {
		if err := s.useRegistry(&source); err != nil {
			return nil, err
		}
	}
	if source.Alias == "" && source.Fingerprint == "" {
		return nil, errors.New("must specify one of alias or fingerprint for init from image")
	}
	// If the image already exists, the source is not contacted.
	if source.Alias == "" {
		if img := s.existing(project, source.Fingerprint); img != nil {
			return s.useExisting(op, img, post)
		}
	}
	if source.Server == "" && source.Mode != "push" {
		return nil, errNoImage
	}
	if source.Protocol == "simplestreams" {
		return s.importStream(ctx, r, op, project, post, source)
	}
	if source.Protocol == "oci" && s.has("instance_oci") {
		return s.importOCI(ctx, r, op, project, post, source)
	}
	return s.pull(ctx, r, op, project, post, source)
}
