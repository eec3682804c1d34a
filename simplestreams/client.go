package simplestreams

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync/atomic"

	"github.com/golxd/lxd/internal/redact"
)

// Client reads one simplestreams server. It is safe for concurrent use.
type Client struct {
	options Options
	daemons map[Family]*rules // those that the images are for
	server  *url.URL
	secrets *redact.Secrets // of the server's URL
	http    *http.Client
	own     *http.Transport // the transport that Close cleans up; nil for the caller's own

	// loading is the lock for reading the index; a channel, so that a context can end the wait for it.
	loading chan struct{}
	index   *catalog

	// doubtful says that a file of an image was missing or another than the index says: the index is revalidated when it
	// is next used, whatever its age.
	doubtful atomic.Bool
}

// New returns a client for the server at a URL, such as "https://images.example.net", with or without a path. It sends
// nothing: the index is read when it is first needed. A bad URL or option is an [*InputError].
func New(server string, options *Options) (*Client, error) {
	set := options.withDefaults()

	address, err := url.Parse(server)
	switch {
	case err != nil || address.Scheme != "https" && address.Scheme != "http":
		// Its text is left out, as it may contain a password.
		return nil, invalid("server", "is not an https URL, such as \"https://images.example.net\"")
	case address.Scheme == "http" && !set.AllowHTTP:
		return nil, fmt.Errorf("%w: %w", invalid("server", "%q is not https: set Options.AllowHTTP to permit it", redact.URL(address)), ErrInsecure)
	case address.Host == "":
		return nil, invalid("server", "%q has no host", redact.URL(address))
	case address.RawQuery != "" || address.Fragment != "":
		return nil, invalid("server", "%q has a query or fragment, which is not allowed", redact.URL(address))
	}
	switch set.Family {
	case "", LXD, Incus:
	default:
		return nil, invalid("Options.Family", "is %.80q, not one of \"\", %q, %q", set.Family, LXD, Incus)
	}

	client, own, err := newHTTPClient(&set)
	if err != nil {
		return nil, err
	}

	return &Client{options: set, daemons: set.rules(), server: address, secrets: redact.HideURL(address), http: client, own: own, loading: make(chan struct{}, 1)}, nil
}

// Close closes the idle connections, but not those of Options.HTTPClient's own transport. Downloads in progress continue,
// and the client can still be used.
func (c *Client) Close() error {
	if err := c.checkMade(); err != nil {
		return err
	}
	if c.own != nil {
		c.own.CloseIdleConnections()
	}

	return nil
}

// URL returns the server's address as it was passed to New, without user name and password.
func (c *Client) URL() string {
	if c.checkMade() != nil {
		return ""
	}

	return redact.URL(c.server)
}

// checkMade returns an error for a client that New has not returned.
func (c *Client) checkMade() error {
	if c == nil || c.server == nil {
		return invalid("client", "is not from New")
	}

	return nil
}

// check returns an error for such a client, and for a nil ctx.
func (c *Client) check(ctx context.Context) error {
	if err := c.checkMade(); err != nil {
		return err
	}
	if ctx == nil {
		return invalid("ctx", "is nil")
	}

	return nil
}

// address returns the URL of a file on the server. A "%" or "?" in the name is taken literally; "." segments and double
// slashes are removed.
func (c *Client) address(name string) *url.URL {
	joined := *c.server
	joined.Path = strings.TrimRight(c.server.Path, "/") + "/" + strings.TrimLeft(path.Clean(name), "/")
	joined.RawPath = ""

	return &joined
}

// publicURL returns the address of a file, without secrets, for errors and log records.
func (c *Client) publicURL(path string) string { return redact.URL(c.address(path)) }

// fileError wraps the failure of one file.
func (c *Client) fileError(path string, err error) error {
	return &Error{URL: c.publicURL(path), Err: c.secrets.Error(err)}
}

// toFileError returns an *Error unchanged, and wraps any other error with fileError.
func (c *Client) toFileError(path string, err error) error {
	if _, ok := err.(*Error); ok { //nolint:errorlint // The text of a wrapped one does not begin with the file.
		return err
	}

	return c.fileError(path, err)
}

// checkPath returns an error for a path that is not of a file below the server's address.
func checkPath(name string) error {
	switch {
	case strings.TrimLeft(path.Clean(name), "/") == "", path.Clean(name) == ".":
		return errors.New("the path is empty")
	case strings.Contains(name, "://"), strings.Contains(name, `\`):
		return fmt.Errorf("path %q is not relative to the server", name)
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("path %q contains a control character", name)
		}
	}
	for segment := range strings.SplitSeq(name, "/") {
		if segment == ".." {
			return fmt.Errorf("path %q is not below the server's address", name)
		}
	}

	return nil
}
