package lxd_test

import (
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
