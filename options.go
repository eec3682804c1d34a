package lxd

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Options configure how a server is reached. The zero value is enough for the
// local daemon.
type Options struct {
	// ClientCertificate and ClientKey are this client's certificate and private
	// key, PEM, as in client.crt and client.key of the command line's
	// configuration. They are used for https endpoints, and ignored for others.
	ClientCertificate []byte
	ClientKey         []byte

	// ServerCertificate is the only certificate, PEM, that is accepted from the
	// server; its names, dates and issuer are then not checked. If neither it,
	// ServerFingerprint nor RootCAs is set, the system's authorities decide.
	ServerCertificate []byte
	// ServerFingerprint is the SHA-256, hexadecimal, of the only certificate
	// that is accepted from the server.
	ServerFingerprint string
	// RootCAs are the authorities that may issue the server's certificate,
	// instead of the system's.
	RootCAs *x509.CertPool

	// Token is a bearer token: an access token of the server's OpenID Connect
	// provider, or one that the server itself has issued (LXD 6.7 and up).
	// TokenSource replaces it: it is called for a token before every request, and
	// must be safe for concurrent use. To use an oauth2.TokenSource, wrap it in a
	// function that calls its Token and returns the AccessToken.
	Token       string
	TokenSource func(context.Context) (string, error)

	// Project is the project that images are read from and created in. The
	// default is "default". See also [Client.InProject].
	Project string

	// Family selects the daemon that New("") looks for, and the command line
	// whose remotes [Remote] reads. The default is LXD, then Incus. A server's
	// own family is read from the server.
	Family Family

	// ConfigDir is the directory of the command line's configuration that
	// [Remote] reads; Family says whose it is, LXD's unless set. The default is
	// the command line's own directory.
	ConfigDir string

	// PublicOnly lets All, Each and Get return only the public images if the
	// server does not trust this client. By default they then fail with
	// ErrForbidden.
	PublicOnly bool

	// RetryTimeout is how long a transient failure is retried without progress.
	// The default is 30 seconds, enough for a restart of the daemon. A negative
	// value disables retries. The section Retries of the package documentation
	// says what is retried, and with which pauses.
	RetryTimeout time.Duration

	// StallTimeout is how long the server may be silent: how long it may take to
	// read the next block sent to it (at most 256 KiB), or to send the next byte
	// or its response. The connection then counts as broken, and the request is
	// retried or resumed as after any other break. Time that the caller's own
	// reader or writer takes does not count, nor does waiting for an operation or
	// an event. The default is one minute. A negative value means no limit.
	StallTimeout time.Duration

	// UserAgent is put before this package's own user agent. The default is
	// empty. Neither is sent with a Token to an LXD server that has OpenID Connect
	// sessions and refuses it (LXD 6.9): such a server accepts only the user agents
	// of its own clients.
	UserAgent string

	// Logger receives one debug record for each request: method, path, status
	// and duration, never a body, a secret or a token. By default nothing is
	// logged.
	Logger *slog.Logger

	// Proxy returns the proxy for an https endpoint, or nil for none: http,
	// https, socks5 or socks5h. It is called for each connection, of requests,
	// transfers and events alike, with a request that has only the endpoint's
	// URL. The default is HTTPS_PROXY and NO_PROXY of the environment as they
	// were when first needed, never for loopback. See [ProxyURL].
	Proxy func(*http.Request) (*url.URL, error)

	// Dial makes the network connections: network is "unix" or "tcp", address a
	// path or host:port. The default is a net.Dialer. The DialContext of an SSH
	// client can be used here.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Transport wraps the round tripper, for tracing or metrics. The returned
	// round tripper must be safe for concurrent use. To keep uploads at full
	// speed it must pass on the body of a request unwrapped.
	Transport func(http.RoundTripper) http.RoundTripper
}
