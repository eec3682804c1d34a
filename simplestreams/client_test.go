package simplestreams_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

func TestNewRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		server  string
		options *simplestreams.Options
		says    string
	}{
		"no scheme":     {"images.example.net", nil, "scheme must be https"},
		"other scheme":  {"ftp://images.example.net", nil, "scheme must be https"},
		"plain http":    {"http://127.0.0.1", nil, "AllowHTTP"},
		"no host":       {"https:///images", nil, "no host"},
		"query":         {"https://images.example.net/?a=b", nil, "query"},
		"control":       {"https://images.example.net/\x01", nil, "server URL"},
		"family":        {"https://images.example.net", &simplestreams.Options{Family: "docker"}, "Family"},
		"no PEM":        {"https://images.example.net", &simplestreams.Options{Certificate: "-"}, "Certificate"},
		"custom client": {"https://images.example.net", &simplestreams.Options{HTTPClient: &http.Client{Transport: roundTripper{}}, RootCAs: x509.NewCertPool()}, "HTTPClient"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := simplestreams.New(test.server, test.options)
			require.ErrorContains(t, err, test.says)
		})
	}
	_, err := simplestreams.New("http://127.0.0.1", nil)
	require.ErrorIs(t, err, simplestreams.ErrInsecure)
}

func TestPasswordIsNotShown(t *testing.T) {
	server, _ := standard(t)
	server.Fault(streamstest.IndexPath, streamstest.Status(http.StatusForbidden))
	address, err := url.Parse(server.URL)
	require.NoError(t, err)
	address.User = url.UserPassword("user", "hunter2")
	var log bytes.Buffer
	client, err := simplestreams.New(address.String(), &simplestreams.Options{
		AllowHTTP: true, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	require.NoError(t, err)
	defer client.Close()

	_, err = client.Resolve(t.Context(), "alpine", nil)
	var failed *simplestreams.Error
	require.ErrorAs(t, err, &failed)
	require.Equal(t, http.StatusForbidden, failed.StatusCode)
	require.NotEmpty(t, server.Requests()[0].Header.Get("Authorization"))
	for _, text := range []string{err.Error(), client.URL(), log.String()} {
		require.Contains(t, text, "user:xxxxx@")
		require.NotContains(t, text, "hunter2")
	}

	_, err = simplestreams.New("https://user:hunter2@host:port", nil)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
}

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
	require.Equal(t, "tester/2", server.Requests()[0].Header.Get("User-Agent"))
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
