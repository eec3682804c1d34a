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

// TestRegistriesByOperation: LXD's later versions make and delete registries in
// the background.
func TestRegistriesByOperation(t *testing.T) {
	t.Parallel()
	outcome := `"status_code":200`
	c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			res := &http.Response{StatusCode: 200, Header: http.Header{}, Request: req}
			body := serverSaying(`"image_registries"`)
			switch req.URL.Path {
			case "/1.0/image-registries", "/1.0/image-registries/web":
				res.StatusCode, body = 202, `{"type":"async","status_code":100,"operation":"/1.0/operations/one?project=default","metadata":{"id":"one","status_code":103}}`
			case "/1.0/operations/one/wait":
				body = `{"type":"sync","status_code":200,"metadata":{"id":"one",` + outcome + `}}`
			}
			res.Body = io.NopCloser(strings.NewReader(body))
			return res, nil
		})
	}})
	registry := lxd.Registry{Name: "web", Protocol: "simplestreams", Config: map[string]string{"url": "https://images.example.net"}}
	require.NoError(t, c.Registries.Create(t.Context(), registry))
	require.NoError(t, c.Registries.Delete(t.Context(), "web"))
	outcome = `"status_code":400,"err":"it has no room"`
	require.ErrorContains(t, c.Registries.Create(t.Context(), registry), "it has no room")
	require.ErrorContains(t, c.Registries.Delete(t.Context(), "web"), "it has no room")
}
