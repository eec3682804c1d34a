package lxdtest

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

const defaultProject = "default"

// project is a project with its profiles. The server's lock guards it.
type project struct {
	name        string
	description string
	config      map[string]string
	profiles    map[string]string // descriptions by name
}

// projectJSON is a project on the wire.
type projectJSON struct {
	Config      map[string]string `json:"config"`
	Description string            `json:"description"`
	Name        string            `json:"name"`
	UsedBy      []string          `json:"used_by"`
}

var (
	errNoProject = statusErrorf(http.StatusNotFound, "Project not found")
	errNoImages  = statusErrorf(http.StatusNotFound, "Check if project has images: fetch project: Project not found")
)

// projectURL returns the URL of a project, for responses.
func projectURL(name string) string { return "/1.0/projects/" + name }

// familyName returns the family as the daemons write it in descriptions.
func (t *traits) familyName() string {
	if t.family == "incus" {
		return "Incus"
	}
	return "LXD"
}

// defaultProject returns the project, with its profile, that every new daemon has.
func (t *traits) defaultProject() *project {
	return &project{
		name:        defaultProject,
		description: "Default " + t.familyName() + " project",
		config: map[string]string{
			"features.images": "true", "features.networks": "true",
			"features.profiles": "true", "features.storage.volumes": "true",
		},
		profiles: map[string]string{"default": "Default " + t.familyName() + " profile"},
	}
}

// feature reports whether a project has its own images, profiles and so on.
func (p *project) feature(name string) bool { return isTrue(p.config["features."+name]) }

// imageProject returns the project whose images a request uses: that in its
// query, or the default one if that has no images of its own. The caller holds
// the lock.
func (s *Server) imageProject(r *http.Request) (string, error) {
	p := s.projects[projectParam(r)]
	if p == nil {
		return "", errNoImages
	}
	if !p.feature("images") {
		return defaultProject, nil
	}
	return p.name, nil
}

// AddProject adds a project. If images is true it has its own images, otherwise
// it uses those of the default project. It always has its own profiles.
func (s *Server) AddProject(name string, images bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putProject(name, "", map[string]string{"features.images": fmt.Sprint(images), "features.profiles": "true"})
}

// putProject adds a project with its default profile; the caller holds the lock.
func (s *Server) putProject(name, description string, config map[string]string) {
	s.projects[name] = &project{
		name: name, description: description, config: config,
		profiles: map[string]string{"default": "Default " + s.traits.familyName() + " profile for project " + name},
	}
}

// renderProject copies a project for the wire; the caller holds the lock.
func (s *Server) renderProject(p *project) projectJSON {
	used := []string{}
	suffix := ""
	if p.name != defaultProject {
		suffix = "?project=" + p.name
	}
	if p.feature("profiles") {
		for _, name := range slices.Sorted(maps.Keys(p.profiles)) {
			used = append(used, "/1.0/profiles/"+name+suffix)
		}
	}
	for _, img := range s.sortedImages(p.name, false) {
		used = append(used, imageURL(img.key))
	}
	return projectJSON{Config: maps.Clone(p.config), Description: p.description, Name: p.name, UsedBy: used}
}

// serveProjects handles GET of the list of the projects that the client may see.
func (s *Server) serveProjects(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	urls, full := []string{}, []projectJSON{}
	for _, name := range slices.Sorted(maps.Keys(s.projects)) {
		if !s.allowsProject(r, name) {
			continue
		}
		urls = append(urls, "/1.0/projects/"+name)
		full = append(full, s.renderProject(s.projects[name]))
	}
	s.mu.Unlock()
	if r.URL.Query().Get("recursion") == "1" {
		writeSync(w, full)
	} else {
		writeSync(w, urls)
	}
	return nil
}

// serveProject handles GET of one project.
func (s *Server) serveProject(w http.ResponseWriter, _ *http.Request, name string) error {
	var out projectJSON
	err := s.withLock(func() error {
		p := s.projects[name]
		if p == nil {
			return errNoProject
		}
		out = s.renderProject(p)
		return nil
	})
	if err != nil {
		return err
	}
	writeETag(w, etagOf([]any{out.Description, out.Config}), out)
	return nil
}

// serveCreateProject creates a project. As in the daemons, features default to
// true.
func (s *Server) serveCreateProject(w http.ResponseWriter, r *http.Request) error {
	var post struct {
		Name        string            `json:"name"`
		Description string            `json:"description"`
		Config      map[string]string `json:"config"`
	}
	if err := readJSON(r, &post); err != nil {
		return err
	}
	if post.Name == "" || post.Name == "*" || post.Name == "." || post.Name == ".." || strings.ContainsAny(post.Name, "/ '\"_") {
		return statusErrorf(http.StatusBadRequest, "Invalid project name %q", post.Name)
	}
	config := map[string]string{"features.images": "true", "features.profiles": "true", "features.storage.volumes": "true"}
	maps.Copy(config, post.Config)
	err := s.withLock(func() error {
		if s.projects[post.Name] != nil {
			return s.traits.projectExists(post.Name)
		}
		s.putProject(post.Name, post.Description, config)
		return nil
	})
	if err != nil {
		return err
	}
	writeCreated(w, "/1.0/projects/"+post.Name)
	return nil
}

// serveDeleteProject deletes an empty project.
func (s *Server) serveDeleteProject(w http.ResponseWriter, _ *http.Request, name string) error {
	err := s.withLock(func() error {
		switch {
		case s.projects[name] == nil:
			return errNoProject
		case name == defaultProject:
			return statusErrorf(http.StatusForbidden, "The 'default' project cannot be deleted")
		case len(s.sortedImages(name, false)) > 0:
			return statusErrorf(http.StatusInternalServerError, "Only empty projects can be removed")
		}
		delete(s.projects, name)
		return nil
	})
	if err != nil {
		return err
	}
	writeEmpty(w)
	return nil
}
