package streamstest

import (
	"net/http"
	"strconv"
	"sync/atomic"
)

// Fault wraps the handler of one path to change its responses.
type Fault func(s *Server, next http.Handler) http.Handler

// Times applies a fault to the first n requests only.
func Times(n int, fault Fault) Fault {
	var seen atomic.Int64
	return func(s *Server, next http.Handler) http.Handler {
		if seen.Add(1) > int64(n) {
			return next
		}

		return fault(s, next)
	}
}

// Together applies several faults; the first one is the outermost.
func Together(faults ...Fault) Fault {
	return func(s *Server, next http.Handler) http.Handler {
		for i := len(faults) - 1; i >= 0; i-- {
			next = faults[i](s, next)
		}

		return next
	}
}

// Cut closes the connection after n bytes of each body.
func Cut(n int64) Fault {
	return limited(n, func(*Server, *http.Request) { panic(http.ErrAbortHandler) })
}

// Stall pauses after n bytes of each body until the client disconnects or the server is closed. If n is negative, it does
// not send the headers either.
func Stall(n int64) Fault {
	stall := func(s *Server, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-s.closed:
		}
		panic(http.ErrAbortHandler)
	}
	if n < 0 {
		return func(s *Server, _ http.Handler) http.Handler {
			return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { stall(s, r) })
		}
	}

	return limited(n, stall)
}

// Corrupt flips the bits of the byte at an offset of each body.
func Corrupt(offset int64) Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&writer{ResponseWriter: w, change: func(p []byte, at int64) []byte {
				if offset < at || offset >= at+int64(len(p)) {
					return p
				}
				changed := append([]byte(nil), p...)
				changed[offset-at] ^= 0xff

				return changed
			}}, r)
		})
	}
}

// Truncate sends the first n bytes of the file as if they were all of it, with Content-Length n.
func Truncate(n int64) Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context())
			r.Header.Del("Range")
			next.ServeHTTP(&writer{ResponseWriter: w, length: strconv.FormatInt(n, 10), change: func(p []byte, at int64) []byte {
				return p[:max(0, min(int64(len(p)), n-at))]
			}}, r)
		})
	}
}

// NoRanges ignores the Range header, as some servers do.
func NoRanges() Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context())
			r.Header.Del("Range")
			next.ServeHTTP(w, r)
		})
	}
}

// NoLength sends chunked bodies without Content-Length.
func NoLength() Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&writer{ResponseWriter: w, length: "-"}, r)
		})
	}
}

// Header overrides a response header, or removes it if the value is empty.
func Header(name, value string) Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&writer{ResponseWriter: w, header: [2]string{name, value}}, r)
		})
	}
}

// Status responds with an HTTP status and a short text.
func Status(code int) Fault {
	return func(*Server, http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, http.StatusText(code), code)
		})
	}
}

// HTML responds with 200 and a web page, like a captive portal.
func HTML() Fault {
	return func(*Server, http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = w.Write([]byte("<!DOCTYPE html>\n<html><body>Please log in.</body></html>\n"))
		})
	}
}

// Redirect redirects to another URL with 302.
func Redirect(url string) Fault {
	return func(*Server, http.Handler) http.Handler { return http.RedirectHandler(url, http.StatusFound) }
}

// RedirectLoop redirects to the same path.
func RedirectLoop() Fault {
	return func(*Server, http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		})
	}
}

// limited returns a fault that calls end after n bytes of each body.
func limited(n int64, end func(*Server, *http.Request)) Fault {
	return func(s *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&writer{ResponseWriter: w, limit: n, end: func() {
				_ = http.NewResponseController(w).Flush()
				end(s, r)
			}}, r)
		})
	}
}

// writer modifies a response while it is written. It has no ReadFrom, so that every byte passes through Write.
type writer struct {
	http.ResponseWriter
	length string // overrides Content-Length; "-" removes it
	header [2]string
	change func(p []byte, at int64) []byte
	limit  int64
	end    func()
	at     int64
	begun  bool
}

func (w *writer) WriteHeader(status int) {
	w.begun = true
	switch w.length {
	case "":
	case "-":
		w.Header().Del("Content-Length")
	default:
		w.Header().Set("Content-Length", w.length)
	}
	if name, value := w.header[0], w.header[1]; name != "" {
		w.Header().Del(name)
		if value != "" {
			w.Header().Set(name, value)
		}
	}
	w.ResponseWriter.WriteHeader(status)
	if w.length == "-" {
		// Otherwise net/http would set the length of a short body.
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
}

func (w *writer) Write(p []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	if w.end != nil && w.at+int64(len(p)) > w.limit {
		n, err := w.ResponseWriter.Write(p[:w.limit-w.at])
		w.at += int64(n)
		if err != nil {
			return n, err
		}
		w.end()
	}
	out := p
	if w.change != nil {
		out = w.change(p, w.at)
	}
	w.at += int64(len(p))
	if _, err := w.ResponseWriter.Write(out); err != nil {
		return 0, err
	}

	return len(p), nil
}

// Unwrap returns the underlying writer to [http.ResponseController].
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
