package testdaemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fakeOptions returns options that start this test binary as the daemon.
func fakeOptions(t *testing.T) *Options {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	return &Options{Binary: self, Timeout: 20 * time.Second}
}

func TestStart(t *testing.T) {
	d := New(t, LXD, fakeOptions(t))
	require.NotEmpty(t, d.TrustPassword)
	require.Less(t, len(d.Socket), maxSocketPath)
	require.NoError(t, d.pingTLS(t.Context()))

	t.Setenv(EnvLXD, d.Dir)
	t.Setenv(EnvIncus, "")
	lxd, incus, err := FromEnv()
	require.NoError(t, err)
	require.Empty(t, incus)
	require.Len(t, lxd, 1)
	other := lxd[0]
	require.Equal(t, d.URL, other.URL)
	require.Equal(t, d.TrustPassword, other.TrustPassword)
	require.NoError(t, other.pingTLS(t.Context()))
	require.ErrorIs(t, other.Kill(), ErrNotStarted)
	require.ErrorIs(t, other.Restart(t.Context()), ErrNotStarted)
	require.NoError(t, other.Close())
	require.NoError(t, d.Do(t.Context(), "GET", "/1.0", nil, nil), "closing a daemon from the environment must not stop it")
}

func TestRestart(t *testing.T) {
	d := New(t, LXD, fakeOptions(t))
	for _, end := range []struct {
		name string
		do   func() error
	}{
		{"graceful", func() error { return d.StopGracefully(t.Context()) }},
		{"killed", d.Kill},
		{"running", func() error { return nil }},
	} {
		before := d.PID()
		require.NoError(t, end.do(), end.name)
		require.NoError(t, d.Restart(t.Context()), end.name)
		require.NotEqual(t, before, d.PID(), end.name)
		require.ErrorIs(t, syscall.Kill(before, 0), syscall.ESRCH, end.name)
		require.NoError(t, d.pingTLS(t.Context()), end.name)
	}
}

func TestStopGracefully(t *testing.T) {
	d := New(t, LXD, fakeOptions(t))
	require.NoError(t, d.StopGracefully(t.Context()))
	require.Error(t, d.Do(t.Context(), "GET", "/1.0", nil, nil))
	require.NoError(t, d.StopGracefully(t.Context()))
	require.NoError(t, d.Kill())
	require.Zero(t, d.PID())
}

func TestCloseRemovesDirectory(t *testing.T) {
	d, err := Start(t.Context(), LXD, fakeOptions(t))
	require.NoError(t, err)
	pid := d.PID()
	require.NoError(t, d.Close())
	require.NoDirExists(t, d.Dir)
	require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
	require.NoError(t, d.Close())
}

func TestStartErrorHasLog(t *testing.T) {
	t.Setenv(fakeVariable, "broken")
	opts := fakeOptions(t)
	opts.Parent = shortTempDir(t)
	_, err := Start(t.Context(), LXD, opts)
	require.ErrorContains(t, err, "the database is broken")
	requireEmptyDir(t, opts.Parent)
}

func TestStartTimeout(t *testing.T) {
	t.Setenv(fakeVariable, "mute")
	opts := fakeOptions(t)
	opts.Parent = shortTempDir(t)
	opts.Timeout = 200 * time.Millisecond
	_, err := Start(t.Context(), LXD, opts)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	requireEmptyDir(t, opts.Parent)

	opts.Timeout = time.Minute
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	_, err = Start(ctx, LXD, opts)
	require.ErrorIs(t, err, reason)
	requireEmptyDir(t, opts.Parent)
}

func TestStartWithoutBinary(t *testing.T) {
	_, err := Start(t.Context(), LXD, &Options{Binary: filepath.Join(t.TempDir(), "nothing")})
	require.ErrorContains(t, err, "lxd is not installed")
	_, err = Start(t.Context(), "docker", nil)
	require.ErrorContains(t, err, `unknown family "docker"`)
}

func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "td-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func requireEmptyDir(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}
