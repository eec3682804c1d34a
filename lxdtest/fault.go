package lxdtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// kind is the kind of a fault.
type kind int

const (
	kindCutResponse kind = iota
	kindCutRequest
	kindReset
	kindLoseResponse
	kindRefuse
	kindStallHeaders
	kindLatency
	kindStallBody
	kindStallRequest
	kindHalfOpen
	kindSlowLoris
	kindCorrupt
	kindShort
	kindStatus
	kindEarly
	kindTruncateRootfs
	kindHTML
	kindEndless
	kindRedirect
	kindRestart
	kindCall
	kindRateLimit
	kindDuplicate
	kindReorder
	kindDropEvents
	kindForget
	kindStallOperation
	kindStallImage
	kindFailImage
	kindStallUpdate
	kindLoseInsert
	kindLoseContent
	kindCacheStreams
	kindSlowRename
)

// Fault is a failure to inject with Server.Inject. On and Times restrict where
// and how often it occurs.
type Fault struct {
	name    string
	kind    kind
	bytes   int64
	pause   time.Duration
	status  int
	message string
	url     string
	header  http.Header
	call    func(*http.Request)

	method  string
	pattern string
	times   int // 0 for no limit
}

// On restricts a fault to requests with this method and path. An empty method
// matches any. The pattern is matched by path.Match against the escaped path,
// so that * stands for one segment: "/1.0/images/*/export". An empty pattern
// matches any path, and one that ends in /** any path below it. Faults of
// events and operations are not restricted by On.
func (f Fault) On(method, pattern string) Fault {
	f.method, f.pattern = method, pattern
	return f
}

// WithHeader adds a header to the responses of Unavailable, TooManyRequests,
// Status and EarlyResponse.
func (f Fault) WithHeader(name, value string) Fault {
	f.header = f.header.Clone()
	if f.header == nil {
		f.header = http.Header{}
	}
	f.header.Set(name, value)
	return f
}

// Times makes the fault fire at most n times. The default, and 0, is no limit:
// it fires until it is removed.
func (f Fault) Times(n int) Fault {
	f.times = n
	return f
}

// CutResponse resets the connection after n bytes of the response body. Over
// TCP the reset may overtake data that the client has not read yet, so that
// fewer than n bytes arrive, but never more.
func CutResponse(n int64) Fault { return Fault{name: "cut-response", kind: kindCutResponse, bytes: n} }

// CutRequest resets the connection after n bytes of the request body.
func CutRequest(n int64) Fault { return Fault{name: "cut-request", kind: kindCutRequest, bytes: n} }

// Reset resets the connection as soon as the header of a request has arrived,
// before the request is processed.
func Reset() Fault { return Fault{name: "reset", kind: kindReset} }

// LoseResponse processes the request and then resets the connection instead of
// responding.
func LoseResponse() Fault { return Fault{name: "lose-response", kind: kindLoseResponse} }

// Refuse refuses new connections until it is removed. Open connections are not
// affected. On and Times do not apply, and Fired counts only attempts through
// DialContext.
func Refuse() Fault { return Fault{name: "refuse", kind: kindRefuse} }

// StallHeaders delays the processing of the request until Injection.Release or
// Remove.
func StallHeaders() Fault { return Fault{name: "stall-headers", kind: kindStallHeaders} }

// Latency delays the processing of each request by this time.
func Latency(delay time.Duration) Fault {
	return Fault{name: "latency", kind: kindLatency, pause: delay}
}

// StallResponse pauses the response after n bytes of its body until
// Injection.Release or Remove.
func StallResponse(n int64) Fault {
	return Fault{name: "stall-response", kind: kindStallBody, bytes: n}
}

// StallRequest stops reading after n bytes of the request body until
// Injection.Release or Remove.
func StallRequest(n int64) Fault {
	return Fault{name: "stall-request", kind: kindStallRequest, bytes: n}
}

// HalfOpen makes the server vanish after n bytes of the response body without
// closing the connection, like a host that loses power: nothing more is read
// from it or written to it until Injection.Release or Remove closes it.
func HalfOpen(n int64) Fault { return Fault{name: "half-open", kind: kindHalfOpen, bytes: n} }

