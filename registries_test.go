package lxd_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestRegistriesByOperation: later versions of LXD create and delete registries in the
// background.
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

func TestRegistries(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, &lxdtest.Options{WithExtensions: []string{"image_registries"}}, nil)
	want := lxd.Registry{Name: "web/1", Description: "the web", Protocol: "simplestreams", Config: map[string]string{"url": "https://images.example.net"}}
	require.NoError(t, f.Client.Registries.Create(t.Context(), want))
	require.ErrorIs(t, f.Client.Registries.Create(t.Context(), want), lxd.ErrExists)
	read, err := f.Client.Registries.Get(t.Context(), want.Name)
	require.NoError(t, err)
	all, err := f.Client.Registries.All(t.Context())
	require.NoError(t, err)
	require.Contains(t, all, *read)
	require.Equal(t, want.Name, read.Name)
	require.Equal(t, want.Description, read.Description)
	require.Equal(t, want.Protocol, read.Protocol)
	require.Equal(t, want.Config, read.Config)
	lost := f.Inject(lxdtest.LoseResponse().On(http.MethodDelete, "/1.0/image-registries/*").Times(1))
	require.NoError(t, f.Client.Registries.Delete(t.Context(), want.Name), "it is gone when the request is sent again")
	require.Equal(t, 1, lost.Fired())
	_, err = f.Client.Registries.Get(t.Context(), want.Name)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	require.ErrorIs(t, f.Client.Registries.Delete(t.Context(), want.Name), lxd.ErrNotFound)

	for field, registry := range map[string]lxd.Registry{
		"Registry.Name":          {Protocol: "simplestreams", Config: want.Config},
		"Registry.Protocol":      {Name: "x", Config: want.Config},
		`Registry.Config["url"]`: {Name: "x", Protocol: "simplestreams"},
	} {
		require.Equal(t, field, testkit.ErrOf[*lxd.InputError](t, f.Client.Registries.Create(t.Context(), registry)).Field)
	}
}

// TestRegistriesNeedTheirExtension: nothing is sent to a server without it.
func TestRegistriesNeedTheirExtension(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	_, err := f.Client.Server(t.Context())
	require.NoError(t, err)
	f.ForgetRequests()
	r := f.Client.Registries
	_, all := r.All(t.Context())
	_, get := r.Get(t.Context(), "web")
	for call, err := range map[string]error{
		"All": all, "Get": get, "Delete": r.Delete(t.Context(), "web"),
		"Create": r.Create(t.Context(), lxd.Registry{Name: "web", Protocol: "simplestreams", Config: map[string]string{"url": "https://h"}}),
	} {
		require.ErrorIs(t, err, lxd.ErrUnsupported, call)
		require.ErrorContains(t, err, "image_registries", call)
	}
	require.Empty(t, f.Requests())
}
