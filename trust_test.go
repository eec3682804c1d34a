package lxd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"math/big"
	"net"
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

// changeToken rewrites a token's content.
func changeToken(t *testing.T, token string, change func(map[string]any)) string {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(token)
	require.NoError(t, err)
	var content map[string]any
	require.NoError(t, json.Unmarshal(data, &content))
	change(content)
	data, err = json.Marshal(content)
	require.NoError(t, err)
	return base64.StdEncoding.EncodeToString(data)
}

func TestJoinTrustsTheServerOfTheToken(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		t.Run(dialect.String(), func(t *testing.T) {
			t.Parallel()
			server := lxdtest.NewServer(&lxdtest.Options{Dialect: dialect, TLS: true})
			t.Cleanup(server.Close)
			token := server.NewTrustToken("builder")
			// An address of a network that this client is not in, and line
			// ends from a mail.
			dead, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			token = changeToken(t, token, func(c map[string]any) {
				c["addresses"] = append([]any{dead.Addr().String()}, c["addresses"].([]any)...)
			})
			require.NoError(t, dead.Close())
			opts := testkit.Joiner(t)
			client, err := lxd.Join(t.Context(), token[:20]+"\n  "+token[20:]+"\n", opts)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, client.Close()) })
			require.Equal(t, server.URL(), client.Endpoint())
			info, err := client.Server(t.Context())
			require.NoError(t, err)
			require.True(t, info.Trusted)
			testkit.Upload(t, client, nil)

			t.Run("its own token again", func(t *testing.T) {
				// The server trusts the certificate: the token is not needed.
				again, err := lxd.Join(t.Context(), token, opts)
				require.NoError(t, err)
				require.NoError(t, again.Close())
			})
			t.Run("a used token", func(t *testing.T) {
				_, err := lxd.Join(t.Context(), token, testkit.Joiner(t))
				refused := testkit.ErrOf[*lxd.TrustError](t, err)
				require.Equal(t, server.URL(), refused.Endpoint)
				require.ErrorIs(t, err, lxd.ErrForbidden)
				require.ErrorContains(t, err, "has been used")
				require.NotContains(t, err.Error(), token)
				require.NotContains(t, err.Error(), "set a client certificate", "it is set")
			})
		})
	}
}

func TestJoinRefusesAnotherServer(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	other := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer other.Close()
	token := changeToken(t, server.NewTrustToken("x"), func(c map[string]any) {
		c["addresses"] = []string{other.URL()[len("https://"):]}
	})
	_, err := lxd.Join(t.Context(), token, testkit.Joiner(t))
	testkit.ErrOf[*lxd.PinError](t, err)
	for _, r := range other.Requests() {
		require.NotContains(t, r.Path, "certificates")
	}

	// A client that trusts the other server does not send it the token either.
	opts := testkit.Joiner(t)
	opts.ServerCertificate = other.Certificate()
	client := testkit.NewClient(t, other.URL(), opts)
	pin := testkit.ErrOf[*lxd.PinError](t, client.Trust(t.Context(), token))
	parsed, err := lxd.ParseJoinToken(token)
	require.NoError(t, err)
	require.Equal(t, parsed.Fingerprint, pin.Want)
	require.NotEmpty(t, pin.Got)
	for _, r := range other.Requests() {
		require.NotContains(t, r.Path, "certificates")
	}

	// Nor is the token's server joined by a client that pins another one.
	opts.ServerCertificate, opts.ServerFingerprint = nil, pin.Got
	server.ForgetRequests()
	_, err = lxd.Join(t.Context(), server.NewTrustToken("y"), opts)
	refused := testkit.ErrOf[*lxd.PinError](t, err)
	require.Equal(t, lxd.PinError{Want: pin.Got, Got: parsed.Fingerprint}, *refused)
	require.Empty(t, server.Requests())
	opts.ServerFingerprint = strings.ToUpper(parsed.Fingerprint)
	joined, err := lxd.Join(t.Context(), server.NewTrustToken("z"), opts)
	require.NoError(t, err)
	require.NoError(t, joined.Close())
}

