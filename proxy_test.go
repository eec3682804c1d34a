package lxd_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// testProxy tunnels every connection, over CONNECT or SOCKS5.
type testProxy struct {
	net.Listener
	socks bool
	auth  string // user:password that it wants, "" for none
	code  int    // the response to CONNECT; 0 means 200

	work    sync.WaitGroup
	mu      sync.Mutex
	conns   []net.Conn
	targets []string
}

func startProxy(t *testing.T, p *testProxy) *testProxy {
	t.Helper()
	var err error
	p.Listener, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.work.Go(func() {
		for {
			conn, err := p.Accept()
			if err != nil {
				return
			}
			p.keep(conn)
			p.work.Go(func() {
				defer conn.Close()
				if p.socks {
					p.serveSOCKS(conn)
				} else {
					p.serveCONNECT(conn)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = p.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.work.Wait()
	})
	return p
}

func (p *testProxy) keep(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, conn)
}

func (p *testProxy) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.targets...)
}

func (p *testProxy) url(scheme string) string {
	u := url.URL{Scheme: scheme, Host: p.Addr().String()}
	if p.auth != "" {
		u.User = url.UserPassword("user", "pass")
	}
	return u.String()
}

// tunnel connects to the target; "far.example" is a name that only this proxy
// resolves.
func (p *testProxy) tunnel(conn io.ReadWriter, target string, ok func() error) {
	p.mu.Lock()
	p.targets = append(p.targets, target)
	p.mu.Unlock()
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return
	}
	if host == "far.example" {
		host = "127.0.0.1"
	}
	up, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return
	}
	p.keep(up)
	if ok() != nil {
		return
	}
	p.work.Go(func() {
		_, _ = io.Copy(up, conn)
		_ = up.Close()
	})
	_, _ = io.Copy(conn, up)
	_ = up.Close()
}

func (p *testProxy) serveCONNECT(conn net.Conn) {
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.auth))
	switch {
	case r.Method != http.MethodConnect:
		fmt.Fprint(conn, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
	case p.auth != "" && r.Header.Get("Proxy-Authorization") != want:
		fmt.Fprint(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
	case p.code != 0:
		p.mu.Lock()
		p.targets = append(p.targets, r.Host)
		p.mu.Unlock()
		fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\n\r\n", p.code, http.StatusText(p.code))
	case r.Header.Get("Authorization") != "":
		fmt.Fprint(conn, "HTTP/1.1 400 The proxy was told a token\r\nContent-Length: 0\r\n\r\n")
	default:
		p.tunnel(conn, r.Host, func() error {
			_, err := fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n\r\n")
			return err
		})
	}
}

func (p *testProxy) serveSOCKS(conn net.Conn) {
	read := func(n byte) []byte {
		b := make([]byte, n)
		_, _ = io.ReadFull(conn, b)
		return b
	}
	hello := read(2)
	read(hello[1])
	if p.auth != "" {
		_, _ = conn.Write([]byte{5, 2})
		user := read(read(2)[1])
		password := read(read(1)[0])
		if string(user)+":"+string(password) != p.auth {
			_, _ = conn.Write([]byte{1, 1})
			return
		}
		_, _ = conn.Write([]byte{1, 0})
	} else {
		_, _ = conn.Write([]byte{5, 0})
	}
	var host string
	switch head := read(4); head[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(read(1)[0]))
	default:
		return
	}
	port := binary.BigEndian.Uint16(read(2))
	p.tunnel(conn, net.JoinHostPort(host, strconv.Itoa(int(port))), func() error {
		_, err := conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		return err
	})
}

// TestProxyCarriesEverything sends requests, an upload, an export and the event
// socket through proxies, to a name that this machine cannot resolve.
func TestProxyCarriesEverything(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		scheme string
		proxy  *testProxy
	}{
		"http":                {"http", &testProxy{}},
		"http with password":  {"http", &testProxy{auth: "user:pass"}},
		"socks5":              {"socks5", &testProxy{socks: true}},
		"socks5h w. password": {"socks5h", &testProxy{socks: true, auth: "user:pass"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.LXD69, TLS: true, BearerTokens: []string{"bearer"}})
			t.Cleanup(server.Close)
			proxy := startProxy(t, test.proxy)
			through, err := lxd.ProxyURL(proxy.url(test.scheme), "")
			require.NoError(t, err)
			u, err := url.Parse(server.URL())
			require.NoError(t, err)
			client := testkit.NewClient(t, "https://far.example:"+u.Port(), &lxd.Options{
				Proxy: through, Token: "bearer", ServerCertificate: server.Certificate(),
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			image := testkit.Upload(t, client, nil)
			export, err := image.Export(ctx, nil)
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, export)
			require.NoError(t, err)
			require.NoError(t, export.Close())

			requests := len(proxy.seen())
			require.NotZero(t, requests)
			var listening sync.WaitGroup
			listening.Go(func() {
				for event, err := range client.Events(ctx, nil) {
					if err != nil || event.Lifecycle != nil {
						return
					}
				}
			})
			require.Eventually(t, func() bool { return len(proxy.seen()) > requests }, patience, tick, "the event socket goes round the proxy")
			cancel()
			listening.Wait()
			for _, target := range proxy.seen() {
				require.Equal(t, "far.example:"+u.Port(), target)
			}
		})
	}
}

