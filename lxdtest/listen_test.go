package lxdtest

import (
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/unixsock"
)

// shortDir returns a directory with a path that is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := unixsock.TempDir("", "unix.socket")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	list := []string{}
	for _, entry := range entries {
		list = append(list, entry.Name())
	}
	return list
}

func TestSocket(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, "my.socket")
	s, err := Start(&Options{Socket: socket, Directory: dir})
	require.NoError(t, err)
	defer s.Close()
	require.Equal(t, socket, s.Socket())
	require.Equal(t, "unix://"+socket, s.Endpoint())
	transport := &http.Transport{DialContext: dialUnix(s)}
	defer transport.CloseIdleConnections()
	c := &client{t, &http.Client{Transport: transport}, "http://lxd"}
	require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)

	// Another server does not take it.
	_, err = Start(&Options{Socket: socket, Directory: dir})
	require.EqualError(t, err, "lxdtest: cannot start the server: "+socket+" is the socket of a server that is running")
	s.Restart()
	require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)
	s.Close()
	require.Empty(t, names(t, dir))

	// What a process that was killed has left is replaced.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	require.NoError(t, err)
	stale.SetUnlinkOnClose(false)
	require.NoError(t, stale.Close())
	s, err = Start(&Options{Socket: socket, Directory: dir})
	require.NoError(t, err)
	s.Close()

	// Any other file is not.
	require.NoError(t, os.WriteFile(socket, []byte("precious"), 0o600))
	_, err = Start(&Options{Socket: socket, Directory: dir})
	require.ErrorContains(t, err, socket+" exists and is not a socket")
	data, err := os.ReadFile(socket)
	require.NoError(t, err)
	require.Equal(t, "precious", string(data))
	require.Equal(t, []string{"my.socket"}, names(t, dir))

	_, err = Start(&Options{Socket: filepath.Join(dir, strings.Repeat("x", 200)), Directory: dir})
	require.ErrorContains(t, err, "use a shorter one")
	_, err = Start(&Options{Socket: filepath.Join(dir, "none", "socket"), Directory: dir})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Equal(t, []string{"my.socket"}, names(t, dir))
	require.PanicsWithValue(t, "lxdtest: cannot start the server: "+socket+" exists and is not a socket", func() {
		NewServer(&Options{Socket: socket, Directory: dir})
	})
}

// TestRestartWhileRefusing restarts a server that refuses connections.
func TestRestartWhileRefusing(t *testing.T) {
	s := newTestServer(t, &Options{TLS: true})
	transport := &http.Transport{DialContext: dialUnix(s)}
	defer transport.CloseIdleConnections()
	local, remote := &client{t, &http.Client{Transport: transport}, "http://lxd"}, newTLSClient(t, s, true)
	refuse := s.Inject(Refuse())
	s.Restart()
	for _, c := range []*client{local, remote} {
		_, err := c.http.Get(c.base + "/1.0")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	}
	refuse.Remove()
	for _, c := range []*client{local, remote} {
		require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)
	}
}

func TestAddress(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:0": "https://127.0.0.1:",
		"localhost:0": "https://localhost:",
		":0":          "https://127.0.0.1:",
		"0.0.0.0:0":   "https://127.0.0.1:",
	} {
		t.Run(address, func(t *testing.T) {
			s, err := Start(&Options{Address: address})
			require.NoError(t, err)
			defer s.Close()
			url := s.URL()
			require.True(t, strings.HasPrefix(url, want), url)
			c := newTLSClient(t, s, true)
			require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)
			s.Restart()
			require.Equal(t, url, s.URL())
			require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)

			dir := shortDir(t)
			socket := filepath.Join(dir, "unix.socket")
			_, err = Start(&Options{Address: strings.TrimPrefix(url, "https://"), Directory: dir, Socket: socket})
			require.ErrorContains(t, err, "address already in use")
			require.Empty(t, names(t, dir))
		})
	}
	// The certificate is for the host too.
	pair, err := newKeyPair("x", "localhost", "127.0.0.1", "::1", "lxd.example.com", "192.0.2.1", "")
	require.NoError(t, err)
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "lxd.example.com", "192.0.2.1"} {
		require.NoError(t, pair.tls.Leaf.VerifyHostname(host))
	}
	require.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, pair.tls.Leaf.ExtKeyUsage)

	for _, bad := range []*Options{{Address: "127.0.0.1"}, {Address: "127.0.0.1:1:2"}} {
		_, err := Start(bad)
		require.ErrorContains(t, err, "Options.Address must be a host and a port")
	}
	for _, bad := range []*Options{{InMemory: true, Address: "127.0.0.1:0"}, {InMemory: true, Socket: "/tmp/x"}} {
		_, err := Start(bad)
		require.ErrorContains(t, err, "an in-memory server has no Options.Socket and no Options.Address")
	}
}
