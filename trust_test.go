package lxd_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// newKeyPair is lxd.NewKeyPair.
func newKeyPair(t *testing.T, opts *lxd.KeyPairOptions) (cert, key []byte) {
	t.Helper()
	cert, key, err := lxd.NewKeyPair(opts)
	require.NoError(t, err)
	return cert, key
}

// joiner is the options of a client that no server knows yet.
func joiner(t *testing.T) *lxd.Options {
	t.Helper()
	cert, key := newKeyPair(t, nil)
	return &lxd.Options{ClientCertificate: cert, ClientKey: key}
}

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
			opts := joiner(t)
			client, err := lxd.Join(t.Context(), token[:20]+"\n  "+token[20:]+"\n", opts)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, client.Close()) })
			require.Equal(t, server.URL(), client.Endpoint())
			info, err := client.Server(t.Context())
			require.NoError(t, err)
			require.True(t, info.Trusted)
			upload(t, client, nil)

			t.Run("an own token again", func(t *testing.T) {
				// The server trusts the certificate: the token is not needed.
				again, err := lxd.Join(t.Context(), token, opts)
				require.NoError(t, err)
				require.NoError(t, again.Close())
			})
			t.Run("a used token", func(t *testing.T) {
				_, err := lxd.Join(t.Context(), token, joiner(t))
				refused := errOf[*lxd.TrustError](t, err)
				require.Equal(t, server.URL(), refused.Endpoint)
				require.ErrorIs(t, err, lxd.ErrForbidden)
				require.ErrorContains(t, err, "used before")
				require.NotContains(t, err.Error(), token)
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
	_, err := lxd.Join(t.Context(), token, joiner(t))
	errOf[*lxd.PinError](t, err)
	for _, r := range other.Requests() {
		require.NotContains(t, r.Path, "certificates")
	}

	// A client that was told to trust the other one keeps the token, too.
	opts := joiner(t)
	opts.ServerCertificate = other.Certificate()
	client := newClient(t, other.URL(), opts)
	pin := errOf[*lxd.PinError](t, client.Trust(t.Context(), token))
	parsed, err := lxd.ParseJoinToken(token)
	require.NoError(t, err)
	require.Equal(t, parsed.Fingerprint, pin.Want)
	require.NotEmpty(t, pin.Got)
	for _, r := range other.Requests() {
		require.NotContains(t, r.Path, "certificates")
	}

	opts.ServerCertificate, opts.ServerFingerprint = nil, pin.Got
	_, err = lxd.Join(t.Context(), token, opts)
	errOf[*lxd.PinError](t, err)
}

func TestTrustTellsAnExpiredToken(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true, Dialect: lxdtest.Incus60})
	defer server.Close()
	server.Inject(lxdtest.Status(403, "No matching certificate add operation found").On("POST", "/1.0/certificates"))
	token := changeToken(t, server.NewTrustToken("x"), func(c map[string]any) {
		c["expires_at"] = "2020-01-02T03:04:05Z"
	})
	_, err := lxd.Join(t.Context(), token, joiner(t))
	refused := errOf[*lxd.TrustError](t, err)
	require.Equal(t, 2020, refused.Expires.Year())
	require.ErrorContains(t, err, "expired at 2020-01-02")
	require.Equal(t, 403, errOf[*lxd.Error](t, err).StatusCode)
}

func TestTrustWithALostAnswer(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	server.Inject(lxdtest.LoseAnswer().On("POST", "/1.0/certificates").Times(1))
	client, err := lxd.Join(t.Context(), server.NewTrustToken("x"), joiner(t))
	require.NoError(t, err)
	require.NoError(t, client.Close())
}

func TestTrustPassword(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true, TrustPassword: "right"})
	defer server.Close()
	opts := joiner(t)
	opts.ServerCertificate = server.Certificate()
	client := newClient(t, server.URL(), opts)
	trusted, err := client.Trusted(t.Context())
	require.NoError(t, err)
	require.False(t, trusted)

	err = client.TrustPassword(t.Context(), "wrong-one", nil)
	errOf[*lxd.TrustError](t, err)
	require.ErrorIs(t, err, lxd.ErrForbidden)
	require.ErrorContains(t, err, "does not take the password")
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
	require.ErrorIs(t, newClient(t, incus.URL(), opts).TrustPassword(t.Context(), "right", nil), lxd.ErrUnsupported)
}

func TestTrustRefusesBadInput(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	good := server.NewTrustToken("x")
	field := func(err error) string {
		t.Helper()
		require.ErrorIs(t, err, lxd.ErrInvalid)
		return errOf[*lxd.InputError](t, err).Field
	}
	for name, token := range map[string]string{
		"empty":       " \n",
		"no base64":   "not a token!",
		"cut":         good[:len(good)-6],
		"no secret":   changeToken(t, good, func(c map[string]any) { delete(c, "secret") }),
		"fingerprint": changeToken(t, good, func(c map[string]any) { c["fingerprint"] = "abc" }),
		"addresses":   changeToken(t, good, func(c map[string]any) { c["addresses"] = nil }),
	} {
		_, err := lxd.Join(t.Context(), token, joiner(t))
		require.Equal(t, "token", field(err), name)
		require.NotContains(t, err.Error(), token, name)
	}
	_, err := lxd.Join(t.Context(), good, nil)
	require.Equal(t, "Options.ClientCertificate", field(err))
	require.Equal(t, "Options.ClientCertificate", field(newClient(t, server.URL(), nil).Trust(t.Context(), good)))
	require.Equal(t, "endpoint", field(newClient(t, server.Endpoint(), nil).Trust(t.Context(), good)))
	require.Equal(t, "password", field(newClient(t, server.URL(), joiner(t)).TrustPassword(t.Context(), "", nil)))
	_, _, err = lxd.NewKeyPair(&lxd.KeyPairOptions{Type: "RSA"})
	require.Equal(t, "KeyPairOptions.Type", field(err))
	_, _, err = lxd.NewKeyPair(&lxd.KeyPairOptions{Lifetime: -1})
	require.Equal(t, "KeyPairOptions.Lifetime", field(err))
}

func TestNewKeyPair(t *testing.T) {
	t.Parallel()
	for kind, bits := range map[lxd.KeyType]int{"": 256, lxd.P256: 256, lxd.P384: 384, lxd.Ed25519: 0} {
		cert, key := newKeyPair(t, &lxd.KeyPairOptions{Type: kind, Name: "me@here", Lifetime: time.Hour})
		pair, err := tls.X509KeyPair(cert, key)
		require.NoError(t, err)
		require.Equal(t, "me@here", pair.Leaf.Subject.CommonName)
		require.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, pair.Leaf.ExtKeyUsage)
		require.WithinDuration(t, time.Now().Add(time.Hour), pair.Leaf.NotAfter, time.Minute)
		if bits == 0 {
			require.IsType(t, ed25519.PublicKey{}, pair.Leaf.PublicKey)
		} else {
			require.Equal(t, bits, pair.Leaf.PublicKey.(*ecdsa.PublicKey).Params().BitSize)
		}
	}
	cert, key := newKeyPair(t, nil)
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	require.Contains(t, pair.Leaf.Subject.CommonName, "@")
	require.Greater(t, time.Until(pair.Leaf.NotAfter), 9*365*24*time.Hour)
}
