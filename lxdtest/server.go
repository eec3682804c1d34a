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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/golxd/lxd/internal/unixsock"
)

var errClosed = errors.New("the server is closed")

// errRefused is returned by dialing a server that does not listen.
var errRefused error = &net.OpError{Op: "dial", Net: "pipe", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

// Options are the settings of a Server. The zero value is an LXD 5.0.2 on a
// unix socket.
type Options struct {
	// Dialect is the daemon to imitate. The default is LXD50.
	Dialect Dialect

	// Socket is the path of the unix socket. A socket at which nobody listens is
	// replaced; any other file is not. Close removes the socket. The default is
	// unix.socket in the server's own directory.
	Socket string

	// TLS makes the server listen on https as well, with a self-signed
	// certificate of its own. A copy needs it on the source if the target pulls,
	// and on the target if the source pushes.
	TLS bool

	// Address is the host and port of https, as in net.Listen, and implies TLS.
	// The certificate is for this host, localhost and the addresses of loopback.
	// The default is a free port of 127.0.0.1.
	Address string

	// InMemory makes the server open no socket. It is reached through
	// DialContext and Client alone, and can run in a testing/synctest bubble.
	InMemory bool

	// WithoutExtensions are API extensions to remove from those of the
	// dialect.
	WithoutExtensions []string

	// WithExtensions are API extensions to add to those of the dialect. With
	// image_registries, which no dialect has, the server has image registries.
	WithExtensions []string

	// ForgetAfter is how long a finished operation can still be requested. The
	// default is that of the daemons: 5 seconds, or with LXD69 as long as the
	// server runs. If negative, operations are forgotten at once.
	ForgetAfter time.Duration

	// PingInterval is the time between two pings on an event socket. The default
	// is 10 seconds, as in the daemons.
	PingInterval time.Duration

	// TrustPassword allows a client that knows it to add its certificate, on
	// dialects that accept passwords. The default is no password.
	TrustPassword string

	// BearerTokens are trusted on https in an Authorization header, on
	// dialects that accept such tokens: LXD69. The default is none.
	BearerTokens []string

	// OIDCSessions makes BearerTokens those of an OpenID Connect provider, on a
	// server with the extension auth_oidc_sessions (LXD69): a request with such a
	// token gets a 403 unless its User-Agent has the form of LXD's own clients and
	// says that the client keeps cookies. Each request without the session's cookie
	// begins a new session; see Server.Sessions.
	OIDCSessions bool

	// RootCAs are the authorities that the server trusts when it imports from
	// an https URL. The default is the system's, as in the daemons.
	RootCAs *x509.CertPool

	// Dial opens the connections to other servers, for imports, pull copies
	// and push copies. The default dials the network. To connect two servers
	// in memory, set it to the DialContext of the other one; of several, that whose
	// URL has the address.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Skopeo installs the command of that name, which Incus70 needs to pull OCI
	// images. It accepts any certificate of a registry on loopback.
	Skopeo bool

	// OnRequest is called with each request when the server has finished with it,
	// for logs: before the client has the last bytes of a response that is not
	// long. Calls can be concurrent. It must not close the server. The default is
	// none.
	OnRequest func(r *Request)

	// Now is the server's clock for the dates it writes. The default is
	// time.Now.
	Now func() time.Time

	// Directory is the parent of the directory in which the server keeps its
	// images and its socket, and which Close removes. The default is the
	// system's directory for temporary files.
	Directory string
}

// Server is an image server in this process. It is safe for concurrent use.
type Server struct {
	opts    Options
	traits  *traits
	dir     string
	socket  string
	address string // host and port of https, "" if there is none
	cert    *keyPair
	log     *log.Logger

	pipe, securePipe *pipeListener

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup // goroutines of operations, of the HTTP servers and of their connections

	loading sync.Mutex // held by Reset and Restore

	mu        sync.Mutex
	closed    bool
	up        bool
	refusing  int // the number of injected Refuse faults
	crash     *CrashError
	http      *http.Server
	listeners []net.Listener
	runCtx    context.Context // ends when the server stops or restarts
	endRun    context.CancelFunc
	conns     map[*conn]struct{}
	accepted  int
	spooled   int // the number of the last file created
	requests  []*Request
	serving   map[*Request]struct{} // those that are being processed
	waiters   []*requestWaiter
	faults    []*Injection
	limits    atomic.Pointer[[]*Injection] // those of faults that are a RateLimit; set under the lock

	trustMu    sync.Mutex // guards trusted, identities, client and sessions
	trusted    []*trust
	identities map[string]string // names of the identities without a certificate, by their token's secret
	client     *keyPair
	sessions   []string // the cookies of OpenID Connect sessions
	state
	uses       map[string]int          // how many images and snapshots use a file of an image, by path
	streams    map[string]cachedStream // by URL; used by CacheStreams
	operations map[string]*operation
	downloads  map[string]chan struct{} // by fingerprint; closed at the end
	hub        hub
}

// NewServer starts a server; Close stops it. A nil opts means LXD 5.0.2 on a
// unix socket. Like httptest.NewServer, it panics if it cannot listen.
func NewServer(opts *Options) *Server {
	s, err := Start(opts)
	if err != nil {
		panic(err.Error())
	}
	return s
}

// Start is like NewServer, but returns an error, for programs that are not tests.
func Start(opts *Options) (*Server, error) {
	s, err := newServer(opts)
	if err != nil {
		return nil, fmt.Errorf("lxdtest: cannot start the server: %w", err)
	}
	return s, nil
}

func newServer(opts *Options) (*Server, error) {
	s := &Server{
		conns:      map[*conn]struct{}{},
		serving:    map[*Request]struct{}{},
		downloads:  map[string]chan struct{}{},
		uses:       map[string]int{},
		streams:    map[string]cachedStream{},
		operations: map[string]*operation{},
		identities: map[string]string{},
		log:        log.New(io.Discard, "", 0),
	}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.PingInterval <= 0 {
		s.opts.PingInterval = 10 * time.Second
	}
	if s.opts.Now == nil {
		s.opts.Now = time.Now
	}
	if s.opts.Dial == nil {
		s.opts.Dial = (&net.Dialer{}).DialContext
	}
	s.traits = s.opts.Dialect.traits()
	s.state = s.traits.newState()
	if s.opts.ForgetAfter == 0 && !s.traits.storesOperations {
		s.opts.ForgetAfter = 5 * time.Second
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())

	hosts := []string{"localhost", "127.0.0.1", "::1"}
	switch {
	case s.opts.InMemory && (s.opts.Socket != "" || s.opts.Address != ""):
		return nil, errors.New("an in-memory server has no Options.Socket and no Options.Address")
	case s.opts.Address != "":
		host, _, err := net.SplitHostPort(s.opts.Address)
		if err != nil {
			return nil, fmt.Errorf("Options.Address must be a host and a port: %w", err) //nolint:staticcheck // It begins with the name of the field.
		}
		hosts = append(hosts, host)
	case s.opts.TLS:
		s.opts.Address = "127.0.0.1:0"
	}
	cert, err := newKeyPair("lxdtest server", hosts...)
	if err != nil {
		return nil, err
	}
	s.cert = cert
	if s.dir, err = unixsock.TempDir(s.opts.Directory, "unix.socket"); err != nil {
		return nil, err
	}
	if s.socket = s.opts.Socket; s.socket == "" {
		s.socket = filepath.Join(s.dir, "unix.socket")
	}
	if s.opts.InMemory {
		s.address = memoryAddress()
	}
	if err := s.start(); err != nil {
		s.cancel()
		s.tasks.Wait()
		_ = os.RemoveAll(s.dir)
		return nil, err
	}
	return s, nil
}

var memoryServers atomic.Uint32

// memoryAddress returns an address for a server in memory. Nobody listens there: it
// is what URL and the API report, and by which Options.Dial tells such servers apart.
func memoryAddress() string {
	return fmt.Sprintf("127.0.0.1:%d", 8443+(memoryServers.Add(1)-1)%50_000)
}

// start makes the server listen and serve, unless it is running or closed.
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
	if s.opts.InMemory || s.refusing > 0 {
		return nil
	}
	if err := s.listen(); err != nil {
		s.stopListening()
		s.up = false
		return err
	}
	return nil
}

