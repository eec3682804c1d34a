package lxd

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/proxy"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
)

// ProxyURL returns an [Options.Proxy] for one proxy. Its URL has the scheme http,
// https, socks5 or socks5h, http if there is none, a host, and optionally a port,
// a user name and a password. Host names are always resolved by the proxy. ""
// means no proxy, whatever the environment says.
//
// noProxy is a comma-separated list, as in NO_PROXY, of the hosts to reach
// directly. An entry is an IP address, a CIDR prefix ("10.0.0.0/8"), a domain and
// its subdomains ("example.com"), only the subdomains (".example.com" or
// "*.example.com"), or "*" for all. An address or domain may have a port. Unlike
// with the environment, loopback addresses go through the proxy unless they are
// listed.
func ProxyURL(proxyURL, noProxy string) (func(*http.Request) (*url.URL, error), error) {
	if proxyURL == "" {
		return func(*http.Request) (*url.URL, error) { return nil, nil }, nil
	}
	if !strings.Contains(proxyURL, "://") {
		proxyURL = "http://" + proxyURL
	}
	u, err := url.Parse(proxyURL)
	if err != nil {
		return nil, invalid("proxy", "is not a URL")
	}
	if err := checkProxy(u); err != nil {
		return nil, err
	}
	skip, err := parseNoProxy(noProxy)
	if err != nil {
		return nil, err
	}
	return func(r *http.Request) (*url.URL, error) {
		port := r.URL.Port()
		if port == "" {
			port = "443"
		}
		if skip.matches(r.URL.Hostname(), port) {
			return nil, nil
		}
		clone := *u
		return &clone, nil
	}, nil
}

func checkProxy(u *url.URL) error {
	if u.Hostname() == "" {
		return invalid("proxy", "%q has no host", redact.URL(u))
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return nil
	}
	return invalid("proxy", "has the scheme %q, not http, https, socks5 or socks5h", u.Scheme)
}

// noProxyRule is one entry of a NO_PROXY list.
type noProxyRule struct {
	all    bool
	prefix netip.Prefix
	domain string // lower case, without a leading dot
	below  bool   // only subdomains of domain
	port   string // "" for any
}

type noProxyRules []noProxyRule

func parseNoProxy(list string) (noProxyRules, error) {
	var rules noProxyRules
	for entry := range strings.SplitSeq(list, ",") {
		entry = strings.ToLower(strings.TrimSpace(entry))
		var rule noProxyRule
		switch {
		case entry == "":
			continue
		case entry == "*":
			rule.all = true
		case strings.Contains(entry, "/"):
			prefix, err := netip.ParsePrefix(entry)
			if err != nil {
				return nil, invalid("noProxy", "contains %q, which is not a prefix such as 10.0.0.0/8", entry)
			}
			rule.prefix = prefix
		default:
			host := entry
			if h, port, err := net.SplitHostPort(entry); err == nil {
				host, rule.port = h, port
			}
			host = strings.Trim(host, "[]")
			if addr, err := netip.ParseAddr(host); err == nil {
				addr = addr.Unmap()
				rule.prefix = netip.PrefixFrom(addr, addr.BitLen())
				break
			}
			host = strings.TrimPrefix(host, "*")
			rule.domain = strings.Trim(host, ".")
			rule.below = strings.HasPrefix(host, ".")
			if rule.domain == "" {
				return nil, invalid("noProxy", "contains %q, which is not a host", entry)
			}
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func (rules noProxyRules) matches(host, port string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	addr, err := netip.ParseAddr(host)
	addr = addr.Unmap()
	isAddr := err == nil
	for _, r := range rules {
		switch {
		case r.port != "" && r.port != port:
		case r.all,
			r.prefix.IsValid() && isAddr && r.prefix.Contains(addr),
			r.domain != "" && !r.below && host == r.domain,
			r.domain != "" && strings.HasSuffix(host, "."+r.domain):
			return true
		}
	}
	return false
}

// ProxyError says that a connection through a proxy could not be made.
type ProxyError struct {
	Proxy      string // its URL, without user name and password
	Target     string // host:port
	StatusCode int    // of the response to CONNECT; 0 if there was none
	Err        error
}

// Error returns the target, the proxy and the cause.
func (e *ProxyError) Error() string {
	return fmt.Sprintf("connect to %s through the proxy %s: %v", e.Target, e.Proxy, e.Err)
}

// Unwrap returns the cause.
func (e *ProxyError) Unwrap() error { return e.Err }

// Transient reports whether the same call may succeed later. It is false for a
// proxy that refuses with a status of 300 to 499, except 408 and 429.
func (e *ProxyError) Transient() bool {
	refused := e.StatusCode >= 300 && e.StatusCode < 500 && e.StatusCode != http.StatusTooManyRequests && e.StatusCode != http.StatusRequestTimeout
	return !refused && retry.Transient(e.Err)
}

// throughProxy returns a dial function that connects through the proxy that
// choose returns for an address. All connections to an https endpoint are made
// with it, so that requests, transfers and events use the same proxy.
func throughProxy(dial dialFunc, choose func(*http.Request) (*url.URL, error)) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, (&url.URL{Scheme: "https", Host: addr}).String(), nil)
		if err != nil {
			return nil, err
		}
		u, err := choose(r)
		if err != nil {
			return nil, fmt.Errorf("choose the proxy: %w", redact.Error(err))
		}
		if u == nil {
			return dial(ctx, network, addr)
		}
		if err := checkProxy(u); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		conn, err := dialProxy(ctx, dial, u, addr)
		if err != nil {
			e := &ProxyError{Proxy: redact.URL(u), Target: addr, Err: redact.HideURL(u).Error(err)}
			var refused *connectError
			if errors.As(err, &refused) {
				e.StatusCode = refused.code
			}
			return nil, e
		}
		return conn, nil
	}
}

