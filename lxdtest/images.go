package lxdtest

import (
	"crypto/sha256"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// imageKey names an image: the same content may be in several projects.
type imageKey struct{ project, fingerprint string }

// image is an image of the server. The server's lock guards it; its files never
// change.
type image struct {
	key          imageKey
	filename     string
	kind         string // container or virtual-machine
	architecture string
	size         int64
	public       bool
	autoUpdate   bool
	cached       bool
	properties   map[string]string
	profiles     []string
	expires      time.Time
	zeroExpiry   bool // the expiry is explicitly zero, which all dialects encode as such
	created      time.Time
	lastUsed     time.Time
	uploaded     time.Time
	source       *updateSource

	metadata string // the path of the only file or of the metadata tarball
	rootfs   string // the path of the root file system of a split image
	suffix   string // the extension of the exported file's name
}

// updateSource is where an image was downloaded from.
type updateSource struct {
	Alias       string `json:"alias"`
	Certificate string `json:"certificate"`
	Protocol    string `json:"protocol"`
	Server      string `json:"server"`
	ImageType   string `json:"image_type"`
	// Only LXD 6.9 has this field.
	Registry *string `json:"image_registry,omitempty"`
}

// imageJSON is an image on the wire.
type imageJSON struct {
	AutoUpdate   bool              `json:"auto_update"`
	Properties   map[string]string `json:"properties"`
	Public       bool              `json:"public"`
	ExpiresAt    time.Time         `json:"expires_at"`
	Profiles     []string          `json:"profiles"`
	Aliases      []imageAliasJSON  `json:"aliases"`
	Architecture string            `json:"architecture"`
	Cached       bool              `json:"cached"`
	Filename     string            `json:"filename"`
	Fingerprint  string            `json:"fingerprint"`
	Size         int64             `json:"size"`
	UpdateSource *updateSource     `json:"update_source,omitempty"`
	Type         string            `json:"type"`
	CreatedAt    time.Time         `json:"created_at"`
	LastUsedAt   time.Time         `json:"last_used_at"`
	UploadedAt   time.Time         `json:"uploaded_at"`
	Project      string            `json:"project,omitempty"`
	Locations    []string          `json:"locations,omitempty"`
	Entitlements []string          `json:"access_entitlements,omitempty"`
}

// imageAliasJSON is an alias inside an image.
type imageAliasJSON struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

// aliasesByImage returns the aliases of every image by name; the caller holds
// the lock.
func (s *Server) aliasesByImage() map[imageKey][]imageAliasJSON {
	found := map[imageKey][]imageAliasJSON{}
	for key, a := range s.aliases {
		at := imageKey{key.project, a.target}
		found[at] = append(found[at], imageAliasJSON{key.name, a.description})
	}
	for _, list := range found {
		sortAliases(list)
	}
	return found
}

// aliasesOf returns the aliases of one image by name; the caller holds the lock.
func (s *Server) aliasesOf(img *image) []imageAliasJSON {
	var found []imageAliasJSON
	for key, a := range s.aliases {
		if a.target == img.key.fingerprint && key.project == img.key.project {
			found = append(found, imageAliasJSON{key.name, a.description})
		}
	}
	sortAliases(found)
	return found
}

func sortAliases(list []imageAliasJSON) {
	slices.SortFunc(list, func(a, b imageAliasJSON) int { return strings.Compare(a.Name, b.Name) })
}

// renderImage copies an image for the wire; the caller holds the lock.
func (s *Server) renderImage(img *image) imageJSON { return s.renderImageWith(img, s.aliasesOf(img)) }

// renderImageWith copies an image with its aliases; the caller holds the lock.
func (s *Server) renderImageWith(img *image, aliases []imageAliasJSON) imageJSON {
	out := imageJSON{
		AutoUpdate: img.autoUpdate, Properties: maps.Clone(img.properties), Public: img.public,
		ExpiresAt: img.expires, Profiles: slices.Clone(img.profiles), Aliases: []imageAliasJSON{},
		Architecture: img.architecture, Cached: img.cached, Filename: img.filename,
		Fingerprint: img.key.fingerprint, Size: img.size, UpdateSource: img.source, Type: img.kind,
		CreatedAt: img.created, LastUsedAt: img.lastUsed, UploadedAt: img.uploaded,
	}
	if out.ExpiresAt.IsZero() && !img.zeroExpiry {
		out.ExpiresAt = s.traits.never
	}
	if s.traits.imageProject {
		out.Project = img.key.project
	}
	if s.traits.imageLocations {
		out.Locations = []string{"none"}
	}
	out.Aliases = append(out.Aliases, aliases...)
	return out
}

// imageETag returns the ETag of an image; the caller holds the lock. As in the
// daemons, it does not depend on profiles and expiry.
func imageETag(img *image) string {
	return etagOf([]any{img.public, img.autoUpdate, img.properties})
}

// sortedImages returns the images of a project, or of all, by fingerprint; the
// caller holds the lock.
func (s *Server) sortedImages(project string, all bool) []*image {
	list := []*image{}
	for key, img := range s.images {
		if all || key.project == project {
			list = append(list, img)
		}
	}
	slices.SortFunc(list, func(a, b *image) int {
		if n := strings.Compare(a.key.fingerprint, b.key.fingerprint); n != 0 {
			return n
		}
		return strings.Compare(a.key.project, b.key.project)
	})
	return list
}

// findImage returns the image with a fingerprint or a fingerprint prefix; the
// caller holds the lock.
func (s *Server) findImage(project, prefix string) (*image, error) {
	if img := s.images[imageKey{project, prefix}]; img != nil {
		return img, nil
	}
	if len(prefix) < s.traits.shortestPrefix {
		return nil, statusErrorf(http.StatusBadRequest, "Image fingerprint prefix must contain %d characters or more", s.traits.shortestPrefix)
	}
	if len(prefix) >= sha256.Size*2 {
		return nil, errNoImage
	}
	var found *image
	for key, img := range s.images {
		if key.project != project || !strings.HasPrefix(key.fingerprint, prefix) {
			continue
		}
		if found != nil {
			return nil, errAmbiguous
		}
		found = img
	}
	if found == nil {
		return nil, errNoImage
	}
	return found, nil
}

// visibleImage returns an image if the client may see it: a trusted client sees
// all, others see public images and those whose secret they present; the caller
// holds the lock.
func (s *Server) visibleImage(r *http.Request, name string) (*image, error) {
	project, err := s.imageProject(r)
	if err != nil {
		return nil, err
	}
	img, err := s.findImage(project, name)
	if errors.Is(err, errNoImage) {
		switch {
		case s.traits.hidesMissing:
			return nil, errNotFound
		case s.traits.family == "incus":
			return nil, s.traits.noImageNamed(name)
		}
	}
	if err != nil {
		return nil, err
	}
	if s.allows(r) || img.public || s.secretAllows(r.URL.Query().Get("secret"), img) {
		return img, nil
	}
	if s.traits.hidesMissing {
		return nil, errNotFound
	}
	return nil, s.traits.noImageNamed(name)
}

// secretAllows reports whether a secret gives access to the image, and marks it
// as used; it remains valid until the token is forgotten. The caller holds the
// lock.
func (s *Server) secretAllows(secret string, img *image) bool {
	op := s.findToken(secret)
	if op == nil || op.project != img.key.project || !slices.Contains(op.resources["images"], "/1.0/images/"+img.key.fingerprint) {
		return false
	}
	s.consumeToken(op)
	return true
}

// serveImages handles GET of the list of images.
func (s *Server) serveImages(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	full := query.Get("recursion") == "1"
	entitlements, err := s.entitlements(r)
	if err != nil {
		return err
	}
	if len(entitlements) > 0 && !full {
		return daemonErrorf("Entitlements can only be requested when recursion is enabled")
	}
	filter := query.Get("filter")
	if !s.has("api_filtering") {
		filter = ""
	}
	match, err := s.parseFilter(filter)
	if err != nil {
		return err
	}
	all := query.Get("all-projects") == "true" && s.has("images_all_projects")
	if all && query.Get("project") != "" && s.traits.refusesAllOfProject {
		return statusErrorf(http.StatusBadRequest, "Cannot specify a project when requesting all projects")
	}
	var found []imageJSON
	trusted := s.allows(r)
	err = s.withLock(func() error {
		project, err := s.imageProject(r)
		if err != nil {
			return err
		}
		names := s.aliasesByImage()
		for _, img := range s.sortedImages(project, all) {
			if trusted || img.public {
				found = append(found, s.renderImageWith(img, names[img.key]))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	urls, images := []string{}, []imageJSON{}
	for _, img := range found {
		ok, err := match(img)
		if err != nil {
			return err
		}
		if ok {
			images = append(images, img)
			urls = append(urls, "/1.0/images/"+img.Fingerprint)
		}
	}
	if err := s.reportEntitlements(r, entitlements, images); err != nil {
		return err
	}
	if full {
		writeSync(w, images)
	} else {
		writeSync(w, urls)
	}
	return nil
}

// imageURL returns the URL of an image, for responses.
func imageURL(key imageKey) string {
	url := "/1.0/images/" + key.fingerprint
	if key.project != defaultProject {
		url += "?project=" + key.project
	}
	return url
}

// serveImage handles GET of one image.
func (s *Server) serveImage(w http.ResponseWriter, r *http.Request, name string) error {
	var etag string
	var out imageJSON
	entitlements, err := s.entitlements(r)
	if err != nil {
		return err
	}
	err = s.withLock(func() error {
		img, err := s.visibleImage(r, name)
		if err != nil {
			return err
		}
		etag, out = imageETag(img), s.renderImage(img)
		return nil
	})
	if err != nil {
		return err
	}
	reported := []imageJSON{out}
	if err := s.reportEntitlements(r, entitlements, reported); err != nil {
		return err
	}
	writeETag(w, etag, reported[0])
	return nil
}

// imageEntitlements are the entitlements on an image.
var imageEntitlements = []string{"can_view", "can_edit", "can_delete"}

// entitlements returns the entitlements that a request asks for. A daemon without
// the extension ignores the parameter.
func (s *Server) entitlements(r *http.Request) ([]string, error) {
	text := r.URL.Query().Get("with-access-entitlements")
	if text == "" || !s.has("entities_with_entitlements") {
		return nil, nil
	}
	names := strings.Split(text, ",")
	for _, name := range names {
		if !slices.Contains(imageEntitlements, name) {
			return nil, statusErrorf(http.StatusBadRequest, "Requested entitlement %q is not valid for entity type %q", name, "image")
		}
	}
	return names, nil
}

// reportEntitlements sets the entitlements of images. Those of other clients than
// one with a bearer token, who has all of them, cannot be requested.
func (s *Server) reportEntitlements(r *http.Request, names []string, images []imageJSON) error {
	if len(names) == 0 || len(images) == 0 {
		return nil
	}
	if !s.hasBearer(r) {
		return statusErrorf(http.StatusBadRequest, "Cannot report entitlements for identities that do not use fine-grained authorization")
	}
	for n := range images {
		images[n].Entitlements = names
	}
	return nil
}

// addImage adds a complete image to the store; the caller holds the lock.
func (s *Server) addImage(op *operation, img *image) error {
	if op != nil && (op.dropped || op.status != statusRunning) {
		return errRestarted
	}
	if s.images[img.key] != nil {
		return errDuplicate
	}
	s.images[img.key] = img
	s.use(img)
	return nil
}

var errDuplicate = daemonErrorf("Image with same fingerprint already exists")

// serveSecret creates a secret for a private image: a token operation that runs
// until it is cancelled.
func (s *Server) serveSecret(w http.ResponseWriter, r *http.Request, name string) error {
	s.mu.Lock()
	project, err := s.imageProject(r)
	var img *image
	if err == nil {
		img, err = s.findImage(project, name)
	}
	if err != nil {
		s.mu.Unlock()
		return err
	}
	token := task{
		description: "Image download token",
		project:     project,
		resources:   map[string][]string{"images": {"/1.0/images/" + img.key.fingerprint}},
		entity:      imageURL(img.key),
		metadata:    map[string]any{"secret": newSecret()},
		mayCancel:   true,
	}
	if s.traits.storesOperations {
		token.metadata["fingerprint"] = img.key.fingerprint
	}
	response := s.render(s.addOperation("token", token, r))
	s.mu.Unlock()
	s.publishLifecycle(r, "image-secret-created", imageURL(img.key), project, nil)
	writeOperation(w, response)
	return nil
}
