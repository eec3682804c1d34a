package lxdtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// errRefused is what dialing a server that does not listen gives.
var errRefused error = &net.OpError{Op: "dial", Net: "pipe", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

// Options are the settings of a Server. The zero value is an LXD 5.0.2 on a
// unix socket.
type Options struct {
	// Dialect is the daemon to speak like. The default is LXD50.
	Dialect Dialect

	// TLS has the server listen on https as well, on a free port of
	// 127.0.0.1, with a self-signed certificate of its own. A copy needs it of
	// the source if the target pulls, and of the target if the source pushes.
	TLS bool

	// InMemory has the server open no socket. It is reached through
	// DialContext and Client alone, and may live in a testing/synctest bubble.
	InMemory bool

	// WithoutExtensions are API extensions that the server does not have
	// although the daemon does.
	WithoutExtensions []string

	// WithExtensions are API extensions that the server names in addition.
	WithExtensions []string

	// TellsStrangersNothing has GET /1.0 leave out the extensions (null) and the
	// version for clients that the server does not trust, as Incus 7 does. The
	// dialects tell their extensions.
	TellsStrangersNothing bool

	// ForgetAfter is how long a finished operation can still be asked for.
	// The default is the 5 seconds of the daemons; a negative value forgets
	// operations at once.
	ForgetAfter time.Duration

	// PingEvery is the time between two pings on an event socket. The default
	// is the 10 seconds of the daemons.
	PingEvery time.Duration

	// TrustPassword lets a client that knows it add its certificate, on
	// dialects that have passwords. There is none by default.
	TrustPassword string

	// BearerTokens are trusted on https in an Authorization header, on
	// dialects that know such tokens: LXD69. There are none by default.
	BearerTokens []string

	// RootCAs are the authorities that the server trusts when it imports from
	// an https URL. The default is the system's, as with the daemons.
	RootCAs *x509.CertPool

	// Dial makes the connections on which the server fetches images from
	// elsewhere: imports, pull copies and push copies. The default dials the
	// network. Give the DialContext of another server to join two in memory.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Now is the server's clock for the dates it writes. The default is
	// time.Now.
	Now func() time.Time

	// Directory is where the server keeps its images and its socket, in a
	// folder of its own that Close removes. The default is the system's
	// folder for temporary files.
	Directory string
}

// Server is an images server in this process. Its methods may be called at
// any time from any goroutine.
type Server struct {
	opts    Options
	traits  *traits
	dir     string
	socket  string
	address string // host and port of https, "" without
	cert    *keyPair
	log     *log.Logger

	pipe, securePipe *pipeListener

	ctx    context.Context // canceled by Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup // goroutines of operations, of the HTTP servers and of their connections

	mu        sync.Mutex
	closed    bool
	up        bool
	refusing  int // how many faults refuse connections
	crash     *CrashError
	http      *http.Server
	listeners []net.Listener
	runCtx    context.Context // canceled when the server stops or restarts
	endRun    context.CancelFunc
	conns     map[*conn]struct{}
	accepted  int
	spooled   int // the number of the last file made
	requests  []*Request
	faults    []*Injected

	trustMu    sync.Mutex // guards trusted and client
	trusted    []*trust
	client     *keyPair
	projects   map[string]*project
	images     map[imageKey]*image
	aliases    map[aliasKey]*alias
	instances  map[instanceKey]*instance
	registries map[string]*registry
	operations map[string]*operation
	hub        hub
}

// NewServer starts a server. A nil opts is LXD 5.0.2 on a unix socket. Like
// httptest.NewServer it panics when it cannot listen. Close ends it.
func NewServer(opts *Options) *Server {
	s, err := newServer(opts)
	if err != nil {
		panic(fmt.Sprintf("lxdtest: cannot start the server: %v", err))
	}
	return s
}

func newServer(opts *Options) (*Server, error) {
	s := &Server{
		conns:      map[*conn]struct{}{},
		projects:   map[string]*project{},
		images:     map[imageKey]*image{},
		aliases:    map[aliasKey]*alias{},
		instances:  map[instanceKey]*instance{},
		registries: map[string]*registry{},
		operations: map[string]*operation{},
		log:        log.New(io.Discard, "", 0),
	}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.ForgetAfter == 0 {
		s.opts.ForgetAfter = 5 * time.Second
	}
	if s.opts.PingEvery <= 0 {
		s.opts.PingEvery = 10 * time.Second
	}
	if s.opts.Now == nil {
		s.opts.Now = time.Now
	}
	if s.opts.Dial == nil {
		s.opts.Dial = (&net.Dialer{}).DialContext
	}
	s.traits = s.opts.Dialect.traits()
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.addDefaultProject()

	cert, err := newKeyPair("lxdtest server", true)
	if err != nil {
		return nil, err
	}
	s.cert = cert
	if s.dir, err = tempDir(s.opts.Directory); err != nil {
		return nil, err
	}
	s.socket = filepath.Join(s.dir, "unix.socket")
	if s.opts.InMemory {
		// Nobody dials this address: it is there to be shown.
		s.address = "127.0.0.1:8443"
	}
	if err := s.start(); err != nil {
		s.cancel()
		_ = os.RemoveAll(s.dir)
		return nil, err
	}
	return s, nil
}

// maxSocketPath is the longest path of a unix socket that all systems take.
const maxSocketPath = 100

// tempDir makes the server's folder, with a path short enough for its socket.
func tempDir(parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, "lxdtest")
	if err != nil || len(dir)+len("/unix.socket") <= maxSocketPath || parent != "" {
		return dir, err
	}
	// macOS has a long $TMPDIR.
	if err := os.Remove(dir); err != nil {
		return "", err
	}
	return os.MkdirTemp("/tmp", "lxdtest")
}

