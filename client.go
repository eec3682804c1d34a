package lxd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/stall"
	"github.com/golxd/lxd/simplestreams"
)

// Version is the version of this package.
const Version = "0.1.0"

// Client talks to one LXD or Incus server. It is safe for concurrent use. Create
// it with [New], [Remote] or [Join], and close it with Close.
type Client struct {
	Images     *Images
	Aliases    *Aliases
	Registries *Registries

	t       *transport
	server  *serverCache
	project string
	public  bool
}

// Family is the kind of daemon that a server runs: [LXD] or [Incus].
type Family = simplestreams.Family

// The two families. They speak one API with differences that this package
// handles.
const (
	LXD   = simplestreams.LXD
	Incus = simplestreams.Incus
)

// New returns a client for a server; nothing is sent yet. The endpoint is
//
//   - "" for the local daemon. Its socket is the first of these that exists when
//     the first connection is made, and stays the same for the client's life:
//     $LXD_SOCKET, $LXD_DIR/unix.socket, $INCUS_SOCKET,
//     $INCUS_DIR/unix.socket (a variable that is set decides, whether the
//     socket exists or not); then /var/snap/lxd/common/lxd/unix.socket,
//     /var/lib/lxd/unix.socket, /run/incus/unix.socket and
//     /var/lib/incus/unix.socket. If this user may not use an Incus socket, or
//     it is missing, unix.socket.user beside it is used; an LXD socket that this
//     user may not use is an error, even if Incus is installed too.
//   - the path of a unix socket, or unix:// and that path.
//   - https://host:port; the port is 8443 unless given. Several addresses of one
//     server, mostly those of the members of a cluster, are separated by commas:
//     "https://a:8443,https://b:8443". If one does not respond, the next one is
//     asked. If they turn out to be two servers, calls fail with a [*PinError].
//
// The options are copied.
func New(endpoint string, opts *Options) (*Client, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if strings.ContainsFunc(o.Token, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, invalid("Options.Token", "contains a control character, such as a line end")
	}
	t := &transport{endpoint: endpoint, retry: retry.Policy{Timeout: o.RetryTimeout}, stall: cmp.Or(o.StallTimeout, stall.DefaultTimeout), log: o.Logger, token: o.TokenSource, agent: "golxd/" + Version, session: newSession()}
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
	if endpoint = strings.TrimSpace(endpoint); endpoint == "" {
		t.endpoint, t.unix, t.members = "the local daemon", true, newMembers("http://unix")
		dial = (&localDaemon{dial: dial, sockets: localSockets(o.Family)}).connect
	} else {
		socket, bases, err := parseEndpoint(endpoint)
		switch {
		case err != nil:
			return nil, err
		case bases != nil:
			t.endpoint, t.members = strings.Join(bases, ","), newMembers(bases...)
			if tlsConfig, err = o.tlsConfig(func(c *x509.Certificate) { t.peer.Store(c) }); err != nil {
				return nil, err
			}
			proxy := o.Proxy
			if proxy == nil {
				proxy = http.ProxyFromEnvironment
			}
			dial = throughProxy(dial, proxy)
		default:
			if o.Dial == nil {
				if err := checkSocket(socket); err != nil {
					return nil, err
				}
			}
			t.endpoint, t.unix, t.members = "unix://"+socket, true, newMembers("http://unix")
			network := dial
			dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return network(ctx, "unix", socket) }
		}
	}
	t.conns, t.tls = &connections{dial: dial, lazy: t.unix, done: make(chan struct{})}, tlsConfig
	t.retry.Closed = t.conns.done
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

// InProject returns a client for another project of the same server, over the
// same connections. Closing either closes both.
func (c *Client) InProject(project string) *Client {
	if c.t == nil {
		return &Client{}
	}
	return newClient(c.t, c.server, project, c.public)
}

// Project returns the project that this client works in.
func (c *Client) Project() string {
	if c.project == "" {
		return "default"
	}
	return c.project
}

// Endpoint returns the server's address as this client uses it, such as
// "unix:///var/lib/lxd/unix.socket" or "https://10.0.0.7:8443".
func (c *Client) Endpoint() string {
	if c.t == nil {
		return ""
	}
	return c.t.endpoint
}

// Close closes all connections of this client and of its InProject clients,
// even those in use. Every later call fails with an error that matches
// [ErrUnavailable] and net.ErrClosed.
func (c *Client) Close() error {
	if err := c.checkMade(); err != nil {
		return err
	}
	c.t.conns.closeAll()
	c.t.pool.CloseIdleConnections()
	return nil
}

// query returns the project parameter, or nil for the default project.
func (c *Client) query() url.Values {
	if c.project == "" {
		return nil
	}
	return url.Values{"project": {c.project}}
}

// path joins /1.0 and the escaped segments.
func path(segments ...string) string {
	var b bytes.Buffer
	b.WriteString("/1.0")
	for _, s := range segments {
		b.WriteByte('/')
		switch s {
		case ".", "..":
			// A proxy or server would resolve plain dots as a relative path.
			b.WriteString(strings.ReplaceAll(s, ".", "%2E"))
		default:
			b.WriteString(url.PathEscape(s))
		}
	}
	return b.String()
}
