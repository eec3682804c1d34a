package streamstest

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"
)

// Server serves files on loopback, with ETag, Last-Modified, Range and HEAD. It is safe for concurrent use.
type Server struct {
	// URL is the server's URL without a trailing slash. It has a path that no other Server has: the daemons cache the index
	// of a URL for an hour, and a later Server may get the same port.
	URL string

	// CA is the PEM certificate of the authority that signed the server's certificate; empty for http.
	CA string

	// Certificate is the server's PEM certificate; empty for http.
	Certificate string

	server *httptest.Server
	root   string // the path of URL
	closed chan struct{}

	mu       sync.Mutex
	files    map[string][]byte
	direct   map[string]Direct
	faults   map[string]Fault
	requests []Request
}

// Request is a request that the server has received.
type Request struct {
	Method string
	Path   string // without that of Server.URL and a slash
	Header http.Header
}

// modified is the modification time of every file.
var modified = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

// NewServer serves files over http.
func NewServer(files map[string][]byte) *Server {
	s := newServer(files)
	s.server.Start()
	s.URL = s.server.URL + s.root

	return s
}

// NewTLSServer serves files over https, with a certificate for 127.0.0.1 and localhost that a new authority signed.
func NewTLSServer(files map[string][]byte) *Server {
	s := newServer(files)
	var certificate tls.Certificate
	certificate, s.CA, s.Certificate = newCertificates()
	s.startTLS(certificate)

	return s
}

// NewSelfSignedServer serves files over https with a self-signed certificate: CA and Certificate are the same.
func NewSelfSignedServer(files map[string][]byte) *Server {
	s := newServer(files)
	certificate, text := newSelfSigned()
	s.CA, s.Certificate = text, text
	s.startTLS(certificate)

	return s
}

func newServer(files map[string][]byte) *Server {
	s := &Server{
		files: maps.Clone(files), root: "/" + strings.ToLower(rand.Text()), closed: make(chan struct{}),
		direct: map[string]Direct{}, faults: map[string]Fault{},
	}
	if s.files == nil {
		s.files = map[string][]byte{}
	}
	s.server = httptest.NewUnstartedServer(s)

	return s
}

func (s *Server) startTLS(certificate tls.Certificate) {
	s.server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	s.server.StartTLS()
	s.URL = s.server.URL + s.root
}

// Close ends all requests, including stalled ones, and stops the server.
func (s *Server) Close() {
	close(s.closed)
	s.server.CloseClientConnections()
	s.server.Close()
}

// Set adds or replaces the file at a path; nil removes it.
func (s *Server) Set(path string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if content == nil {
		delete(s.files, path)
		return
	}
	s.files[path] = content
}

// Fault sets the fault of a path; nil removes it.
func (s *Server) Fault(path string, fault Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[path] = fault
}

// Requests returns the requests received since the previous call.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.requests
	s.requests = nil

	return seen
}

// ServeHTTP serves the file at the request's path, subject to the path's fault.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, s.root), "/")
	s.mu.Lock()
	s.requests = append(s.requests, Request{Method: r.Method, Path: path, Header: r.Header.Clone()})
	content, found := s.files[path]
	image, direct := s.direct[path]
	fault := s.faults[path]
	s.mu.Unlock()

	var handler http.Handler
	switch {
	case direct:
		handler = s.serveDirect(path, image)
	case found:
		handler = serveFile(path, content)
	default:
		handler = http.NotFoundHandler()
	}
	if fault != nil {
		handler = fault(s, handler)
	}
	handler.ServeHTTP(w, r)
}

func serveFile(path string, content []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"`+Hash(content)+`"`)
		if !strings.HasSuffix(path, ".json") {
			w.Header().Set("Content-Type", "application/octet-stream")
		}
		http.ServeContent(w, r, path, modified, bytes.NewReader(content))
	})
}
