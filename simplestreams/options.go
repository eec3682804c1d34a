package simplestreams

import (
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/golxd/lxd/internal/stall"
)

// Family is one of the two kinds of daemon that simplestreams trees are made for. They read different items of the same
// tree, so the same alias can be another image for the other family.
type Family string

const (
	// LXD reads items of the types lxd.tar.xz and lxd_combined.tar.gz, and lxd_requirements.
	LXD Family = "lxd"

	// Incus reads items of the types incus.tar.xz and incus_combined.tar.gz, and requirements.
	Incus Family = "incus"
)

// Options changes how [New] sets a client up. The zero value, and nil, are good for any public image server.
type Options struct {
	// Family makes the client see the images that this family's daemons see. Empty means both: a version that carries
	// items for both families then counts as the one for LXD.
	Family Family

	// AllowHTTP permits plain http, for the server itself and for redirects. The default is to refuse it everywhere, the
	// loopback included: the index is not signed, so TLS is all that vouches for the hashes in it.
	AllowHTTP bool

	// RootCAs are the authorities that the server's certificate is checked against. The default is the system's.
	RootCAs *x509.CertPool

	// Certificate holds PEM certificates to trust, in place of the system's and beside RootCAs if that is given: an
	// authority, a server certificate signed by one, or a self-signed one. The server's name has to be in its
	// certificate's subject alternative names in any case.
	Certificate string

	// Proxy chooses the proxy for a request, as in [http.Transport]. The default is
	// http.ProxyFromEnvironment: HTTP_PROXY, HTTPS_PROXY and NO_PROXY as they are at the program's first request.
	// http.ProxyURL gives a fixed proxy.
	Proxy func(*http.Request) (*url.URL, error)

	// HTTPClient is used for requests. It is copied, not modified. If it has no Transport, or by default, the requests go
	// through a new one that speaks HTTP/1.1, the faster one for large files, and not http.DefaultTransport. RootCAs, Certificate and Proxy apply to a copy of its
	// transport and need that to be an *http.Transport or nil. Its Timeout, if any, covers whole downloads.
	HTTPClient *http.Client

	// UserAgent is sent with every request. The default is "golxd-simplestreams/1".
	UserAgent string

	// MaxMetadataSize is the most bytes that a single metadata file (the index, or a products file) may have, after
	// decompression. A larger one is ErrTooLarge, never a shorter list. The default is 128 MiB.
	MaxMetadataSize int64

	// TTL is how long the metadata is used before the server is asked again, with If-None-Match or If-Modified-Since.
	// The default is one hour, as in LXD and Incus. Negative means to ask each time.
	TTL time.Duration

	// Cache keeps metadata files between clients and between runs. The default is none: the parsed index is kept in
	// memory only.
	Cache Cache

	// StallTimeout is how long a server may take to send the next byte, or the headers of its response, before the
	// attempt fails with [ErrStalled]. The default is one minute. Negative means no limit but the context's.
	StallTimeout time.Duration

	// RetryTimeout is how long a failure that may pass is retried without a new byte. The default is 30 seconds. Negative
	// means never. See the package documentation for what is retried, and for the pauses.
	RetryTimeout time.Duration

	// Logger gets a debug line for each request and a warning for each retry, without user names and passwords. The default logs
	// nothing.
	Logger *slog.Logger
}

const (
	defaultUserAgent       = "golxd-simplestreams/1"
	defaultMaxMetadataSize = 128 << 20
	defaultTTL             = time.Hour
)

// withDefaults returns a copy in which every zero field has its default.
func (o *Options) withDefaults() Options {
	var set Options
	if o != nil {
		set = *o
	}
	if set.UserAgent == "" {
		set.UserAgent = defaultUserAgent
	}
	if set.MaxMetadataSize <= 0 {
		set.MaxMetadataSize = defaultMaxMetadataSize
	}
	if set.TTL == 0 {
		set.TTL = defaultTTL
	}
	if set.StallTimeout == 0 {
		set.StallTimeout = stall.DefaultTimeout
	}
	if set.Logger == nil {
		set.Logger = slog.New(slog.DiscardHandler)
	}

	return set
}
