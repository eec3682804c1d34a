package lxd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

func TestNewRefusesBadEndpointsAndOptions(t *testing.T) {
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	cert, key := server.ClientCertificate()
	for name, test := range map[string]struct {
		endpoint string
		opts     lxd.Options
		field    string
	}{
		"plain http":         {"http://127.0.0.1:8443", lxd.Options{}, "endpoint"},
		"other scheme":       {"ftp://127.0.0.1", lxd.Options{}, "endpoint"},
		"no host":            {"https://", lxd.Options{}, "endpoint"},
		"no path":            {"unix://", lxd.Options{}, "endpoint"},
		"user name":          {"https://me:secret@127.0.0.1", lxd.Options{}, "endpoint"},
		"path":               {"https://127.0.0.1/1.0", lxd.Options{}, "endpoint"},
		"query":              {"https://127.0.0.1?a=b", lxd.Options{}, "endpoint"},
		"broken":             {"https://127.0.0.1:port", lxd.Options{}, "endpoint"},
		"family":             {"", lxd.Options{Family: "lxc"}, "Options.Family"},
		"key missing":        {"https://h", lxd.Options{ClientCertificate: cert}, "Options.ClientKey"},
		"certificate":        {"https://h", lxd.Options{ClientKey: key}, "Options.ClientCertificate"},
		"no pair":            {"https://h", lxd.Options{ClientCertificate: server.Certificate(), ClientKey: key}, "Options.ClientCertificate"},
		"server certificate": {"https://h", lxd.Options{ServerCertificate: []byte("no PEM")}, "Options.ServerCertificate"},
		"fingerprint":        {"https://h", lxd.Options{ServerFingerprint: "abc"}, "Options.ServerFingerprint"},
		"two servers":        {"https://h", lxd.Options{ServerCertificate: cert, ServerFingerprint: strings.Repeat("0", 64)}, "Options.ServerFingerprint"},
	} {
		_, err := lxd.New(test.endpoint, &test.opts)
		require.ErrorIs(t, err, lxd.ErrInvalid, name)
		require.Equal(t, test.field, testkit.ErrOf[*lxd.InputError](t, err).Field, name)
		require.NotContains(t, err.Error(), "secret", name)
	}
}

// unreachable fails the test when a client connects.
func unreachable(t *testing.T) *lxd.Client {
	t.Helper()
	client, err := lxd.New("unix:///nowhere", &lxd.Options{Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("something was sent")
		return nil, net.ErrClosed
	}})
	require.NoError(t, err)
	return client
}

