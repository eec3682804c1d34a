package lxdtest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// apiResponse is a decoded JSON response.
type apiResponse struct {
	HTTP      int
	Header    http.Header
	Type      string          `json:"type"`
	Operation string          `json:"operation"`
	ErrorCode int             `json:"error_code"`
	Error     string          `json:"error"`
	Metadata  json.RawMessage `json:"metadata"`
}

// field returns a field of the metadata.
func (r *apiResponse) field(name string) any {
	var fields map[string]any
	if json.Unmarshal(r.Metadata, &fields) != nil {
		return nil
	}
	return fields[name]
}

// client sends requests to a server.
type client struct {
	t    *testing.T
	http *http.Client
	base string
}

func newClient(t *testing.T, s *Server) *client {
	t.Helper()
	return &client{t, s.Client(), "http://lxd"}
}

// do sends a request and decodes its JSON response. Headers are name-value pairs.
func (c *client) do(method, path string, body any, headers ...string) *apiResponse {
	c.t.Helper()
	var reader io.Reader
	switch body := body.(type) {
	case nil:
	case []byte:
		reader = bytes.NewReader(body)
	case io.Reader:
		reader = body
	default:
		data, err := json.Marshal(body)
		require.NoError(c.t, err)
		reader = bytes.NewReader(data)
		headers = append([]string{"Content-Type", "application/json"}, headers...)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, reader)
	require.NoError(c.t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := c.http.Do(req)
	require.NoError(c.t, err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	require.NoError(c.t, err)
	out := &apiResponse{HTTP: res.StatusCode, Header: res.Header}
	require.NoError(c.t, json.Unmarshal(data, out), "%s", data)
	return out
}

// wait waits for the operation of a response.
func (c *client) wait(r *apiResponse) *apiResponse {
	c.t.Helper()
	require.Equal(c.t, http.StatusAccepted, r.HTTP, r.Error)
	return c.do("GET", r.Operation+"/wait?timeout=10", nil)
}

// upload uploads a unified image and waits.
func (c *client) upload(file []byte, headers ...string) *apiResponse {
	c.t.Helper()
	return c.wait(c.do("POST", "/1.0/images", file, append([]string{"Content-Type", "application/octet-stream"}, headers...)...))
}

// form returns the body of a split upload; each file is named after its part.
func form(t *testing.T, names []string, files ...[]byte) (body []byte, contentType string) {
	t.Helper()
	filenames := make([]string, len(names))
	for i, name := range names {
		filenames[i] = name + ".bin"
	}
	return formAs(t, names, filenames, files...)
}

// formAs is like form, with names for the files.
func formAs(t *testing.T, names, filenames []string, files ...[]byte) (body []byte, contentType string) {
	t.Helper()
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for i, file := range files {
		part, err := w.CreateFormFile(names[i], filenames[i])
		require.NoError(t, err)
		_, err = part.Write(file)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes(), w.FormDataContentType()
}

func newTestServer(t *testing.T, opts *Options) *Server {
	t.Helper()
	s := NewServer(opts)
	t.Cleanup(s.Close)
	return s
}

func eachDialect(t *testing.T, test func(t *testing.T, d Dialect)) {
	t.Helper()
	for _, d := range []Dialect{LXD40, LXD50, LXD69, Incus60, Incus70} {
		t.Run(strings.ReplaceAll(d.String(), " ", ""), func(t *testing.T) { test(t, d) })
	}
}

func TestUploadListExportDelete(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d})
		c := newClient(t, s)
		file := UnifiedImage("one", 100_000)
		want := Fingerprint(file)

		done := c.upload(file, d.traits().uploadHeader+"public", "1", d.traits().uploadHeader+"properties", "a=b+c&os=x")
		require.Equal(t, want, done.field("metadata").(map[string]any)["fingerprint"])

		got := c.do("GET", "/1.0/images/"+want, nil)
		require.Equal(t, 200, got.HTTP)
		require.Equal(t, true, got.field("public"))
		require.Equal(t, "b c", got.field("properties").(map[string]any)["a"])
		require.Equal(t, "x", got.field("properties").(map[string]any)["os"])
		require.Equal(t, "one", got.field("properties").(map[string]any)["seed"])

		res, err := c.http.Get(c.base + "/1.0/images/" + want + "/export")
		require.NoError(t, err)
		data, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, file, data)

		c.wait(c.do("DELETE", "/1.0/images/"+want, nil))
		require.Empty(t, s.Images())
	})
}

// dialUnix returns a function that dials the unix socket of a server.
func dialUnix(s *Server) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.Socket())
	}
}

// TestCloseWaitsForConnections has the server refuse a body that is too long to
// be read to its end: net/http keeps the connection's goroutine for a while. The
// bubble panics if a goroutine is left.
func TestCloseWaitsForConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(&Options{InMemory: true})
		res, err := s.Client().Post("http://lxd/1.0/none", "", bytes.NewReader(make([]byte, 1<<20)))
		require.NoError(t, err)
		require.Equal(t, http.StatusNotFound, res.StatusCode)
		require.NoError(t, res.Body.Close())
		s.Close()
	})
}