func dialProxy(ctx context.Context, dial dialFunc, u *url.URL, target string) (conn net.Conn, err error) {
	port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if port == "" {
		port = "1080"
	}
	if u.Port() != "" {
		port = u.Port()
	}
	conn, err = dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, err
	}
	raw := conn
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			_ = raw.Close()
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			conn = nil
		}
	}()
	switch u.Scheme {
	case "https":
		secure := tls.Client(conn, &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		return secure, connect(secure, u, target)
	case "http":
		return conn, connect(conn, u, target)
	}
	return conn, socks(ctx, conn, u, target)
}

// connectError is the error response of a proxy to CONNECT.
type connectError struct {
	code   int
	status string
}

func (e *connectError) Error() string { return "it responded " + e.status }

// connect asks an HTTP proxy for a tunnel.
func connect(conn net.Conn, u *url.URL, target string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: golxd/%s\r\n", target, target, Version)
	if u.User != nil {
		password, _ := u.User.Password()
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return err
	}
	const maxHeader = 64 << 10
	r := bufio.NewReader(io.LimitReader(conn, maxHeader))
	res, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fmt.Errorf("read its response: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return &connectError{code: res.StatusCode, status: res.Status}
	}
	if r.Buffered() > 0 {
		// In TLS the client speaks first, so the server cannot have sent this.
		return errors.New("it sent more than a response")
	}
	return nil
}

// socks asks a SOCKS5 proxy for a tunnel, over an existing connection.
func socks(ctx context.Context, conn net.Conn, u *url.URL, target string) error {
	var auth *proxy.Auth
	if u.User != nil {
		password, _ := u.User.Password()
		auth = &proxy.Auth{User: u.User.Username(), Password: password}
	}
	dialer, err := proxy.SOCKS5("tcp", u.Host, auth, connDialer{conn})
	if err != nil {
		return err
	}
	with, ok := dialer.(proxy.ContextDialer)
	if !ok {
		return errors.New("the SOCKS5 dialer does not support contexts")
	}
	if _, err := with.DialContext(ctx, "tcp", target); err != nil {
		return err
	}
	// The handshake has set the deadline of ctx on the connection.
	return conn.SetDeadline(time.Time{})
}

// connDialer is a dialer that returns an existing connection.
type connDialer struct{ conn net.Conn }

func (d connDialer) Dial(string, string) (net.Conn, error) { return d.conn, nil }

func (d connDialer) DialContext(context.Context, string, string) (net.Conn, error) {
	return d.conn, nil
}
