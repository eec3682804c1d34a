package lxd

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/golxd/lxd/internal/redact"
)

// maxSocketPath is the longest path of a unix socket in bytes, on Linux.
const maxSocketPath = 107

// parseEndpoint returns the path of the endpoint's unix socket, or its https
// addresses as "https://host:port".
func parseEndpoint(endpoint string) (socket string, bases []string, err error) {
	if rest, ok := cutScheme(endpoint, "unix://"); ok {
		return rest, nil, checkSocketPath(rest)
	}
	if strings.Contains(endpoint, "://") {
		bases, err = parseAddresses(endpoint)
		return "", bases, err
	}
	if rest, ok := cutScheme(endpoint, "unix:"); ok {
		return rest, nil, checkSocketPath(rest)
	}
	first, _, _ := strings.Cut(endpoint, "/")
	switch {
	case strings.ContainsAny(strings.TrimPrefix(first, "@"), ":@"):
		// It is a host, perhaps with a password before it, or a remote.
		return "", nil, invalid("endpoint", "is not the path of a unix socket; write https://HOST:PORT for a host, and use Remote for a remote of the command line")
	case first == endpoint && !strings.HasPrefix(endpoint, "@"):
		return "", nil, invalid("endpoint", "%q has no slash; write https://%s:8443 for a host, and ./%s for a unix socket in the working directory", endpoint, endpoint, endpoint)
	}
	return endpoint, nil, checkSocketPath(endpoint)
}

// cutScheme cuts a prefix off, in whatever case it is written.
func cutScheme(text, scheme string) (rest string, found bool) {
	if len(text) < len(scheme) || !strings.EqualFold(text[:len(scheme)], scheme) {
		return text, false
	}
	return text[len(scheme):], true
}

func checkSocketPath(path string) error {
	switch {
	case path == "":
		return invalid("endpoint", "has no socket path")
	case len(path) > maxSocketPath:
		return invalid("endpoint", "is a path of %d bytes; that of a unix socket has at most %d", len(path), maxSocketPath)
	}
	return nil
}

// checkSocket returns an error if something other than a socket is at path.
func checkSocket(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil //nolint:nilerr // The daemon may create it later; dialing tells.
	case info.IsDir():
		return invalid("endpoint", "%q is a directory; the socket in it may be %s", path, filepath.Join(path, "unix.socket"))
	case info.Mode().IsRegular():
		return invalid("endpoint", "%q is a file, not a unix socket", path)
	}
	return nil
}

// parseAddresses parses a comma-separated list of https addresses.
func parseAddresses(list string) ([]string, error) {
	var bases []string
	seen := map[string]bool{}
	for text := range strings.SplitSeq(list, ",") {
		base, err := parseAddress(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		if !seen[base] {
			bases = append(bases, base)
		}
		seen[base] = true
	}
	return bases, nil
}

// parseAddress returns "https://host:port" of an address.
func parseAddress(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", invalid("endpoint", "is not a URL")
	case u.Scheme == "http":
		return "", invalid("endpoint", "%q is plain http; the daemons speak https (or a unix socket)", redact.URL(u))
	case u.Scheme != "https":
		return "", invalid("endpoint", "%q is not unix://path or https://host:port", redact.URL(u))
	case u.Host == "" || u.Hostname() == "":
		return "", invalid("endpoint", "%q has no host", redact.URL(u))
	case u.User != nil:
		return "", invalid("endpoint", "contains a user name; use a client certificate or Options.Token")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", invalid("endpoint", "for %q has more than a host and a port", u.Host)
	}
	host, err := asciiHost(u.Hostname())
	if err != nil {
		return "", invalid("endpoint", "has the host %q, which is not a host name; write it in ASCII (xn--…)", u.Hostname())
	}
	port := u.Port()
	if port == "" {
		port = "8443"
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", invalid("endpoint", "has the port %s, which is not between 1 and 65535", port)
	}
	// The URL writes the zone of an IPv6 address with an escaped percent sign.
	return (&url.URL{Scheme: "https", Host: net.JoinHostPort(host, port)}).String(), nil
}

// asciiHost returns an internationalized host name in ASCII (xn--…), so that
// requests, TLS, event connections and proxies use one form. It refuses characters
// that could be written in several ways, such as combining ones.
func asciiHost(host string) (string, error) {
	isForeign := func(r rune) bool { return r > '~' }
	if !strings.ContainsFunc(host, isForeign) {
		return host, nil
	}
	if strings.ContainsFunc(host, func(r rune) bool { return isForeign(r) && !unicode.IsLetter(r) && !unicode.IsDigit(r) }) || strings.Contains(host, "xn--") {
		return "", errNotHost
	}
	// net/http converts it for the header Host, and does not export the conversion.
	var header bytes.Buffer
	if err := (&http.Request{URL: &url.URL{Host: strings.ToLower(host)}}).Write(&header); err != nil {
		return "", err
	}
	sent, err := http.ReadRequest(bufio.NewReader(&header))
	if err != nil {
		return "", err
	}
	return sent.Host, nil
}

var errNotHost = errors.New("it is not a host name")

// serverName is the name that the certificate of the server at host:port must
// have.
func serverName(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	host, _, _ = strings.Cut(host, "%") // certificates have no zones
	return host
}
