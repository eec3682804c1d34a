package lxd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/wire"
)

// Version is the version of this package.
const Version = "0.1.0"

// Client talks to one LXD or Incus server. It is safe for concurrent use. Make
// it with [New] or [Remote] and end it with Close.
type Client struct {
	Images     *Images
	Aliases    *Aliases
	Registries *Registries

	t       *transport
	server  *serverCache
	project string
	public  bool
}

// Family is the kind of daemon that a server runs.
type Family string

// The two families. They speak one API with differences that this package
// deals with.
const (
	LXD   Family = "lxd"
	Incus Family = "incus"
)

// Options say how to reach a server. The zero value is fine for the local
// daemon.
type Options struct {
	// ClientCertificate and ClientKey are this client's certificate and private
	// key, PEM, as in client.crt and client.key of the command line's
	// configuration. They are for https endpoints, and not looked at for others.
	ClientCertificate []byte
	ClientKey         []byte

	// ServerCertificate is the one certificate, PEM, that the server must show;
	// its names, dates and issuer are then not looked at. Without it,
	// ServerFingerprint and RootCAs, the system's authorities decide.
	ServerCertificate []byte
	// ServerFingerprint is the SHA-256, hexadecimal, of the one certificate
	// that the server must show.
	ServerFingerprint string
	// RootCAs are the authorities that may have issued the server's
	// certificate, in place of the system's.
	RootCAs *x509.CertPool

	// Token is a bearer token: an access token of the server's OpenID Connect
	// provider, or one that the server itself has issued (LXD 6.7 and up).
	// TokenSource is asked for a token before every request in its place; it must
	// be safe for concurrent use. An oauth2.TokenSource fits with a function that
	// calls its Token and returns the AccessToken.
	Token       string
	TokenSource func(context.Context) (string, error)

	// Project is where images are looked for and put. Default: "default". See
	// also [Client.InProject].
	Project string

	// Family says which daemon New("") looks for, and whose command line's
	// remotes [Remote] reads. Default: LXD, then Incus. Servers tell their
	// family themselves.
	Family Family

	// ConfigDir is the folder of the command line's configuration that
	// [Remote] reads; Family says whose it is, LXD's unless set. Default: where
	// the command line has it.
	ConfigDir string

	// PublicOnly makes All, Each and Get content with the public images where
	// the server does not trust this client. Default: such calls give
	// ErrForbidden.
	PublicOnly bool

	// RetryTimeout is how long a failure that may pass is retried without
	// progress. Default: 30 seconds, which a restart of the daemon fits into.
	// Negative: never. What is retried, and with which pauses, is said in the
	// section Retries of this package.
	RetryTimeout time.Duration

	// UserAgent is put before this package's own. Default: only the latter.
	UserAgent string

	// Logger receives one debug record for each request: method, path, status
	// and duration, never a body, a secret or a token. Default: none.
	Logger *slog.Logger

	// Proxy gives the proxy of an https endpoint, or nil for none: http, https,
	// socks5 or socks5h. It is asked for each connection, of requests,
	// transfers and events alike, with a request that has nothing but the
	// endpoint's URL. Default: HTTPS_PROXY and NO_PROXY of the environment as
	// they were when first needed, never for loopback. See [ProxyURL].
	Proxy func(*http.Request) (*url.URL, error)

	// Dial makes the network connections: network is "unix" or "tcp", address a
	// path or host:port. Default: net.Dialer. An SSH client's DialContext fits.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Transport wraps the round tripper, for tracing or metrics. What it
	// returns must be safe for concurrent use. It must hand on the body of a
	// request unwrapped if uploads are to stay at their full speed.
	Transport func(http.RoundTripper) http.RoundTripper
}

