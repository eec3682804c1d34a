package simplestreams

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/golxd/lxd/internal/redact"
)

// Client reads one simplestreams server. It is safe for concurrent use.
type Client struct {
	options Options
	server  *url.URL
	secrets *redact.Secrets // of the server's URL
	http    *http.Client
	own     *http.Transport // nil if the caller's is used as it is

	// loading is held, by sending, while the index is read. A channel, so that waiting for it ends with the context.
	loading chan struct{}
	index   *catalog
}

// New returns a client for the server at the given URL, such as "https://images.example.net" or one with a path. It
// sends nothing: the index is read when it is first needed.
func New(server string, options *Options) (*Client, error) {
	set := options.withDefaults()

	address, err := url.Parse(server)
	if err != nil {
		return nil, fmt.Errorf("simplestreams: server URL: %w", redact.Error(err))
	}
	switch {
	case address.Scheme != "https" && address.Scheme != "http":
		return nil, fmt.Errorf("simplestreams: server URL %q: the scheme must be https", redact.URL(address))
	case address.Scheme == "http" && !set.AllowHTTP:
		return nil, fmt.Errorf("simplestreams: server URL %q: %w (set AllowHTTP to permit it)", redact.URL(address), ErrInsecure)
	case address.Host == "":
		return nil, fmt.Errorf("simplestreams: server URL %q: no host", redact.URL(address))
	case address.RawQuery != "" || address.Fragment != "":
		return nil, fmt.Errorf("simplestreams: server URL %q: a query or fragment has no meaning here", redact.URL(address))
	}
	switch set.Family {
	case "", LXD, Incus:
	default:
		return nil, fmt.Errorf("simplestreams: Family: %q is neither %q nor %q", set.Family, LXD, Incus)
	}

	client, own, err := newHTTPClient(&set)
	if err != nil {
		return nil, err
	}

	return &Client{options: set, server: address, secrets: redact.HideURL(address), http: client, own: own, loading: make(chan struct{}, 1)}, nil
}

// Close closes idle connections, but for those of a transport that the caller gave. Downloads that are under way go on,
// and the client can still be used.
func (c *Client) Close() error {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}

	return nil
}

// URL returns the server's address as it was given, without user name and password.
func (c *Client) URL() string { return redact.URL(c.server) }

// address returns the URL of a file on the server. The name is taken literally, so that a "%" or "?" in it stays part of
// it, but without the "." and the double slashes that it may have.
func (c *Client) address(name string) *url.URL {
	joined := *c.server
	joined.Path = strings.TrimRight(c.server.Path, "/") + "/" + path.Clean(name)
	joined.RawPath = ""

	return &joined
}

// told returns the address of a file for errors and log records.
func (c *Client) told(path string) string { return redact.URL(c.address(path)) }

// fileError wraps the failure of one file.
func (c *Client) fileError(path string, err error) error {
	return &Error{URL: c.told(path), Err: c.secrets.Error(err)}
}

// errorOf is fileError for an error that may be one of its making already.
func (c *Client) errorOf(path string, err error) error {
	if _, ready := err.(*Error); ready { //nolint:errorlint // One that is wrapped does not name the file first.
		return err
	}

	return c.fileError(path, err)
}

// checkPath refuses a path that does not lead to a file below the server's address.
func checkPath(name string) error {
	switch {
	case name == "" || path.Clean(name) == ".":
		return errors.New("the path is empty")
	case strings.HasPrefix(name, "/"), strings.Contains(name, "://"), strings.Contains(name, `\`):
		return fmt.Errorf("path %q is not relative to the server", name)
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("path %q has a control character", name)
		}
	}
	for segment := range strings.SplitSeq(name, "/") {
		if segment == ".." {
			return fmt.Errorf("path %q leads out of the server", name)
		}
	}

	return nil
}
