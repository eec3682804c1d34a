package streamstest

import "net/http"

// Direct is an image to import from a URL: the daemon sends HEAD to that URL and then downloads the image from the URL in
// the response headers.
type Direct struct {
	// Content is a unified image.
	Content []byte

	// Families are the header prefixes to send: "LXD" and "Incus". The default is both.
	Families []string

	// Hash overrides the hash in the headers. The default is the image's fingerprint; "-" sends none.
	Hash string

	// URL overrides the URL in the headers. The default is the image's URL; "-" sends none.
	URL string
}

// Direct adds an image and returns the URL to import it from, which has this path. The content is at path + ".tar.gz", so
// that a fault can be set on either.
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
	for name, override := range map[string]string{"Hash": image.Hash, "URL": image.URL} {
		switch override {
		case "":
		case "-":
			delete(values, name)
		default:
			values[name] = override
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