// New makes a client for a server; nothing is sent yet. The endpoint is
//
//   - "" for the local daemon. It is the first of these that exists when the
//     first connection is made, and is kept for the client's life:
//     $LXD_SOCKET, $LXD_DIR/unix.socket, $INCUS_SOCKET,
//     $INCUS_DIR/unix.socket (a variable that is set decides, whether the
//     socket exists or not); then /var/snap/lxd/common/lxd/unix.socket,
//     /var/lib/lxd/unix.socket, /run/incus/unix.socket and
//     /var/lib/incus/unix.socket. Where this user may not use an Incus socket,
//     unix.socket.user beside it is used; an LXD socket that this user may not
//     use is an error, also where there is an Incus.
//   - the path of a unix socket, or unix:// and that path.
//   - https://host:port; the port is 8443 unless given.
//
// The options are copied.
func New(endpoint string, opts *Options) (*Client, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	t := &transport{endpoint: endpoint, retry: retry.Policy{Timeout: o.RetryTimeout}, log: o.Logger, token: o.TokenSource, agent: "golxd/" + Version}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if t.token == nil && o.Token != "" {
		token := o.Token
		t.token = func(context.Context) (string, error) { return token, nil }
	}
	if o.UserAgent != "" {
		t.agent = o.UserAgent + " " + t.agent
	}
	switch o.Family {
	case "", LXD, Incus:
	default:
		return nil, invalid("Options.Family", "is %q, not %q or %q", o.Family, LXD, Incus)
	}
	dial := o.Dial
	if dial == nil {
		dial = defaultDialer().DialContext
	}
	var tlsConfig *tls.Config
	switch {
	case endpoint == "":
		t.endpoint, t.base, t.unix = "the local daemon", "http://unix", true
		dial = (&localDaemon{dial: dial, sockets: localSockets(o.Family)}).connect
	case strings.HasPrefix(endpoint, "https://"):
		u, err := url.Parse(endpoint)
		switch {
		case err != nil:
			return nil, invalid("endpoint", "is not a URL")
		case u.Host == "" || u.Hostname() == "":
			return nil, invalid("endpoint", "%q has no host", redact.URL(u))
		case u.User != nil:
			return nil, invalid("endpoint", "holds a user name; use a client certificate or Options.Token")
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
			return nil, invalid("endpoint", "for %q holds more than a host and a port", u.Host)
		}
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), "8443")
		}
		t.endpoint, t.base = "https://"+u.Host, "https://"+u.Host
		if tlsConfig, err = o.tlsConfig(u.Hostname(), func(c *x509.Certificate) { t.peer.Store(c) }); err != nil {
			return nil, err
		}
		proxy := o.Proxy
		if proxy == nil {
			proxy = http.ProxyFromEnvironment
		}
		dial = throughProxy(dial, proxy)
	case strings.HasPrefix(endpoint, "http://"):
		return nil, invalid("endpoint", "%q is plain http; the daemons speak https (or a unix socket)", redact.URL(endpoint))
	default:
		path, ok := strings.CutPrefix(endpoint, "unix://")
		if !ok && strings.Contains(endpoint, "://") {
			return nil, invalid("endpoint", "%q is not unix://path or https://host:port", redact.URL(endpoint))
		}
		if !ok {
			path = strings.TrimPrefix(endpoint, "unix:")
		}
		if path == "" {
			return nil, invalid("endpoint", "%q has no path of a socket", endpoint)
		}
		if first, _, _ := strings.Cut(path, "/"); strings.ContainsAny(strings.TrimPrefix(first, "@"), ":@") {
			// It is a host, perhaps with a password before it.
			return nil, invalid("endpoint", "is not the path of a unix socket, unix://path or https://host:port")
		}
		t.endpoint, t.base, t.unix = "unix://"+path, "http://unix", true
		network := dial
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return network(ctx, "unix", path) }
	}
	t.conns, t.tls = &connections{dial: dial, lazy: t.unix}, tlsConfig
	t.pool = newPool(t.conns, tlsConfig)
	t.http = t.pool
	if t.wrap = o.Transport; t.wrap != nil {
		t.http = t.wrap(t.pool)
	}
	return newClient(t, &serverCache{turn: make(chan struct{}, 1)}, o.Project, o.PublicOnly), nil
}

func defaultDialer() *net.Dialer { return &net.Dialer{Timeout: dialTimeout} }

func newClient(t *transport, server *serverCache, project string, public bool) *Client {
	c := &Client{t: t, server: server, project: project, public: public}
	c.Images = &Images{client: c}
	c.Aliases = &Aliases{client: c}
	c.Registries = &Registries{client: c}
	return c
}

