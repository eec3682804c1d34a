package streamstest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var content = []byte("0123456789")

// send sends one request on a new connection, without following redirects.
func send(t *testing.T, method, url string, header http.Header, config *tls.Config) (*http.Response, []byte, error) {
	t.Helper()
	return sendTimeout(t, time.Minute, method, url, header, config)
}

// sendTimeout is like send, with a timeout.
func sendTimeout(t *testing.T, timeout time.Duration, method, url string, header http.Header, config *tls.Config) (*http.Response, []byte, error) {
	t.Helper()
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true, TLSClientConfig: config},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       timeout,
	}
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	if header != nil {
		request.Header = header
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)

	return response, body, err
}

func TestFiles(t *testing.T) {
	server := NewServer(map[string][]byte{"a/b": content})
	defer server.Close()
	response, body, err := send(t, "GET", server.URL+"/a/b", nil, nil)
	require.NoError(t, err)
	require.Equal(t, content, body)
	etag := response.Header.Get("ETag")
	require.Equal(t, `"`+Hash(content)+`"`, etag)

	response, body, err = send(t, "GET", server.URL+"/a/b", http.Header{"Range": {"bytes=4-"}, "If-Range": {etag}}, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusPartialContent, response.StatusCode)
	require.Equal(t, content[4:], body)

	response, _, err = send(t, "GET", server.URL+"/a/b", http.Header{"If-None-Match": {etag}}, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusNotModified, response.StatusCode)

	response, body, err = send(t, "HEAD", server.URL+"/a/b", nil, nil)
	require.NoError(t, err)
	require.EqualValues(t, len(content), response.ContentLength)
	require.Empty(t, body)

	server.Set("a/b", nil)
	response, _, err = send(t, "GET", server.URL+"/a/b", nil, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, response.StatusCode)

	seen := server.Requests()
	require.Len(t, seen, 5)
	require.Equal(t, "HEAD", seen[3].Method)
	require.Equal(t, "a/b", seen[3].Path)
	require.Equal(t, "bytes=4-", seen[1].Header.Get("Range"))
	require.Empty(t, server.Requests())
}

