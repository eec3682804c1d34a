package lxd_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

func TestImportURL(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		c := target.client
		source := imageServer(t)
		expires := time.Date(2035, 1, 2, 3, 4, 5, 0, time.UTC)
		other := map[lxd.Family]string{lxd.LXD: "Incus", lxd.Incus: "LXD"}[target.family]
		for name, test := range map[string]struct {
			families []string
			plain    bool
			via      lxd.Via
			byClient bool
		}{
			"auto":             {nil, false, lxd.ViaAuto, !target.takesURLs},
			"client":           {nil, false, lxd.ViaClient, true},
			"the other family": {[]string{other}, false, lxd.ViaAuto, true},
			"plain file":       {nil, true, lxd.ViaAuto, true},
		} {
			for _, wait := range []bool{true, false} {
				data := testkit.Unified(t, 100_000)
				path := testkit.Unique("image")
				at := source.Direct(path, streamstest.Direct{Content: data, Families: test.families})
				if test.plain {
					at += ".tar.gz"
				}
				source.Requests()
				alias := testkit.Unique("imported")
				image, err := c.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{
					Via: test.via, Wait: wait, Properties: map[string]string{"origin": "test"}, ExpiresAt: expires,
					Aliases: []lxd.Alias{{Name: alias, Description: "an alias"}}, Profiles: []string{"default"},
				})
				require.NoError(t, err, name)
				require.NoError(t, image.Wait(t.Context()), name)
				require.Equal(t, streamstest.Hash(data), image.Fingerprint)
				require.Equal(t, "test", image.Properties["origin"])
				require.Equal(t, "lxdtest", image.Properties["os"])
				require.Equal(t, []lxd.Alias{{Name: alias, Description: "an alias"}}, image.Aliases)
				require.True(t, image.ExpiresAt.Equal(expires), image.ExpiresAt)
				require.Equal(t, lxd.Container, image.Type)
				require.Equal(t, 1, fetches(source, path+".tar.gz"), name)
				if test.byClient {
					require.Equal(t, path+".tar.gz", image.Filename, name)
				}

				again, err := c.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{
					Via: test.via, Wait: true, Fingerprint: strings.ToUpper(image.Fingerprint), Public: c.Project() == "default",
					Properties: map[string]string{"second": "time"},
				})
				require.NoError(t, err, name)
				require.Equal(t, image.Fingerprint, again.Fingerprint)
				require.Equal(t, "test", again.Properties["origin"])
				require.Equal(t, "time", again.Properties["second"])
				require.Zero(t, fetches(source, path+".tar.gz"), "what is known to be there is not fetched")
			}
		}
		if target.takesURLs {
			return
		}
		_, err := c.Images.CreateFromURL(t.Context(), source.URL+"/x", &lxd.CreateFromURLOptions{Via: lxd.ViaServer, Wait: true})
		require.Equal(t, http.StatusBadRequest, testkit.ErrOf[*lxd.Error](t, err).StatusCode)
	})
}

// badURL is a source by URL that must be refused.
type badURL struct {
	image   streamstest.Direct
	fault   streamstest.Fault // of the file
	entry   streamstest.Fault // of the URL itself
	path    string            // in place of the URL's own
	opts    lxd.CreateFromURLOptions
	check   func(t *testing.T, err error)
	mention string
	// endless is a source that the daemons themselves do not get away from
	// (LXD 5.0.2, Incus 6.0.4).
	endless bool
}

func sourceError(status int) func(*testing.T, error) {
	return func(t *testing.T, err error) {
		t.Helper()
		require.Equal(t, status, testkit.ErrOf[*lxd.SourceError](t, err).StatusCode)
		require.Equal(t, status == http.StatusNotFound, errors.Is(err, lxd.ErrNotFound))
		require.NotErrorIs(t, err, io.EOF)
	}
}

func badURLs(data []byte) map[string]badURL {
	wrong := strings.Repeat("ab", 32)
	is := streamstest.Hash(data)
	mismatch := func(want, got string) func(*testing.T, error) {
		return func(t *testing.T, err error) {
			t.Helper()
			e := testkit.ErrOf[*lxd.FingerprintError](t, err)
			require.Equal(t, want, e.Want)
			require.Equal(t, got, e.Got)
			require.NotErrorIs(t, err, io.EOF)
		}
	}
	ok := streamstest.Direct{Content: data}
	return map[string]badURL{
		"no hash":       {image: streamstest.Direct{Content: data, Hash: "-"}, check: sourceError(0), mention: "Image-Hash"},
		"short hash":    {image: streamstest.Direct{Content: data, Hash: is[:12]}, check: sourceError(0), mention: "Image-Hash"},
		"no URL":        {image: streamstest.Direct{Content: data, URL: "-"}, check: sourceError(0), mention: "Image-URL"},
		"relative URL":  {image: streamstest.Direct{Content: data, URL: "/image.tar.gz"}, check: sourceError(0), mention: "Image-URL"},
		"URL of a file": {image: streamstest.Direct{Content: data, URL: "file:///etc/passwd"}, check: sourceError(0), mention: "Image-URL"},
		"wrong hash":    {image: streamstest.Direct{Content: data, Hash: wrong}, check: mismatch(wrong, is)},
		"corrupt":       {image: ok, fault: streamstest.Corrupt(50_000), check: mismatch(is, streamstest.Hash(flipped(data, 50_000)))},
		"short":         {image: ok, fault: streamstest.Truncate(70_000), check: mismatch(is, streamstest.Hash(data[:70_000]))},
		"cut":           {image: ok, fault: streamstest.Together(streamstest.NoLength(), streamstest.NoRanges(), streamstest.Cut(70_000)), check: sourceError(0), mention: "image.tar.gz"},
		"cut for good":  {image: ok, fault: streamstest.Cut(0), check: sourceError(0), mention: "image.tar.gz"},
		"no file":       {image: ok, fault: streamstest.Status(http.StatusNotFound), check: sourceError(http.StatusNotFound), mention: "image.tar.gz"},
		"nothing there": {image: ok, path: "/none", check: sourceError(http.StatusNotFound), mention: "/none"},
		"page":          {image: ok, path: "/image", entry: streamstest.HTML(), check: sourceError(0), mention: "text"},
		"page in place": {image: ok, fault: streamstest.HTML(), check: sourceError(0), mention: "image.tar.gz"},
		"empty":         {image: streamstest.Direct{Content: []byte{}}, check: sourceError(0), mention: "empty"},
		"loop":          {image: ok, entry: streamstest.RedirectLoop(), check: sourceError(0), mention: "redirect", endless: true},
		"plain, cut":    {image: ok, path: "/image.tar.gz", fault: streamstest.Cut(0), check: sourceError(0), mention: "image.tar.gz"},
		"not an image": {
			image: streamstest.Direct{Content: append([]byte{0xff, 0}, data...)},
			check: func(t *testing.T, err error) { t.Helper(); testkit.ErrOf[*lxd.OperationError](t, err) },
		},
		"another image is wanted": {image: ok, opts: lxd.CreateFromURLOptions{Fingerprint: wrong}, check: mismatch(wrong, is)},
		"plain, another image is wanted": {
			image: ok, path: "/image.tar.gz", opts: lxd.CreateFromURLOptions{Fingerprint: wrong}, check: mismatch(wrong, is),
		},
	}
}

