package lxdtest

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Request is a request that the server has received.
type Request struct {
	Method string
	Path   string // escaped, as it was sent
	Query  string // encoded, as it was sent
	Header http.Header
	TLS    bool

	server   *Server
	conn     *conn
	arrived  time.Time
	finished chan struct{} // closed when the server has finished with it
	status   atomic.Int64
	sent     atomic.Int64

	// Guarded by the server's lock.
	body     int64
	text     []byte
	duration time.Duration // set at the end
	waited   bool          // a WaitRequest has returned it
}

// maxText is the number of bytes of a request's body that are kept for Text.
const maxText = 64 << 10

// Text returns the part of the request's body that has arrived so far, up to 64
// KiB. It returns nil for uploads: octet streams and forms.
func (r *Request) Text() []byte {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	return slices.Clone(r.text)
}

// isUpload reports whether the body of a request is an image.
func (r *Request) isUpload() bool {
	kind := r.Header.Get("Content-Type")
	return strings.HasPrefix(kind, "application/octet-stream") || strings.HasPrefix(kind, "multipart/")
}

// BodyBytes returns the number of bytes of the request's body that have arrived
// so far.
func (r *Request) BodyBytes() int64 {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	return r.body
}

// Status returns the HTTP status of the response, or 0 if none has been sent yet.
func (r *Request) Status() int { return int(r.status.Load()) }

// ResponseBytes returns the number of bytes of the response's body that have been
// sent so far. Those of an event socket do not count.
func (r *Request) ResponseBytes() int64 { return r.sent.Load() }

// Duration returns how long the server has worked on the request, or has so far.
func (r *Request) Duration() time.Duration {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	if !r.Done() {
		return time.Since(r.arrived)
	}
	return r.duration
}

// Done reports whether the server has finished with the request, by a response
// or by breaking the connection.
func (r *Request) Done() bool {
	select {
	case <-r.finished:
		return true
	default:
		return false
	}
}

// countedBody is a request body that records in seen what is read from it.
type countedBody struct {
	io.ReadCloser
	seen *Request
}

// Read reads from the body and records it.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.seen.server.mu.Lock()
		b.seen.body += int64(n)
		if free := maxText - len(b.seen.text); free > 0 && !b.seen.isUpload() {
			b.seen.text = append(b.seen.text, p[:min(n, free)]...)
		}
		b.seen.server.mu.Unlock()
	}
	return n, err
}

// countedWriter is a response writer that records in seen what is sent.
type countedWriter struct {
	http.ResponseWriter
	seen *Request
}

// Unwrap returns the underlying writer to http.ResponseController.
func (w *countedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader sends the header and records its status.
func (w *countedWriter) WriteHeader(code int) {
	if code >= http.StatusOK {
		w.seen.status.CompareAndSwap(0, int64(code))
	}
	w.ResponseWriter.WriteHeader(code)
}

// Write sends a part of the body and counts it.
func (w *countedWriter) Write(p []byte) (int, error) {
	w.seen.status.CompareAndSwap(0, http.StatusOK)
	n, err := w.ResponseWriter.Write(p)
	w.seen.sent.Add(int64(n))
	return n, err
}

// ReadFrom sends a file with the larger buffer of the connection, and counts it.
func (w *countedWriter) ReadFrom(r io.Reader) (int64, error) {
	from, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok {
		return io.Copy(onlyWriter{w}, r)
	}
	w.seen.status.CompareAndSwap(0, http.StatusOK)
	n, err := from.ReadFrom(r)
	w.seen.sent.Add(n)
	return n, err
}

// Hijack hijacks the connection, for WebSockets.
func (w *countedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.seen.status.CompareAndSwap(0, http.StatusSwitchingProtocols)
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// record adds a request to the list of those that the server has received, and
// returns the faults that match it.
func (s *Server) record(r *http.Request) (seen *Request, matched []*Injection) {
	seen = &Request{
		Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery,
		Header: r.Header.Clone(), TLS: r.TLS != nil,
		server: s, conn: connOf(r), arrived: time.Now(), finished: make(chan struct{}),
	}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &countedBody{ReadCloser: r.Body, seen: seen}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) == maxRequests {
		s.requests = slices.Delete(s.requests, 0, maxRequests/2)
	}
	s.requests = append(s.requests, seen)
	s.serving[seen] = struct{}{}
	matched = s.faultsFor(r)
	s.deliver(seen)
	return seen, matched
}

// served marks a request as one that the server has finished with.
func (s *Server) served(seen *Request) {
	s.mu.Lock()
	seen.duration = time.Since(seen.arrived)
	delete(s.serving, seen)
	close(seen.finished)
	s.mu.Unlock()
	if s.opts.OnRequest != nil {
		s.opts.OnRequest(seen)
	}
}

// maxRequests is the number of requests at which the older half is dropped.
const maxRequests = 10_000

// Requests returns the requests received so far, in order of arrival. At 10,000
// the server drops the oldest half.
func (s *Server) Requests() []*Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// ForgetRequests empties the list that Requests returns.
func (s *Server) ForgetRequests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}