func TestTLS(t *testing.T) {
	for name, server := range map[string]*Server{"authority": NewTLSServer(nil), "self-signed": NewSelfSignedServer(nil)} {
		t.Run(name, func(t *testing.T) {
			defer server.Close()
			for _, certificate := range []string{server.CA, server.Certificate} {
				pool := x509.NewCertPool()
				require.True(t, pool.AppendCertsFromPEM([]byte(certificate)))
				response, _, err := send(t, "GET", server.URL+"/none", nil, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
				require.NoError(t, err)
				require.Equal(t, http.StatusNotFound, response.StatusCode)
			}
			_, _, err := send(t, "GET", server.URL+"/none", nil, nil)
			var unknown x509.UnknownAuthorityError
			require.ErrorAs(t, err, &unknown)
		})
	}
}

// TestPathsDiffer: no two servers have the same URL, even on the same port.
func TestPathsDiffer(t *testing.T) {
	paths := map[string]bool{}
	for range 3 {
		server := NewServer(map[string][]byte{"f": []byte("x")})
		u, err := url.Parse(server.URL)
		require.NoError(t, err)
		paths[u.Path] = true
		_, body, err := send(t, "GET", server.URL+"/f", nil, nil)
		require.NoError(t, err)
		require.Equal(t, "x", string(body))
		require.Equal(t, "f", server.Requests()[0].Path)
		server.Close()
	}
	require.Len(t, paths, 3)
}

func TestFaults(t *testing.T) {
	// Large enough for several writes by the server.
	long := []byte(strings.Repeat("0123456789", 20000))
	server := NewServer(map[string][]byte{"f": long})
	defer server.Close()
	get := func(fault Fault) (*http.Response, []byte, error) {
		server.Fault("f", fault)
		return send(t, "GET", server.URL+"/f", nil, nil)
	}

	_, body, err := get(Cut(100_000))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Equal(t, long[:100_000], body)

	stall := func(n int64, timeout time.Duration) (*http.Response, []byte, error) {
		server.Fault("f", Stall(n))
		return sendTimeout(t, timeout, "GET", server.URL+"/f", nil, nil)
	}
	_, body, err = stall(100_000, 5*time.Second)
	var timeout interface{ Timeout() bool }
	require.True(t, errors.As(err, &timeout) && timeout.Timeout(), err)
	require.Equal(t, long[:100_000], body)

	response, _, err := stall(-1, time.Second)
	require.True(t, errors.As(err, &timeout) && timeout.Timeout(), err)
	require.Nil(t, response)

	_, body, err = get(Corrupt(150_000))
	require.NoError(t, err)
	require.Equal(t, long[150_000]^0xff, body[150_000])
	body[150_000] ^= 0xff
	require.Equal(t, long, body)

	response, body, err = get(Truncate(100_000))
	require.NoError(t, err)
	require.Equal(t, long[:100_000], body)
	require.EqualValues(t, 100_000, response.ContentLength)

	response, body, err = get(NoLength())
	require.NoError(t, err)
	require.Equal(t, long, body)
	require.EqualValues(t, -1, response.ContentLength)

	response, body, err = get(Header("ETag", "other"))
	require.NoError(t, err)
	require.Equal(t, "other", response.Header.Get("ETag"))
	require.Equal(t, long, body)

	response, _, err = get(Status(http.StatusTeapot))
	require.NoError(t, err)
	require.Equal(t, http.StatusTeapot, response.StatusCode)

	response, body, err = get(HTML())
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Contains(t, string(body), "<html>")

	response, _, err = get(Redirect("https://other.example.net/"))
	require.NoError(t, err)
	require.Equal(t, "https://other.example.net/", response.Header.Get("Location"))

	response, _, err = get(RedirectLoop())
	require.NoError(t, err)
	require.Equal(t, server.URL+"/f", "http://"+response.Request.URL.Host+response.Header.Get("Location"))

	once := Times(1, Status(http.StatusServiceUnavailable))
	response, _, err = get(once)
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	_, body, err = get(once)
	require.NoError(t, err)
	require.Equal(t, long, body)

	server.Fault("f", NoRanges())
	response, body, err = send(t, "GET", server.URL+"/f", http.Header{"Range": {"bytes=4-"}}, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, long, body)

	server.Fault("f", Together(NoLength(), Cut(10)))
	_, body, err = send(t, "GET", server.URL+"/f", nil, nil)
	require.Error(t, err)
	require.Equal(t, long[:10], body)
}

func TestCloseEndsStalls(t *testing.T) {
	server := NewServer(map[string][]byte{"f": content})
	server.Fault("f", Stall(5))
	done := make(chan error, 1)
	go func() {
		_, err := http.Get(server.URL + "/f")
		done <- err
	}()
	require.NoError(t, <-done, "the headers arrived")
	server.Close()
}

func TestDirect(t *testing.T) {
	server := NewServer(nil)
	defer server.Close()
	headers := func(path string, image Direct) http.Header {
		url := server.Direct(path, image)
		response, body, err := send(t, "HEAD", url, nil, nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.Empty(t, body)

		return response.Header
	}

	header := headers("image", Direct{Content: content})
	for _, family := range []string{"LXD", "Incus"} {
		require.Equal(t, Hash(content), header.Get(family+"-Image-Hash"))
		_, body, err := send(t, "GET", header.Get(family+"-Image-URL"), nil, nil)
		require.NoError(t, err)
		require.Equal(t, content, body)
	}

	header = headers("bad", Direct{Content: content, Families: []string{"Incus"}, Hash: "abc", URL: "/bad.tar.gz"})
	require.Equal(t, "abc", header.Get("Incus-Image-Hash"))
	require.Equal(t, "/bad.tar.gz", header.Get("Incus-Image-URL"))
	require.Empty(t, header.Values("LXD-Image-Hash"))

	header = headers("none", Direct{Content: content, Hash: "-", URL: "-"})
	require.Empty(t, header.Values("LXD-Image-Hash"))
	require.Empty(t, header.Values("LXD-Image-URL"))
}