func TestBadInputIsRefusedBeforeAnythingIsSent(t *testing.T) {
	ctx, c := t.Context(), unreachable(t)
	whole := strings.Repeat("a", 64)
	data := strings.NewReader("x")
	create := func(r io.Reader, o lxd.CreateOptions) error {
		_, err := c.Images.Create(ctx, r, &o)
		return err
	}
	fromURL := func(url string, o lxd.CreateFromURLOptions) error {
		_, err := c.Images.CreateFromURL(ctx, url, &o)
		return err
	}
	streams := func(server, alias string, o lxd.CreateFromSimplestreamsOptions) error {
		_, err := c.Images.CreateFromSimplestreams(ctx, server, alias, &o)
		return err
	}
	instance := func(name string, o lxd.CreateFromInstanceOptions) error {
		_, err := c.Images.CreateFromInstance(ctx, name, &o)
		return err
	}
	second := func(_ any, err error) error { return err }
	alias := func(name string) []lxd.Alias { return []lxd.Alias{{Name: name}} }
	var none *lxd.Image
	stranger := &lxd.Image{Fingerprint: whole}
	for _, test := range []struct {
		field string
		err   error
	}{
		{"fingerprint", second(c.Images.Get(ctx, ""))},
		{"fingerprint", second(c.Images.Get(ctx, "prod"))},
		{"fingerprint", second(c.Images.Get(ctx, whole+"a"))},
		{"alias", second(c.Images.GetByAlias(ctx, ""))},
		{"fingerprintOrAlias", second(c.Images.Exists(ctx, ""))},
		{"fingerprint", second(c.Images.GetWithSecret(ctx, "abc", "s"))},
		{"secret", second(c.Images.GetWithSecret(ctx, whole, ""))},
		{"image", create(nil, lxd.CreateOptions{})},
		{"image", create(nil, lxd.CreateOptions{Rootfs: data})},
		{"CreateOptions.Size", create(data, lxd.CreateOptions{Size: -1})},
		{"CreateOptions.Size", create(data, lxd.CreateOptions{Size: 2})},
		{"CreateOptions.RootfsSize", create(data, lxd.CreateOptions{Rootfs: data, RootfsSize: -1})},
		{"CreateOptions.RootfsSize", create(data, lxd.CreateOptions{RootfsSize: 1})},
		{"CreateOptions.RootfsSize", create(data, lxd.CreateOptions{Rootfs: data, RootfsSize: 2})},
		{"image", create((*os.File)(nil), lxd.CreateOptions{})},
		{"CreateOptions.Rootfs", create(data, lxd.CreateOptions{Rootfs: (*os.File)(nil)})},
		{"CreateOptions.Type", create(data, lxd.CreateOptions{Type: lxd.VirtualMachine})},
		{"CreateOptions.Type", create(data, lxd.CreateOptions{Rootfs: data, Type: "jail"})},
		{"CreateOptions.IfExists", create(data, lxd.CreateOptions{IfExists: "maybe"})},
		{"CreateOptions.Fingerprint", create(data, lxd.CreateOptions{Fingerprint: "abc"})},
		{"CreateOptions.Filename", create(data, lxd.CreateOptions{Filename: "a\nb"})},
		{"CreateOptions.Profiles[1]", create(data, lxd.CreateOptions{Profiles: []string{"a", ""}})},
		{"CreateOptions.Properties", create(data, lxd.CreateOptions{Properties: map[string]string{"": "a"}})},
		{"CreateOptions.Aliases[0].Name", create(data, lxd.CreateOptions{Aliases: alias("")})},
		{"CreateOptions.Aliases[1].Name", create(data, lxd.CreateOptions{Aliases: append(alias("a"), alias("a")...)})},
		{"url", fromURL("", lxd.CreateFromURLOptions{})},
		{"url", fromURL("file:///etc/passwd", lxd.CreateFromURLOptions{})},
		{"url", fromURL("relative", lxd.CreateFromURLOptions{})},
		{"url", fromURL("http://[", lxd.CreateFromURLOptions{})},
		{"CreateFromURLOptions.Via", fromURL("http://h/x", lxd.CreateFromURLOptions{Via: "mail"})},
		{"CreateFromSimplestreamsOptions.AutoUpdate", streams("https://h", "a", lxd.CreateFromSimplestreamsOptions{Via: lxd.ViaClient, AutoUpdate: true})},
		{"CreateFromURLOptions.Fingerprint", fromURL("http://h/x", lxd.CreateFromURLOptions{Fingerprint: "xyz"})},
		{"CreateFromURLOptions.Aliases[0].Name", fromURL("http://h/x", lxd.CreateFromURLOptions{Aliases: alias("")})},
		{"server", streams("", "a", lxd.CreateFromSimplestreamsOptions{})},
		{"server", streams("images", "a", lxd.CreateFromSimplestreamsOptions{})},
		{"alias", streams("https://h", "", lxd.CreateFromSimplestreamsOptions{})},
		{"CreateFromSimplestreamsOptions.Type", streams("https://h", "a", lxd.CreateFromSimplestreamsOptions{Type: "jail"})},
		{"CreateFromSimplestreamsOptions.Certificate", streams("https://h", "a", lxd.CreateFromSimplestreamsOptions{Certificate: "no PEM"})},
		{"instance", instance("", lxd.CreateFromInstanceOptions{})},
		{"instance", instance("web/", lxd.CreateFromInstanceOptions{})},
		{"instance", instance("web/a/b", lxd.CreateFromInstanceOptions{})},
		{"CreateFromInstanceOptions.Aliases[0].Name", instance("web", lxd.CreateFromInstanceOptions{Aliases: alias("")})},
		{"image", none.Update(ctx, nil)},
		{"image", none.Delete(ctx, nil)},
		{"image", none.Refresh(ctx, nil)},
		{"image", none.AddAlias(ctx, "a", "")},
		{"image", none.DeleteAlias(ctx, "a")},
		{"image", second(none.Export(ctx, nil))},
		{"image", second(none.Copy(ctx, c, nil))},
		{"image", stranger.Update(ctx, nil)},
		{"image", stranger.SetAlias(ctx, "a", "")},
		{"image", second(stranger.ExportTo(ctx, "dir", nil))},
		{"image", second(stranger.Secret(ctx))},
		{"alias", second(c.Aliases.Get(ctx, ""))},
		{"alias", c.Aliases.Delete(ctx, "")},
		{"alias", c.Aliases.Rename(ctx, "", "a")},
		{"new alias", c.Aliases.Rename(ctx, "a", "")},
		{"Alias.Name", c.Aliases.Create(ctx, lxd.Alias{Target: whole})},
		{"Alias.Target", c.Aliases.Create(ctx, lxd.Alias{Name: "a"})},
		{"Alias.Target", c.Aliases.Set(ctx, lxd.Alias{Name: "a", Target: "not hex"})},
		{"registry", second(c.Registries.Get(ctx, ""))},
		{"Registry.Name", c.Registries.Create(ctx, lxd.Registry{})},
	} {
		require.ErrorIs(t, test.err, lxd.ErrInvalid, test.field)
		require.Equal(t, test.field, testkit.ErrOf[*lxd.InputError](t, test.err).Field)
	}

	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	f.ForgetRequests()
	for field, err := range map[string]error{
		"Alias.Name":                  image.AddAlias(ctx, "", ""),
		"alias":                       image.DeleteAlias(ctx, ""),
		"dir":                         second(image.ExportTo(ctx, "", nil)),
		"ExportToOptions.Name":        second(image.ExportTo(ctx, t.TempDir(), &lxd.ExportToOptions{Name: "../x"})),
		"ExportToOptions.Connections": second(image.ExportTo(ctx, t.TempDir(), &lxd.ExportToOptions{Connections: 65})),
		"target":                      second(image.Copy(ctx, nil, nil)),
		"CopyOptions.Mode":            second(image.Copy(ctx, c, &lxd.CopyOptions{Mode: "carry"})),
		"CopyOptions.Aliases[0].Name": second(image.Copy(ctx, c, &lxd.CopyOptions{Aliases: alias("")})),
	} {
		require.Equal(t, field, testkit.ErrOf[*lxd.InputError](t, err).Field)
	}
	require.Empty(t, f.Requests())
}

