package lxd

import (
	"context"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestConnectionsAreForgotten when they are closed, and none is made once the client is.
func TestConnectionsAreForgotten(t *testing.T) {
	t.Parallel()
	var near, far net.Conn
	s := &connections{dial: func(context.Context, string, string) (net.Conn, error) {
		near, far = net.Pipe()
		return near, nil
	}, done: make(chan struct{})}
	conn, err := s.plain(t.Context(), "tcp", "host:1")
	require.NoError(t, err)
	require.Len(t, s.open, 1)
	require.NoError(t, conn.Close())
	require.Empty(t, s.open)

	s.closeAll()
	_, err = s.plain(t.Context(), "tcp", "host:1")
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = far.Read(make([]byte, 1))
	require.Error(t, err, "it is closed")
	require.Empty(t, s.open)
}
