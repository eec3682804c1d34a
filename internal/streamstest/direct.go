package streamstest

import "net/http"

// Direct is an image that is imported by its URL: the daemon asks for the headers of the one address and then fetches
// the other.
type Direct struct {
	// Content is a unified image.
	Content []byte

	// Families are the header prefixes to send: "LXD" and "Incus". The default is both.
	Families []string

	// Hash is sent in the place of the right one, unless it is empty. "-" sends none.
	Hash string

	// URL is sent in the place of the right one, unless it is empty: a relative one, for example. "-" sends none.
	URL string
}

// Direct offers an image at a path and returns the URL to import it from. The content itself is at that path with
// ".tar.gz" behind it, so that a fault can be set on either.
func (s *Server) Direct(path string, image Direct) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.direct[path] = image
	s.files[path+".tar.gz"] = image.Content

	return s.URL + "/" + path
}

func (s *Server) serveDirect(path string, image Direct) http.Handler {
	content := path + ".tar.gz"
	values := map[string]string{"Hash": Hash(image.Content), "URL": s.URL + "/" + content}
	for name, instead := range map[string]string{"Hash": image.Hash, "URL": image.URL} {
		switch instead {
		case "":
		case "-":
			delete(values, name)
		default:
			values[name] = instead
		}
	}
	families := image.Families
	if families == nil {
		families = []string{"LXD", "Incus"}
	}
	file := serveFile(content, image.Content)

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, family := range families {
			for name, value := range values {
				w.Header().Set(family+"-Image-"+name, value)
			}
		}
		file.ServeHTTP(w, r)
	})
}
