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

	// StallTimeout is how long the server may be silent: the time in which it
	// takes nothing of what is sent to it (a block of at most 256 KiB), or sends
	// neither the next byte nor its response. The connection then counts as
	// broken, and the request is retried or resumed as after any other break.
	// The time in which the caller's own reader or writer is slow does not
	// count, nor does waiting for an operation or an event. The default is one
	// minute. Negative: without limit.
	StallTimeout time.Duration

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
