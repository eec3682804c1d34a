package lxd_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// instanceFrom is the body of a request that creates a container.
func instanceFrom(t *testing.T, s *testkit.Subject, name string, source any) map[string]any {
	t.Helper()
	if s.Real != nil {
		require.NoError(t, s.Real.CreatePool(t.Context()))
	}
	return map[string]any{
		"name": name, "type": "container", "source": source,
		"devices": map[string]any{"root": map[string]any{"type": "disk", "path": "/", "pool": testdaemon.PoolName}},
	}
}

// createInstance creates a container, and deletes it after the test.
func createInstance(t *testing.T, s *testkit.Subject, client *lxd.Client, source any) (name string) {
	t.Helper()
	name = testkit.Unique("instance")
	op, err := client.Do(t.Context(), "POST", "/1.0/instances", instanceFrom(t, s, name, source), nil)
	require.NoError(t, err)
	require.NoError(t, op.Wait(t.Context()))
	t.Cleanup(func() {
		op, err := client.Do(context.Background(), "DELETE", "/1.0/instances/"+name, nil, nil)
		require.NoError(t, err)
		require.NoError(t, op.Wait(context.Background()))
	})
	return name
}

// TestDo: results and operations, of the client's project and of another.
func TestDo(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			var server struct {
				APIVersion string `json:"api_version"`
			}
			op, err := c.Do(t.Context(), "GET", "/1.0", nil, &server)
			require.NoError(t, err)
			require.Nil(t, op)
			require.Equal(t, "1.0", server.APIVersion)

			name := testkit.Unique("project")
			op, err = c.Do(t.Context(), "POST", "/1.0/projects", map[string]any{"name": name, "config": map[string]string{"features.images": "true"}}, &server)
			require.NoError(t, err)
			require.Nil(t, op)
			require.Equal(t, "1.0", server.APIVersion, "null metadata changes nothing")
			image := testkit.Upload(t, c.InProject(name), nil)
			for _, in := range []struct {
				client *lxd.Client
				path   string
			}{{c.InProject(name), "/1.0/images"}, {c, "/1.0/images?project=" + name}} {
				var images []string
				_, err = in.client.Do(t.Context(), "GET", in.path, nil, &images)
				require.NoError(t, err)
				require.Len(t, images, 1)
			}

			var token struct {
				Metadata struct {
					Secret string `json:"secret"`
				} `json:"metadata"`
			}
			op, err = c.Do(t.Context(), "POST", "/1.0/images/"+image.Fingerprint+"/secret?project="+name, nil, &token)
			require.NoError(t, err)
			require.NotEmpty(t, token.Metadata.Secret)
			require.Equal(t, "token", op.Status().Class)
			require.NotContains(t, op.Status().Metadata["secret"], token.Metadata.Secret)
			require.NoError(t, op.Cancel(t.Context()))

			op, err = c.InProject(name).Do(t.Context(), "DELETE", "/1.0/images/"+image.Fingerprint, nil, nil)
			require.NoError(t, err)
			require.NoError(t, op.Wait(t.Context()))
			_, err = c.InProject(name).Do(t.Context(), "GET", "/1.0/images/"+image.Fingerprint, nil, nil)
			require.ErrorIs(t, err, lxd.ErrNotFound)
			_, err = c.Do(t.Context(), "DELETE", "/1.0/projects/"+name, nil, nil)
			require.NoError(t, err)
		})
	}
}

// TestDoInput: what Do refuses is not sent.
func TestDoInput(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	var out struct{}
	for name, call := range map[string]struct {
		method, path string
		in, out      any
		field        string
	}{
		"method":        {"get", "/1.0", nil, nil, "method"},
		"no path":       {"GET", "", nil, nil, "path"},
		"version":       {"GET", "/2.0/images", nil, nil, "path"},
		"prefix":        {"GET", "/1.0images", nil, nil, "path"},
		"other server":  {"GET", "https://localhost/1.0", nil, nil, "path"},
		"no scheme":     {"GET", "//localhost/1.0", nil, nil, "path"},
		"fragment":      {"GET", "/1.0#x", nil, nil, "path"},
		"relative":      {"GET", "/1.0/images/../projects", nil, nil, "path"},
		"escaped":       {"GET", "/1.0/images/%2e%2E", nil, nil, "path"},
		"bad escape":    {"GET", "/1.0/images/%zz", nil, nil, "path"},
		"query":         {"GET", "/1.0?a=%zz", nil, nil, "path"},
		"in":            {"POST", "/1.0/projects", make(chan int), nil, "in"},
		"out":           {"GET", "/1.0", nil, out, "out"},
		"nil pointer":   {"GET", "/1.0", nil, (*string)(nil), "out"},
		"control bytes": {"GET", "/1.0/images/a\nb", nil, nil, "path"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Client.Do(t.Context(), call.method, call.path, call.in, call.out)
			require.Equal(t, call.field, testkit.ErrOf[*lxd.InputError](t, err).Field)
		})
	}
	require.Empty(t, f.Requests())
}