func TestTrustWithAnExpiredToken(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true, Dialect: lxdtest.Incus60})
	defer server.Close()
	server.Inject(lxdtest.Status(403, "No matching certificate add operation found").On("POST", "/1.0/certificates"))
	token := changeToken(t, server.NewTrustToken("x"), func(c map[string]any) {
		c["expires_at"] = "2020-01-02T03:04:05Z"
	})
	_, err := lxd.Join(t.Context(), token, testkit.Joiner(t))
	refused := testkit.ErrOf[*lxd.TrustError](t, err)
	require.Equal(t, 2020, refused.Expires.Year())
	require.ErrorContains(t, err, "expired at 2020-01-02")
	require.Equal(t, 403, testkit.ErrOf[*lxd.Error](t, err).StatusCode)
}

func TestTrustWithALostResponse(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	server.Inject(lxdtest.LoseResponse().On("POST", "/1.0/certificates").Times(1))
	client, err := lxd.Join(t.Context(), server.NewTrustToken("x"), testkit.Joiner(t))
	require.NoError(t, err)
	require.NoError(t, client.Close())
}

func TestTrustPassword(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true, TrustPassword: "right"})
	defer server.Close()
	opts := testkit.Joiner(t)
	opts.ServerCertificate = server.Certificate()
	client := testkit.NewClient(t, server.URL(), opts)
	trusted, err := client.Trusted(t.Context())
	require.NoError(t, err)
	require.False(t, trusted)

	err = client.TrustPassword(t.Context(), "wrong-one", nil)
	testkit.ErrOf[*lxd.TrustError](t, err)
	require.ErrorIs(t, err, lxd.ErrForbidden)
	require.ErrorContains(t, err, "does not accept the password")
	require.NotContains(t, err.Error(), "wrong-one")

	require.NoError(t, client.TrustPassword(t.Context(), "right", &lxd.TrustPasswordOptions{Name: "me"}))
	info, err := client.Server(t.Context())
	require.NoError(t, err)
	require.True(t, info.Trusted)
	require.NoError(t, client.TrustPassword(t.Context(), "whatever", nil), "it is trusted already")

	server.Distrust()
	trusted, err = client.Trusted(t.Context())
	require.NoError(t, err)
	require.False(t, trusted)

	incus := lxdtest.NewServer(&lxdtest.Options{TLS: true, Dialect: lxdtest.Incus60})
	defer incus.Close()
	opts.ServerCertificate = incus.Certificate()
	require.ErrorIs(t, testkit.NewClient(t, incus.URL(), opts).TrustPassword(t.Context(), "right", nil), lxd.ErrUnsupported)
}

func TestTrustRefusesBadInput(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	good := server.NewTrustToken("x")
	var secret string
	changeToken(t, good, func(c map[string]any) { secret = c["secret"].(string) })
	field := func(err error) string {
		t.Helper()
		require.ErrorIs(t, err, lxd.ErrInvalid)
		return testkit.ErrOf[*lxd.InputError](t, err).Field
	}
	for name, token := range map[string]string{
		"empty":       " \n",
		"no base64":   "not a token!",
		"cut":         good[:len(good)-6],
		"no secret":   changeToken(t, good, func(c map[string]any) { delete(c, "secret") }),
		"fingerprint": changeToken(t, good, func(c map[string]any) { c["fingerprint"] = "abc" }),
		"addresses":   changeToken(t, good, func(c map[string]any) { c["addresses"] = nil }),
		"type":        changeToken(t, good, func(c map[string]any) { c["secret"] = []any{c["secret"]} }),
	} {
		_, err := lxd.Join(t.Context(), token, testkit.Joiner(t))
		require.Equal(t, "token", field(err), name)
		require.NotContains(t, err.Error(), token, name)
		require.NotContains(t, err.Error(), secret, name)
	}
	_, err := lxd.Join(t.Context(), good, nil)
	require.Equal(t, "Options.ClientCertificate", field(err))
	require.Equal(t, "Options.ClientCertificate", field(testkit.NewClient(t, server.URL(), nil).Trust(t.Context(), good)))
	require.Equal(t, "endpoint", field(testkit.NewClient(t, server.Endpoint(), nil).Trust(t.Context(), good)))
	require.Equal(t, "password", field(testkit.NewClient(t, server.URL(), testkit.Joiner(t)).TrustPassword(t.Context(), "", nil)))
	_, _, err = lxd.NewKeyPair(&lxd.KeyPairOptions{Type: "RSA"})
	require.Equal(t, "KeyPairOptions.Type", field(err))
	_, _, err = lxd.NewKeyPair(&lxd.KeyPairOptions{Lifetime: -1})
	require.Equal(t, "KeyPairOptions.Lifetime", field(err))
}

