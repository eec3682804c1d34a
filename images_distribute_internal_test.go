package lxd

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestServerKey(t *testing.T) {
	t.Parallel()
	a, b := &Client{t: &transport{endpoint: "https://a"}}, &Client{t: &transport{endpoint: "https://b"}}
	one := Server{CertificateFingerprint: "1", Name: "one", Addresses: []string{"10.0.0.1:8443"}}
	clone, member, other := one, one, one
	clone.Addresses = []string{"10.0.0.2:8443"}
	member.Clustered, other.Clustered = true, true
	other.Name, other.Addresses = "two", clone.Addresses
	for name, test := range map[string]struct {
		first, second *Server
		same          bool
	}{
		"two ways to a server":   {&one, &one, true},
		"hosts that were cloned": {&one, &clone, false},
		"members of a cluster":   {&member, &other, true},
		"servers without trust":  {&Server{}, &Server{}, false},
	} {
		require.Equal(t, test.same, serverKey(a, test.first) == serverKey(b, test.second), name)
	}
}