func TestProxyThatRefuses(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	for name, test := range map[string]struct {
		proxy *testProxy
		url   func(*testProxy) string
		code  int
		hint  string
	}{
		"wrong password": {&testProxy{auth: "user:other"}, func(p *testProxy) string { return p.url("http") }, 407, "requires a user name and password"},
		"forbidden":      {&testProxy{code: 403}, func(p *testProxy) string { return p.url("http") }, 403, "NO_PROXY"},
		"nothing there":  {&testProxy{}, func(p *testProxy) string { _ = p.Close(); return p.url("socks5") }, 0, "NO_PROXY"},
		"wrong password for socks": {
			&testProxy{socks: true, auth: "user:other"}, func(p *testProxy) string { return p.url("socks5") }, 0, "NO_PROXY",
		},
	} {
		proxy := startProxy(t, test.proxy)
		through, err := lxd.ProxyURL(test.url(proxy), "")
		require.NoError(t, err, name)
		timeout := time.Duration(-1)
		if test.code != 0 {
			timeout = 0 // retries, which it must not use
		}
		client := testkit.NewClient(t, server.URL(), &lxd.Options{Proxy: through, ServerCertificate: server.Certificate(), RetryTimeout: timeout})
		_, err = client.Server(t.Context())
		require.ErrorIs(t, err, lxd.ErrUnavailable, name)
		refused := testkit.ErrOf[*lxd.ProxyError](t, err)
		require.Equal(t, test.code, refused.StatusCode, name)
		require.ErrorContains(t, err, test.hint, name)
		require.NotContains(t, err.Error(), "pass@", name)
		require.LessOrEqual(t, len(proxy.seen()), 1, name)
	}
	require.Empty(t, server.Requests())
}

// TestProxyThatMisbehaves: it never responds to the request for a tunnel, or sends more
// than the response.
func TestProxyThatMisbehaves(t *testing.T) {
	t.Parallel()
	for _, response := range []string{"", "HTTP/1.1 200 OK\r\n\r\nmore"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, listener.Close()) })
		asked := make(chan struct{})
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, response)
			close(asked)
			_, _ = io.Copy(io.Discard, conn)
		}()
		through, err := lxd.ProxyURL("http://"+listener.Addr().String(), "")
		require.NoError(t, err)
		client := testkit.NewClient(t, "https://far.example", &lxd.Options{Proxy: through, RetryTimeout: -1})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := client.Images.All(ctx, nil)
			ended <- err
		}()
		<-asked
		if response == "" {
			cancel()
		}
		select {
		case err = <-ended:
		case <-time.After(patience):
			t.Fatalf("it still waits after %q", response)
		}
		if response == "" {
			require.ErrorIs(t, err, context.Canceled)
		} else {
			require.ErrorContains(t, err, "more than a response")
		}
	}
}

func TestProxyURL(t *testing.T) {
	t.Parallel()
	const noProxy = "10.0.0.0/8, 192.0.2.7,fd00::/8,[2001:db8::1]:8443,example.com,*.corp.example,.dot.example,one.example:8443"
	choose, err := lxd.ProxyURL("proxy.example:3128", noProxy)
	require.NoError(t, err)
	for target, direct := range map[string]bool{
		"10.1.2.3:8443":           true,
		"11.1.2.3:8443":           false,
		"192.0.2.7":               true,
		"192.0.2.8":               false,
		"[fd00::5]:8443":          true,
		"[fe80::5]:8443":          false,
		"[2001:db8::1]:8443":      true,
		"[2001:db8::1]:443":       false,
		"example.com:8443":        true,
		"Sub.Example.com.":        true,
		"badexample.com":          false,
		"corp.example":            false,
		"a.corp.example":          true,
		"dot.example":             false,
		"a.dot.example":           true,
		"one.example:8443":        true,
		"one.example":             false,
		"[::ffff:10.0.0.1]:8443":  true,
		"127.0.0.1:8443":          false,
		"example.com.evil.test":   false,
		"10.1.2.3.evil.test:8443": false,
	} {
		u, err := choose(&http.Request{URL: &url.URL{Scheme: "https", Host: target}})
		require.NoError(t, err)
		require.Equal(t, direct, u == nil, target)
		if u != nil {
			require.Equal(t, "http://proxy.example:3128", u.String())
		}
	}
	all, err := lxd.ProxyURL("socks5://p", "*")
	require.NoError(t, err)
	u, err := all(&http.Request{URL: &url.URL{Host: "any"}})
	require.NoError(t, err)
	require.Nil(t, u)
	none, err := lxd.ProxyURL("", "")
	require.NoError(t, err)
	u, err = none(&http.Request{URL: &url.URL{Host: "any"}})
	require.NoError(t, err)
	require.Nil(t, u)
	for _, bad := range [][2]string{{"ftp://p", ""}, {"http://", ""}, {"http://u:secret@ho st", ""}, {"p", "10.0.0.0/99"}, {"p", "."}} {
		_, err := lxd.ProxyURL(bad[0], bad[1])
		require.ErrorIs(t, err, lxd.ErrInvalid, bad)
		require.NotContains(t, err.Error(), "secret")
	}
}

// TestProxyWithUntrustedCertificate: an https proxy must show a certificate that the
// system trusts. Another one is sent neither the target nor the password.
func TestProxyWithUntrustedCertificate(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	proxy.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	proxy.StartTLS()
	defer proxy.Close()
	through, err := lxd.ProxyURL("https://user:pass@"+proxy.Listener.Addr().String(), "")
	require.NoError(t, err)
	client := testkit.NewClient(t, "https://127.0.0.1:1", &lxd.Options{Proxy: through})
	_, err = client.Server(t.Context())
	testkit.ErrOf[*lxd.ProxyError](t, err)
	var untrusted *tls.CertificateVerificationError
	require.ErrorAs(t, err, &untrusted)
	require.False(t, lxd.IsTransient(err))
	require.Zero(t, requests.Load())
}
