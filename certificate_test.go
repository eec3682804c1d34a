package lxd_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestFetchCertificate: what the server shows is what a client can be pinned to.
func TestFetchCertificate(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			endpoint := s.TLSClient(t).Endpoint()
			found, err := lxd.FetchCertificate(t.Context(), endpoint, nil)
			require.NoError(t, err)
			for _, opts := range []*lxd.Options{{ServerCertificate: found.PEM}, {ServerFingerprint: found.Fingerprint}} {
				_, err = testkit.NewClient(t, endpoint, opts).Server(t.Context())
				require.NoError(t, err)
			}
			require.NotEmpty(t, found.Subject)
			again, err := lxd.FetchCertificate(t.Context(), "https://127.0.0.1:1,"+endpoint, nil)
			require.NoError(t, err)
			require.Equal(t, found.Fingerprint, again.Fingerprint)
		})
	}
}

// TestFetchCertificateFails: nothing to connect to, no https, no TLS, and a server that
// says nothing.
func TestFetchCertificateFails(t *testing.T) {
	t.Parallel()
	_, err := lxd.FetchCertificate(t.Context(), "https://127.0.0.1:1", nil)
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	for _, endpoint := range []string{"", "/tmp/none.socket", "ftp://host"} {
		_, err := lxd.FetchCertificate(t.Context(), endpoint, nil)
		require.ErrorIs(t, err, lxd.ErrInvalid, endpoint)
	}
	_, err = lxd.FetchCertificate(nil, "https://127.0.0.1:1", nil) //nolint:staticcheck // A nil context is the test.
	require.ErrorIs(t, err, lxd.ErrInvalid)

	f := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	_, err = lxd.FetchCertificate(t.Context(), f.URL(), nil)
	require.NoError(t, err)
	require.Empty(t, f.Requests())

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, silent.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err = lxd.FetchCertificate(ctx, "https://"+silent.Addr().String(), nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), patience)
}