// TestDoLostResponse: a POST is not repeated, a DELETE is.
func TestDoLostResponse(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	f.Inject(lxdtest.LoseResponse().On("POST", "/1.0/projects").Times(1))
	_, err := f.Client.Do(t.Context(), "POST", "/1.0/projects", map[string]any{"name": "p"}, nil)
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	require.Len(t, f.Requests(), 1)

	f.Inject(lxdtest.LoseResponse().On("DELETE", "/1.0/projects/p").Times(1))
	_, err = f.Client.Do(t.Context(), "DELETE", "/1.0/projects/p", nil, nil)
	require.NoError(t, err)
	require.Len(t, f.Requests(), 3)
}

// TestDoInAnotherProject: the operation is in the project of the path, which a client
// restricted to it must name.
func TestDoInAnotherProject(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	f.AddProject("p", true)
	for path, client := range map[string]*lxd.Client{"/1.0/instances?project=p": f.Client, "/1.0/instances": f.Client.InProject("p")} {
		op, err := client.Do(t.Context(), "POST", path, map[string]any{"source": map[string]string{"type": "none"}}, nil)
		require.NoError(t, err)
		f.ForgetRequests()
		require.NoError(t, op.Wait(t.Context()))
		require.Contains(t, f.Requests()[0].Query, "project=p")
	}
}

// TestDoHidesSecrets: a server that repeats a request tells no secret of it.
func TestDoHidesSecrets(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if err := json.NewEncoder(w).Encode(map[string]any{"type": "error", "error_code": 400, "error": string(body)}); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	c := testkit.NewClient(t, server.URL, &lxd.Options{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs})
	_, err := c.Do(t.Context(), "POST", "/1.0/x", map[string]any{
		"secret": "hidden-1", "config": map[string]any{"password": "hidden-2"}, "secrets": map[string]string{"a": "hidden-3"},
		"list": []any{map[string]string{"trust_token": "hidden-4"}}, "name": "shown",
		"source": &lxd.InstanceSource{Type: "image", Protocol: lxd.OCIProtocol, Server: "https://hidden-5:hidden-6@docker.io", Alias: "nginx"},
		"note":   "hidden-5 hidden-6",
	}, nil)
	require.ErrorContains(t, err, "shown")
	require.NotContains(t, err.Error(), "hidden-")
}

// TestDoResponses: what does not fit out, and operations without an ID.
func TestDoResponses(t *testing.T) {
	t.Parallel()
	response := ""
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, response) // the client may not read all of it
	}))
	t.Cleanup(server.Close)
	c := testkit.NewClient(t, server.URL, &lxd.Options{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs})

	response = `{"type": "sync", "status_code": 200, "metadata": [1]}`
	var name string
	_, err := c.Do(t.Context(), "GET", "/1.0/x", nil, &name)
	require.ErrorContains(t, err, "decode the metadata into a *string")

	response = `{"type": "async", "status_code": 100, "metadata": {}}`
	_, err = c.Do(t.Context(), "POST", "/1.0/x", nil, nil)
	require.ErrorIs(t, err, lxd.ErrBadResponse)
	require.ErrorContains(t, err, "POST /1.0/x")

	response = `{"type": "sync", "status_code": 200, "metadata": "` + strings.Repeat("x", 17<<20) + `"}`
	_, err = c.Do(t.Context(), "GET", "/1.0/x", nil, &name)
	require.ErrorIs(t, err, lxd.ErrTooLarge)
}