// InProject gives a client for the same server, over the same connections, that
// works in another project. Closing either closes both.
func (c *Client) InProject(project string) *Client {
	return newClient(c.t, c.server, project, c.public)
}

// Project is the project that this client works in.
func (c *Client) Project() string {
	if c.project == "" {
		return "default"
	}
	return c.project
}

// Endpoint is the server's address as this client uses it, such as
// "unix:///var/lib/lxd/unix.socket" or "https://10.0.0.7:8443".
func (c *Client) Endpoint() string { return c.t.endpoint }

// Close ends all connections of this client and of those that InProject gave,
// also the ones in use. Every later call fails with an [ErrUnavailable].
func (c *Client) Close() error {
	c.t.conns.closeAll()
	c.t.pool.CloseIdleConnections()
	return nil
}

// PinError says that a server showed another certificate than the one it must.
type PinError struct {
	Want string // SHA-256, hexadecimal
	Got  string
}

// Error tells both fingerprints.
func (e *PinError) Error() string {
	return fmt.Sprintf("the server's certificate has the SHA-256 fingerprint %s, not %s: it was renewed, or this is another server", e.Got, e.Want)
}

// Transient is false: the server shows the same certificate again.
func (e *PinError) Transient() bool { return false }

// tlsConfig is how an https endpoint is reached. seen receives the certificate
// that the server shows, once it is accepted.
func (o *Options) tlsConfig(host string, seen func(*x509.Certificate)) (*tls.Config, error) {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         host,
		RootCAs:            o.RootCAs,
		ClientSessionCache: tls.NewLRUClientSessionCache(32),
	}
	switch {
	case len(o.ClientCertificate) > 0 && len(o.ClientKey) > 0:
		pair, err := tls.X509KeyPair(o.ClientCertificate, o.ClientKey)
		if err != nil {
			return nil, invalid("Options.ClientCertificate", "and ClientKey do not make a pair: %v", err)
		}
		// The server's list of authorities says nothing about a self-signed
		// certificate that it trusts.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	case len(o.ClientCertificate) > 0:
		return nil, invalid("Options.ClientKey", "is missing")
	case len(o.ClientKey) > 0:
		return nil, invalid("Options.ClientCertificate", "is missing")
	}
	want := strings.ToLower(o.ServerFingerprint)
	if want != "" {
		if raw, err := hex.DecodeString(want); err != nil || len(raw) != sha256.Size {
			return nil, invalid("Options.ServerFingerprint", "is not the hexadecimal SHA-256 of a certificate")
		}
	}
	if len(o.ServerCertificate) > 0 {
		cert, err := parseCertificate(o.ServerCertificate)
		if err != nil {
			return nil, invalid("Options.ServerCertificate", "%v", err)
		}
		sum := certificateFingerprint(cert.Raw)
		if want != "" && want != sum {
			return nil, invalid("Options.ServerFingerprint", "is not that of Options.ServerCertificate")
		}
		want = sum
	}
	config.InsecureSkipVerify = want != "" // the pin below is stricter
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := checkPin(state, want); err != nil {
			return err
		}
		seen(state.PeerCertificates[0])
		return nil
	}
	return config, nil
}

// checkPin errors where a server has shown another certificate than the one of
// a fingerprint, which "" does not ask for.
func checkPin(state tls.ConnectionState, want string) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	if got := certificateFingerprint(state.PeerCertificates[0].Raw); want != "" && got != want {
		return &PinError{Want: want, Got: got}
	}
	return nil
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("is not a PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot be parsed: %w", err)
	}
	return cert, nil
}

func certificateFingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// localSocket is one place where a local daemon may listen: the path of its
// socket, and that of the one for users who may not use the first.
type localSocket struct{ path, forUsers string }