// TestTrustPinsTheConnectionOfTheToken has a server, or what is before it, show
// the token's certificate on its first connection and another on the next.
func TestTrustPinsTheConnectionOfTheToken(t *testing.T) {
	t.Parallel()
	token := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(token.Close)
	right, other := serverPair(t), serverPair(t)
	text := changeToken(t, token.NewTrustToken("x"), func(c map[string]any) {
		c["fingerprint"] = fingerprintOf(right.Certificate[0])
	})
	var connections atomic.Int32
	var got atomic.Pointer[string]
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // the next request needs another connection
		if r.Method == http.MethodPost {
			body, _ := io.ReadAll(r.Body)
			got.Store(new(string(body)))
		}
		_, _ = io.WriteString(w, `{"type":"sync","metadata":{"auth":"untrusted","api_extensions":["explicit_trust_token"]}}`)
	}))
	server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		shown := other
		if connections.Add(1) == 1 {
			shown = right
		}
		return &tls.Config{Certificates: []tls.Certificate{shown}, MinVersion: tls.VersionTLS12}, nil
	}}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	opts := testkit.Joiner(t)
	opts.RootCAs = x509.NewCertPool()
	opts.RootCAs.AddCert(right.Leaf)
	opts.RootCAs.AddCert(other.Leaf)
	err := testkit.NewClient(t, server.URL, opts).Trust(t.Context(), text)
	require.Nil(t, got.Load(), "the token was sent to another server")
	pin := testkit.ErrOf[*lxd.PinError](t, err)
	require.Equal(t, fingerprintOf(right.Certificate[0]), pin.Want)
	require.Equal(t, fingerprintOf(other.Certificate[0]), pin.Got)
	require.EqualValues(t, 2, connections.Load())
}

// serverPair is a certificate for 127.0.0.1 that is its own authority.
func serverPair(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: rand.Text()}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestTrustSharesTheClientsLife: the connection that carries the token goes the
// client's way, and is left to nobody.
func TestTrustSharesTheClientsLife(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(server.Close)
	opts := testkit.Joiner(t)
	opts.ServerCertificate = server.Certificate()
	var dialed, wrapped atomic.Int32
	opts.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialed.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	opts.Transport = func(next http.RoundTripper) http.RoundTripper {
		wrapped.Add(1)
		return next
	}
	client := testkit.NewClient(t, server.URL(), opts)
	require.NoError(t, client.Trust(t.Context(), server.NewTrustToken("x")))
	require.EqualValues(t, 2, dialed.Load())
	require.EqualValues(t, 2, wrapped.Load())
	require.Eventually(t, func() bool { return server.Open() == 1 }, 30*time.Second, time.Millisecond)

	other := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(other.Close)
	stalled := other.Inject(lxdtest.StallHeaders().On("POST", "/1.0/certificates"))
	opts = testkit.Joiner(t)
	opts.ServerCertificate = other.Certificate()
	client = testkit.NewClient(t, other.URL(), opts)
	ended := make(chan error, 1)
	go func() { ended <- client.Trust(t.Context(), other.NewTrustToken("x")) }()
	require.Eventually(t, func() bool { return stalled.Fired() == 1 }, 30*time.Second, time.Millisecond)
	require.NoError(t, client.Close())
	require.ErrorIs(t, <-ended, lxd.ErrUnavailable)
}

