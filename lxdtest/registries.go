package lxdtest

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
)

// registry is an image registry: a named simplestreams server. The server's lock
// guards it.
type registry struct {
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Protocol    string            `json:"protocol"`
	Builtin     bool              `json:"builtin"`
	Public      bool              `json:"public"`
	Config      map[string]string `json:"config"`
}

var errNoRegistry = statusErrorf(http.StatusNotFound, "Image registry not found")

// AddRegistry adds an image registry for a simplestreams server, on dialects
// that have registries. Unlike a request, it accepts an http URL.
func (s *Server) AddRegistry(name, url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.registries[name] = &registry{Name: name, Protocol: "simplestreams", Public: true, Config: map[string]string{"url": url}}
}

// useRegistry sets the server and protocol of a source to those of its registry.
func (s *Server) useRegistry(source *imagesSource) error {
	if source.Registry == "" {
		return statusErrorf(http.StatusBadRequest, "Image registry is required")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.registries[source.Registry]
	if found == nil {
		return errNoRegistry
	}
	source.Server, source.Protocol = found.Config["url"], found.Protocol
	return nil
}

// serveRegistries handles GET of the list of registries.
func (s *Server) serveRegistries(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	urls, full := []string{}, []registry{}
	for _, name := range slices.Sorted(maps.Keys(s.registries)) {
		urls = append(urls, "/1.0/image-registries/"+url.PathEscape(name))
		full = append(full, *s.registries[name])
	}
	s.mu.Unlock()
	if r.URL.Query().Get("recursion") == "1" {
		writeSync(w, full)
	} else {
		writeSync(w, urls)
	}
	return nil
}

// serveCreateRegistry creates a registry.
func (s *Server) serveCreateRegistry(w http.ResponseWriter, r *http.Request) error {
	var post registry
	if err := readJSON(r, &post); err != nil {
		return err
	}
	if post.Name == "" {
		return statusErrorf(http.StatusBadRequest, "Image registry name is required")
	}
	if post.Protocol != "simplestreams" {
		return statusErrorf(http.StatusBadRequest, "Unsupported image registry protocol %q", post.Protocol)
	}
	if at, err := url.Parse(post.Config["url"]); err != nil || at.Scheme != "https" {
		return statusErrorf(http.StatusBadRequest, "Image registry URL must use HTTPS")
	}
	post.Builtin, post.Public = false, true
	s.mu.Lock()
	exists := s.registries[post.Name] != nil
	if !exists {
		s.registries[post.Name] = &post
	}
	s.mu.Unlock()
	if exists {
		return statusErrorf(http.StatusConflict, "Image registry %q already exists", post.Name)
	}
	writeCreated(w, "/1.0/image-registries/"+url.PathEscape(post.Name))
	return nil
}

// serveRegistry handles GET of one registry.
func (s *Server) serveRegistry(w http.ResponseWriter, _ *http.Request, name string) error {
	s.mu.Lock()
	found := s.registries[name]
	s.mu.Unlock()
	if found == nil {
		return errNoRegistry
	}
	writeETag(w, etagOf([]any{found.Description, found.Config}), *found)
	return nil
}

// serveDeleteRegistry deletes a registry.
func (s *Server) serveDeleteRegistry(w http.ResponseWriter, _ *http.Request, name string) error {
	s.mu.Lock()
	found := s.registries[name]
	delete(s.registries, name)
	s.mu.Unlock()
	if found == nil {
		return errNoRegistry
	}
	writeEmpty(w)
	return nil
}
