package lxd_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

func TestConnectionErrorsHaveHints(t *testing.T) {
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

	failing := func(err error) func(context.Context, string, string) (net.Conn, error) {
		return func(context.Context, string, string) (net.Conn, error) { return nil, err }
	}
	closing := func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			_, _ = server.Read(make([]byte, 4<<10))
			_ = server.Close()
		}()
		return client, nil
	}

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
		"no permission":      {"/lxd/unix.socket", lxd.Options{Dial: failing(os.ErrPermission)}, lxd.ErrForbidden, "add it to the group"},
		"unknown host":       {"https://lxd.example", lxd.Options{Dial: failing(&net.DNSError{Err: "no such host", IsNotFound: true})}, lxd.ErrUnavailable, "cannot be resolved"},
		"closed":             {"/lxd/unix.socket", lxd.Options{RetryTimeout: -1, Dial: closing}, io.ErrUnexpectedEOF, "the connection was closed"},
		"a page, status 200": {"https://" + pageHost, lxd.Options{ServerFingerprint: fingerprintOf(page.Certificate().Raw)}, lxd.ErrBadResponse, "text/html"},
	} {
		_, err := testkit.NewClient(t, test.endpoint, &test.opts).Images.All(t.Context(), nil)
		require.ErrorIs(t, err, test.is, name)
		require.ErrorContains(t, err, test.says, name)
		require.NotErrorIs(t, err, io.EOF, name)
		if name != "a page, status 200" {
			broken := testkit.ErrOf[*lxd.ConnectionError](t, err)
			require.Equal(t, "GET", broken.Method)
			require.NotEmpty(t, broken.Endpoint)
		}
	}
	_, err = testkit.NewClient(t, server.URL(), &lxd.Options{ServerFingerprint: strings.Repeat("0", 64)}).Server(t.Context())
	require.Equal(t, strings.Repeat("0", 64), testkit.ErrOf[*lxd.PinError](t, err).Want)
	require.Empty(t, testkit.ErrOf[*lxd.ConnectionError](t, err).Hint, "the error of the pin says it all")
}
