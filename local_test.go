package lxd_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

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
// its socket may not be used, or is missing for a moment.
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
	t.Run("missing for a moment", func(t *testing.T) {
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
		reached, proceed := make(chan struct{}), make(chan struct{})
		var looked atomic.Bool
		c := testkit.NewClient(t, "", &lxd.Options{RetryTimeout: -1, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == lxdPath && looked.CompareAndSwap(false, true) {
				return nil, failure(syscall.ENOENT) // to the first that looks
			}
			if address == incusPath {
				close(reached)
				<-proceed
			}
			return dial(&machine{})(ctx, network, address)
		}})
		first := make(chan error, 1)
		go func() { first <- list(c) }()
		<-reached
		require.NoError(t, list(c)) // LXD is there meanwhile, and decides
		close(proceed)
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
