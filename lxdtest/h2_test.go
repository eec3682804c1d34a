package lxdtest

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFaultsOverHTTP2 checks that faults work over HTTP/2 too, which the daemons
// support on https, and where one connection carries all requests.
func TestFaultsOverHTTP2(t *testing.T) {
	s := newTestServer(t, &Options{TLS: true})
	c := newTLSClient(t, s, true)
	c.http.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	file := UnifiedImage("x", 200_000)
	fingerprint, err := s.AddImage(file, nil)
	require.NoError(t, err)
	path := "/1.0/images/" + fingerprint + "/export"
	for _, fault := range []Fault{CutResponse(100_000), Reset(), LoseResponse()} {
		handle := s.Inject(fault.On("GET", "/1.0/images/*/export"))
		_, body, err := c.get(path)
		require.Error(t, err, fault)
		require.Less(t, len(body), len(file))
		require.GreaterOrEqual(t, handle.Fired(), 1)
		handle.Remove()
		res, body, err := c.get(path)
		require.NoError(t, err)
		require.Equal(t, 2, res.ProtoMajor)
		require.Equal(t, fingerprint, Fingerprint(body))
	}
	c.wait(c.do("POST", "/1.0/images", UnifiedImage("y", 500_000)))
	require.Len(t, s.Images(), 2)
}