// start begins a life of the server: it listens and serves.
func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.up {
		return nil
	}
	s.runCtx, s.endRun = context.WithCancel(s.ctx)
	s.hub.reset()
	s.http = &http.Server{
		Handler:     s.handler(),
		ConnContext: withConn,
		ConnState:   s.connState,
		ErrorLog:    s.log,
		BaseContext: func(net.Listener) context.Context { return s.ctx },
	}
	s.up = true
	s.pipe = newPipeListener(&net.UnixAddr{Name: s.socket, Net: "unix"})
	s.securePipe = newPipeListener(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8443})
	s.serve(s.pipe, true)
	s.serve(s.securePipe, false)
	if s.opts.InMemory {
		return nil
	}
	if err := s.listen(); err != nil {
		s.stopListening()
		s.up = false
		return err
	}
	return nil
}

// listen opens the real sockets; the caller holds the lock.
func (s *Server) listen() error {
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	unix, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		return err
	}
	// While nobody listens the file stays, and dialing it is refused.
	unix.SetUnlinkOnClose(false)
	s.serve(unix, true)
	if !s.opts.TLS {
		return nil
	}
	address := s.address
	if address == "" {
		address = "127.0.0.1:0"
	}
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s.address = tcp.Addr().String()
	s.serve(tcp, false)
	return nil
}

// serve answers requests on a listener; the caller holds the lock.
func (s *Server) serve(inner net.Listener, local bool) {
	var l net.Listener = &listener{Listener: inner, server: s, local: local}
	if !local {
		l = tls.NewListener(l, &tls.Config{
			Certificates: []tls.Certificate{s.cert.tls},
			ClientAuth:   tls.RequestClientCert,
			MinVersion:   tls.VersionTLS13,
			NextProtos:   []string{"h2", "http/1.1"},
		})
	}
	s.listeners = append(s.listeners, inner)
	server := s.http
	s.tasks.Go(func() { _ = server.Serve(l) })
}

// connState counts the goroutine of a connection among what Close waits for:
// net/http's own Close does not, and the goroutine of a connection that is
// refused early sleeps for 500 ms. A hijacked one is its handler's, which is
// counted itself. Serve calls this with StateNew, and is counted until it ends.
func (s *Server) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.tasks.Add(1)
	case http.StateHijacked, http.StateClosed:
		s.tasks.Done()
	}
}

// stopListening closes the listeners; the caller holds the lock.
func (s *Server) stopListening() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.listeners = nil
}

// stop ends the current life: nothing listens, every connection is reset and
// all operations are gone.
func (s *Server) stop() {
	s.mu.Lock()
	if !s.up {
		s.mu.Unlock()
		return
	}
	s.up = false
	s.stopListening()
	s.endRun()
	server := s.http
	open := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		open = append(open, c)
	}
	for _, op := range s.operations {
		op.drop()
	}
	clear(s.operations)
	s.mu.Unlock()

	for _, c := range open {
		c.reset()
	}
	_ = server.Close()
}

