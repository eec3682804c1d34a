package lxdtest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// newTLSClient returns a client of the https port, with or without a trusted
// certificate.
func newTLSClient(t *testing.T, s *Server, trusted bool) *client {
	t.Helper()
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(s.Certificate()))
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if trusted {
		pair, err := tls.X509KeyPair(s.ClientCertificate())
		require.NoError(t, err)
		config.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: config}
	if s.opts.InMemory {
		transport.DialContext = s.DialContext
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &client{t, &http.Client{Transport: transport}, s.URL()}
}

func TestTrust(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, TLS: true})
		public, private := add(t, s, "public", &AddOptions{Public: true, Aliases: []string{"p"}}), add(t, s, "private", &AddOptions{Aliases: []string{"q"}})
		c := newTLSClient(t, s, false)

		require.Equal(t, "untrusted", c.do("GET", "/1.0", nil).field("auth"))
		require.Nil(t, c.do("GET", "/1.0", nil).field("environment"))
		var list []string
		require.NoError(t, json.Unmarshal(c.do("GET", "/1.0/images", nil).Metadata, &list))
		require.Equal(t, []string{"/1.0/images/" + public}, list)
		require.Equal(t, 200, c.do("GET", "/1.0/images/"+public, nil).HTTP)
		require.Equal(t, 404, c.do("GET", "/1.0/images/"+private, nil).HTTP)
		require.Equal(t, 200, c.do("GET", "/1.0/images/aliases/p", nil).HTTP)
		require.Equal(t, 404, c.do("GET", "/1.0/images/aliases/q", nil).HTTP)
		require.Equal(t, 403, c.do("GET", "/1.0/images", nil, d.traits().uploadHeader+"authenticated", "true").HTTP)
		for _, path := range []string{"/1.0/operations", "/1.0/projects", "/1.0/images/aliases", "/1.0/certificates", "/1.0/events"} {
			require.Equal(t, 403, c.do("GET", path, nil).HTTP, path)
		}
		require.Equal(t, 403, c.do("DELETE", "/1.0/images/"+public, nil).HTTP)
		require.Equal(t, 403, c.do("POST", "/1.0/images", UnifiedImage("x", 0)).HTTP)

		c = newTLSClient(t, s, true)
		require.Equal(t, "trusted", c.do("GET", "/1.0", nil).field("auth"))
		require.Equal(t, d.Family(), c.do("GET", "/1.0", nil).field("environment").(map[string]any)["server"])
		require.Equal(t, 200, c.do("GET", "/1.0/images/"+private, nil).HTTP)
		s.Distrust()
		require.Equal(t, "untrusted", c.do("GET", "/1.0", nil).field("auth"))
	})
}

func TestSecrets(t *testing.T) {
	s := newTestServer(t, &Options{TLS: true, ForgetAfter: -1})
	fingerprint, other := add(t, s, "x", nil), add(t, s, "y", nil)
	token := newClient(t, s).do("POST", "/1.0/images/"+fingerprint+"/secret", nil)
	secret := token.field("metadata").(map[string]any)["secret"].(string)
	c := newTLSClient(t, s, false)
	require.Equal(t, 404, c.do("GET", "/1.0/images/"+fingerprint+"?secret=bad", nil).HTTP)
	require.Equal(t, 404, c.do("GET", "/1.0/images/"+other+"?secret="+secret, nil).HTTP)
	require.Len(t, s.Tokens(), 1)
	require.Equal(t, 200, c.do("GET", "/1.0/images/"+fingerprint+"?secret="+secret, nil).HTTP)
	require.Empty(t, s.Tokens())
	// The used token was forgotten at once.
	require.Equal(t, 404, c.do("GET", "/1.0/images/"+fingerprint+"?secret="+secret, nil).HTTP)
}

func TestBearerTokens(t *testing.T) {
	for d, want := range map[Dialect]int{LXD40: 403, LXD50: 403, LXD69: 200, Incus60: 403, Incus70: 403} {
		s := newTestServer(t, &Options{Dialect: d, TLS: true, BearerTokens: []string{"key"}})
		c := newTLSClient(t, s, false)
		require.Equal(t, want, c.do("GET", "/1.0/operations", nil, "Authorization", "Bearer key").HTTP)
		require.Equal(t, 403, c.do("GET", "/1.0/operations", nil, "Authorization", "Bearer other").HTTP)
		require.Equal(t, 200, c.do("GET", "/1.0", nil, "Authorization", "Bearer key").HTTP)
	}
}

func TestExtensions(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true, WithoutExtensions: []string{"images_push_relay"}, WithExtensions: []string{"images_all_projects"}})
	c := newClient(t, s)
	s.AddProject("p", true)
	c.wait(c.do("POST", "/1.0/images?project=p", UnifiedImage("x", 0)))
	extensions := c.do("GET", "/1.0", nil).field("api_extensions").([]any)
	require.NotContains(t, extensions, "images_push_relay")
	require.Contains(t, extensions, "images_all_projects")
	var list []string
	require.NoError(t, json.Unmarshal(c.do("GET", "/1.0/images?all-projects=true", nil).Metadata, &list))
	require.Len(t, list, 1)
	push := map[string]any{"source": map[string]string{"type": "image", "mode": "push", "fingerprint": "x"}, "properties": map[string]string{}}
	require.Contains(t, c.failure(c.do("POST", "/1.0/images", push)), "unsupported protocol scheme")
	requests := slices.DeleteFunc(s.Requests(), func(r *Request) bool { return r.Method != "POST" })
	require.JSONEq(t, `{"source": {"type": "image", "mode": "push", "fingerprint": "x"}, "properties": {}}`, string(requests[len(requests)-1].Text()))
}

func TestJoin(t *testing.T) {
	join := func(s *Server, body map[string]any) (*apiResponse, *apiResponse) {
		pair, err := newKeyPair("joiner")
		require.NoError(t, err)
		c := newTLSClient(t, s, false)
		transport := c.http.Transport.(*http.Transport)
		transport.TLSClientConfig.Certificates = []tls.Certificate{pair.tls}
		return c.do("POST", "/1.0/certificates", body), c.do("GET", "/1.0", nil)
	}
	s := newTestServer(t, &Options{TLS: true, TrustPassword: "open"})
	got, info := join(s, map[string]any{"type": "client", "password": "wrong"})
	require.Equal(t, 403, got.HTTP)
	require.Equal(t, "untrusted", info.field("auth"))
	got, info = join(s, map[string]any{"type": "client", "password": "open"})
	require.Equal(t, 201, got.HTTP, got.Error)
	require.Equal(t, "trusted", info.field("auth"))

	for d, field := range map[Dialect]string{LXD50: "password", LXD69: "trust_token", Incus60: "trust_token", Incus70: "trust_token"} {
		s := newTestServer(t, &Options{Dialect: d, TLS: true, TrustPassword: "open"})
		token := s.NewTrustToken("me")
		got, info := join(s, map[string]any{"type": "client", field: token})
		require.Equal(t, 201, got.HTTP, got.Error)
		require.Equal(t, "trusted", info.field("auth"))
		got, _ = join(s, map[string]any{"type": "client", field: token})
		require.Equal(t, 403, got.HTTP, "a token can be used only once")
		if want := map[Dialect]int{LXD69: 501, Incus60: 403, Incus70: 403}[d]; want != 0 {
			got, _ = join(s, map[string]any{"type": "client", "password": "open"})
			require.Equal(t, want, got.HTTP, "passwords are not accepted")
		}
	}
}