func TestLocalDaemon(t *testing.T) {
	for _, name := range []string{"LXD_SOCKET", "LXD_DIR", "INCUS_SOCKET", "INCUS_DIR"} {
		t.Setenv(name, "")
	}
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.Incus60})
	t.Cleanup(server.Close)
	dir := shortDir(t)
	require.NoError(t, os.Symlink(server.Socket(), filepath.Join(dir, "unix.socket.user")))
	lxdServer := lxdtest.NewServer(nil)
	t.Cleanup(lxdServer.Close)

	family := func(opts *lxd.Options) lxd.Family {
		info, err := testkit.NewClient(t, "", opts).Server(t.Context())
		require.NoError(t, err)
		return info.Family
	}
	t.Setenv("INCUS_DIR", dir)
	require.Equal(t, lxd.Incus, family(nil), "the socket for users, where there is no other")
	t.Setenv("LXD_SOCKET", lxdServer.Socket())
	require.Equal(t, lxd.LXD, family(nil), "LXD goes first")
	require.Equal(t, lxd.Incus, family(&lxd.Options{Family: lxd.Incus}))

	t.Setenv("LXD_SOCKET", filepath.Join(dir, "nothing"))
	_, err := testkit.NewClient(t, "", nil).Server(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist, "a variable that is set decides")

	// Where the socket may not be used, the one for users is.
	denied := func(ctx context.Context, network, address string) (net.Conn, error) {
		if !strings.HasSuffix(address, ".user") {
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.EACCES)}
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	require.Equal(t, lxd.Incus, family(&lxd.Options{Family: lxd.Incus, Dial: denied}))
	_, err = testkit.NewClient(t, "", &lxd.Options{Family: lxd.LXD, Dial: denied}).Server(t.Context())
	require.ErrorIs(t, err, os.ErrPermission)
	require.ErrorContains(t, err, "group")
}