// listen opens the network sockets; the caller holds the lock.
func (s *Server) listen() error {
	unix, err := unixsock.Listen(s.socket)
	if err != nil {
		return err
	}
	// The file is kept when the listener closes, so that dialing it is refused.
	unix.SetUnlinkOnClose(false)
	s.serve(unix, true)
	if s.opts.Address == "" {
		return nil
	}
	tcp, err := net.Listen("tcp", s.opts.Address)
	if err != nil {
		_ = os.Remove(s.socket)
		return err
	}
	// A restart uses the same port.
	host, _, _ := net.SplitHostPort(s.opts.Address)
	_, port, _ := net.SplitHostPort(tcp.Addr().String())
	s.opts.Address = net.JoinHostPort(host, port)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1" // one of all its addresses
	}
	s.address = net.JoinHostPort(host, port)
	s.serve(tcp, false)
	return nil
}

// serve serves requests on a listener; the caller holds the lock.
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

// connState adds the goroutine of each connection to s.tasks, for which Close
// waits. net/http's own Close does not wait for it, and after an early error
// response it sleeps for 500 ms. A hijacked connection belongs to its handler,
// which is counted itself. Serve calls connState with StateNew, and is itself
// counted until it returns, so that the counter is never zero at that time.
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

// stop stops the server until the next start: it closes the listeners, resets
// every connection and drops all operations.
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

