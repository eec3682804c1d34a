package lxdtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
)

// aliasKey names an alias.
type aliasKey struct{ project, name string }

// alias is a name for an image. The server's lock guards it.
type alias struct {
	key         aliasKey
	target      string
	description string
}

// aliasJSON is an alias on the wire.
type aliasJSON struct {
	Description string `json:"description"`
	Target      string `json:"target"`
	Name        string `json:"name"`
	Type        string `json:"type"`
}

// aliasPost is the body of POST, PUT and PATCH.
type aliasPost struct {
	Name        string  `json:"name"`
	Target      *string `json:"target"`
	Description *string `json:"description"`
}

// renderAlias copies an alias for the wire; the caller holds the lock.
func (s *Server) renderAlias(a *alias) aliasJSON {
	out := aliasJSON{Description: a.description, Target: a.target, Name: a.key.name}
	if img := s.images[imageKey{a.key.project, a.target}]; img != nil {
		out.Type = img.kind
	}
	return out
}

// aliasETag returns the ETag of an alias; the caller holds the lock.
func (s *Server) aliasETag(a *alias) string {
	out := s.renderAlias(a)
	if s.traits.aliasETagByName {
		return etagOf(struct {
			Name        string `json:"name"`
			Description string `json:"description"`
			Type        string `json:"type"`
			Target      string `json:"target"`
		}{out.Name, out.Description, out.Type, out.Target})
	}
	return etagOf(out)
}

