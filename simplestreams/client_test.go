package simplestreams_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

func TestNewRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		server  string
		options *simplestreams.Options
		says    string
	}{
		"no scheme":     {"images.example.net", nil, "is not an https URL"},
		"host and port": {"images.example.net:8443", nil, "is not an https URL"},
		"other scheme":  {"ftp://images.example.net", nil, "is not an https URL"},
		"plain http":    {"http://127.0.0.1", nil, "AllowHTTP"},
		"no host":       {"https:///images", nil, "no host"},
		"query":         {"https://images.example.net/?a=b", nil, "query"},
		"control":       {"https://images.example.net/\x01", nil, "is not an https URL"},
		"family":        {"https://images.example.net", &simplestreams.Options{Family: "docker"}, `Options.Family is "docker", not one of "", "lxd", "incus"`},
		"no PEM":        {"https://images.example.net", &simplestreams.Options{Certificate: "-"}, "Options.Certificate contains no"},
		"custom client": {"https://images.example.net", &simplestreams.Options{HTTPClient: &http.Client{Transport: roundTripper{}}, RootCAs: x509.NewCertPool()}, "Options.HTTPClient has"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := simplestreams.New(test.server, test.options)
			require.ErrorContains(t, err, test.says)
			require.ErrorIs(t, err, simplestreams.ErrInvalid)
			var refused *simplestreams.InputError
			require.ErrorAs(t, err, &refused)
			require.False(t, refused.Transient())
		})
	}
	_, err := simplestreams.New("http://127.0.0.1", nil)
	require.ErrorIs(t, err, simplestreams.ErrInsecure)
}

// TestNilAndZeroValues: a method that returns an error refuses a value that this package has not returned, and a nil
// context; another one returns the value of nothing.
func TestNilAndZeroValues(t *testing.T) {
	client, err := simplestreams.New("https://127.0.0.1:1", nil)
	require.NoError(t, err)
	refused := func(err error) {
		t.Helper()
		var input *simplestreams.InputError
		require.ErrorAs(t, err, &input)
	}
	call := func(ctx context.Context, c *simplestreams.Client) {
		t.Helper()
		_, err := c.Resolve(ctx, "a", nil)
		refused(err)
		_, err = c.Open(ctx, &simplestreams.Image{}, nil)
		refused(err)
		_, err = c.DownloadTo(ctx, &simplestreams.Image{}, "dir", nil)
		refused(err)
		refused(c.Refresh(ctx))
		for _, err := range c.Images(ctx) {
			refused(err)
		}
	}
	for _, c := range []*simplestreams.Client{nil, {}} {
		call(t.Context(), c)
		refused(c.Close())
		require.Empty(t, c.URL())
	}
	call(nil, client) //nolint:staticcheck // A nil context is the test.
	for _, download := range []*simplestreams.Download{nil, {}} {
		refused(download.Close())
	}
	for _, file := range []*simplestreams.FileReader{nil, {}} {
		_, err := file.Read(make([]byte, 1))
		refused(err)
		require.Empty(t, file.Name())
	}
	require.Equal(t, int64(-1), (*simplestreams.FileReader)(nil).Size())
	require.False(t, (*simplestreams.Image)(nil).Split())
}

// TestSecretsAreNotTold searches all errors and log records for the secrets in the server's URL and in those of
// redirects.
func TestSecretsAreNotTold(t *testing.T) {
	const redirect = "http://elsewhere.invalid/x?signature=s3cr3t"
	var log bytes.Buffer
	var told []string
	tell := func(err error) {
		t.Helper()
		require.Error(t, err)
		for todo := []error{err}; len(todo) > 0; todo = todo[1:] {
			told = append(told, todo[0].Error(), fmt.Sprintf("%+v", todo[0]), fmt.Sprintf("%#v", todo[0]))
			switch e := todo[0].(type) { //nolint:errorlint // It visits each error of the tree.
			case interface{ Unwrap() error }:
				if cause := e.Unwrap(); cause != nil {
					todo = append(todo, cause)
				}
			case interface{ Unwrap() []error }:
				todo = append(todo, e.Unwrap()...)
			}
		}
	}
	for name, fault := range map[string]streamstest.Fault{
		"forbidden": streamstest.Status(http.StatusForbidden),
		"busy":      streamstest.Status(http.StatusServiceUnavailable),
		"cut":       streamstest.Cut(10),
		"page":      streamstest.HTML(),
		"insecure":  streamstest.Redirect(redirect),
		"loop":      streamstest.RedirectLoop(),
		"no URL": func(*streamstest.Server, http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "https://elsewhere.invalid/%zz?signature=s3cr3t")
				w.WriteHeader(http.StatusFound)
			})
		},
		"told back": func(*streamstest.Server, http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				user, password, _ := r.BasicAuth()
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					_, _ = fmt.Fprintf(conn, "%s %s %s\r\n", r.Header.Get("Authorization"), user, password)
					_ = conn.Close()
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := streamstest.NewTLSServer(streamstest.Tree(products("lxd"), nil))
			defer server.Close()
			server.Fault(streamstest.IndexPath, fault)
			address, err := url.Parse(server.URL)
			require.NoError(t, err)
			address.User = url.UserPassword("user-s3cr3t", "password-s3cr3t")
			client, err := simplestreams.New(address.String(), &simplestreams.Options{
				Certificate: server.CA, RetryTimeout: 200 * time.Millisecond, Cache: brokenCache{},
				Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			})
			require.NoError(t, err)
			defer client.Close()
			told = append(told, client.URL())
			_, err = client.Resolve(t.Context(), "alpine", nil)
			var failed *simplestreams.Error
			require.ErrorAs(t, err, &failed)
			require.NotEmpty(t, server.Requests()[0].Header.Get("Authorization"))
			tell(err)
		})
	}
	for _, server := range []string{
		"https://user-s3cr3t:password/s3cr3t@host", "https://user-s3cr3t:s3cr3t%zz@host", "https://host:s3cr3t", "ftp://user-s3cr3t@host",
		"http://user-s3cr3t:password-s3cr3t@host?token=s3cr3t", "https://user-s3cr3t@host?token=s3cr3t", "https://user-s3cr3t@host/#s3cr3t",
		"https://user-s3cr3t@", "user-s3cr3t:s3cr3t@host", "s3cr3t@host",
	} {
		_, err := simplestreams.New(server, nil)
		tell(err)
	}

	for _, want := range []string{"simplestreams request", "simplestreams retry", "simplestreams cache failed"} {
		require.Contains(t, log.String(), want)
	}
	for _, text := range append(told, log.String()) {
		require.NotContains(t, text, "s3cr3t")
		require.NotContains(t, text, base64.StdEncoding.EncodeToString([]byte("user-s3cr3t:password-s3cr3t")))
	}
}