// SlowLoris sends the response byte by byte with a pause before each.
func SlowLoris(pause time.Duration) Fault {
	return Fault{name: "slow-loris", kind: kindSlowLoris, pause: pause}
}

// Corrupt flips every bit of the byte at offset in the response body.
func Corrupt(offset int64) Fault { return Fault{name: "corrupt", kind: kindCorrupt, bytes: offset} }

// ShortLength omits the last n bytes of the response body and adjusts the
// Content-Length, so that the response looks complete.
func ShortLength(n int64) Fault { return Fault{name: "short-length", kind: kindShort, bytes: n} }

// Unavailable responds with 503, like a daemon that is starting.
func Unavailable() Fault {
	return Fault{name: "unavailable", kind: kindStatus, status: http.StatusServiceUnavailable, message: "LXD daemon not ready"}
}

// TooManyRequests responds with 429 and a Retry-After, rounded up to whole
// seconds.
func TooManyRequests(retryAfter time.Duration) Fault {
	return Fault{name: "too-many-requests", kind: kindStatus, status: http.StatusTooManyRequests, message: "Too many requests", pause: retryAfter}
}

// Status responds with an error of this HTTP status and message.
func Status(code int, message string) Fault {
	return Fault{name: "status", kind: kindStatus, status: code, message: message}
}

// EarlyResponse responds with an error after n bytes of the request body and does
// not read the rest.
func EarlyResponse(n int64, code int, message string) Fault {
	return Fault{name: "early-response", kind: kindEarly, bytes: n, status: code, message: message}
}

// TruncateRootfs truncates the root file system of an exported split image to n
// bytes and completes the form, as the daemons do if they fail to read it.
func TruncateRootfs(n int64) Fault {
	return Fault{name: "truncate-rootfs", kind: kindTruncateRootfs, bytes: n}
}

// HTML responds with 200 and a web page, like a captive portal.
func HTML() Fault { return Fault{name: "html", kind: kindHTML} }

// EndlessJSON responds with 200 and JSON that never ends.
func EndlessJSON() Fault { return Fault{name: "endless-json", kind: kindEndless} }

// Redirect responds with 307, a redirect that keeps the method.
func Redirect(url string) Fault { return Fault{name: "redirect", kind: kindRedirect, url: url} }

// RestartServer restarts the server as Server.Restart does, once n bytes of the
// request body have arrived; if n is 0, once its header has. For a moment
// connections are refused.
func RestartServer(n int64) Fault { return Fault{name: "restart-server", kind: kindRestart, bytes: n} }

// Call calls a function when a request has arrived, before it is processed, which waits
// until the function returns. It must not read the request's body and must not close the
// server; all other methods of Server may be called.
func Call(f func(*http.Request)) Fault { return Fault{name: "call", kind: kindCall, call: f} }

// RateLimit limits the server's network link until it is removed. The server sends at
// most so many bytes per second (at least 1), and receives as many at the same time, in
// total over all connections, in memory too: those that it accepts, and those that it opens
// for pulls, pushes and imports. Transfers share the link evenly. The bytes of TLS and HTTP
// count, those of TCP do not. An idle link saves up 20 ms of its rate, not more. Restart
// keeps the limit. Of several limits the lowest applies. On and Times do not apply, and
// Fired counts the reads and writes that had to wait.
func RateLimit(bytesPerSecond int64) Fault {
	return Fault{name: "rate-limit", kind: kindRateLimit, bytes: max(1, bytesPerSecond)}
}

// DuplicateEvents sends each operation event twice.
func DuplicateEvents() Fault { return Fault{name: "duplicate-events", kind: kindDuplicate} }

// ReorderEvents sends an operation event after the next one, or after 100 ms.
func ReorderEvents() Fault { return Fault{name: "reorder-events", kind: kindReorder} }

// DropEvents closes all open event sockets at once, and others after their next
// event.
func DropEvents() Fault { return Fault{name: "drop-events", kind: kindDropEvents} }

// ForgetOperations makes the server forget operations as soon as they end.
func ForgetOperations() Fault { return Fault{name: "forget-operations", kind: kindForget} }

// StallOperations delays the work of operations until Injection.Release or
// Remove. Meanwhile their status is running.
func StallOperations() Fault { return Fault{name: "stall-operations", kind: kindStallOperation} }

