package lxd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseEndpoint(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		socket string
		bases  []string
	}{
		"/run/lxd.socket":                     {socket: "/run/lxd.socket"},
		"./unix.socket":                       {socket: "./unix.socket"},
		"lxd/unix.socket":                     {socket: "lxd/unix.socket"},
		"unix:///run/lxd.socket":              {socket: "/run/lxd.socket"},
		"unix:/run/lxd.socket":                {socket: "/run/lxd.socket"},
		"UNIX:///run/lxd.socket":              {socket: "/run/lxd.socket"},
		"unix://relative":                     {socket: "relative"},
		"@abstract":                           {socket: "@abstract"},
		"https://host":                        {bases: []string{"https://host:8443"}},
		"HTTPS://host:443/":                   {bases: []string{"https://host:443"}},
		"https://[fe80::1]":                   {bases: []string{"https://[fe80::1]:8443"}},
		"https://[fe80::1%25eth0]:8443":       {bases: []string{"https://[fe80::1%25eth0]:8443"}},
		"https://bücher.example":              {bases: []string{"https://xn--bcher-kva.example:8443"}},
		"https://BÜCHER.example:1":            {bases: []string{"https://xn--bcher-kva.example:1"}},
		"https://a:1,https://b, https://a:1 ": {bases: []string{"https://a:1", "https://b:8443"}},
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			socket, bases, err := parseEndpoint(text)
			require.NoError(t, err)
			require.Equal(t, want.socket, socket)
			require.Equal(t, want.bases, bases)
		})
	}
}

func TestParseEndpointRefuses(t *testing.T) {
	t.Parallel()
	for text, mention := range map[string]string{
		"myhost:8443":                            "https://HOST:PORT",
		"images:":                                "Remote",
		"user:s3cr3t@host/path":                  "https://HOST:PORT",
		"127.0.0.1":                              "https://127.0.0.1:8443",
		"myhost":                                 "./myhost",
		"unix://":                                "no socket path",
		"/" + strings.Repeat("x", maxSocketPath): "at most 107",
		"http://host":                            "plain http",
		"ftp://host":                             "https://host:port",
		"https://":                               "no host",
		"https://user:s3cr3t@host":               "user name",
		"https://host/images?k=1":                "more than a host and a port",
		"https://host:99999":                     "between 1 and 65535",
		"https://host:0":                         "between 1 and 65535",
		"https://bu\u0308cher.example":           "ASCII",
		"https://xn--\u00fc.example:1":           "xn--…",
		"https://a,http://b":                     "plain http",
		"https://a,":                             "https://host:port",
		"https://a,/run/unix.socket":             "https://host:port",
		"https://host\x00":                       "not a URL",
	} {
		t.Run(mention, func(t *testing.T) {
			t.Parallel()
			_, _, err := parseEndpoint(text)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, mention)
			require.NotContains(t, err.Error(), "s3cr3t")
		})
	}
}

// TestEndpointIsNoSocket has something else at the path of the socket: New says
// so, except where Dial takes the path for another machine's.
func TestEndpointIsNoSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for path, mention := range map[string]string{dir: filepath.Join(dir, "unix.socket"), file: "not a unix socket"} {
		_, err := New(path, nil)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, mention)
		client, err := New(path, &Options{Dial: defaultDialer().DialContext})
		require.NoError(t, err)
		require.NoError(t, client.Close())
	}
	client, err := New(" "+filepath.Join(dir, "later")+"\n", nil)
	require.NoError(t, err)
	require.Equal(t, "unix://"+filepath.Join(dir, "later"), client.Endpoint())
	require.NoError(t, client.Close())
}

func TestServerName(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{"host:8443": "host", "[fe80::1%eth0]:8443": "fe80::1", "host": "host"} {
		require.Equal(t, want, serverName(address))
	}
}
