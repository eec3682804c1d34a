package lxd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// member is one of several addresses of a server. It can be killed.
type member struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	conns []net.Conn
	dead  bool
	taken int // how many connections
}

func newMember(t *testing.T, server *lxdtest.Server) *member {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	m := &member{listener: listener, to: strings.TrimPrefix(server.URL(), "https://")}
	go m.serve()
	t.Cleanup(m.kill)
	return m
}

func (m *member) url() string { return "https://" + m.listener.Addr().String() }

func (m *member) serve() {
	for {
		from, err := m.listener.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", m.to)
		if err != nil {
			_ = from.Close()
			continue
		}
		m.mu.Lock()
		if m.taken++; m.dead {
			_ = from.Close()
			_ = to.Close()
		}
		m.conns = append(m.conns, from, to)
		m.mu.Unlock()
		for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
			go func() {
				_, _ = io.Copy(pair[0], pair[1])
				_ = pair[0].Close()
			}()
		}
	}
}

// kill ends the member as kill -9 does: its connections are reset.
func (m *member) kill() {
	_ = m.listener.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	for _, c := range m.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
}

func (m *member) connections() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.taken
}

// cluster is one lxdtest server at two addresses.
type cluster struct {
	*lxdtest.Server
	first, second *member
	client        *lxd.Client
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(server.Close)
	c := &cluster{Server: server, first: newMember(t, server), second: newMember(t, server)}
	cert, key := server.ClientCertificate()
	c.client = testkit.NewClient(t, c.first.url()+","+c.second.url(), &lxd.Options{
		ClientCertificate: cert, ClientKey: key, ServerCertificate: server.Certificate(),
	})
	return c
}

// TestMembersTakeOver kills the member that a client uses, before and in the
// middle of each kind of call.
func TestMembersTakeOver(t *testing.T) {
	t.Parallel()
	data := testkit.Unified(t, 8<<20)
	fingerprint := lxdtest.Fingerprint(data)
	t.Run("before a call", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		_, err := c.client.Images.All(t.Context(), nil)
		require.NoError(t, err)
		require.Zero(t, c.second.connections(), "the first address is used while it responds")
		c.first.kill()
		_, err = c.client.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		require.NotZero(t, c.second.connections())
	})
	t.Run("before a call that must not be repeated", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		_, err := c.AddImage(data, nil)
		require.NoError(t, err)
		c.first.kill()
		// Nothing was sent to the first member.
		require.NoError(t, c.client.Aliases.Create(t.Context(), lxd.Alias{Name: "alias", Target: fingerprint}))
	})
	t.Run("in an upload", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		var once sync.Once
		_, err := c.client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Progress: func(p lxd.Progress) {
			if p.Phase == lxd.PhaseSend && p.Done > 0 {
				once.Do(c.first.kill)
			}
		}})
		require.NoError(t, err)
		require.Len(t, c.Images(), 1)
	})
	t.Run("in an upload of a one-shot reader", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		reader := &killingReader{r: bytes.NewReader(data), at: 4 << 20, kill: c.first.kill}
		_, err := c.client.Images.Create(t.Context(), reader, &lxd.CreateOptions{Wait: true})
		require.ErrorIs(t, err, lxd.ErrNotReplayable)
		require.ErrorIs(t, err, lxd.ErrUnavailable)
	})
	t.Run("in an export", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		_, err := c.AddImage(data, nil)
		require.NoError(t, err)
		image, err := c.client.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		export, err := image.Export(t.Context(), nil)
		require.NoError(t, err)
		defer export.Close()
		half := make([]byte, 3<<20)
		_, err = io.ReadFull(export, half)
		require.NoError(t, err)
		c.first.kill()
		rest, err := io.ReadAll(export)
		require.NoError(t, err)
		require.Equal(t, fingerprint, lxdtest.Fingerprint(append(half, rest...)))
	})
	t.Run("in an export that stalls", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		_, err := c.AddImage(data, nil)
		require.NoError(t, err)
		cert, key := c.ClientCertificate()
		client := testkit.NewClient(t, c.client.Endpoint(), &lxd.Options{
			ClientCertificate: cert, ClientKey: key, ServerCertificate: c.Certificate(), StallTimeout: time.Second,
		})
		image, err := client.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		stalled := c.Inject(lxdtest.StallResponse(1<<20).On("GET", "/1.0/images/"+fingerprint+"/export").Times(1))
		defer stalled.Release()
		export, err := image.Export(t.Context(), nil)
		require.NoError(t, err)
		defer export.Close()
		got, err := io.ReadAll(export)
		require.NoError(t, err)
		require.Equal(t, fingerprint, lxdtest.Fingerprint(got))
		require.NotZero(t, c.second.connections(), "the first member responds, but sends nothing")
	})
	t.Run("in a wait", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		held := c.Inject(lxdtest.StallOperations())
		image, err := c.client.Images.Create(t.Context(), bytes.NewReader(data), nil)
		require.NoError(t, err)
		waited := make(chan error, 1)
		go func() { waited <- image.Wait(t.Context()) }()
		require.Eventually(t, func() bool {
			for _, r := range c.Requests() {
				if strings.HasSuffix(r.Path, "/wait") {
					return true
				}
			}
			return false
		}, 30*time.Second, time.Millisecond)
		c.first.kill()
		require.Eventually(t, func() bool { return c.second.connections() > 0 }, 30*time.Second, time.Millisecond)
		held.Release()
		require.NoError(t, <-waited)
	})
	t.Run("in events", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		_, err := c.AddImage(data, nil)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		connections := 0
		for event, err := range c.client.Events(ctx, nil) {
			require.NoError(t, err)
			switch {
			case event.Type != lxd.EventConnected:
			case connections == 0:
				connections++
				c.first.kill()
				continue
			default:
				connections++
				require.NoError(t, c.client.Aliases.Create(ctx, lxd.Alias{Name: "alias", Target: fingerprint}))
				continue
			}
			break
		}
		require.Equal(t, 2, connections)
	})
}

