package lxd_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestOneConnection counts what the server accepts. Time stands still in the
// bubble: net/http closes a connection whose request it has not seen the end
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
// idle: the server has not received it, so it is sent again.
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
