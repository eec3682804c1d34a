package simplestreams

import (
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/stall"
)

// Family is one of the two families of daemons. They read different items of the same server, so an alias can be
// different images for the two.
//
// Versions differ too. LXD 6.9 takes the architecture amd64v3 for x86_64, and requirements where a product has no
// lxd_requirements; LXD 5.0.2 does neither. Incus 7.0.2 takes x86_64_v1 to x86_64_v4 for x86_64, and has the variant in
// the description unless it is "default"; Incus 6.0.4 does neither. LXD after 5.0 is taken to do as 6.9, and Incus after
// 6.0 as 7.0.2.
type Family string

const (
	// LXD reads items of the types lxd.tar.xz and lxd_combined.tar.gz, and lxd_requirements.
	LXD Family = "lxd"

	// Incus reads items of the types incus.tar.xz and incus_combined.tar.gz, and requirements.
	Incus Family = "incus"
)

// Options configure a client. The zero value and nil work for any public image server.
type Options struct {
	// Family restricts the client to the images that this family's daemons see. The default is both; of a version that
	// has items for both families, the client then reads those for LXD.
	Family Family

	// DaemonVersion is the version of the daemon that the images are for, such as "6.0.4" (see [Family]). The default, and
	// what any other text is taken for, is the newest version.
	DaemonVersion string

	// AllowHTTP permits plain http, for the server itself and for redirects. By default it is refused, even on loopback:
	// without a Verifier only TLS authenticates the hashes in the index.
	AllowHTTP bool

	// RootCAs are the authorities that may issue the server's certificate. The default is the system's.
	RootCAs *x509.CertPool

	// Certificate contains PEM certificates to trust, instead of the system's and in addition to RootCAs: an authority, a
	// server certificate signed by one, or a self-signed one. The server's name must be among its certificate's subject
	// alternative names in any case.
	Certificate string

	// Proxy returns the proxy for a request, as in [http.Transport]. The default is http.ProxyFromEnvironment: HTTP_PROXY,
	// HTTPS_PROXY and NO_PROXY as they are at the program's first request. For a fixed proxy use http.ProxyURL.
	Proxy func(*http.Request) (*url.URL, error)

	// HTTPClient is used for requests. It is copied, not modified. If it is nil or has no Transport, a new transport is
	// used, not http.DefaultTransport; it speaks HTTP/1.1, which is faster for large files. RootCAs, Certificate and Proxy
	// apply to a copy of its Transport, which must then be an *http.Transport or nil. Its Timeout, if any, covers whole
	// downloads.
	HTTPClient *http.Client

	// Verifier verifies the signatures of the index and the products files, before anything of them is used. If it is
	// set, the client reads the signed files: for streams/v1/index.json, and for each products file that the index names
	// with .json or .sjson, the .sjson file, or if the server has none, the .json file and its signature .json.gpg. It
	// never reads a file that is not signed: the error then matches [ErrSignature]. By default signatures are neither
	// read nor verified. Package simplestreams/signed has a Verifier for OpenPGP keyrings.
	Verifier Verifier

	// UserAgent is put before this package's own user agent, "golxd-simplestreams/1". The default is empty.
	UserAgent string

	// MaxMetadataSize is the maximum size in bytes of one metadata file (the index, a products file, or a signature), after
	// decompression. A larger one is an ErrTooLarge, and never truncated. The default is 128 MiB.
	MaxMetadataSize int64

	// TTL is how long the metadata is used before it is revalidated with If-None-Match or If-Modified-Since. The default
	// is one hour, as in LXD and Incus. With a negative value it is revalidated at each use.
	TTL time.Duration

	// Cache keeps metadata files from one client and run to the next. By default the parsed index is kept in memory only.
	// With a Verifier it keeps the signed files, and verifies them again when they are read from the cache.
	Cache Cache

	// StallTimeout is how long a server may take to send the next byte, or the headers of its response, before the
	// attempt fails with [ErrStalled]. The default is one minute. With a negative value only the context limits it.
	StallTimeout time.Duration

	// RetryTimeout is how long a transient failure is retried without progress. The default is 30 seconds. A negative
	// value disables retries. The package documentation says what is retried, and with which pauses.
	RetryTimeout time.Duration

	// Logger receives a debug record for each request and a warning for each retry, without user names and passwords. By
	// default nothing is logged.
	Logger *slog.Logger
}

const (
	ownUserAgent           = "golxd-simplestreams/1"
	defaultMaxMetadataSize = 128 << 20
	defaultTTL             = time.Hour
)

// withDefaults returns a copy with the defaults in its zero fields.
func (o *Options) withDefaults() Options {
	var set Options
	if o != nil {
		set = *o
	}
	set.UserAgent = strings.TrimSpace(set.UserAgent + " " + ownUserAgent)
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
