package fleet_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// host is a server of a fleet.
type host struct {
	*lxdtest.Server
	client *lxd.Client
}

// startHosts starts n servers whose links transfer so many bytes a second.
func startHosts(t testing.TB, n int, rate int64) []*host {
	t.Helper()
	hosts := make([]*host, n)
	var wg sync.WaitGroup
	for i := range hosts {
		wg.Go(func() {
			server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
			if rate > 0 {
				server.Inject(lxdtest.RateLimit(rate))
			}
			hosts[i] = &host{Server: server}
		})
	}
	wg.Wait()
	for _, h := range hosts {
		t.Cleanup(h.Close)
		cert, key := h.ClientCertificate()
		client, err := lxd.New(h.URL(), &lxd.Options{ClientCertificate: cert, ClientKey: key, ServerCertificate: h.Certificate()})
		require.NoError(t, err)
		t.Cleanup(func() { _ = client.Close() })
		h.client = client
	}
	return hosts
}

// addImage adds an image of about this size to the first of the hosts.
func addImage(t testing.TB, hosts []*host, size int64) *lxd.Image {
	t.Helper()
	fingerprint, err := hosts[0].AddImage(lxdtest.UnifiedImage(t.Name(), size), nil)
	require.NoError(t, err)
	image, err := hosts[0].client.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	return image
}

func clients(hosts []*host) []*lxd.Client {
	list := make([]*lxd.Client, len(hosts))
	for n, h := range hosts {
		list[n] = h.client
	}
	return list
}

// TestHundred brings an image to a hundred servers.
func TestHundred(t *testing.T) {
	const size = 1 << 20
	hosts := startHosts(t, 101, 16*size)
	image := addImage(t, hosts, size)
	sent := map[*lxd.Client]int{}
	for delivery, err := range image.Distribute(t.Context(), clients(hosts[1:]), nil) {
		require.NoError(t, err)
		require.Equal(t, lxd.CopyPull, delivery.Mode)
		require.Equal(t, image.Fingerprint, delivery.Image.Fingerprint)
		sent[delivery.Source]++
	}
	total, most := 0, 0
	for _, n := range sent {
		total, most = total+n, max(most, n)
	}
	require.Equal(t, 100, total)
	require.LessOrEqual(t, most, 14, "about log2(101) transfers of each server")
	for _, h := range hosts {
		require.Empty(t, h.Tokens())
	}
	t.Logf("servers that have sent: %d; the most transfers of one: %d", len(sent), most)
}