// TestLocalDaemonStaysTheSame does not change from one daemon to another, when
// its socket may not be used, or is away for a moment.
func TestLocalDaemonStaysTheSame(t *testing.T) {
	for _, name := range []string{"LXD_SOCKET", "LXD_DIR", "INCUS_SOCKET", "INCUS_DIR"} {
		t.Setenv(name, "")
	}
	const lxdPath, incusPath = "/var/lib/lxd/unix.socket", "/run/incus/unix.socket"
	l := lxdtest.NewServer(nil)
	t.Cleanup(l.Close)
	i := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.Incus60})
	t.Cleanup(i.Close)
	failure := func(errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", errno)}
	}
	// machine has both daemons, and the errors of their sockets.
	type machine struct{ lxd, incus error }
	dial := func(m *machine) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			server, err := l, m.lxd
			switch address {
			case lxdPath:
			case incusPath:
				server, err = i, m.incus
			default:
				err = failure(syscall.ENOENT)
			}
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, server.Socket())
		}
	}
	open := func(m *machine) *lxd.Client {
		return testkit.NewClient(t, "", &lxd.Options{Dial: dial(m), RetryTimeout: -1})
	}
	family := func(c *lxd.Client) lxd.Family {
		info, err := c.Server(t.Context())
		require.NoError(t, err)
		return info.Family
	}
	list := func(c *lxd.Client) error {
		_, err := c.Aliases.All(t.Context())
		return err
	}

	t.Run("denied is an error", func(t *testing.T) {
		for _, errno := range []syscall.Errno{syscall.EACCES, syscall.ECONNREFUSED} {
			c := open(&machine{lxd: failure(errno)})
			require.ErrorIs(t, list(c), errno)
			require.Empty(t, i.Requests())
		}
	})
	t.Run("missing is the next", func(t *testing.T) {
		m := &machine{lxd: failure(syscall.ENOENT)}
		c := open(m)
		require.Equal(t, lxd.Incus, family(c))
		m.lxd = nil // LXD is installed meanwhile
		i.Restart() // which ends the connections
		l.ForgetRequests()
		require.NoError(t, list(c))
		require.Empty(t, l.Requests())
	})
	t.Run("away for a moment", func(t *testing.T) {
		m := &machine{}
		c := open(m)
		require.Equal(t, lxd.LXD, family(c))
		m.lxd = failure(syscall.ENOENT)
		l.Restart()
		i.ForgetRequests()
		require.ErrorIs(t, list(c), os.ErrNotExist)
		m.lxd = nil
		require.NoError(t, list(c))
		require.Empty(t, i.Requests())
	})
	t.Run("found differently at once", func(t *testing.T) {
		l.ForgetRequests()
		i.ForgetRequests()
		reached, goOn := make(chan struct{}), make(chan struct{})
		var looked atomic.Bool
		c := testkit.NewClient(t, "", &lxd.Options{RetryTimeout: -1, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == lxdPath && looked.CompareAndSwap(false, true) {
				return nil, failure(syscall.ENOENT) // to the first that looks
			}
			if address == incusPath {
				close(reached)
				<-goOn
			}
			return dial(&machine{})(ctx, network, address)
		}})
		first := make(chan error, 1)
		go func() { first <- list(c) }()
		<-reached
		require.NoError(t, list(c)) // LXD is there meanwhile, and decides
		close(goOn)
		require.NoError(t, <-first)
		require.NotEmpty(t, l.Requests())
		require.Empty(t, i.Requests())
	})
	t.Run("none", func(t *testing.T) {
		err := list(open(&machine{lxd: failure(syscall.ENOENT), incus: failure(syscall.ENOENT)}))
		require.ErrorIs(t, err, os.ErrNotExist)
		for _, path := range []string{lxdPath, incusPath} {
			require.ErrorContains(t, err, path)
		}
	})
}

