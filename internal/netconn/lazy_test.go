package netconn

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var lazyAddr = &net.UnixAddr{Name: "socket", Net: "unix"}

func TestLazyConnectsAtFirstWrite(t *testing.T) {
	t.Parallel()
	local, remote := net.Pipe()
	dialed := make(chan context.Context, 2)
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	c := Lazy(ctx, lazyAddr, func(ctx context.Context) (net.Conn, error) {
		dialed <- ctx
		return local, nil
	})
	cancel() // the request that dials need not be the one that uses the connection
	require.Equal(t, lazyAddr, c.RemoteAddr())
	require.Equal(t, lazyAddr, c.LocalAddr())
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetDeadline(time.Time{}))
	require.Empty(t, dialed, "Read does not dial")

	got := drain(remote)
	for _, part := range []string{"one", "two"} {
		_, err = c.Write([]byte(part))
		require.NoError(t, err)
	}
	require.Len(t, dialed, 1)
	dialing := <-dialed
	require.NoError(t, dialing.Err())
	require.Equal(t, "value", dialing.Value(key{}))
	require.Equal(t, local.RemoteAddr(), c.RemoteAddr())
	require.NoError(t, c.Close())
	require.Equal(t, "onetwo", string(<-got))
	require.Error(t, dialing.Err())
}

func TestLazyKeepsDeadlines(t *testing.T) {
	t.Parallel()
	local, remote := net.Pipe()
	defer remote.Close()
	c := Lazy(t.Context(), lazyAddr, func(context.Context) (net.Conn, error) { return local, nil })
	defer c.Close()
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(10*time.Millisecond)))
	_, err := c.Write([]byte("nobody reads"))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(-time.Second)))
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestLazyReturnsDialError(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	c := Lazy(t.Context(), lazyAddr, func(context.Context) (net.Conn, error) { return nil, broken })
	for range 2 {
		_, err := c.Write([]byte("x"))
		require.ErrorIs(t, err, broken)
	}
	_, err := Plain(c, func() {}).WriteFile(nil, 0, 1, nil)
	require.ErrorIs(t, err, broken)
	require.NoError(t, c.Close())
}

// TestLazyCloseEndsDialing has a dial function that ignores its context: the
// connection that it returns later is closed.
func TestLazyCloseEndsDialing(t *testing.T) {
	t.Parallel()
	local, remote := net.Pipe()
	begun, late := make(chan struct{}), make(chan struct{})
	c := Lazy(t.Context(), lazyAddr, func(context.Context) (net.Conn, error) {
		close(begun)
		<-late
		return local, nil
	})
	ended := make(chan error, 2)
	go func() {
		_, err := c.Write([]byte("x"))
		ended <- err
	}()
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	<-begun
	require.NoError(t, c.Close())
	require.ErrorIs(t, <-ended, net.ErrClosed)
	require.ErrorIs(t, <-ended, net.ErrClosed)
	close(late)
	_, err := remote.Read(make([]byte, 1))
	require.Error(t, err, "the late connection is closed")
}

// TestLazyCloseBeforeWrite checks that nothing is dialed.
func TestLazyCloseBeforeWrite(t *testing.T) {
	t.Parallel()
	c := Lazy(t.Context(), lazyAddr, func(context.Context) (net.Conn, error) {
		panic("nobody has written")
	})
	require.NoError(t, c.Close())
	_, err := c.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
}