// brokenCache fails to store.
type brokenCache struct{}

func (brokenCache) Open(string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("{")), nil
}
func (brokenCache) Store(string, io.Reader) error { return errors.New("no room") }

func TestCertificates(t *testing.T) {
	files := streamstest.Tree(products("lxd"), nil)
	signed, selfSigned := streamstest.NewTLSServer(files), streamstest.NewSelfSignedServer(files)
	defer signed.Close()
	defer selfSigned.Close()
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM([]byte(signed.CA)))
	wrong := selfSigned.CA

	for name, test := range map[string]struct {
		server  *streamstest.Server
		options simplestreams.Options
		ok      bool
	}{
		"authority":         {signed, simplestreams.Options{Certificate: signed.CA}, true},
		"authority in pool": {signed, simplestreams.Options{RootCAs: pool}, true},
		"signed leaf":       {signed, simplestreams.Options{Certificate: signed.Certificate}, true},
		"self-signed":       {selfSigned, simplestreams.Options{Certificate: selfSigned.Certificate}, true},
		"pool and PEM":      {selfSigned, simplestreams.Options{RootCAs: pool, Certificate: selfSigned.Certificate}, true},
		"system only":       {signed, simplestreams.Options{}, false},
		"other certificate": {signed, simplestreams.Options{Certificate: wrong}, false},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := simplestreams.New(test.server.URL, &test.options)
			require.NoError(t, err)
			defer client.Close()
			image, err := client.Resolve(t.Context(), "alpine", nil)
			if test.ok {
				require.NoError(t, err)
				require.Equal(t, streamstest.Hash([]byte("a unified image")), image.Fingerprint)
				return
			}
			var unknown x509.UnknownAuthorityError
			require.ErrorAs(t, err, &unknown)
			var failed *simplestreams.Error
			require.ErrorAs(t, err, &failed)
			require.Equal(t, test.server.URL+"/"+streamstest.IndexPath, failed.URL)
		})
	}
}

func TestOwnHTTPClientIsCopied(t *testing.T) {
	server := streamstest.NewTLSServer(streamstest.Tree(products("lxd"), nil))
	defer server.Close()
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13}}
	mine := &http.Client{Transport: transport}
	client, err := simplestreams.New(server.URL, &simplestreams.Options{HTTPClient: mine, Certificate: server.CA, UserAgent: "tester/2"})
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	require.Equal(t, "tester/2 golxd-simplestreams/1", server.Requests()[0].Header.Get("User-Agent"))
	require.Same(t, transport, mine.Transport)
	require.Nil(t, mine.CheckRedirect)
	require.Nil(t, transport.TLSClientConfig.RootCAs)
}

func TestWrappedTransport(t *testing.T) {
	server, _ := standard(t)
	var calls atomic.Int64
	client := newClient(t, server, func(o *simplestreams.Options) {
		o.HTTPClient = &http.Client{Transport: roundTripper{&calls}}
	})
	_, err := client.Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	require.EqualValues(t, 2, calls.Load())
}

type roundTripper struct{ calls *atomic.Int64 }

func (r roundTripper) RoundTrip(request *http.Request) (*http.Response, error) {
	r.calls.Add(1)
	request = request.Clone(request.Context())
	request.Close = true

	return http.DefaultTransport.RoundTrip(request)
}

func TestProxy(t *testing.T) {
	server, _ := standard(t)
	var asked atomic.Int64
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		asked.Add(1)
		r.Out.Close = true
	}})
	defer proxy.Close()
	address, err := url.Parse(proxy.URL)
	require.NoError(t, err)
	client := newClient(t, server, func(o *simplestreams.Options) { o.Proxy = http.ProxyURL(address) })
	_, err = client.Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	require.EqualValues(t, 2, asked.Load())
}

func TestServerBelowAPath(t *testing.T) {
	below := map[string][]byte{}
	for path, content := range streamstest.Tree(products("lxd"), nil) {
		below["mirror/images and more/"+path] = content
	}
	server := serve(t, below)
	client, err := simplestreams.New(server.URL+"/mirror/images%20and%20more/", &simplestreams.Options{AllowHTTP: true})
	require.NoError(t, err)
	defer client.Close()
	image, err := client.Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	require.Equal(t, "a unified image", string(readAll(t, client, image)))
}
