package lxd_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

// TestDotsAreNames: an alias of dots is no way to another path.
func TestDotsAreNames(t *testing.T) {
	t.Parallel()
	var got []string
	c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			got = append(got, req.URL.EscapedPath())
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"type":"sync","metadata":{}}`)), Request: req}, nil
		})
	}})
	for _, name := range []string{".", "..", "../..", "...", "a/../b"} {
		require.NoError(t, c.Aliases.Delete(t.Context(), name))
	}
	require.Equal(t, []string{
		"/1.0/images/aliases/%2E", "/1.0/images/aliases/%2E%2E", "/1.0/images/aliases/..%2F..", "/1.0/images/aliases/...", "/1.0/images/aliases/a%2F..%2Fb",
	}, got)
}
