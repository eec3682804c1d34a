package lxdtest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// profileProject returns the project whose profiles a project uses: itself or
// the default one; the caller holds the lock.
func (s *Server) profileProject(name string) *project {
	p := s.projects[name]
	if p == nil || !p.feature("profiles") {
		return s.projects[defaultProject]
	}
	return p
}

// checkProfiles refuses a profile that does not exist; the caller holds the
// lock.
func (s *Server) checkProfiles(project string, names []string) error {
	p := s.profileProject(project)
	for _, name := range names {
		if _, ok := p.profiles[name]; !ok {
			return daemonErrorf(s.traits.texts.profile, name)
		}
	}
	return nil
}

// AddProfile adds a profile, for use in images, to the default project.
func (s *Server) AddProfile(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.projects[defaultProject].profiles[name] = ""
}

// profileJSON is a profile on the wire.
type profileJSON struct {
	Config      map[string]string         `json:"config"`
	Description string                    `json:"description"`
	Devices     map[string]map[string]any `json:"devices"`
	Name        string                    `json:"name"`
	UsedBy      []string                  `json:"used_by"`
}

// renderProfile copies a profile for the wire; it has only a name and a
// description.
func renderProfile(p *project, name string) profileJSON {
	return profileJSON{map[string]string{}, p.profiles[name], map[string]map[string]any{}, name, []string{}}
}

// serveProfiles handles GET of the profiles of a project.
func (s *Server) serveProfiles(w http.ResponseWriter, r *http.Request) error {
	urls, full := []string{}, []profileJSON{}
	err := s.withLock(func() error {
		if s.projects[projectParam(r)] == nil {
			return errNoProject
		}
		p := s.profileProject(projectParam(r))
		for _, name := range slices.Sorted(maps.Keys(p.profiles)) {
			urls = append(urls, "/1.0/profiles/"+name)
			full = append(full, renderProfile(p, name))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if r.URL.Query().Get("recursion") == "1" {
		writeSync(w, full)
	} else {
		writeSync(w, urls)
	}
	return nil
}

// serveProfile handles GET of one profile.
func (s *Server) serveProfile(w http.ResponseWriter, r *http.Request, name string) error {
	var out profileJSON
	err := s.withLock(func() error {
		p := s.profileProject(projectParam(r))
		if _, ok := p.profiles[name]; !ok {
			return statusErrorf(http.StatusNotFound, "Fetch profile: Profile not found")
		}
		out = renderProfile(p, name)
		return nil
	})
	if err != nil {
		return err
	}
	writeETag(w, etagOf(out), out)
	return nil
}

// serveCreateProfile creates a profile.
func (s *Server) serveCreateProfile(w http.ResponseWriter, r *http.Request) error {
	var post struct {
		Name        string `json:"name"`
		Description string `json:"description"`
	}
	if err := readJSON(r, &post); err != nil {
		return err
	}
	if post.Name == "" || strings.Contains(post.Name, "/") {
		return statusErrorf(http.StatusBadRequest, "Invalid profile name %q", post.Name)
	}
	err := s.withLock(func() error {
		p := s.profileProject(projectParam(r))
		if _, ok := p.profiles[post.Name]; ok {
			return statusErrorf(http.StatusConflict, "Profile %q already exists", post.Name)
		}
		p.profiles[post.Name] = post.Description
		return nil
	})
	if err != nil {
		return err
	}
	writeCreated(w, "/1.0/profiles/"+post.Name)
	return nil
}