// killingReader kills a member when so much was read of it.
type killingReader struct {
	r    io.Reader
	at   int
	kill func()
}

func (k *killingReader) Read(p []byte) (int, error) {
	n, err := k.r.Read(p[:min(len(p), 64<<10)])
	if k.at -= n; k.at <= 0 && k.kill != nil {
		k.kill()
		k.kill = nil
	}
	return n, err
}

// TestAllMembersDown: the error names each address.
func TestAllMembersDown(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.first.kill()
	c.second.kill()
	client := testkit.NewClient(t, c.client.Endpoint(), &lxd.Options{ServerCertificate: c.Certificate(), RetryTimeout: -1})
	check := func(err error) {
		t.Helper()
		require.ErrorIs(t, err, lxd.ErrUnavailable)
		require.ErrorContains(t, err, c.first.url())
		require.ErrorContains(t, err, c.second.url())
	}
	_, err := client.Images.All(t.Context(), nil)
	check(err)
	require.Equal(t, c.first.url(), testkit.ErrOf[*lxd.ConnectionError](t, err).Endpoint)
	for _, err := range client.Events(t.Context(), nil) {
		check(err)
	}
}

// TestUnavailableMember: one that only responds that it is not ready is left.
func TestUnavailableMember(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	_, err := c.client.Images.All(t.Context(), nil)
	require.NoError(t, err)
	c.Inject(lxdtest.Unavailable().Times(1))
	_, err = c.client.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.NotZero(t, c.second.connections())
}

// TestBusyMember: one that has too many requests for the moment is not left.
func TestBusyMember(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.Inject(lxdtest.TooManyRequests(time.Second).On("GET", "/1.0/images").Times(1))
	_, err := c.client.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.Zero(t, c.second.connections())
}

// TestFailedCheckOfAMember breaks the connection of the request that checks a
// member: the request of the call was not sent, so that it is sent later, and its
// response is that of a first attempt.
func TestFailedCheckOfAMember(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	fingerprint, err := c.AddImage(testkit.Unified(t, 0), nil)
	require.NoError(t, err)
	for name, call := range map[string]func(*lxd.Client) error{
		"DELETE": func(client *lxd.Client) error {
			if err := client.Aliases.Delete(t.Context(), "missing"); err == nil || !errors.Is(err, lxd.ErrNotFound) {
				return fmt.Errorf("deleting a missing alias: %w", err)
			}
			return nil
		},
		"POST": func(client *lxd.Client) error {
			return client.Aliases.Create(t.Context(), lxd.Alias{Name: "alias", Target: fingerprint})
		},
	} {
		t.Run(name, func(t *testing.T) {
			cert, key := c.ClientCertificate()
			client := testkit.NewClient(t, c.client.Endpoint(), &lxd.Options{ClientCertificate: cert, ClientKey: key, ServerCertificate: c.Certificate()})
			check := c.Inject(lxdtest.Reset().On("GET", "/1.0").Times(1))
			require.NoError(t, call(client))
			require.Equal(t, 1, check.Fired())
		})
	}
}

// TestEventsLeaveAnUnavailableMember: it responds to everything else.
func TestEventsLeaveAnUnavailableMember(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	_, err := c.client.Images.All(t.Context(), nil)
	require.NoError(t, err)
	c.Inject(lxdtest.Unavailable().On("GET", "/1.0/events").Times(1))
	for _, err := range c.client.Events(t.Context(), nil) {
		require.NoError(t, err)
		break
	}
	require.NotZero(t, c.second.connections())
}

