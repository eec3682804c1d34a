package lxdtest

import (
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

// kind tells faults apart.
type kind int

const (
	kindCutResponse kind = iota
	kindCutRequest
	kindReset
	kindLoseResponse
	kindRefuse
	kindStallHeaders
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
	kindDuplicate
	kindReorder
	kindDropEvents
	kindForget
	kindStallOperation
)

// Fault is something that goes wrong. The functions that return one say what;
// On and Times say where and how often; Server.Inject makes it happen.
type Fault struct {
	name    string
	kind    kind
	bytes   int64
	pause   time.Duration
	status  int
	message string
	retry   time.Duration
	url     string
	header  http.Header

	method  string
	pattern string
	times   int // 0 for always
}

// String returns the name of the fault.
func (f Fault) String() string { return f.name }

// On restricts a fault to requests of a method and a path. An empty method is
// any. The pattern is that of path.Match, held against the escaped path, so
// that * stands for one segment: "/1.0/images/*/export". An empty pattern is
// any path, and one that ends in /** any path below. Faults of events and of
// operations are not about requests and ignore it.
func (f Fault) On(method, pattern string) Fault {
	f.method, f.pattern = method, pattern
	return f
}

// WithHeader has the answers of Unavailable, TooManyRequests, Status and
// EarlyAnswer carry a header.
func (f Fault) WithHeader(name, value string) Fault {
	f.header = f.header.Clone()
	if f.header == nil {
		f.header = http.Header{}
	}
	f.header.Set(name, value)
	return f
}

// Times has the fault fire n times and then no more. Without it, or with 0, it
// fires until it is removed.
func (f Fault) Times(n int) Fault {
	f.times = n
	return f
}

// CutResponse resets the connection after n bytes of the answer's body. On TCP
// the reset may overtake what the client has not read yet, so that fewer than n
// bytes arrive; never more do.
func CutResponse(n int64) Fault { return Fault{name: "cut response", kind: kindCutResponse, bytes: n} }

// CutRequest resets the connection after n bytes of the request's body.
func CutRequest(n int64) Fault { return Fault{name: "cut request", kind: kindCutRequest, bytes: n} }

// Reset resets the connection as soon as the header of a request has arrived.
// The server has done nothing.
func Reset() Fault { return Fault{name: "reset", kind: kindReset} }

// LoseAnswer resets the connection in place of the answer. The server has done
// what the request asked for.
func LoseAnswer() Fault { return Fault{name: "lose answer", kind: kindLoseResponse} }

// Refuse has connections refused until it is removed. Connections that are
// open stay so. It is not about requests: On and Times do nothing, and of the
// attempts only those through DialContext are counted.
func Refuse() Fault { return Fault{name: "refuse", kind: kindRefuse} }

// StallHeaders holds the answer back, header and all, until the handle's
// Release or Remove; then the request is served.
func StallHeaders() Fault { return Fault{name: "stall headers", kind: kindStallHeaders} }

// StallResponse holds the answer back after n bytes of its body, until the
// handle's Release or Remove.
func StallResponse(n int64) Fault {
	return Fault{name: "stall response", kind: kindStallBody, bytes: n}
}

// StallRequest stops reading after n bytes of the request's body, until the
// handle's Release or Remove.
func StallRequest(n int64) Fault {
	return Fault{name: "stall request", kind: kindStallRequest, bytes: n}
}

// HalfOpen has the server vanish after n bytes of the answer's body without
// closing the connection, as a host does that loses its power: nothing more is
// read or answered on it, until the handle's Release or Remove closes it.
func HalfOpen(n int64) Fault { return Fault{name: "half-open", kind: kindHalfOpen, bytes: n} }

// SlowLoris sends the answer a byte at a time with a pause after each.
func SlowLoris(pause time.Duration) Fault {
	return Fault{name: "slow loris", kind: kindSlowLoris, pause: pause}
}

// Corrupt flips every bit of one byte of the answer's body.
func Corrupt(offset int64) Fault { return Fault{name: "corrupt", kind: kindCorrupt, bytes: offset} }

// ShortLength leaves the last n bytes out of the answer's body and tells a
// Content-Length to match, as if the answer were whole.
func ShortLength(n int64) Fault { return Fault{name: "short length", kind: kindShort, bytes: n} }

// Unavailable answers with 503, as a daemon that is starting.
func Unavailable() Fault {
	return Fault{name: "unavailable", kind: kindStatus, status: http.StatusServiceUnavailable, message: "LXD daemon not ready"}
}

// TooManyRequests answers with 429 and a Retry-After of whole seconds.
func TooManyRequests(retryAfter time.Duration) Fault {
	return Fault{name: "too many requests", kind: kindStatus, status: http.StatusTooManyRequests, message: "Too many requests", retry: retryAfter}
}

// Status answers with an error of this HTTP status and message.
func Status(code int, message string) Fault {
	return Fault{name: "status", kind: kindStatus, status: code, message: message}
}

// EarlyAnswer answers with an error after n bytes of the request's body and
// does not read the rest.
func EarlyAnswer(n int64, code int, message string) Fault {
	return Fault{name: "early answer", kind: kindEarly, bytes: n, status: code, message: message}
}

// TruncateRootfs cuts the root file system of an exported split image to its
// first n bytes and closes the form properly, as the daemons do when they
// cannot read on.
func TruncateRootfs(n int64) Fault {
	return Fault{name: "truncate rootfs", kind: kindTruncateRootfs, bytes: n}
}

// HTML answers 200 with a web page, as a captive portal does.
func HTML() Fault { return Fault{name: "html", kind: kindHTML} }

// EndlessJSON answers 200 with JSON that never ends.
func EndlessJSON() Fault { return Fault{name: "endless json", kind: kindEndless} }

// Redirect answers with a redirection that keeps the method: 307.
func Redirect(url string) Fault { return Fault{name: "redirect", kind: kindRedirect, url: url} }

// RestartServer restarts the server as Server.Restart does, when n bytes of
// the request's body have arrived; with 0, as soon as its header has. For a
// moment connections are refused.
func RestartServer(n int64) Fault { return Fault{name: "restart", kind: kindRestart, bytes: n} }

// DuplicateEvents sends each operation event twice.
func DuplicateEvents() Fault { return Fault{name: "duplicate events", kind: kindDuplicate} }

// ReorderEvents holds an operation event back until the next one was sent.
func ReorderEvents() Fault { return Fault{name: "reorder events", kind: kindReorder} }

// DropEvents closes the event sockets: those that are open at once, and any
// other after its next event.
func DropEvents() Fault { return Fault{name: "drop events", kind: kindDropEvents} }

// ForgetOperations has operations forgotten as soon as they end.
func ForgetOperations() Fault { return Fault{name: "forget operations", kind: kindForget} }

// StallOperations keeps the work of operations from beginning, until the
// handle's Release or Remove. They are running meanwhile, and can be waited for.
func StallOperations() Fault { return Fault{name: "stall operations", kind: kindStallOperation} }

// Injected is the handle of a fault that was injected.
type Injected struct {
	fault  Fault
	server *Server

	fired    int // guarded by the server's lock
	released chan struct{}
	once     sync.Once
	removed  bool
}

// Fired returns how often the fault has fired.
func (i *Injected) Fired() int {
	i.server.mu.Lock()
	defer i.server.mu.Unlock()
	return i.fired
}

// Release lets go of what stalls on the fault, now and from now on.
func (i *Injected) Release() { i.once.Do(func() { close(i.released) }) }

// Remove ends the fault and lets go of what stalls on it.
func (i *Injected) Remove() {
	i.Release()
	s := i.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.removed {
		return
	}
	i.removed = true
	s.faults = slices.DeleteFunc(s.faults, func(other *Injected) bool { return other == i })
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

// Inject makes a fault happen from now on. Several faults may be there at
// once; each request meets all that match it.
func (s *Server) Inject(f Fault) *Injected {
	i := &Injected{fault: f, server: s, released: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, i)
	switch f.kind {
	case kindRefuse:
		s.refusing++
		s.stopSockets()
	case kindDropEvents:
		i.fired += s.hub.dropAll()
	}
	return i
}

// stopSockets closes the listeners of the real sockets; dialing them is then
// refused by the system. The caller holds the lock.
func (s *Server) stopSockets() {
	s.listeners = slices.DeleteFunc(s.listeners, func(l net.Listener) bool {
		if _, ok := l.(*pipeListener); ok {
			return false
		}
		_ = l.Close()
		return true
	})
}

// refuses tells whether connections are refused, and counts one; the caller
// holds the lock.
func (s *Server) refuseConn() bool {
	if s.refusing == 0 {
		return false
	}
	for _, i := range s.faults {
		if i.fault.kind == kindRefuse {
			i.fired++
		}
	}
	return true
}

// spent tells whether a fault has fired as often as it was to; the caller
// holds the lock.
func (i *Injected) exhausted() bool { return i.fault.times > 0 && i.fired >= i.fault.times }

// fires counts one firing of a fault that is not about requests and tells
// whether there is one; the caller holds the lock.
func (s *Server) fire(k kind) bool { return s.fireFault(k) != nil }

// firing is fires, returning the fault.
func (s *Server) fireFault(k kind) *Injected {
	for _, i := range s.faults {
		if i.fault.kind == k && !i.exhausted() {
			i.fired++
			return i
		}
	}
	return nil
}

// dropEventSocket tells whether an event socket is to be closed after an event.
func (s *Server) dropEventSocket() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fire(kindDropEvents)
}

// matches tells whether a fault is about a request.
func (f Fault) matches(r *http.Request) bool {
	if f.kind == kindRefuse || f.kind >= kindDuplicate {
		return false
	}
	if f.method != "" && f.method != r.Method {
		return false
	}
	if f.pattern == "" {
		return true
	}
	escaped := r.URL.EscapedPath()
	if parent, ok := strings.CutSuffix(f.pattern, "/**"); ok {
		return strings.HasPrefix(escaped, parent+"/")
	}
	ok, err := path.Match(f.pattern, escaped)
	return err == nil && ok
}

// take returns the faults that a request meets.
func (s *Server) faultsFor(r *http.Request) []*Injected {
	s.mu.Lock()
	defer s.mu.Unlock()
	var matched []*Injected
	for _, i := range s.faults {
		if i.fault.matches(r) && !i.exhausted() {
			i.fired++
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

// wait blocks until a fault is released, the client is gone or the server
// ends. It returns false if there is nobody left to answer.
func (i *Injected) wait(r *http.Request) bool {
	select {
	case <-i.released:
		return true
	case <-r.Context().Done():
		return false
	}
}

// readFirst reads the beginning of a request's body.
func readFirst(body io.Reader, n int64) { _, _ = io.CopyN(io.Discard, body, n) }