// shortDir is a folder whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lxd")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func TestConnectionErrorsSayWhatToDo(t *testing.T) {
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(server.Close)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	page := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<html><body>Welcome</body></html>")
	}))
	t.Cleanup(page.Close)
	stale := filepath.Join(shortDir(t), "unix.socket")
	listener, err := net.Listen("unix", stale)
	require.NoError(t, err)
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, listener.Close())
	pageHost := strings.TrimPrefix(page.URL, "https://")

	for name, test := range map[string]struct {
		endpoint string
		opts     lxd.Options
		is       error
		says     string
	}{
		"no socket":          {"/nowhere/unix.socket", lxd.Options{}, os.ErrNotExist, "is the daemon installed and running"},
		"nobody listens":     {stale, lxd.Options{RetryTimeout: -1}, syscall.ECONNREFUSED, "start it"},
		"no listener":        {"https://127.0.0.1:1", lxd.Options{RetryTimeout: -1}, syscall.ECONNREFUSED, "core.https_address"},
		"plain http":         {"https://" + strings.TrimPrefix(plain.URL, "http://"), lxd.Options{}, lxd.ErrUnavailable, "plain http port"},
		"not trusted":        {server.URL(), lxd.Options{}, lxd.ErrUnavailable, "Options.ServerCertificate"},
		"another pin":        {server.URL(), lxd.Options{ServerFingerprint: strings.Repeat("0", 64)}, lxd.ErrUnavailable, strings.Repeat("0", 64)},
		"a page, status 200": {"https://" + pageHost, lxd.Options{ServerFingerprint: fingerprintOf(page.Certificate().Raw)}, lxd.ErrBadResponse, "text/html"},
	} {
		_, err := testkit.NewClient(t, test.endpoint, &test.opts).Images.All(t.Context(), nil)
		require.ErrorIs(t, err, test.is, name)
		require.ErrorContains(t, err, test.says, name)
		if name != "a page, status 200" {
			broken := testkit.ErrOf[*lxd.ConnectionError](t, err)
			require.Equal(t, "GET", broken.Method)
			require.NotEmpty(t, broken.Endpoint)
		}
	}
	_, err = testkit.NewClient(t, server.URL(), &lxd.Options{ServerFingerprint: strings.Repeat("0", 64)}).Server(t.Context())
	require.Equal(t, strings.Repeat("0", 64), testkit.ErrOf[*lxd.PinError](t, err).Want)
}

// TestOneConnection counts what the server accepts. Time stands still in the
// bubble: net/http gives up a connection whose request it has not seen the end
// of for 50 ms, which a loaded machine may need.
func TestOneConnection(t *testing.T) {
	for _, endpoint := range []string{"unix:///lxd", "https://lxd"} {
		t.Run(endpoint, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
				defer server.Close()
				opts := &lxd.Options{Dial: server.DialContext}
				if strings.HasPrefix(endpoint, "https:") {
					opts.ClientCertificate, opts.ClientKey = server.ClientCertificate()
					opts.ServerCertificate = server.Certificate()
				}
				client, err := lxd.New(endpoint, opts)
				require.NoError(t, err)
				defer func() { require.NoError(t, client.Close()) }()
				for range 200 {
					_, err := client.Images.All(t.Context(), nil)
					require.NoError(t, err)
				}
				_, err = client.Images.Get(t.Context(), strings.Repeat("0", 64))
				require.ErrorIs(t, err, lxd.ErrNotFound)
				image, err := client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 1<<20)), &lxd.CreateOptions{Wait: true})
				require.NoError(t, err)
				for range 200 {
					_, err := client.Images.Get(t.Context(), image.Fingerprint)
					require.NoError(t, err)
				}
				_, err = readExport(t, image)
				require.NoError(t, err)
				require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
				require.Equal(t, 1, server.Accepted(), "requests one after another use one connection")
			})
		})
	}
}

func TestClose(t *testing.T) {
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	export, err := image.Export(t.Context(), nil)
	require.NoError(t, err)
	other := testkit.NewClient(t, f.Endpoint(), nil)
	sub := other.InProject("default")
	_, err = sub.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, other.Close())
	require.NoError(t, other.Close(), "again")
	_, err = sub.Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	require.ErrorContains(t, err, "closed")
	require.NoError(t, export.Close())
}