// Close stops the server, closes its connections, ends its operations and
// removes its files. It returns once no goroutine of the server is left, which
// takes 500 ms if a request was not read to its end. A second Close does
// nothing.
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
	if s.opts.Socket != "" {
		_ = os.Remove(s.socket)
	}
	_ = os.RemoveAll(s.dir)
}

// Restart stops the server as a crash does and starts it again at the same
// addresses: connections are reset, operations and their secrets are lost,
// images, aliases and trusted certificates are kept.
func (s *Server) Restart() {
	s.stop()
	s.mu.Lock()
	s.crash = nil
	s.mu.Unlock()
	if err := s.start(); err != nil {
		panic(fmt.Sprintf("lxdtest: cannot restart the server: %v", err))
	}
}

// Shutdown stops the server until Restart: connections are reset and new ones
// are refused.
func (s *Server) Shutdown() { s.stop() }

// CrashError says why a server stopped by itself: it received a request that
// crashes the real daemon.
type CrashError struct {
	// Reason is the cause of the daemon's crash.
	Reason string
}

// Error returns the reason with a prefix.
func (e *CrashError) Error() string { return "lxdtest: the daemon crashed: " + e.Reason }

// Crashed returns why the server crashed, or nil if it did not. Restart
// restarts it.
func (s *Server) Crashed() *CrashError {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crash
}

// crashWith stops the server, which resets all connections, and records the
// reason.
func (s *Server) crashWith(reason string) {
	s.mu.Lock()
	s.crash = &CrashError{Reason: reason}
	s.mu.Unlock()
	s.stop()
}

// Dialect returns the daemon that the server imitates.
func (s *Server) Dialect() Dialect { return s.opts.Dialect }

// Endpoint returns the URL of the unix socket: "unix://" and its path. On an
// in-memory server only DialContext can connect to it.
func (s *Server) Endpoint() string { return "unix://" + s.socket }

// Socket returns the path of the unix socket.
func (s *Server) Socket() string { return s.socket }

// URL returns the https URL, or "" if the server has none.
func (s *Server) URL() string {
	if s.address == "" {
		return ""
	}
	return "https://" + s.address
}

// Certificate returns the server's certificate as PEM.
func (s *Server) Certificate() []byte { return slices.Clone(s.cert.cert) }

// DialContext opens an in-memory connection to the server: if network is
// "unix", a plain and trusted one like that of the unix socket, otherwise one
// that expects TLS like the https port. The address is ignored. DialContext
// suits http.Transport.
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

// Client returns an HTTP client that sends every request to this server, over
// in-memory connections like those of the unix socket. The host in the URL is
// ignored, as in http://lxd/1.0.
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
	c := &conn{linkConn: s.newLinkConn(raw), local: local}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.up {
		return nil, net.ErrClosed
	}
	s.accepted++
	s.conns[c] = struct{}{}
	return c, nil
}

// forgetConn removes a closed connection from the list.
func (s *Server) forgetConn(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// withLock calls f under the lock. Responses are written outside of it: a
// client that does not read must not block the others.
func (s *Server) withLock(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

// now returns the time to record in images and operations.
func (s *Server) now() time.Time { return s.opts.Now().UTC() }

// extensions returns the API extensions that the server reports.
func (s *Server) extensions() []string {
	var list []string
	for _, name := range s.traits.extensions {
		if !slices.Contains(s.opts.WithoutExtensions, name) {
			list = append(list, name)
		}
	}
	return append(list, s.opts.WithExtensions...)
}

// has reports whether the server has an API extension.
func (s *Server) has(extension string) bool {
	return slices.Contains(s.opts.WithExtensions, extension) ||
		slices.Contains(s.traits.extensions, extension) && !slices.Contains(s.opts.WithoutExtensions, extension)
}