// localSockets are the places where the local daemon may listen, in order.
func localSockets(family Family) []localSocket {
	in := func(dir string) string { return filepath.Join(dir, "unix.socket") }
	lxdSockets := func() ([]localSocket, bool) {
		if s := os.Getenv("LXD_SOCKET"); s != "" {
			return []localSocket{{path: s}}, true
		}
		if dir := os.Getenv("LXD_DIR"); dir != "" {
			return []localSocket{{path: in(dir)}}, true
		}
		return []localSocket{{path: in("/var/snap/lxd/common/lxd")}, {path: in("/var/lib/lxd")}}, false
	}
	incusSockets := func() ([]localSocket, bool) {
		of := func(dir string) localSocket { return localSocket{in(dir), in(dir) + ".user"} }
		if s := os.Getenv("INCUS_SOCKET"); s != "" {
			return []localSocket{{path: s}}, true
		}
		if dir := os.Getenv("INCUS_DIR"); dir != "" {
			return []localSocket{of(dir)}, true
		}
		return []localSocket{of("/run/incus"), of("/var/lib/incus")}, false
	}
	l, lxdSet := lxdSockets()
	i, incusSet := incusSockets()
	switch {
	case family == LXD, family == "" && lxdSet:
		return l
	case family == Incus, family == "" && incusSet:
		return i
	}
	return slices.Concat(l, i)
}

// localDaemon connects to the local daemon. Which one that is, the first
// connection decides for all later ones: a daemon that is away for a moment must
// not send a client to another one.
type localDaemon struct {
	dial    dialFunc
	sockets []localSocket

	mu   sync.Mutex
	path string // that was connected to; "" until then
}

func (d *localDaemon) connect(ctx context.Context, _, _ string) (net.Conn, error) {
	if path := d.known(); path != "" {
		return d.dial(ctx, "unix", path)
	}
	c, path, err := d.first(ctx)
	if err != nil {
		return nil, err
	}
	if known := d.keep(path); known != path {
		// Another goroutine was sooner, and found another daemon.
		_ = c.Close()
		return d.dial(ctx, "unix", known)
	}
	return c, nil
}

func (d *localDaemon) known() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.path
}

// keep returns the path that is used from now on.
func (d *localDaemon) keep(path string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.path == "" {
		d.path = path
	}
	return d.path
}

// first connects to the first place that has a socket.
func (d *localDaemon) first(ctx context.Context) (c net.Conn, path string, err error) {
	var tried []string
	for _, socket := range d.sockets {
		c, err := d.dial(ctx, "unix", socket.path)
		if err == nil {
			return c, socket.path, nil
		}
		denied, missing := errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist)
		if (denied || missing) && socket.forUsers != "" {
			c, uerr := d.dial(ctx, "unix", socket.forUsers)
			if uerr == nil {
				return c, socket.forUsers, nil
			}
			if missing && !errors.Is(uerr, fs.ErrNotExist) {
				return nil, "", uerr
			}
		}
		if !missing || len(d.sockets) == 1 {
			return nil, "", err
		}
		tried = append(tried, socket.path)
	}
	return nil, "", fmt.Errorf("none of %s: %w", strings.Join(tried, ", "), fs.ErrNotExist)
}

// Server is what a server says of itself.
type Server struct {
	// Family is "" where the server does not tell this client: Incus 7 and up
	// tell a client that they do not trust neither their extensions nor their
	// version.
	Family     Family
	Version    string   // such as "5.0.2"; "" where the server does not tell
	APIVersion string   // "1.0"
	Extensions []string // of the API; nil where the server does not tell
	// Trusted says whether the server trusts this client.
	Trusted bool
	// Auth is the server's word for it: "trusted" or "untrusted".
	Auth        string
	AuthMethods []string
	// Addresses are host:port pairs that the server listens on; empty where it
	// does not listen on the network, or this client is not trusted.
	Addresses []string
	// Certificate is the server's own, PEM, and CertificateFingerprint its
	// SHA-256.
	Certificate            string
	CertificateFingerprint string
	Name                   string // host name
	Architectures          []string
	Project                string
	Clustered              bool
}

// Has says whether the server tells that it has an API extension.
func (s *Server) Has(extension string) bool { return slices.Contains(s.Extensions, extension) }

// need returns the error for an extension that the server does not tell to
// have: ErrUnsupported, or ErrForbidden where it does not tell its extensions to
// this client.
func (s *Server) need(what, extension string) error {
	switch {
	case s.Has(extension):
		return nil
	case s.Extensions == nil:
		return fmt.Errorf("%s: %w: the server tells its API extensions only to clients that it trusts; give Options a client certificate or token that it trusts", what, ErrForbidden)
	}
	return fmt.Errorf("%s: %w: it lacks the API extension %q", what, ErrUnsupported, extension)
}