// The faults below are what real daemons do in ordinary use. They are faults
// because most tests are better off without them.

// StallImages makes an upload, import, copy or publication store its image only
// after Injection.Release or Remove. Until then the image does not exist, although
// its operation, which runs, names it (LXD 4.0 to 6.9, Incus 6.0). Incus 7.0.2
// names it only once it exists.
func StallImages() Fault { return Fault{name: "stall-images", kind: kindStallImage} }

// FailImages makes the operation of an upload, import, copy or publication fail with the
// message instead of storing its image, such as "write /var/lib/lxd/images/x: no space
// left on device".
func FailImages(message string) Fault {
	return Fault{name: "fail-images", kind: kindFailImage, message: message}
}

// StallUpdates makes a PUT or PATCH of an image pause between its check of
// If-Match and its write until Injection.Release or Remove, so that updates at the
// same time overwrite each other and all succeed, even two PATCHes of different
// attributes. In LXD 5.0.2, 6.9, Incus 6.0.4 and 7.0.2 that pause is short, but long
// enough for about half of the updates of four clients at once to be lost. PUT of an
// alias has no such pause.
func StallUpdates() Fault { return Fault{name: "stall-updates", kind: kindStallUpdate} }

// LoseInsert makes an upload, import, copy or publication find that another
// upload of the same content stored the image at the same moment. The image
// exists, without the attributes that this request sets, and the operation fails
// and does not name it: "UNIQUE constraint failed: images.project_id,
// images.fingerprint" (LXD 5.0.2, Incus 6.0.4; LXD40 and LXD69 say so too, for want
// of a record) or "Image record already exists" (Incus 7.0.2).
func LoseInsert() Fault { return Fault{name: "lose-insert", kind: kindLoseInsert} }

// LoseContent makes the server find no file of an image that is exported, which is
// otherwise as any other. Incus 7.0.2 is left with such an image if it is killed at the
// end of an import: it records what it has downloaded before it renames the file. The
// responses are those of LXD 5.0.2 (500), Incus 6.0.4 and 7.0.2 (404) to a file that
// was removed.
func LoseContent() Fault { return Fault{name: "lose-content", kind: kindLoseContent} }

// CacheStreams makes the server keep what it reads from a simplestreams server for
// an hour, for imports and refreshes alike, as LXD 5.0.2, 6.9, Incus 6.0.4 and
// 7.0.2 do: a version published in the meantime is not found. Fired counts the
// reads from the cache. Remove empties the cache.
func CacheStreams() Fault { return Fault{name: "cache-streams", kind: kindCacheStreams} }

// SlowRename makes the renaming of an alias take that long. In LXD 5.0.2 it takes
// 10 seconds.
func SlowRename(pause time.Duration) Fault {
	return Fault{name: "slow-rename", kind: kindSlowRename, pause: pause}
}

// Injection is an injected fault.
type Injection struct {
	fault  Fault
	server *Server

	fired    int             // guarded by the server's lock, as waiters is
	waiters  []*firingWaiter // in Wait
	released chan struct{}
	once     sync.Once
	removed  bool

	sends, receives link // of a RateLimit
}

// Fired returns how often the fault has fired.
func (i *Injection) Fired() int {
	i.server.mu.Lock()
	defer i.server.mu.Unlock()
	return i.fired
}

// Release ends all current stalls of the fault and prevents further ones. It ends a
// RateLimit.
func (i *Injection) Release() {
	i.once.Do(func() {
		close(i.released)
		s := i.server
		s.mu.Lock()
		defer s.mu.Unlock()
		s.setRateLimits(slices.DeleteFunc(slices.Clone(s.rateLimits()), func(other *Injection) bool { return other == i }))
	})
}

// Remove ends the fault and its stalls.
func (i *Injection) Remove() {
	i.Release()
	s := i.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.removed {
		return
	}
	i.removed = true
	if i.fault.kind == kindCacheStreams {
		clear(s.streams)
	}
	s.faults = slices.DeleteFunc(s.faults, func(other *Injection) bool { return other == i })
	if i.fault.kind != kindRefuse {
		return
	}
	s.refusing--
	if s.refusing == 0 && s.up && !s.closed && !s.opts.InMemory {
		if err := s.listen(); err != nil {
			panic(fmt.Sprintf("lxdtest: cannot listen again: %v", err))
		}
	}
}

