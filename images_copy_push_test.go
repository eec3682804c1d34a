package lxd_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestPushTokenHasProperties: a push token whose properties
// are null crashes LXD 5.0.2 and Incus 6.0.4 when it is used.
func TestPushTokenHasProperties(t *testing.T) {
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		source := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		target := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		var tokens []map[string]string // their properties
		to := between(t, target, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			if req.Method == http.MethodPost && req.URL.Path == "/1.0/images" {
				var post struct {
					Properties map[string]string `json:"properties"`
				}
				data, err := io.ReadAll(req.Body)
				if err != nil {
					return nil, err
				}
				if err := json.Unmarshal(data, &post); err != nil {
					return nil, err
				}
				tokens = append(tokens, post.Properties)
				req = req.Clone(req.Context())
				req.Body = io.NopCloser(bytes.NewReader(data))
			}
			return next.RoundTrip(req)
		})
		image := testkit.Upload(t, source.Client, nil)
		image.Properties = nil
		require.NoError(t, image.Update(t.Context(), nil))
		require.Empty(t, image.Properties)
		image.Properties = nil
		copied, err := image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: lxd.CopyPush, Wait: true})
		require.NoError(t, err, dialect)
		require.Empty(t, copied.Properties)
		require.Nil(t, source.Crashed())
		require.Nil(t, target.Crashed())

		copied, err = testkit.Upload(t, source.Client, nil).Copy(t.Context(), to, &lxd.CopyOptions{
			Mode: lxd.CopyPush, Wait: true, Properties: map[string]string{},
		})
		require.NoError(t, err, dialect)
		require.Empty(t, copied.Properties)
		require.Nil(t, target.Crashed())
		require.Len(t, tokens, 2)
		require.NotContains(t, tokens, map[string]string(nil), dialect)
	}
}

// TestPushIsUnsupported where the servers refuse it, or would make another image of it:
// nothing is asked of them, so that another mode can be tried.
func TestPushIsUnsupported(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, dialect lxdtest.Dialect) *testkit.Fake {
		t.Helper()
		return testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
	}
	for name, test := range map[string]struct {
		target lxdtest.Dialect
		image  func(*testing.T, *testkit.Fake) *lxd.Image
		says   string
	}{
		"another family": {lxdtest.Incus60, func(t *testing.T, f *testkit.Fake) *lxd.Image {
			t.Helper()
			return testkit.Upload(t, f.Client, nil)
		}, "lxd cannot push to incus"},
		"a virtual machine": {lxdtest.LXD50, func(t *testing.T, f *testkit.Fake) *lxd.Image {
			t.Helper()
			metadata, disk := lxdtest.VMImage(testkit.Unique("vm"), 0)
			image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(disk), Wait: true})
			require.NoError(t, err)
			return image
		}, "virtual machines"},
		"not trusted by the source": {lxdtest.LXD50, func(t *testing.T, f *testkit.Fake) *lxd.Image {
			t.Helper()
			image := testkit.Upload(t, f.Client, &lxd.CreateOptions{Public: true})
			stranger := testkit.NewClient(t, f.URL(), &lxd.Options{ServerCertificate: f.Certificate(), PublicOnly: true})
			image, err := stranger.Images.Get(t.Context(), image.Fingerprint)
			require.NoError(t, err)
			return image
		}, "does not trust"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source, target := start(t, lxdtest.LXD50), start(t, test.target)
			image := test.image(t, source)
			source.ForgetRequests()
			_, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: lxd.CopyPush, Wait: true})
			require.ErrorIs(t, err, lxd.ErrUnsupported)
			require.ErrorContains(t, err, test.says)
			require.Empty(t, changesAt(source))
			require.Empty(t, changesAt(target))
		})
	}
}

// TestPushOfWhatAnotherCreates has another client create the image at the target after
// the push has looked for it: before its token, and after, when the push itself breaks.
func TestPushOfWhatAnotherCreates(t *testing.T) {
	t.Parallel()
	for _, before := range []bool{true, false} {
		source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
		target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
		data := testkit.Unified(t, 0)
		fingerprint, err := source.AddImage(data, nil)
		require.NoError(t, err)
		create := func() error {
			_, err := target.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
			return err
		}
		from := between(t, source, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			if !before && req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/export") {
				if err := create(); err != nil {
					return nil, err
				}
				target.Inject(lxdtest.Reset().On("POST", "/1.0/images"))
			}
			return next.RoundTrip(req)
		})
		to := between(t, target, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			if before && req.Method == http.MethodPost && req.URL.Path == "/1.0/images" {
				if err := create(); err != nil {
					return nil, err
				}
				time.Sleep(10 * time.Millisecond) // the token is newer
			}
			return next.RoundTrip(req)
		})
		image, err := from.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		_, err = image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: lxd.CopyPush, IfExists: lxd.ErrorIfExists, Wait: true})
		require.ErrorIs(t, err, lxd.ErrExists, "before the token %t", before)
		require.Empty(t, target.Tokens())
	}
}

// TestCopyTriesTheNextAddress: one of a server's addresses is not reachable for the
// other server.
func TestCopyTriesTheNextAddress(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush} {
		source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
		target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
		connect := func(f *testkit.Fake) *lxd.Client {
			cert, key := f.ClientCertificate()
			return testkit.NewClient(t, "https://127.0.0.1:1,"+f.URL(), &lxd.Options{ClientCertificate: cert, ClientKey: key, ServerCertificate: f.Certificate()})
		}
		fingerprint, err := source.AddImage(testkit.Unified(t, 0), nil)
		require.NoError(t, err)
		image, err := connect(source).Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		to := connect(target)
		copied, err := image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, Wait: true})
		require.NoError(t, err, mode)
		require.Equal(t, fingerprint, copied.Fingerprint)
		require.Empty(t, source.Tokens(), mode)
		require.Empty(t, target.Tokens(), mode)
	}
}
