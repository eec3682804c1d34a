package lxd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// TestKindOfFailureStays has a daemon that reports the kind of a failure in the
// response to the wait, and not in the operation, as Incus 6.0.4 does.
func TestKindOfFailureStays(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := `{"type":"sync","metadata":{}}`
		switch {
		case r.Method == http.MethodPost:
			w.WriteHeader(http.StatusAccepted)
			body = `{"type":"async","metadata":{"id":"op1","status_code":103}}`
		case r.URL.Path == "/1.0/operations/op1/wait":
			body = `{"type":"error","error":"Instance not found","error_code":404}`
		case r.URL.Path == "/1.0/operations/op1":
			body = `{"type":"sync","metadata":{"id":"op1","status_code":400,"err":"Instance not found"}}`
		}
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	client := testkit.NewClient(t, "unix:///dialed", &lxd.Options{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
	}})
	image, err := client.Images.CreateFromInstance(t.Context(), "web1", nil)
	require.NoError(t, err)
	for range 2 {
		require.ErrorIs(t, image.Operation().Wait(t.Context()), lxd.ErrNotFound)
		require.ErrorIs(t, image.Wait(t.Context()), lxd.ErrNotFound)
	}
	_, err = client.Images.CreateFromInstance(t.Context(), "web1", &lxd.CreateFromInstanceOptions{Wait: true})
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

// TestWaitWithLongRetryAfter has a server with a Retry-After of a day: the error is
// returned at once.
func TestWaitWithLongRetryAfter(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"/1.0/operations/**", "/1.0/operations/*/wait"} {
		t.Run(pattern, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
				defer server.Close()
				client := testkit.NewClient(t, "unix:///in-memory", &lxd.Options{Dial: server.DialContext})
				held := server.Inject(lxdtest.StallOperations())
				image, err := client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), nil)
				require.NoError(t, err)
				defer time.AfterFunc(5*time.Second, held.Release).Stop()
				defer server.Inject(lxdtest.TooManyRequests(24*time.Hour).On("GET", pattern)).Remove()
				began := time.Now()
				require.ErrorIs(t, image.Wait(t.Context()), lxd.ErrUnavailable)
				require.Zero(t, time.Since(began))
			})
		})
	}
}

// TestWaitOnADeadConnection: a wait whose connection is silent, without being closed, is
// made again on another one.
func TestWaitOnADeadConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer server.Close()
		var last *atomic.Bool
		client := testkit.NewClient(t, "unix:///in-memory", &lxd.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := server.DialContext(ctx, network, address)
			last = new(atomic.Bool)
			return &silencedConn{conn, last}, err
		}})
		held := server.Inject(lxdtest.StallOperations())
		image, err := client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), nil)
		require.NoError(t, err)
		began := time.Now()
		time.AfterFunc(5*time.Second, func() {
			last.Store(true)
			held.Release()
		})
		require.NoError(t, image.Wait(t.Context()))
		require.Less(t, time.Since(began), 2*time.Minute)
		require.Greater(t, time.Since(began), time.Minute)
	})
}

// TestForgottenWithoutContent: the server has forgotten the operation, and has the image
// but not its content.
func TestForgottenWithoutContent(t *testing.T) {
	t.Parallel()
	copied := func(mode lxd.CopyMode) func(*testing.T, *testkit.Fake, *testkit.Fake) func() error {
		return func(t *testing.T, source, target *testkit.Fake) func() error {
			image := testkit.CopySource(t, source.Client, false)
			return func() error {
				_, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: mode, Wait: true})
				return err
			}
		}
	}
	for name, prepare := range map[string]func(t *testing.T, source, target *testkit.Fake) (create func() error){
		"upload": func(t *testing.T, _, target *testkit.Fake) func() error {
			return func() error {
				_, err := target.Client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Wait: true})
				return err
			}
		},
		"one-shot upload": func(t *testing.T, _, target *testkit.Fake) func() error {
			return func() error {
				body := testkit.OneShotReader{Reader: bytes.NewReader(testkit.Unified(t, 0))}
				_, err := target.Client.Images.Create(t.Context(), body, &lxd.CreateOptions{Wait: true})
				return err
			}
		},
		"import": func(t *testing.T, _, target *testkit.Fake) func() error {
			at := imageServer(t).Direct("image", streamstest.Direct{Content: testkit.Unified(t, 0)})
			return func() error {
				_, err := target.Client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Via: lxd.ViaServer, Wait: true})
				return err
			}
		},
		"pull":  copied(lxd.CopyPull),
		"push":  copied(lxd.CopyPush),
		"relay": copied(lxd.CopyRelay),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, dialect := range lxdtest.Dialects() {
				if dialect == lxdtest.LXD69 && name == "import" || dialect == lxdtest.LXD40 && name == "push" {
					continue // it cannot
				}
				fleet := testkit.StartFleet(t, nil, lxdtest.Options{Dialect: dialect}, lxdtest.Options{Dialect: dialect})
				source, target := fleet[0], fleet[1]
				create := prepare(t, source, target)
				worker := target
				if name == "push" {
					worker = source
				}
				worker.Inject(lxdtest.ForgetOperations())
				// The client does not hear the end of the operation.
				worker.Inject(lxdtest.LoseResponse().On("GET", "/1.0/operations/*/wait").Times(1))
				lost := target.Inject(lxdtest.LoseContent())
				err := create()
				require.ErrorIs(t, err, lxd.ErrOutcomeUnknown, dialect)
				require.NotErrorIs(t, err, lxd.ErrNotFound, dialect)
				require.ErrorContains(t, err, "does not send its content")
				require.ErrorContains(t, err, "delete the image")
				require.Equal(t, 1, lost.Fired())
			}
		})
	}
}