// Close ends the server, its connections and its operations, and removes its
// files. It returns once no goroutine of the server is left: that of a
// connection whose request was not read to its end takes 500 ms. A second Close
// does nothing.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	faults := slices.Clone(s.faults)
	s.mu.Unlock()
	for _, fault := range faults {
		fault.Remove()
	}
	s.stop()
	s.cancel()
	s.tasks.Wait()
	_ = os.RemoveAll(s.dir)
}

// Restart ends the server as a crash does and starts it again at the same
// addresses: connections are reset, operations and their secrets are gone,
// images, aliases and trust are kept.
func (s *Server) Restart() {
	s.stop()
	s.mu.Lock()
	s.crash = nil
	s.mu.Unlock()
	if err := s.start(); err != nil {
		panic(fmt.Sprintf("lxdtest: cannot restart the server: %v", err))
	}
}

// Shutdown ends the server until Restart: connections are reset and new ones
// are refused.
func (s *Server) Shutdown() { s.stop() }

// CrashError tells why a server is down although nobody shut it down: a
// request was of the kind that ends the real daemon.
type CrashError struct {
	// Reason is what the daemon dies of.
	Reason string
}

// Error returns the reason.
func (e *CrashError) Error() string { return "lxdtest: the daemon crashed: " + e.Reason }

// Crashed returns why the server went down by itself, or nil if it did not.
// Restart brings it back.
func (s *Server) Crashed() *CrashError {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crash
}

// crashWith takes the server down for a reason. It does not return to the
// handler's caller with an answer: the connection is gone.
func (s *Server) crashWith(reason string) {
	s.mu.Lock()
	s.crash = &CrashError{Reason: reason}
	s.mu.Unlock()
	s.stop()
}

// Dialect returns the daemon that the server speaks like.
func (s *Server) Dialect() Dialect { return s.opts.Dialect }

// Endpoint returns the unix socket as an endpoint: "unix://" and its path. An
// in-memory server has one too, for DialContext only.
func (s *Server) Endpoint() string { return "unix://" + s.socket }

// Socket returns the path of the unix socket.
func (s *Server) Socket() string { return s.socket }

// URL returns the https endpoint, or "" when the server has none.
func (s *Server) URL() string {
	if s.address == "" {
		return ""
	}
	return "https://" + s.address
}

// Certificate returns the server's certificate as PEM.
func (s *Server) Certificate() []byte { return slices.Clone(s.cert.cert) }

// DialContext makes an in-memory connection to the server: plain and trusted
// like the unix socket when network is "unix", else one that expects TLS like
// the https port. The address does not matter. It fits http.Transport.
func (s *Server) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	s.mu.Lock()
	l := s.securePipe
	if network == "unix" {
		l = s.pipe
	}
	refused := !s.up || s.refuseConn()
	s.mu.Unlock()
	if refused {
		return nil, errRefused
	}
	return l.dial(ctx)
}

// Client returns an HTTP client whose every request goes to this server, over
// in-memory connections like those of the unix socket. The host in the URL
// does not matter: http://lxd/1.0 is a good one.
func (s *Server) Client() *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.DialContext(ctx, "unix", "")
		},
	}
	context.AfterFunc(s.ctx, transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// newConn registers an accepted connection.
func (s *Server) newConn(raw net.Conn, local bool) (*conn, error) {
	c := &conn{Conn: raw, server: s, closed: make(chan struct{}), local: local}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.up {
		return nil, net.ErrClosed
	}
	s.accepted++
	s.conns[c] = struct{}{}
	return c, nil
}

// forgetConn takes a closed connection off the list.
func (s *Server) forgetConn(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// locked calls f under the lock. Answers are written outside of it: a client
// that does not read must not stop the others.
func (s *Server) withLock(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

// now is the time that is written into images and operations.
func (s *Server) now() time.Time { return s.opts.Now().UTC() }

// extensions returns the API extensions that the server names.
func (s *Server) extensions() []string {
	var list []string
	for _, name := range s.traits.extensions {
		if !slices.Contains(s.opts.WithoutExtensions, name) {
			list = append(list, name)
		}
	}
	return append(list, s.opts.WithExtensions...)
}

// has tells whether the server has an API extension.
func (s *Server) has(extension string) bool {
	return slices.Contains(s.opts.WithExtensions, extension) ||
		slices.Contains(s.traits.extensions, extension) && !slices.Contains(s.opts.WithoutExtensions, extension)
}