// headers are what the names of the family's image headers begin with. Each
// family ignores the other's, so that a server of an unknown one gets both.
func (s *Server) headers() []string {
	switch s.Family {
	case LXD:
		return []string{"X-LXD-"}
	case Incus:
		return []string{"X-Incus-"}
	}
	return []string{"X-LXD-", "X-Incus-"}
}

// protocol is what the family calls its own protocol as a source of images. The
// servers take "" for their own.
func (s *Server) protocol() string { return string(s.Family) }

// familyOf tells LXD from Incus. A client that the server does not trust is not
// told the environment, and by Incus 7 not the extensions either: then the
// family is unknown. dev_incus_events is an extension of every Incus since 0.1
// and of no LXD.
func familyOf(answer *wire.Server) Family {
	switch server := Family(answer.Environment.Server); {
	case server == LXD, server == Incus:
		return server
	case slices.Contains(answer.APIExtensions, "dev_incus_events"):
		return Incus
	case len(answer.APIExtensions) > 0:
		return LXD
	}
	return ""
}

// serverCache keeps what GET /1.0 said.
type serverCache struct {
	turn chan struct{} // held while reading
	info *Server       // guarded by turn
}

// Server tells what the server says of itself. It is read once, when first
// needed, and again after Trust. As long as the server does not trust this
// client's certificate or token, it is read each time.
func (c *Client) Server(ctx context.Context) (*Server, error) {
	s, err := c.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	clone := *s
	clone.Extensions = slices.Clone(s.Extensions)
	clone.AuthMethods = slices.Clone(s.AuthMethods)
	clone.Addresses = slices.Clone(s.Addresses)
	clone.Architectures = slices.Clone(s.Architectures)
	return &clone, nil
}

func (c *Client) serverInfo(ctx context.Context, again bool) (*Server, error) {
	select {
	case c.server.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, c.t.connectionError(ctx, &request{method: http.MethodGet, path: "/1.0"}, ctx.Err())
	}
	defer func() { <-c.server.turn }()
	if c.server.info != nil && !again && (c.server.info.Trusted || !c.hasCredentials()) {
		return c.server.info, nil
	}
	answer, _, err := get(ctx, c.t, &request{method: http.MethodGet, path: "/1.0"}, holdServer)
	if err != nil {
		return nil, err
	}
	env := answer.Environment
	info := &Server{
		Family: familyOf(answer), Version: env.ServerVersion, APIVersion: answer.APIVersion, Extensions: answer.APIExtensions,
		Trusted: answer.Auth == "trusted", Auth: answer.Auth, AuthMethods: answer.AuthMethods,
		Addresses: env.Addresses, Certificate: env.Certificate, CertificateFingerprint: env.CertificateFingerprint,
		Name: env.ServerName, Architectures: env.Architectures, Project: env.Project, Clustered: env.ServerClustered,
	}
	c.server.info = info
	return info, nil
}

// holdServer checks that what a server said of itself is that.
func holdServer(server *wire.Server) error {
	if server.Auth == "" {
		return errors.New("it does not say whether it trusts this client")
	}
	return nil
}

// hasCredentials says whether the server may come to trust this client.
func (c *Client) hasCredentials() bool {
	return c.t.token != nil || (c.t.tls != nil && c.t.tls.GetClientCertificate != nil)
}

// need is Server.need.
func (c *Client) need(ctx context.Context, what, extension string) error {
	s, err := c.serverInfo(ctx, false)
	if err != nil {
		return err
	}
	return s.need(what, extension)
}

// query is the project, where it is not the default one.
func (c *Client) query() url.Values {
	if c.project == "" {
		return nil
	}
	return url.Values{"project": {c.project}}
}

// path escapes each segment and joins them behind /1.0.
func path(segments ...string) string {
	var b bytes.Buffer
	b.WriteString("/1.0")
	for _, s := range segments {
		b.WriteByte('/')
		switch s {
		case ".", "..":
			// Plain dots would be taken for a relative path on the way.
			b.WriteString(strings.ReplaceAll(s, ".", "%2E"))
		default:
			b.WriteString(url.PathEscape(s))
		}
	}
	return b.String()
}