// sortedAliases returns the aliases of a project by name; the caller holds the
// lock.
func (s *Server) sortedAliases(project string) []*alias {
	var list []*alias
	for key, a := range s.aliases {
		if key.project == project {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, func(a, b *alias) int { return strings.Compare(a.key.name, b.key.name) })
	return list
}

// aliasURL returns the URL of an alias, for responses.
func (s *Server) aliasURL(key aliasKey) string {
	name := url.PathEscape(key.name)
	switch {
	case s.traits.escapesTwice:
		name = url.PathEscape(name)
	case s.traits.plainAliasURLs:
		name = key.name
	}
	if key.project != defaultProject {
		return "/1.0/images/aliases/" + name + "?project=" + url.QueryEscape(key.project)
	}
	return "/1.0/images/aliases/" + name
}

// serveAliases handles GET of the list of aliases.
func (s *Server) serveAliases(w http.ResponseWriter, r *http.Request) error {
	urls, full := []string{}, []aliasJSON{}
	err := s.withLock(func() error {
		project, err := s.imageProject(r)
		if err != nil {
			return err
		}
		for _, a := range s.sortedAliases(project) {
			// Unlike a Location, the URLs in a list do not have the project.
			urls = append(urls, s.aliasURL(aliasKey{defaultProject, a.key.name}))
			full = append(full, s.renderAlias(a))
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

// findAlias returns an alias of the request's project; the caller holds the
// lock.
func (s *Server) findAlias(r *http.Request, name string) (*alias, error) {
	project, err := s.imageProject(r)
	if err != nil {
		return nil, err
	}
	a := s.aliases[aliasKey{project, name}]
	if a == nil {
		return nil, errNoAlias
	}
	return a, nil
}

// serveAlias handles GET of one alias; an untrusted client sees those of public
// images.
func (s *Server) serveAlias(w http.ResponseWriter, r *http.Request, name string) error {
	var etag string
	var out aliasJSON
	err := s.withLock(func() error {
		a, err := s.findAlias(r, name)
		if errors.Is(err, errNoAlias) && s.traits.hidesMissing {
			return errNotFound
		}
		if err != nil {
			return err
		}
		if img := s.images[imageKey{a.key.project, a.target}]; !s.allows(r) && (img == nil || !img.public) {
			return errNoAlias
		}
		etag, out = s.aliasETag(a), s.renderAlias(a)
		return nil
	})
	if err != nil {
		return err
	}
	writeETag(w, etag, out)
	return nil
}

// serveCreateAlias creates an alias.
func (s *Server) serveCreateAlias(w http.ResponseWriter, r *http.Request) error {
	var post aliasPost
	if err := readJSON(r, &post); err != nil {
		return err
	}
	if post.Name == "" || post.Target == nil || *post.Target == "" {
		return statusErrorf(http.StatusBadRequest, "%s", s.traits.texts.fields)
	}
	if err := s.checkAliasName(post.Name); err != nil {
		return err
	}
	s.mu.Lock()
	key, err := s.createAlias(r, post)
	location := s.aliasURL(key)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.publishLifecycle(r, "image-alias-created", location, key.project, map[string]any{"target": *post.Target})
	writeCreated(w, location)
	return nil
}

// createAlias does the work of serveCreateAlias; the caller holds the lock.
func (s *Server) createAlias(r *http.Request, post aliasPost) (aliasKey, error) {
	project, err := s.imageProject(r)
	if err != nil {
		return aliasKey{}, err
	}
	key := aliasKey{project, post.Name}
	if s.aliases[key] != nil {
		return key, s.aliasExists(post.Name)
	}
	img, err := s.findImage(project, *post.Target)
	if err != nil {
		return key, err
	}
	a := &alias{key: key, target: img.key.fingerprint}
	if post.Description != nil {
		a.description = *post.Description
	}
	s.aliases[key] = a
	return key, nil
}

func (s *Server) aliasExists(name string) error {
	return statusErrorf(http.StatusConflict, "Alias "+s.traits.texts.quote+" already exists", name)
}

// checkAliasName refuses a name that the dialect does not allow in a new alias.
// Incus 7.0.2 accepts any in the header of an upload and in a pull.
func (s *Server) checkAliasName(name string) error {
	if !s.traits.checksAliases {
		return nil
	}
	alphanumeric := func(c byte) bool {
		return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
	}
	why := ""
	switch at := strings.IndexAny(name, "$?&+\"'`*"); {
	case len(name) > 64:
		why = "Maximum name length is 64 characters"
	case strings.ContainsFunc(name, unicode.IsSpace):
		why = "Name cannot contain white space"
	case at >= 0:
		why = fmt.Sprintf("Name contains invalid character %q", name[at:at+1])
	case name == "" || !alphanumeric(name[0]) || !alphanumeric(name[len(name)-1]):
		why = "Names must start and end with an alphanumeric character"
	default:
		return nil
	}
	return statusErrorf(http.StatusBadRequest, "Invalid image alias name: %s", why)
}

// servePutAlias replaces the target and description of an alias.
func (s *Server) servePutAlias(w http.ResponseWriter, r *http.Request, name string) error {
	var put aliasPost
	if err := readJSON(r, &put); err != nil {
		return err
	}
	if put.Target == nil || *put.Target == "" {
		return statusErrorf(http.StatusBadRequest, "The target field is required")
	}
	if put.Description == nil {
		put.Description = new(string)
	}
	return s.changeAlias(w, r, name, put)
}

// aliasPatchHang is how long a PATCH takes to fail in LXD 5.0.2: its transaction
// waits for another one of the same request.
const aliasPatchHang = 20 * time.Second

// servePatchAlias changes the fields of an alias that are in the body.
func (s *Server) servePatchAlias(w http.ResponseWriter, r *http.Request, name string) error {
	var patch aliasPost
	if err := readJSON(r, &patch); err != nil {
		return err
	}
	if s.traits.slowAliasPatch {
		s.mu.Lock()
		_, err := s.findAlias(r, name)
		s.mu.Unlock()
		if err != nil {
			return err
		}
		timer := time.NewTimer(aliasPatchHang)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
		return context.DeadlineExceeded
	}
	return s.changeAlias(w, r, name, patch)
}

// changeAlias is the common part of PUT and PATCH.
func (s *Server) changeAlias(w http.ResponseWriter, r *http.Request, name string, change aliasPost) error {
	s.mu.Lock()
	a, err := s.findAlias(r, name)
	if err == nil {
		err = s.checkETag(r, s.aliasETag(a))
	}
	var img *image
	if err == nil && change.Target != nil {
		img, err = s.findImage(a.key.project, *change.Target)
	}
	if err != nil {
		s.mu.Unlock()
		return err
	}
	if img != nil {
		a.target = img.key.fingerprint
	}
	if change.Description != nil {
		a.description = *change.Description
	}
	location, project, target := s.aliasURL(a.key), a.key.project, a.target
	s.mu.Unlock()
	s.publishLifecycle(r, "image-alias-updated", location, project, map[string]any{"target": target})
	writeEmpty(w)
	return nil
}

// serveRenameAlias renames an alias.
func (s *Server) serveRenameAlias(w http.ResponseWriter, r *http.Request, name string) error {
	var post aliasPost
	if err := readJSON(r, &post); err != nil {
		return err
	}
	if err := s.checkAliasName(post.Name); err != nil {
		return err
	}
	s.mu.Lock()
	slow := s.fireFault(kindSlowRename)
	s.mu.Unlock()
	if slow != nil && !slow.pause(r.Context()) {
		return r.Context().Err()
	}
	s.mu.Lock()
	location, project, err := s.renameAlias(r, name, post.Name)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.publishLifecycle(r, "image-alias-renamed", location, project, map[string]any{"old_name": name})
	writeCreated(w, location)
	return nil
}

// renameAlias does the work of serveRenameAlias; the caller holds the lock.
func (s *Server) renameAlias(r *http.Request, from, to string) (location, project string, err error) {
	project, err = s.imageProject(r)
	if err != nil {
		return "", "", err
	}
	key := aliasKey{project, to}
	if s.aliases[key] != nil {
		// The daemons check this first, even if the old name does not exist.
		return "", "", s.aliasExists(to)
	}
	a, err := s.findAlias(r, from)
	if err != nil {
		return "", "", err
	}
	delete(s.aliases, a.key)
	a.key = key
	s.aliases[key] = a
	return s.aliasURL(key), project, nil
}

// serveDeleteAlias deletes an alias.
func (s *Server) serveDeleteAlias(w http.ResponseWriter, r *http.Request, name string) error {
	s.mu.Lock()
	a, err := s.findAlias(r, name)
	if err == nil {
		delete(s.aliases, a.key)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.publishLifecycle(r, "image-alias-deleted", s.aliasURL(a.key), a.key.project, nil)
	writeEmpty(w)
	return nil
}
