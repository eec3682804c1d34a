package testdaemon

import (
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFromEnvUnset(t *testing.T) {
	t.Setenv(EnvLXD, "")
	t.Setenv(EnvIncus, " , ")
	lxd, incus, err := FromEnv()
	require.NoError(t, err)
	require.Empty(t, lxd)
	require.Empty(t, incus)
}

func TestFromEnv(t *testing.T) {
	first, second, third := writeTestDir(t, LXD), writeTestDir(t, LXD), writeTestDir(t, Incus)
	for _, entry := range Environ(first, third, second) {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
	lxd, incus, err := FromEnv()
	require.NoError(t, err)
	require.Len(t, lxd, 2)
	require.Len(t, incus, 1)
	for i, want := range []*Daemon{first, second, third} {
		got := slices.Concat(lxd, incus)[i]
		require.Equal(t, want.Family, got.Family)
		require.Equal(t, want.Dir, got.Dir)
		require.Equal(t, want.URL, got.URL)
		require.Equal(t, want.Version, got.Version)
		require.Equal(t, want.ServerCertificate, got.ServerCertificate)
		require.Equal(t, want.ClientCertificate, got.ClientCertificate)
		require.Equal(t, want.ClientKey, got.ClientKey)
		require.Equal(t, want.TrustPassword, got.TrustPassword)
	}
}

func TestFromEnvError(t *testing.T) {
	t.Setenv(EnvLXD, "")
	t.Setenv(EnvIncus, t.TempDir())
	_, _, err := FromEnv()
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, EnvIncus)
}

func TestEnvironHidesOtherDaemons(t *testing.T) {
	d := newDaemon(Incus, "/d")
	env := d.environ([]string{"PATH=/bin", "LXD_DIR=/x", "INCUS_SOCKET=/y", "https_proxy=http://proxy", "NO_PROXY=*"})
	require.Equal(t, []string{
		"PATH=/bin",
		"INCUS_DIR=/d",
		"HOME=/d",
		"HTTPS_PROXY=http://127.0.0.1:1",
		"HTTP_PROXY=http://127.0.0.1:1",
		"NO_PROXY=127.0.0.1,localhost,::1",
	}, env)
}

// writeTestDir returns a daemon that does not run, and writes its directory.
func writeTestDir(t *testing.T, family Family) *Daemon {
	t.Helper()
	d := newDaemon(family, t.TempDir())
	var err error
	d.URL, d.Version = "https://127.0.0.1:1234", "5.0.2"
	d.ServerCertificate, _, err = newClientPair()
	require.NoError(t, err)
	d.ClientCertificate, d.ClientKey, err = newClientPair()
	require.NoError(t, err)
	if family == LXD {
		d.TrustPassword = "password"
	}
	require.NoError(t, d.writeFiles())
	return d
}