// TestJoinSendsTheTokenAsTheServerWantsIt looks at the one field that carries
// the token, and at what the server told before.
func TestJoinSendsTheTokenAsTheServerWantsIt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		opts     lxdtest.Options
		stranger lxd.Family // that a client is told before it is trusted
		field    string
	}{
		"LXD 5.0.2":   {lxdtest.Options{Dialect: lxdtest.LXD50}, lxd.LXD, "password"},
		"LXD 6.9":     {lxdtest.Options{Dialect: lxdtest.LXD69}, lxd.LXD, "trust_token"},
		"Incus 6.0.4": {lxdtest.Options{Dialect: lxdtest.Incus60}, lxd.Incus, "trust_token"},
		"Incus 0.1":   {lxdtest.Options{Dialect: lxdtest.Incus60, WithoutExtensions: []string{"instances_lxcfs_per_instance"}}, lxd.Incus, "trust_token"},
		"Incus 7.0.2": {lxdtest.Options{Dialect: lxdtest.Incus70}, "", "trust_token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.opts.TLS = true
			server := lxdtest.NewServer(&test.opts)
			t.Cleanup(server.Close)
			opts := testkit.Joiner(t)
			opts.ServerCertificate = server.Certificate()
			stranger := testkit.NewClient(t, server.URL(), opts)
			info, err := stranger.Server(t.Context())
			require.NoError(t, err)
			require.Equal(t, test.stranger, info.Family)
			require.False(t, info.Trusted)
			require.Equal(t, test.stranger == "", info.Extensions == nil)

			if test.stranger != lxd.LXD {
				require.ErrorIs(t, stranger.TrustPassword(t.Context(), "password", nil), lxd.ErrUnsupported)
				for _, r := range server.Requests() {
					require.NotEqual(t, "/1.0/certificates", r.Path, "the password is not sent")
				}
			}

			client, err := lxd.Join(t.Context(), server.NewTrustToken("x"), opts)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, client.Close()) })
			for _, r := range server.Requests() {
				if r.Path == "/1.0/certificates" {
					var body map[string]any
					require.NoError(t, json.Unmarshal(r.Text(), &body))
					require.Contains(t, body, test.field)
					require.Len(t, body, 2, "the type, and the token once")
				}
			}
			for _, c := range []*lxd.Client{client, stranger} {
				info, err := c.Server(t.Context())
				require.NoError(t, err)
				require.Equal(t, test.opts.Dialect.Family(), string(info.Family))
				require.NotEmpty(t, info.Extensions)
			}
			testkit.Upload(t, client, &lxd.CreateOptions{Properties: map[string]string{"a": "b"}})
		})
	}
}

// TestJoinWithTheTokenOfAnIdentity joins with what "lxc auth identity create
// tls/x" prints, which LXD 6.9 accepts at an endpoint of its own.
func TestJoinWithTheTokenOfAnIdentity(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.LXD69, TLS: true})
	t.Cleanup(server.Close)
	token := server.NewIdentityToken("x")
	client, err := lxd.Join(t.Context(), token, testkit.Joiner(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	require.True(t, testkit.Trusted(t, client))
	for _, r := range server.Requests() {
		if r.Method == http.MethodPost {
			require.Equal(t, "/1.0/auth/identities/tls", r.Path)
			require.JSONEq(t, `{"trust_token":"`+token+`"}`, string(r.Text()))
		}
	}

	_, err = lxd.Join(t.Context(), token, testkit.Joiner(t))
	testkit.ErrOf[*lxd.TrustError](t, err)
	require.ErrorContains(t, err, "has been used")
	require.NotContains(t, err.Error(), token)
}

// TestTrustPasswordWhereThereAreNone sends it to an LXD that refuses all.
func TestTrustPasswordWhereThereAreNone(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.LXD69, TLS: true})
	t.Cleanup(server.Close)
	opts := testkit.Joiner(t)
	opts.ServerCertificate = server.Certificate()
	err := testkit.NewClient(t, server.URL(), opts).TrustPassword(t.Context(), "right", nil)
	require.ErrorIs(t, err, lxd.ErrUnsupported)
	require.ErrorContains(t, err, "ask for a token and call Trust")
	require.Equal(t, 501, testkit.ErrOf[*lxd.Error](t, err).StatusCode)
}

// TestTrustWithATokenThatTheServerCallsExpired has a token without an expiry, and
// the response of LXD 5.0.2, Incus 6.0.4 and Incus 7.0.2.
func TestTrustWithATokenThatTheServerCallsExpired(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.Incus60, lxdtest.Incus70} {
		server := lxdtest.NewServer(&lxdtest.Options{TLS: true, Dialect: dialect})
		t.Cleanup(server.Close)
		server.Inject(lxdtest.Status(500, "Failed during search for certificate add token operation: Token has expired").On("POST", "/1.0/certificates"))
		_, err := lxd.Join(t.Context(), server.NewTrustToken("x"), testkit.Joiner(t))
		testkit.ErrOf[*lxd.TrustError](t, err)
		require.ErrorIs(t, err, lxd.ErrForbidden)
		require.ErrorContains(t, err, "the token has expired; ask for a new one")
		require.Equal(t, 500, testkit.ErrOf[*lxd.Error](t, err).StatusCode)
	}
}
