package lxdtest

import (
	"net/http"
	"net/url"
	"strings"
)

// handlerFunc responds to a request, or returns the error to respond with.
type handlerFunc func(w http.ResponseWriter, r *http.Request) error

// handler returns the handler of all connections.
func (s *Server) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			panic(http.ErrAbortHandler)
		}
		defer s.tasks.Done()
		// The body is replaced in a copy: when it responds, net/http checks the
		// type of its own request's body, and would otherwise read an unread
		// body from a client that still waits for 100 Continue.
		r = r.WithContext(r.Context())
		seen, matched := s.record(r)
		defer s.served(seen)
		w, faults := s.inject(&countedWriter{w, seen}, r, matched)
		defer faults.done()
		if faults.responded {
			return
		}
		if err := s.route(w, r); err != nil {
			writeError(w, s.traits.refusal(err))
		}
	})
}

// enter adds a running handler to s.tasks, for which Close waits. It returns
// false if the server is closed.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.tasks.Add(1)
	return true
}

// route calls the handler of a request. Like the daemons it matches the escaped
// path, so that a name can contain any character.
func (s *Server) route(w http.ResponseWriter, r *http.Request) error {
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/1.0")
	if !ok || path != "" && path[0] != '/' {
		if r.URL.Path == "/" {
			writeSync(w, []string{"/1.0"})
			return nil
		}
		return errNotFound
	}
	methods := s.methods(strings.Trim(path, "/"))
	if methods == nil {
		return errNotFound
	}
	if err := s.session(w, r); err != nil {
		return err
	}
	found, ok := methods[r.Method]
	if !ok {
		return errNotImplemented
	}
	if !s.allows(r) {
		// A client that sends this header wants an error, not the public view.
		if !found.public || (!s.trusts(r) && r.Header.Get(s.traits.uploadHeader+"authenticated") != "") {
			return s.refuseProject(r)
		}
	}
	return found.serve(w, r)
}

// endpoint is one method of one path.
type endpoint struct {
	serve  handlerFunc
	public bool // open to untrusted clients
}

// methods returns the methods of a path, given without "/1.0/", by name.
func (s *Server) methods(path string) map[string]endpoint {
	var parts []string
	if path != "" {
		parts = strings.Split(path, "/")
	}
	for i, part := range parts {
		name, err := url.PathUnescape(part)
		if err != nil {
			return nil
		}
		parts[i] = name
	}
	with := func(serve func(http.ResponseWriter, *http.Request, string) error, name string) handlerFunc {
		return func(w http.ResponseWriter, r *http.Request) error { return serve(w, r, name) }
	}
	if len(parts) == 0 {
		return map[string]endpoint{"GET": {s.serveInfo, true}}
	}
	switch rest := parts[1:]; parts[0] {
	case "images":
		switch {
		case len(rest) == 0:
			return map[string]endpoint{"GET": {s.serveImages, true}, "POST": {s.serveCreate, true}}
		case rest[0] == "aliases" && len(rest) == 1:
			return map[string]endpoint{"GET": {s.serveAliases, false}, "POST": {s.serveCreateAlias, false}}
		case rest[0] == "aliases":
			// A name that was not escaped may span several segments.
			name := strings.Join(rest[1:], "/")
			return map[string]endpoint{
				"GET": {with(s.serveAlias, name), true}, "PUT": {with(s.servePutAlias, name), false},
				"PATCH": {with(s.servePatchAlias, name), false}, "POST": {with(s.serveRenameAlias, name), false},
				"DELETE": {with(s.serveDeleteAlias, name), false},
			}
		case len(rest) == 1:
			return map[string]endpoint{
				"GET": {with(s.serveImage, rest[0]), true}, "PUT": {with(s.servePutImage, rest[0]), false},
				"PATCH": {with(s.servePatchImage, rest[0]), false}, "DELETE": {with(s.serveDeleteImage, rest[0]), false},
			}
		case len(rest) == 2 && rest[1] == "export":
			return map[string]endpoint{"GET": {with(s.serveExport, rest[0]), true}, "POST": {with(s.servePush, rest[0]), false}}
		case len(rest) == 2 && rest[1] == "secret":
			return map[string]endpoint{"POST": {with(s.serveSecret, rest[0]), false}}
		case len(rest) == 2 && rest[1] == "refresh":
			return map[string]endpoint{"POST": {with(s.serveRefresh, rest[0]), false}}
		}
	case "operations":
		switch {
		case len(rest) == 0:
			return map[string]endpoint{"GET": {s.serveOperations, false}}
		case len(rest) == 1:
			return map[string]endpoint{"GET": {with(s.serveOperation, rest[0]), false}, "DELETE": {with(s.serveCancel, rest[0]), false}}
		case len(rest) == 2 && rest[1] == "wait":
			return map[string]endpoint{"GET": {with(s.serveWait, rest[0]), true}}
		}
	case "events":
		if len(rest) == 0 {
			return map[string]endpoint{"GET": {s.serveEvents, false}}
		}
	case "projects":
		switch len(rest) {
		case 0:
			return map[string]endpoint{"GET": {s.serveProjects, false}, "POST": {s.serveCreateProject, false}}
		case 1:
			return map[string]endpoint{"GET": {with(s.serveProject, rest[0]), false}, "DELETE": {with(s.serveDeleteProject, rest[0]), false}}
		}
	case "profiles":
		switch len(rest) {
		case 0:
			return map[string]endpoint{"GET": {s.serveProfiles, false}, "POST": {s.serveCreateProfile, false}}
		case 1:
			return map[string]endpoint{"GET": {with(s.serveProfile, rest[0]), false}}
		}
	case "instances", "containers", "virtual-machines":
		switch {
		case len(rest) == 0:
			return map[string]endpoint{"GET": {s.serveInstances, false}, "POST": {s.serveCreateInstance, false}}
		case len(rest) == 1:
			return map[string]endpoint{"GET": {with(s.serveInstance, rest[0]), false}, "DELETE": {with(s.serveDeleteInstance, rest[0]), false}}
		case len(rest) == 2 && rest[1] == "state":
			return map[string]endpoint{"PUT": {with(s.serveInstanceState, rest[0]), false}}
		case len(rest) == 3 && rest[1] == "snapshots":
			return map[string]endpoint{"GET": {with(s.serveInstance, rest[0]+"/"+rest[2]), false}}
		}
	case "certificates":
		switch len(rest) {
		case 0:
			return map[string]endpoint{"GET": {s.serveCertificates, false}, "POST": {s.serveAddCertificate, true}}
		case 1:
			return map[string]endpoint{"GET": {with(s.serveCertificate, rest[0]), false}, "DELETE": {with(s.serveDeleteCertificate, rest[0]), false}}
		}
	case "auth":
		if s.has("access_management_tls") && len(rest) == 2 && rest[0] == "identities" && rest[1] == "tls" {
			return map[string]endpoint{"POST": {s.serveAddIdentity, true}}
		}
	case "image-registries":
		if !s.has("image_registries") {
			return nil
		}
		switch len(rest) {
		case 0:
			return map[string]endpoint{"GET": {s.serveRegistries, false}, "POST": {s.serveCreateRegistry, false}}
		case 1:
			return map[string]endpoint{"GET": {with(s.serveRegistry, rest[0]), false}, "DELETE": {with(s.serveDeleteRegistry, rest[0]), false}}
		}
	}
	return nil
}

// projectParam returns the project in the query of a request.
func projectParam(r *http.Request) string {
	if name := r.URL.Query().Get("project"); name != "" {
		return name
	}
	return defaultProject
}