func flipped(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 0xff
	return data
}

func TestImportURLFromBadSources(t *testing.T) {
	t.Parallel()
	onImportTargetsWith(t, shortRetries, func(t *testing.T, target *importTarget) {
		for name, bad := range badURLs(testkit.Unified(t, 100_000)) {
			t.Run(name, func(t *testing.T) {
				source := imageServer(t)
				at := source.Direct("image", bad.image)
				if bad.path != "" {
					at = source.URL + bad.path
				}
				if bad.fault != nil {
					source.Fault("image.tar.gz", bad.fault)
				}
				if bad.entry != nil {
					source.Fault("image", bad.entry)
				}
				vias := []lxd.Via{lxd.ViaAuto, lxd.ViaClient, lxd.ViaServer}
				if bad.endless && target.fake == nil {
					vias = []lxd.Via{lxd.ViaClient}
				}
				requireImportFails(t, target, vias, bad.check, bad.mention, func(via lxd.Via) (*lxd.Image, error) {
					opts := bad.opts
					opts.Via, opts.Wait, opts.Aliases = via, true, []lxd.Alias{{Name: "never"}}
					return target.client.Images.CreateFromURL(t.Context(), at, &opts)
				})
			})
		}
	})
}

// TestImportRedirectToHTTP: a redirect from https to http is refused unless a
// fingerprint is set.
func TestImportRedirectToHTTP(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD69, nil)
	data := testkit.Unified(t, 0)
	plain := imageServer(t)
	plain.Set("image", data)
	secure := streamstest.NewTLSServer(nil)
	t.Cleanup(secure.Close)
	secure.Fault("image", streamstest.Redirect(plain.URL+"/image"))
	opts := &lxd.CreateFromURLOptions{Wait: true, HTTPClient: trusting(t, secure.CA)}
	_, err := target.client.Images.CreateFromURL(t.Context(), secure.URL+"/image", opts)
	testkit.ErrOf[*lxd.SourceError](t, err)
	require.ErrorContains(t, err, "from https to http")
	target.requireEmpty(t)
	opts.Fingerprint = streamstest.Hash(data)
	image, err := target.client.Images.CreateFromURL(t.Context(), secure.URL+"/image", opts)
	require.NoError(t, err)
	require.Equal(t, streamstest.Hash(data), image.Fingerprint)
	require.Nil(t, opts.HTTPClient.CheckRedirect, "the caller's client is not modified")
}

func trusting(t *testing.T, ca string) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM([]byte(ca)))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// TestImportURLWithPrivateAuthority has the client fetch what the server cannot
// trust.
func TestImportURLWithPrivateAuthority(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		source := streamstest.NewTLSServer(nil)
		t.Cleanup(source.Close)
		data := testkit.Unified(t, 100_000)
		at := source.Direct("image", streamstest.Direct{Content: data})
		_, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Wait: true})
		var untrusted x509.UnknownAuthorityError
		require.ErrorAs(t, err, &untrusted)
		testkit.ErrOf[*lxd.SourceError](t, err)
		target.requireEmpty(t)
		image, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Wait: true, HTTPClient: trusting(t, source.CA)})
		require.NoError(t, err)
		require.Equal(t, streamstest.Hash(data), image.Fingerprint)
	})
}

// TestContentIsNotCompressedOnTheWay: a web server, or a proxy before the daemon, must
// not, as its ranges would be those of other bytes.
func TestContentIsNotCompressedOnTheWay(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	data := testkit.Unified(t, 0)
	var asked string
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Accept-Encoding")
		_, _ = w.Write(data)
	}))
	t.Cleanup(web.Close)
	image, err := f.Client.Images.CreateFromURL(t.Context(), web.URL+"/image.tar", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true})
	require.NoError(t, err)
	require.Equal(t, "identity", asked)
	f.ForgetRequests()
	_, err = readExport(t, image)
	require.NoError(t, err)
	for _, r := range f.Requests() {
		require.Empty(t, r.Header.Get("Accept-Encoding"), r.Path)
	}
}