// TestDialWithoutConnection is an error, and not a panic in a goroutine that
// nobody can recover from.
func TestDialWithoutConnection(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []string{"", "unix:///s", "https://127.0.0.1:1"} {
		client := testkit.NewClient(t, endpoint, &lxd.Options{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, nil }})
		_, err := client.Server(t.Context())
		require.ErrorIs(t, err, lxd.ErrInvalid, endpoint)
		require.ErrorContains(t, err, "Options.Dial", endpoint)
	}
}

// TestOptionsAreNotTouched also proves that New sends nothing.
func TestOptionsAreNotTouched(t *testing.T) {
	f := testkit.StartFake(t)
	before := f.Accepted()
	var requests atomic.Int32
	opts := &lxd.Options{UserAgent: "service/1", Project: "default", Transport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			requests.Add(1)
			return next.RoundTrip(r)
		})
	}}
	client := testkit.NewClient(t, f.Endpoint(), opts)
	opts.UserAgent, opts.Project = "changed", "changed"
	require.Equal(t, before, f.Accepted())
	testkit.Upload(t, client, nil)
	require.Positive(t, requests.Load())
	for _, r := range f.Requests() {
		require.NotContains(t, r.Query, "changed")
		require.Contains(t, r.Header.Get("User-Agent"), "service/1 golxd/")
	}
	create := &lxd.CreateOptions{Properties: map[string]string{"a": "b"}, Aliases: []lxd.Alias{{Name: "x"}}}
	image, err := client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), create)
	require.NoError(t, err)
	create.Properties["a"], create.Aliases[0].Name = "changed", "changed"
	require.NoError(t, image.Wait(t.Context()))
	require.Equal(t, "b", image.Properties["a"])
	require.Equal(t, "x", image.Aliases[0].Name)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (r roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return r(req) }

// TestTrustComesLater makes calls before and after an administrator has added
// the client's certificate.
func TestTrustComesLater(t *testing.T) {
	t.Parallel()
	var trusted atomic.Bool
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/1.0" && trusted.Load():
			_, _ = io.WriteString(w, `{"type":"sync","metadata":{"auth":"trusted","environment":{"architectures":["x86_64"]}}}`)
		case r.URL.Path == "/1.0":
			_, _ = io.WriteString(w, `{"type":"sync","metadata":{"auth":"untrusted"}}`)
		default:
			_, _ = io.WriteString(w, `{"type":"sync","metadata":[]}`)
		}
	}))
	t.Cleanup(server.Close)
	cert, key, err := lxd.NewKeyPair(nil)
	require.NoError(t, err)
	c := testkit.NewClient(t, server.URL, &lxd.Options{ClientCertificate: cert, ClientKey: key, ServerFingerprint: fingerprintOf(server.Certificate().Raw)})
	_, err = c.Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrForbidden)
	trusted.Store(true)
	_, err = c.Images.All(t.Context(), nil)
	require.NoError(t, err)
	info, err := c.Server(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"x86_64"}, info.Architectures)
}

// brittleConn fails every Write once it is broken.
type brittleConn struct {
	net.Conn
	broken *atomic.Bool
}

func (c brittleConn) Write(b []byte) (int, error) {
	if c.broken.Load() {
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(b)
}

// TestIdleConnectionBreaks sends a POST on a connection that broke while it was
// idle: the server has seen nothing of it, so it is sent again.
func TestIdleConnectionBreaks(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	var last *atomic.Bool
	c := testkit.NewClient(t, f.Endpoint(), &lxd.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		last = new(atomic.Bool)
		return brittleConn{conn, last}, err
	}})
	image, err := c.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	last.Store(true)
	require.NoError(t, image.AddAlias(t.Context(), "prod", ""))
}

// TestRetryAfterTooLong asks a server that wants to be asked again in an hour.
func TestRetryAfterTooLong(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	busy := f.Inject(lxdtest.TooManyRequests(time.Hour).On("GET", "/1.0/images"))
	_, err := f.Client.Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	require.Equal(t, 1, busy.Fired())
}