// Inject makes a fault occur from now on. Several faults can be injected at
// once; each request is subject to all that match it.
func (s *Server) Inject(f Fault) *Injection {
	i := &Injection{fault: f, server: s, released: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, i)
	switch f.kind {
	case kindRefuse:
		s.refusing++
		s.stopSockets()
	case kindRateLimit:
		s.setRateLimits(append(slices.Clone(s.rateLimits()), i))
	case kindDropEvents:
		i.count(s.hub.dropAll())
	}
	return i
}

// stopSockets closes the listeners of the network sockets, so that the system
// refuses connections. The caller holds the lock.
func (s *Server) stopSockets() {
	s.listeners = slices.DeleteFunc(s.listeners, func(l net.Listener) bool {
		if _, ok := l.(*pipeListener); ok {
			return false
		}
		_ = l.Close()
		return true
	})
}

// refuseConn reports whether a connection must be refused, and if so counts it;
// the caller holds the lock.
func (s *Server) refuseConn() bool {
	if s.refusing == 0 {
		return false
	}
	for _, i := range s.faults {
		if i.fault.kind == kindRefuse {
			i.count(1)
		}
	}
	return true
}

// exhausted reports whether a fault has fired as often as Times allows; the
// caller holds the lock.
func (i *Injection) exhausted() bool { return i.fault.times > 0 && i.fired >= i.fault.times }

// fire reports whether a fault of this kind, which does not depend on requests,
// must occur now, and if so counts it; the caller holds the lock.
func (s *Server) fire(k kind) bool { return s.fireFault(k) != nil }

// fireFault is like fire, but returns the fault, or nil.
func (s *Server) fireFault(k kind) *Injection {
	for _, i := range s.faults {
		if i.fault.kind == k && !i.exhausted() {
			i.count(1)
			return i
		}
	}
	return nil
}

// dropEventSocket reports whether to close an event socket after an event.
func (s *Server) dropEventSocket() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fire(kindDropEvents)
}

// matches reports whether a fault applies to a request.
func (f Fault) matches(r *http.Request) bool {
	return f.onRequests() && matchRequest(f.method, f.pattern, r.Method, r.URL.EscapedPath())
}

// onRequests reports whether the fault occurs in requests, those that match.
func (f Fault) onRequests() bool { return f.kind != kindRefuse && f.kind < kindRateLimit }

// matchRequest reports whether a request has this method and path; see Fault.On.
func matchRequest(method, pattern, gotMethod, gotPath string) bool {
	if method != "" && method != gotMethod {
		return false
	}
	if pattern == "" {
		return true
	}
	if parent, ok := strings.CutSuffix(pattern, "/**"); ok {
		return strings.HasPrefix(gotPath, parent+"/")
	}
	ok, err := path.Match(pattern, gotPath)
	return err == nil && ok
}

// faultsFor returns the faults that apply to a request, and counts them; the caller
// holds the lock.
func (s *Server) faultsFor(r *http.Request) []*Injection {
	var matched []*Injection
	for _, i := range s.faults {
		if i.fault.matches(r) && !i.exhausted() {
			i.count(1)
			matched = append(matched, i)
		}
	}
	return matched
}

// abort breaks the request's connection and ends its handler.
func abort(r *http.Request) {
	if c := connOf(r); c != nil {
		c.reset()
	}
	panic(http.ErrAbortHandler)
}

// wait blocks until a fault is released. It returns false if ctx, which is that
// of a request or an operation, ends first.
func (i *Injection) wait(ctx context.Context) bool {
	select {
	case <-i.released:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause blocks for the fault's pause or until it is removed. It returns false if
// ctx ends first.
func (i *Injection) pause(ctx context.Context) bool {
	timer := time.NewTimer(i.fault.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-i.released:
		return true
	case <-ctx.Done():
		return false
	}
}

// readFirst reads the first n bytes of a request's body.
func readFirst(body io.Reader, n int64) { _, _ = io.CopyN(io.Discard, body, n) }
