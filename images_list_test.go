package lxd_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

// TestEachIsNotSentAgain: what was yielded cannot be taken back.
func TestEachIsNotSentAgain(t *testing.T) {
	t.Parallel()
	for _, images := range []int{0, 1} {
		var requests atomic.Int64
		c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{RetryTimeout: shortRetries, Transport: func(http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				requests.Add(1)
				cut := io.MultiReader(strings.NewReader(`{"type":"sync","metadata":[`+strings.Repeat(element["Images.Each"]+",", images)), iotest.ErrReader(io.ErrUnexpectedEOF))
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(cut), Request: req}, nil
			})
		}})
		n, err := lists["Images.Each"](t.Context(), c)
		require.Equal(t, images, n)
		require.ErrorIs(t, err, lxd.ErrUnavailable)
		if images == 0 {
			require.Greater(t, requests.Load(), int64(1))
		} else {
			require.EqualValues(t, 1, requests.Load())
		}
	}
}

// TestListsTellTrust: only the public images are never taken for all of them.
func TestListsTellTrust(t *testing.T) {
	t.Parallel()
	public := `{"type":"sync","metadata":[{"fingerprint":"` + oneFingerprint + `","public":true}]}`
	private := `{"type":"sync","metadata":[{"fingerprint":"` + oneFingerprint + `"}]}`
	for name, test := range map[string]struct {
		list, auth string
		publicOnly bool
		forbidden  bool
	}{
		"public images of one that does not trust":   {public, "untrusted", false, true},
		"none of one that does not trust":            {`{"type":"sync","metadata":[]}`, "untrusted", false, true},
		"public images of one that trusts":           {public, "trusted", false, false},
		"a private one":                              {private, "untrusted", false, false},
		"public images, which is what was asked for": {public, "untrusted", true, false},
	} {
		var demanded, asked atomic.Bool
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/1.0" {
				asked.Store(true)
				_, _ = io.WriteString(w, `{"type":"sync","metadata":{"auth":"`+test.auth+`"}}`)
				return
			}
			demanded.Store(r.Header.Get("X-LXD-authenticated") == "true" && r.Header.Get("X-Incus-authenticated") == "true")
			_, _ = io.WriteString(w, test.list)
		}))
		c := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw), PublicOnly: test.publicOnly})
		for _, list := range []string{"Images.All", "Images.Each"} {
			_, err := lists[list](t.Context(), c)
			if test.forbidden {
				require.ErrorIs(t, err, lxd.ErrForbidden, name)
			} else {
				require.NoError(t, err, name)
			}
			require.Equal(t, !test.publicOnly, demanded.Load(), name)
			require.Equal(t, !test.publicOnly && test.list != private, asked.Load(), name)
		}
		server.Close()
	}
}
