package lxd_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

func TestNewKeyPair(t *testing.T) {
	t.Parallel()
	for kind, bits := range map[lxd.KeyType]int{"": 256, lxd.P256: 256, lxd.P384: 384, lxd.Ed25519: 0} {
		cert, key := testkit.NewKeyPair(t, &lxd.KeyPairOptions{Type: kind, Name: "me@here", Lifetime: time.Hour})
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
	cert, key := testkit.NewKeyPair(t, nil)
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	require.Contains(t, pair.Leaf.Subject.CommonName, "@")
	require.Greater(t, time.Until(pair.Leaf.NotAfter), 9*365*24*time.Hour)
}

// TestNewKeyPairForgivesClocks: the servers refuse a certificate that is not
// valid yet by their clock.
func TestNewKeyPairForgivesClocks(t *testing.T) {
	t.Parallel()
	before := time.Now()
	cert, key := testkit.NewKeyPair(t, &lxd.KeyPairOptions{Lifetime: time.Hour})
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	require.WithinDuration(t, before.Add(-time.Minute), pair.Leaf.NotBefore, 2*time.Second)
	require.WithinDuration(t, before.Add(time.Hour), pair.Leaf.NotAfter, 2*time.Second)
}