// TestMembersAreUsedAtOnce has many calls lose a member at the same time, and then
// the client closed.
func TestMembersAreUsedAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var calls sync.WaitGroup
	for range 16 {
		calls.Go(func() {
			for range 10 {
				_, err := c.client.Images.All(t.Context(), nil)
				assert.NoError(t, err)
			}
		})
	}
	c.first.kill()
	calls.Wait()
	for range 8 {
		calls.Go(func() { _, _ = c.client.Images.All(t.Context(), nil) })
	}
	require.NoError(t, c.client.Close())
	calls.Wait()
}

// TestMembersWithZones has IPv6 addresses with zones, and a client that the server
// does not trust: the certificates show that they are of one server.
func TestMembersWithZones(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(server.Close)
	client := testkit.NewClient(t, "https://[fe80::1%25eth0],https://[fe80::2%25eth0]", &lxd.Options{
		ServerCertificate: server.Certificate(), PublicOnly: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, strings.TrimPrefix(server.URL(), "https://"))
		},
	})
	_, err := client.Images.All(t.Context(), nil)
	require.NoError(t, err)
	server.Inject(lxdtest.Unavailable().Times(1))
	_, err = client.Images.All(t.Context(), nil)
	require.NoError(t, err)
}

// TestFailedReaderIsNotTheMembers: the member that an upload was sent to is kept
// when its reader fails.
func TestFailedReaderIsNotTheMembers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	broken := errors.New("broken")
	_, err := c.client.Images.Create(t.Context(), io.MultiReader(bytes.NewReader(testkit.Unified(t, 1<<20)), iotest.ErrReader(broken)), nil)
	require.ErrorIs(t, err, broken)
	_, err = c.client.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.Zero(t, c.second.connections())
}

// TestTwoServersAreNotMixed gives a client the addresses of two servers: it works
// with the one that it has reached first, and with no other.
func TestTwoServersAreNotMixed(t *testing.T) {
	t.Parallel()
	servers := [2]*lxdtest.Server{}
	members := [2]*member{}
	authorities := x509.NewCertPool()
	for n := range servers {
		servers[n] = lxdtest.NewServer(&lxdtest.Options{TLS: true})
		t.Cleanup(servers[n].Close)
		members[n] = newMember(t, servers[n])
		require.True(t, authorities.AppendCertsFromPEM(servers[n].Certificate()))
	}
	for name, opts := range map[string]*lxd.Options{
		"by their certificates": {RootCAs: authorities, RetryTimeout: -1, PublicOnly: true},
		"by the pin":            {ServerCertificate: servers[0].Certificate(), RetryTimeout: -1, PublicOnly: true},
		"with a token":          {RootCAs: authorities, RetryTimeout: -1, PublicOnly: true, Token: "secret-token"},
	} {
		t.Run(name, func(t *testing.T) {
			client := testkit.NewClient(t, members[0].url()+","+members[1].url(), opts)
			_, err := client.Images.All(t.Context(), nil)
			require.NoError(t, err)
			servers[0].Inject(lxdtest.Unavailable().Times(1))
			_, err = client.Images.All(t.Context(), nil)
			require.ErrorIs(t, err, lxd.ErrUnavailable)
			_, err = client.Images.All(t.Context(), nil)
			if opts.RootCAs != nil {
				pin := testkit.ErrOf[*lxd.PinError](t, err)
				require.NotEqual(t, pin.Want, pin.Got)
				_, err = client.Images.All(t.Context(), nil)
			}
			require.NoError(t, err, "the first one is asked again")
			for _, r := range servers[1].Requests() {
				require.Equal(t, "/1.0", r.Path, "it was asked what it is, and nothing else")
				require.Empty(t, r.Header.Get("Authorization"), "it got no token")
			}
		})
	}
}

// TestUnknownServersAreNotMixed: a round tripper of the caller, which hides the
// certificates, and a server that does not trust the client: nothing shows that two
// addresses are of one server.
func TestUnknownServersAreNotMixed(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	authorities := x509.NewCertPool()
	require.True(t, authorities.AppendCertsFromPEM(c.Certificate()))
	own := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS12}}
	t.Cleanup(own.CloseIdleConnections)
	client := testkit.NewClient(t, c.client.Endpoint(), &lxd.Options{
		PublicOnly: true, RetryTimeout: -1, Transport: func(http.RoundTripper) http.RoundTripper { return own },
	})
	for range 2 {
		_, err := client.Images.All(t.Context(), nil)
		require.ErrorContains(t, err, "are not known to be addresses of one server")
		testkit.ErrOf[*lxd.PinError](t, err)
	}
	for _, r := range c.Requests() {
		require.Equal(t, "/1.0", r.Path)
	}
}

func ExampleNew_cluster() {
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	cert, key := server.ClientCertificate()
	// The first member does not run: the second one is asked.
	client, err := lxd.New("https://127.0.0.1:1,"+server.URL(), &lxd.Options{
		ClientCertificate: cert, ClientKey: key, ServerCertificate: server.Certificate(),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	images, err := client.Images.All(context.Background(), nil)
	fmt.Println(len(images), err)
	// Output: 0 <nil>
}
