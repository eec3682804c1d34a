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

func TestLazyConnectsAtTheFirstWrite(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	dialed := make(chan context.Context, 2)
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	c := Lazy(ctx, lazyAddr, func(ctx context.Context) (net.Conn, error) {
		dialed <- ctx
		return near, nil
	})
	cancel() // of the request that asked for the connection, not the one that uses it
	require.Equal(t, lazyAddr, c.RemoteAddr())
	require.Equal(t, lazyAddr, c.LocalAddr())
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetDeadline(time.Time{}))
	require.Empty(t, dialed, "reading connects nothing")

	got := drain(far)
	for _, part := range []string{"one", "two"} {
		_, err = c.Write([]byte(part))
		require.NoError(t, err)
	}
	require.Len(t, dialed, 1)
	dialing := <-dialed
	require.NoError(t, dialing.Err())
	require.Equal(t, "value", dialing.Value(key{}))
	require.Equal(t, near.RemoteAddr(), c.RemoteAddr())
	require.NoError(t, c.Close())
	require.Equal(t, "onetwo", string(<-got))
	require.Error(t, dialing.Err())
}

func TestLazyKeepsDeadlines(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer far.Close()
	c := Lazy(t.Context(), lazyAddr, func(context.Context) (net.Conn, error) { return near, nil })
	defer c.Close()
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(10*time.Millisecond)))
	_, err := c.Write([]byte("nobody reads"))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(-time.Second)))
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestLazyTellsTheErrorOfDialing(t *testing.T) {
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

// TestLazyCloseEndsDialing also where dialing does not obey its context: what it
// makes later is closed.
func TestLazyCloseEndsDialing(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	begun, late := make(chan struct{}), make(chan struct{})
	c := Lazy(t.Context(), lazyAddr, func(context.Context) (net.Conn, error) {
		close(begun)
		<-late
		return near, nil
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
	_, err := far.Read(make([]byte, 1))
	require.Error(t, err, "the late connection is closed")
}

// TestLazyUnwrittenIsNoConnection has nothing to close.
func TestLazyUnwrittenIsNoConnection(t *testing.T) {
	t.Parallel()
	c := Lazy(t.Context(), lazyAddr, func(context.Context) (net.Conn, error) {
		panic("nobody has written")
	})
	require.NoError(t, c.Close())
	_, err := c.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
}
