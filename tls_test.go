package lxd_test

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestTLSVersions: 1.3 if the server supports it, and at least 1.2.
func TestTLSVersions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		server uint16 // the newest that the server speaks
		want   uint16 // 0: refused
	}{{tls.VersionTLS13, tls.VersionTLS13}, {tls.VersionTLS12, tls.VersionTLS12}, {tls.VersionTLS11, 0}} {
		var got uint16
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = r.TLS.Version
			_, _ = io.WriteString(w, `{"type":"sync","metadata":[]}`)
		}))
		server.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: c.server}
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		server.StartTLS()
		client := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw), RetryTimeout: -1})
		_, err := client.Aliases.All(t.Context())
		require.Equal(t, c.want, got)
		require.Equal(t, c.want == 0, err != nil, "%v", err)
		server.Close()
	}
}

// TestPins: a server that shows another certificate is not sent a request.
func TestPins(t *testing.T) {
	t.Parallel()
	server, other := lxdtest.NewServer(&lxdtest.Options{TLS: true}), lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(server.Close)
	t.Cleanup(other.Close)
	for name, opts := range map[string]*lxd.Options{
		"certificate": {ServerCertificate: other.Certificate()},
		"fingerprint": {ServerFingerprint: strings.Repeat("ab", 32)},
	} {
		c := testkit.NewClient(t, server.URL(), opts)
		_, err := c.Images.All(t.Context(), nil)
		testkit.ErrOf[*lxd.PinError](t, err)
		require.ErrorIs(t, err, lxd.ErrUnavailable, name)
		for _, err := range c.Events(t.Context(), nil) {
			testkit.ErrOf[*lxd.PinError](t, err)
		}
	}
	_, err := testkit.NewClient(t, server.URL(), nil).Images.All(t.Context(), nil)
	var unknown *tls.CertificateVerificationError
	require.ErrorAs(t, err, &unknown)
	require.Empty(t, server.Requests())
}

// TestPinInUpperCase: the case of the digits does not matter.
func TestPinInUpperCase(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(server.Close)
	block, _ := pem.Decode(server.Certificate())
	client := testkit.NewClient(t, server.URL(), &lxd.Options{ServerFingerprint: strings.ToUpper(fingerprintOf(block.Bytes))})
	_, err := client.Server(t.Context())
	require.NoError(t, err)
}

// TestPathsInPlaceOfPEM: the options are the content of the files.
func TestPathsInPlaceOfPEM(t *testing.T) {
	t.Parallel()
	cert, key := testkit.NewKeyPair(t, nil)
	for field, opts := range map[string]*lxd.Options{
		"Options.ClientCertificate": {ClientCertificate: []byte("/root/client.crt"), ClientKey: key},
		"Options.ClientKey":         {ClientCertificate: cert, ClientKey: []byte("client.key\n")},
		"Options.ServerCertificate": {ServerCertificate: []byte(`C:\Users\x\server`)},
	} {
		_, err := lxd.New("https://10.0.0.7:8443", opts)
		require.ErrorIs(t, err, lxd.ErrInvalid)
		refused := testkit.ErrOf[*lxd.InputError](t, err)
		require.Equal(t, field, refused.Field)
		require.Equal(t, "is a path; give the file's content", refused.Problem)
	}
	_, err := lxd.New("https://10.0.0.7:8443", &lxd.Options{ServerCertificate: []byte("nonsense")})
	require.ErrorContains(t, err, "is not a PEM certificate")
}
