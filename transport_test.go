package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

const (
	patience = 30 * time.Second
	tick     = 5 * time.Millisecond
)

func bearerServer(t *testing.T, tokens ...string) *lxdtest.Server {
	t.Helper()
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.LXD69, TLS: true, BearerTokens: tokens})
	t.Cleanup(server.Close)
	return server
}

// TestTokenSource asks for a token before every request, also of the event
// socket, and lets none out.
func TestTokenSource(t *testing.T) {
	t.Parallel()
	server := bearerServer(t, "secret-one", "secret-two")
	var log bytes.Buffer
	var asked atomic.Int64
	source := func(context.Context) (string, error) {
		if asked.Add(1)%2 == 0 {
			return "secret-two", nil
		}
		return "secret-one", nil
	}
	client := testkit.NewClient(t, server.URL(), &lxd.Options{
		TokenSource: source, ServerCertificate: server.Certificate(),
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	testkit.Upload(t, client, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range client.Events(ctx, nil) {
			cancel()
		}
	}()
	require.Eventually(t, func() bool {
		for _, r := range server.Requests() {
			if r.Path == "/1.0/events" {
				return true
			}
		}
		return false
	}, patience, tick)
	cancel()
	<-done
	requests := server.Requests()
	require.EqualValues(t, len(requests), asked.Load())
	seen := map[string]bool{}
	for _, r := range requests {
		seen[r.Header.Get("Authorization")] = true
	}
	require.Equal(t, map[string]bool{"Bearer secret-one": true, "Bearer secret-two": true}, seen)
	require.NotContains(t, log.String(), "secret")
	require.NotEmpty(t, log.String())
}

func TestTokenSourceThatFails(t *testing.T) {
	t.Parallel()
	server := bearerServer(t)
	failure := errors.New("the provider is down")
	for _, source := range []func(context.Context) (string, error){
		func(context.Context) (string, error) { return "", failure },
		func(context.Context) (string, error) { return "", nil },
	} {
		client := testkit.NewClient(t, server.URL(), &lxd.Options{TokenSource: source, ServerCertificate: server.Certificate()})
		_, err := client.Server(t.Context())
		require.True(t, errors.Is(err, failure) || errors.Is(err, lxd.ErrInvalid), "%v", err)
		for _, err := range client.Events(t.Context(), nil) {
			require.True(t, errors.Is(err, failure) || errors.Is(err, lxd.ErrInvalid), "%v", err)
		}
	}
	require.Empty(t, server.Requests())
}

// TestTokenStaysWithItsServer responds with a redirect to a server that looks
// out for tokens.
func TestTokenStaysWithItsServer(t *testing.T) {
	t.Parallel()
	server, thief := bearerServer(t, "secret-token"), bearerServer(t, "secret-token")
	server.Inject(lxdtest.Redirect(thief.URL() + "/1.0"))
	client := testkit.NewClient(t, server.URL(), &lxd.Options{Token: "secret-token", ServerCertificate: server.Certificate()})
	_, err := client.Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrBadResponse)
	require.NotContains(t, err.Error(), "secret-token")
	for _, err := range client.Events(t.Context(), nil) {
		require.ErrorIs(t, err, lxd.ErrBadResponse)
	}
	require.Empty(t, thief.Requests())
}

// TestRedirectsAreNotFollowed: another host never sees a request, let alone the
// token.
func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	elsewhere := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(elsewhere.Close)
	for _, status := range []int{301, 302, 303, 307, 308} {
		var seen http.Header
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = r.Header.Clone()
			target := elsewhere.URL() + r.URL.Path + "?secret=s3cr3t"
			if status == http.StatusPermanentRedirect { // an address without a scheme is hidden too
				target = strings.TrimPrefix(target, "https:")
			}
			http.Redirect(w, r, target, status)
		}))
		c := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw), Token: "bearer-s3cr3t"})
		_, err := c.Images.All(t.Context(), nil)
		require.ErrorIs(t, err, lxd.ErrBadResponse)
		require.NotContains(t, err.Error(), "s3cr3t")
		require.Equal(t, "Bearer bearer-s3cr3t", seen.Get("Authorization"))
		for _, err := range c.Events(t.Context(), nil) {
			require.Error(t, err)
			require.NotContains(t, err.Error(), "s3cr3t")
		}
		server.Close()
	}
	require.Empty(t, elsewhere.Requests())
}

// lateTransport responds to an upload when it may, whatever the context says.
type lateTransport struct {
	http.RoundTripper

	began, proceed, closed chan struct{}
}

func (l *lateTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodPost {
		return l.RoundTripper.RoundTrip(req)
	}
	close(l.began)
	<-l.proceed
	return &http.Response{StatusCode: http.StatusOK, Body: closeNoted{strings.NewReader(""), l.closed}}, nil
}

type closeNoted struct {
	io.Reader

	closed chan struct{}
}

func (c closeNoted) Close() error {
	close(c.closed)
	return nil
}

// TestLateResponseIsClosed: the response to an upload that arrives after the call has
// returned, because its context ended, is closed.
func TestLateResponseIsClosed(t *testing.T) {
	t.Parallel()
	late := &lateTransport{began: make(chan struct{}), proceed: make(chan struct{}), closed: make(chan struct{})}
	f := testkit.StartFakeWith(t, nil, &lxd.Options{Transport: func(next http.RoundTripper) http.RoundTripper {
		late.RoundTripper = next
		return late
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-late.began
		cancel()
	}()
	_, err := f.Client.Images.Create(ctx, testkit.OneShotReader{Reader: bytes.NewReader(testkit.Unified(t, 0))}, nil)
	require.ErrorIs(t, err, context.Canceled)
	close(late.proceed)
	select {
	case <-late.closed:
	case <-time.After(patience):
		t.Fatal("it is not closed")
	}
}
