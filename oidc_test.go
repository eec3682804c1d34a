package lxd_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

func TestOIDCErrorContainsTheProvider(t *testing.T) {
	t.Parallel()
	for _, family := range []string{"X-LXD-OIDC-", "X-Incus-OIDC-"} {
		server := bearerServer(t)
		server.Inject(lxdtest.Status(http.StatusUnauthorized, "Unauthorized").
			WithHeader(family+"issuer", "https://issuer.example").WithHeader(family+"clientid", "cli").
			WithHeader(family+"audience", "lxd").WithHeader(family+"scopes", "openid,offline_access"))
		client := testkit.NewClient(t, server.URL(), &lxd.Options{Token: "stale", ServerCertificate: server.Certificate()})
		check := func(err error) {
			t.Helper()
			require.ErrorIs(t, err, lxd.ErrUnauthorized)
			require.Equal(t, &lxd.OIDCProvider{
				Issuer: "https://issuer.example", ClientID: "cli", Audience: "lxd", Scopes: []string{"openid", "offline_access"},
			}, testkit.ErrOf[*lxd.Error](t, err).OIDC)
			require.ErrorContains(t, err, "https://issuer.example for the client ID cli and the audience lxd")
			require.NotContains(t, err.Error(), "stale")
		}
		_, err := client.Images.All(t.Context(), nil)
		check(err)
		for _, err := range client.Events(t.Context(), nil) {
			check(err)
		}
	}
}

// TestOIDCSessions has a server that refuses a token unless the client says in its
// User-Agent that it keeps cookies.
func TestOIDCSessions(t *testing.T) {
	t.Parallel()
	connect := func(sessions bool) (*lxdtest.Server, *lxd.Client) {
		server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.LXD69, TLS: true, BearerTokens: []string{"token"}, OIDCSessions: sessions})
		t.Cleanup(server.Close)
		return server, testkit.NewClient(t, server.URL(), &lxd.Options{Token: "token", ServerCertificate: server.Certificate(), RetryTimeout: -1})
	}
	server, c := connect(true)
	// The first request has a body that cannot be sent twice.
	content := testkit.Unified(t, 0)
	image, err := c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(content)}, &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	require.True(t, testkit.Trusted(t, c))
	export, err := image.Export(t.Context(), nil)
	require.NoError(t, err)
	got, err := io.ReadAll(export)
	require.NoError(t, err)
	require.NoError(t, export.Close())
	require.Equal(t, content, got)
	for event, err := range c.Events(t.Context(), nil) {
		require.NoError(t, err)
		require.Equal(t, lxd.EventConnected, event.Type)
		break
	}
	require.Equal(t, 1, server.Sessions())
	for _, r := range server.Requests() {
		require.True(t, r.Header.Get("Authorization") == "" || r.Header.Get("Cookie") != "" || r.Path == "/1.0" || r.Path == "/1.0/images", r.Path)
	}

	// Events may be the first call.
	server, c = connect(true)
	for _, err := range c.Events(t.Context(), nil) {
		require.NoError(t, err)
		break
	}
	require.Equal(t, 1, server.Sessions())

	// Other servers are told who it is.
	server, c = connect(false)
	require.True(t, testkit.Trusted(t, c))
	testkit.Upload(t, c, nil)
	for _, r := range server.Requests() {
		require.Contains(t, r.Header.Get("User-Agent"), "golxd/")
		require.Empty(t, r.Header.Get("Cookie"))
	}
}

// TestOIDCSessionsOfConcurrentCalls: none of the first calls is refused.
func TestOIDCSessionsOfConcurrentCalls(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.LXD69, TLS: true, BearerTokens: []string{"token"}, OIDCSessions: true})
	t.Cleanup(server.Close)
	c := testkit.NewClient(t, server.URL(), &lxd.Options{Token: "token", ServerCertificate: server.Certificate()})
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := c.Images.All(t.Context(), nil)
			errs <- err
		}()
	}
	for range 8 {
		require.NoError(t, <-errs)
	}
}
