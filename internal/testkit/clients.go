package testkit

import (
	"context"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// NewClient returns a client that is closed after the test.
func NewClient(t *testing.T, endpoint string, opts *lxd.Options) *lxd.Client {
	t.Helper()
	client, err := lxd.New(endpoint, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

// Fake is a server of lxdtest and a client for it over its unix socket.
type Fake struct {
	*lxdtest.Server
	Client *lxd.Client
}

// StartFake is StartFakeWith without options.
func StartFake(t *testing.T) *Fake {
	t.Helper()
	return StartFakeWith(t, nil, nil)
}

// StartFakeWith starts a server of lxdtest, which is closed after the test. The client of
// a server in memory uses its DialContext.
func StartFakeWith(t *testing.T, server *lxdtest.Options, client *lxd.Options) *Fake {
	t.Helper()
	s := lxdtest.NewServer(server)
	t.Cleanup(s.Close)
	if server != nil && server.InMemory {
		o := lxd.Options{}
		if client != nil {
			o = *client
		}
		o.Dial = s.DialContext
		client = &o
	}
	return &Fake{Server: s, Client: NewClient(t, s.Endpoint(), client)}
}

// StartFleet starts servers in memory that reach each other, for copies in a
// testing/synctest bubble. All of their clients have the same options.
func StartFleet(t *testing.T, client *lxd.Options, servers ...lxdtest.Options) []*Fake {
	t.Helper()
	var fleet []*Fake
	for _, o := range servers {
		o.TLS, o.InMemory = true, true
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			for _, f := range fleet {
				if f.URL() == "https://"+address {
					return f.DialContext(ctx, network, address)
				}
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
		fleet = append(fleet, StartFakeWith(t, &o, client))
	}
	return fleet
}

// NewKeyPair is lxd.NewKeyPair without an error.
func NewKeyPair(t *testing.T, opts *lxd.KeyPairOptions) (cert, key []byte) {
	t.Helper()
	cert, key, err := lxd.NewKeyPair(opts)
	require.NoError(t, err)
	return cert, key
}

// Joiner returns the options of a client that no server trusts yet.
func Joiner(t *testing.T) *lxd.Options {
	t.Helper()
	cert, key := NewKeyPair(t, nil)
	return &lxd.Options{ClientCertificate: cert, ClientKey: key}
}

// Trusted says whether the server trusts the client.
func Trusted(t *testing.T, client *lxd.Client) bool {
	t.Helper()
	trusted, err := client.Trusted(t.Context())
	require.NoError(t, err)
	return trusted
}

// RemoteNames are the names of remotes, in their order.
func RemoteNames(remotes []lxd.RemoteInfo) []string {
	names := make([]string, len(remotes))
	for n, r := range remotes {
		names[n] = r.Name
	}
	return names
}
