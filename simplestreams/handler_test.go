package simplestreams_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/simplestreams"
)

// ask sends a request to a handler.
func ask(handler http.Handler, method, path string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/", nil)
	r.URL.Path = path
	for name, values := range header {
		r.Header[name] = values
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)

	return w
}

func TestHandler(t *testing.T) {
	modified := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	handler := simplestreams.NewHandler(fstest.MapFS{
		"streams/v1/index.json":  {Data: []byte("{}"), ModTime: modified},
		"streams/v1/index.sjson": {Data: []byte("signed"), ModTime: modified},
		"images/a/rootfs.img":    {Data: []byte("0123456789"), ModTime: modified},
		"images/a/.hidden":       {Data: []byte("hidden")},
		".golxd/put-1":           {Data: []byte("hidden")},
		"images/future":          {Data: []byte("future"), ModTime: time.Now().Add(time.Hour)},
	})

	w := ask(handler, "GET", "/streams/v1/index.json", nil)
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "{}", w.Body.String())
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.Equal(t, "Fri, 02 Jan 2026 03:04:05 GMT", w.Header().Get("Last-Modified"))
	tag := w.Header().Get("ETag")
	require.NotEmpty(t, tag)
	require.Equal(t, http.StatusNotModified, ask(handler, "GET", "/streams/v1/index.json", http.Header{"If-None-Match": {tag}}).Code)
	require.Equal(t, http.StatusOK, ask(handler, "GET", "/streams/v1/index.json", http.Header{"If-None-Match": {`"another"`}}).Code)
	require.Equal(t, http.StatusNotModified,
		ask(handler, "GET", "/streams/v1/index.json", http.Header{"If-Modified-Since": {w.Header().Get("Last-Modified")}}).Code)
	require.Equal(t, "text/plain; charset=utf-8", ask(handler, "GET", "/streams/v1/index.sjson", nil).Header().Get("Content-Type"))

	w = ask(handler, "HEAD", "/images/a/rootfs.img", nil)
	require.Equal(t, http.StatusOK, w.Code)
	require.Empty(t, w.Body.String())
	require.Equal(t, "10", w.Header().Get("Content-Length"))
	require.Equal(t, "application/octet-stream", w.Header().Get("Content-Type"))
	tag = w.Header().Get("ETag")

	w = ask(handler, "GET", "/images/a/rootfs.img", http.Header{"Range": {"bytes=3-5"}, "If-Range": {tag}})
	require.Equal(t, http.StatusPartialContent, w.Code)
	require.Equal(t, "345", w.Body.String())
	require.Equal(t, "bytes 3-5/10", w.Header().Get("Content-Range"))
	w = ask(handler, "GET", "/images/a/rootfs.img", http.Header{"Range": {"bytes=3-"}, "If-Range": {`"another"`}})
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, http.StatusRequestedRangeNotSatisfiable, ask(handler, "GET", "/images/a/rootfs.img", http.Header{"Range": {"bytes=10-"}}).Code)
	require.Empty(t, ask(handler, "GET", "/images/future", nil).Header().Get("Last-Modified"))

	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "CONNECT"} {
		w := ask(handler, method, "/streams/v1/index.json", nil)
		require.Equal(t, http.StatusMethodNotAllowed, w.Code)
		require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	}
	for _, path := range []string{
		"", "/", "/.", "/..", "/streams", "/streams/", "/streams/v1/", "/streams/v1/index.json/", "//streams/v1/index.json", "/streams//v1/index.json",
		"/images/../streams/v1/index.json", "/images/a/.hidden", "/.golxd/put-1", "/../../etc/passwd", "/images/a\\rootfs.img", "/images/a/rootfs.img\x00",
		"/missing", strings.Repeat("/a", 5000),
	} {
		require.Equal(t, http.StatusNotFound, ask(handler, "GET", path, nil).Code, path)
	}
	require.Equal(t, http.StatusNotFound, ask(simplestreams.NewHandler(nil), "GET", "/a", nil).Code)
	var none *simplestreams.DirStore
	require.Equal(t, http.StatusNotFound, ask(simplestreams.NewHandler(none.FS()), "GET", "/a", nil).Code)
}
