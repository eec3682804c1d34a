package lxd_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestServerThatHidesItsExtensions: an extension that a server hides is not missing.
func TestServerThatHidesItsExtensions(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.Incus70, TLS: true})
	t.Cleanup(server.Close)
	opts := testkit.Joiner(t)
	opts.ServerCertificate = server.Certificate()
	stranger := testkit.NewClient(t, server.URL(), opts)
	_, err := stranger.Images.All(t.Context(), &lxd.ListOptions{AllProjects: true})
	require.ErrorIs(t, err, lxd.ErrForbidden)
	require.NotErrorIs(t, err, lxd.ErrUnsupported)
	_, err = stranger.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Profiles: []string{"x"}})
	require.ErrorIs(t, err, lxd.ErrForbidden)

	// Not one of its images is hidden because of that.
	data := testkit.Unified(t, 1000)
	fingerprint, err := server.AddImage(data, &lxdtest.AddOptions{Public: true})
	require.NoError(t, err)
	image, err := stranger.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.Incus60} {
		target := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		cut := server.Inject(lxdtest.Status(http.StatusInternalServerError, "no").On(http.MethodGet, "/1.0/images/*/export").Times(1))
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true})
		require.NoError(t, err)
		require.Equal(t, 1, cut.Fired())
		require.Equal(t, lxd.CopyRelay, copied.Mode, "%v", copied.Failed)
		require.ErrorIs(t, copied.Failed[1].Err, lxd.ErrUnsupported)
		require.Empty(t, target.Tokens())
	}
}

// untold makes a server hide its family.
type untold struct{ next http.RoundTripper }

func (u untold) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := u.next.RoundTrip(r)
	if err != nil || r.URL.Path != "/1.0" {
		return res, err
	}
	_ = res.Body.Close()
	res.Body = io.NopCloser(strings.NewReader(`{"type":"sync","status_code":200,"metadata":{"api_extensions":null,"auth":"untrusted"}}`))
	return res, nil
}

// TestUploadToAnUnknownFamily reaches either: a client may become trusted at any
// time.
func TestUploadToAnUnknownFamily(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		server := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, &lxd.Options{
			Transport: func(next http.RoundTripper) http.RoundTripper { return untold{next} },
		})
		info, err := server.Client.Server(t.Context())
		require.NoError(t, err)
		require.Empty(t, info.Family)
		image, err := server.Client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{
			Public: true, Filename: "name.tar.gz", Properties: map[string]string{"a": "b"}, Wait: true,
		})
		require.NoError(t, err)
		require.Equal(t, "name.tar.gz", image.Filename)
		require.True(t, image.Public)
		require.Equal(t, "b", image.Properties["a"])

		source := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		copied, err := testkit.Upload(t, source.Client, nil).Copy(t.Context(), server.Client, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
		require.NoError(t, err)
		require.NotNil(t, copied.Image)
	}
}

// TestTrustComesLater makes calls before and after an administrator has added
// the client's certificate.
func TestTrustComesLater(t *testing.T) {
	t.Parallel()
	var trusted atomic.Bool
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/1.0" && trusted.Load():
			_, _ = io.WriteString(w, `{"type":"sync","metadata":{"auth":"trusted","environment":{"architectures":["x86_64"]}}}`)
		case r.URL.Path == "/1.0":
			_, _ = io.WriteString(w, `{"type":"sync","metadata":{"auth":"untrusted"}}`)
		default:
			_, _ = io.WriteString(w, `{"type":"sync","metadata":[]}`)
		}
	}))
	t.Cleanup(server.Close)
	cert, key, err := lxd.NewKeyPair(nil)
	require.NoError(t, err)
	c := testkit.NewClient(t, server.URL, &lxd.Options{ClientCertificate: cert, ClientKey: key, ServerFingerprint: fingerprintOf(server.Certificate().Raw)})
	_, err = c.Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrForbidden)
	trusted.Store(true)
	_, err = c.Images.All(t.Context(), nil)
	require.NoError(t, err)
	info, err := c.Server(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"x86_64"}, info.Architectures)
}
