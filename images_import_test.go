package lxd_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/streamstest"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/lxdtest"
)

// importTarget is a server without images that images are imported to: a
// dialect of lxdtest, or a new project of a real daemon.
type importTarget struct {
	client *lxd.Client
	family lxd.Family
	fake   *lxdtest.Server // nil for a real one
	takesURLs,
	takesStreams bool
}

// onImportTargets runs a test on every dialect, and on the real daemons that
// the environment names.
func onImportTargets(t *testing.T, test func(t *testing.T, target *importTarget)) {
	t.Helper()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		t.Run("lxdtest "+dialect.String(), func(t *testing.T) {
			t.Parallel()
			test(t, importFake(t, dialect, nil))
		})
	}
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, daemons := range [][]*testdaemon.Daemon{lxds, incuses} {
		if len(daemons) > 0 {
			t.Run(string(daemons[0].Family), func(t *testing.T) {
				t.Parallel()
				test(t, importReal(t, daemons[0]))
			})
		}
	}
}

func importFake(t *testing.T, dialect lxdtest.Dialect, opts *lxd.Options) *importTarget {
	t.Helper()
	if opts == nil {
		opts = importOptions()
	}
	f := startFakeWith(t, &lxdtest.Options{Dialect: dialect}, opts)
	takes := dialect != lxdtest.LXD69
	return &importTarget{client: f.Client, family: lxd.Family(dialect.Family()), fake: f.Server, takesURLs: takes, takesStreams: takes}
}

// importOptions keep the tests of sources that stay bad short.
func importOptions() *lxd.Options { return &lxd.Options{RetryTimeout: time.Second} }

func importReal(t *testing.T, daemon *testdaemon.Daemon) *importTarget {
	t.Helper()
	project := "import-" + strings.ToLower(rand.Text())
	require.NoError(t, daemon.CreateProject(t.Context(), project))
	client := newClient(t, "unix://"+daemon.Socket, importOptions()).InProject(project)
	t.Cleanup(func() {
		images, err := client.Images.All(context.Background(), nil)
		require.NoError(t, err)
		for _, image := range images {
			require.NoError(t, image.Delete(context.Background(), &lxd.DeleteOptions{Wait: true}))
		}
		require.NoError(t, daemon.DeleteProject(context.Background(), project))
	})
	return &importTarget{client: client, family: lxd.Family(daemon.Family), takesURLs: true, takesStreams: true}
}

// requireEmpty fails where an import has left something on the server.
func (target *importTarget) requireEmpty(t *testing.T) {
	t.Helper()
	images, err := target.client.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, images)
	aliases, err := target.client.Aliases.All(t.Context())
	require.NoError(t, err)
	require.Empty(t, aliases)
}

func imageServer(t *testing.T) *streamstest.Server {
	t.Helper()
	s := streamstest.NewServer(nil)
	t.Cleanup(s.Close)
	return s
}

// fetches are the GET requests for a file since the last look.
func fetches(s *streamstest.Server, path string) (n int) {
	for _, r := range s.Requests() {
		if r.Method == http.MethodGet && r.Path == path {
			n++
		}
	}
	return n
}

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
				data := unified(t, 100_000)
				path := unique("image")
				at := source.Direct(path, streamstest.Direct{Content: data, Families: test.families})
				if test.plain {
					at += ".tar.gz"
				}
				source.Requests()
				alias := unique("imported")
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
		require.Equal(t, http.StatusBadRequest, errOf[*lxd.Error](t, err).StatusCode)
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
		require.Equal(t, status, errOf[*lxd.SourceError](t, err).StatusCode)
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
			e := errOf[*lxd.FingerprintError](t, err)
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
			check: func(t *testing.T, err error) { t.Helper(); errOf[*lxd.OperationError](t, err) },
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
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		for name, bad := range badURLs(unified(t, 100_000)) {
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
				for _, via := range vias {
					opts := bad.opts
					opts.Via, opts.Wait, opts.Aliases = via, true, []lxd.Alias{{Name: "never"}}
					image, err := target.client.Images.CreateFromURL(t.Context(), at, &opts)
					require.Error(t, err, via)
					require.Nil(t, image)
					target.requireEmpty(t)
					if via == lxd.ViaServer {
						continue
					}
					bad.check(t, err)
					require.Contains(t, err.Error(), bad.mention)
				}
			})
		}
	})
}

// TestImportURLResumes cuts transfers that can go on, with and without ranges.
func TestImportURLResumes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault  streamstest.Fault
		opts   lxd.CreateFromURLOptions
		ranges []string
	}{
		"ranges":       {streamstest.Times(2, streamstest.Cut(60_000)), lxd.CreateFromURLOptions{}, []string{"", "bytes=60000-", "bytes=120000-"}},
		"no ranges":    {streamstest.Together(streamstest.NoRanges(), streamstest.Times(1, streamstest.Cut(60_000))), lxd.CreateFromURLOptions{}, []string{"", "bytes=60000-"}},
		"no length":    {streamstest.Together(streamstest.NoLength(), streamstest.Times(1, streamstest.Cut(60_000))), lxd.CreateFromURLOptions{}, []string{"", "bytes=60000-"}},
		"busy":         {streamstest.Times(2, streamstest.Status(http.StatusServiceUnavailable)), lxd.CreateFromURLOptions{}, []string{"", "", ""}},
		"stalled once": {streamstest.Times(1, streamstest.Stall(60_000)), lxd.CreateFromURLOptions{StallTimeout: time.Second}, []string{"", "bytes=60000-"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := importFake(t, lxdtest.LXD69, &lxd.Options{})
			source := imageServer(t)
			data := unified(t, 200_000)
			at := source.Direct("image", streamstest.Direct{Content: data})
			source.Fault("image.tar.gz", test.fault)
			test.opts.Wait = true
			image, err := target.client.Images.CreateFromURL(t.Context(), at, &test.opts)
			require.NoError(t, err)
			require.Equal(t, streamstest.Hash(data), image.Fingerprint)
			var ranges []string
			for _, r := range source.Requests() {
				if r.Method == http.MethodGet {
					ranges = append(ranges, r.Header.Get("Range"))
				}
			}
			require.Equal(t, test.ranges, ranges)
		})
	}
}

// TestImportURLIsReplaced changes the file between two parts of its transfer.
func TestImportURLIsReplaced(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD69, nil)
	source := imageServer(t)
	source.Set("image", unified(t, 200_000))
	var once sync.Once
	source.Fault("image", func(s *streamstest.Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				once.Do(func() {
					source.Set("image", unified(t, 200_000))
					next = streamstest.Cut(100_000)(s, next)
				})
			}
			next.ServeHTTP(w, r)
		})
	})
	_, err := target.client.Images.CreateFromURL(t.Context(), source.URL+"/image", &lxd.CreateFromURLOptions{Wait: true})
	errOf[*lxd.SourceError](t, err)
	require.ErrorContains(t, err, "replaced")
	target.requireEmpty(t)
}

func TestImportFromStalledSources(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		for _, after := range []int64{-1, 50_000} {
			source := imageServer(t)
			at := source.Direct("image", streamstest.Direct{Content: unified(t, 200_000)})
			path := "image.tar.gz"
			if after < 0 {
				path = "image"
			}
			source.Fault(path, streamstest.Together(streamstest.NoRanges(), streamstest.Stall(after)))
			for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaClient} {
				enough := errors.New("enough")
				ctx, cancel := context.WithTimeoutCause(t.Context(), 150*time.Millisecond, enough)
				begin := time.Now()
				_, err := target.client.Images.CreateFromURL(ctx, at, &lxd.CreateFromURLOptions{Via: via, Wait: true})
				cancel()
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorIs(t, err, enough)
				require.Less(t, time.Since(begin), 1150*time.Millisecond)
			}
			begin := time.Now()
			_, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{
				Via: lxd.ViaClient, Wait: true, StallTimeout: 500 * time.Millisecond,
			})
			require.ErrorContains(t, err, "no data was sent or received for too long")
			require.NotErrorIs(t, err, context.Canceled, "nobody has cancelled it")
			require.Contains(t, errOf[*lxd.SourceError](t, err).URL, path)
			require.Less(t, time.Since(begin), 10*time.Second)
		}
		if target.fake != nil {
			require.Eventually(t, func() bool {
				images, err := target.client.Images.All(t.Context(), nil)
				return err == nil && len(images) == 0
			}, 5*time.Second, 10*time.Millisecond)
		}
	})
}

// TestImportKeepsSecrets follows redirects from a URL with a password.
func TestImportKeepsSecrets(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		data := unified(t, 100_000)
		var leaked atomic.Bool
		mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" || strings.Contains(r.Header.Get("Referer"), "secret") {
				leaked.Store(true)
			}
			http.ServeContent(w, r, "image", time.Time{}, bytes.NewReader(data))
		}))
		t.Cleanup(mirror.Close)
		mux := http.NewServeMux()
		mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, mirror.URL+"/image", http.StatusFound)
		})
		mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+r.Host+"/image", http.StatusFound)
		})
		mux.HandleFunc("/image", func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "image", time.Time{}, bytes.NewReader(data))
		})
		origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "user" || password != "pass/secret" {
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
			mux.ServeHTTP(w, r)
		}))
		t.Cleanup(origin.Close)
		base := "http://user:pass%2Fsecret@" + strings.TrimPrefix(origin.URL, "http://")
		var logged bytes.Buffer
		client := target.client
		if target.fake != nil {
			client = newClient(t, target.fake.Endpoint(), &lxd.Options{RetryTimeout: -1, Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		}
		for _, path := range []string{"/away?token=topsecret", "/here"} {
			image, err := client.Images.CreateFromURL(t.Context(), base+path, &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true})
			require.NoError(t, err, path)
			require.Equal(t, streamstest.Hash(data), image.Fingerprint)
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		}
		require.False(t, leaked.Load(), "the password went to another host")

		for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaClient, lxd.ViaServer} {
			for _, at := range []string{base + "/none?token=topsecret", "http://user:pass%2Fsecret@127.0.0.1:1/none?token=topsecret"} {
				_, err := client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Via: via, Wait: true})
				require.Error(t, err)
				require.NotContains(t, err.Error(), "secret")
			}
		}
		require.NotContains(t, logged.String(), "secret")
	})
}

// TestContextEndsAnImport ends the context when the source asks to come again
// later: before the waiting, and within it.
func TestContextEndsAnImport(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD69, nil)
	client := newClient(t, target.fake.Endpoint(), nil)
	stop := errors.New("enough")
	for name, after := range map[string]time.Duration{"at once": 0, "later": 100 * time.Millisecond} {
		ctx, cancel := context.WithCancelCause(t.Context())
		source := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if after == 0 {
				cancel(stop)
			} else {
				time.AfterFunc(after, func() { cancel(stop) })
			}
			return &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {"60"}}, Body: http.NoBody, Request: r}, nil
		})}
		_, err := client.Images.CreateFromURL(ctx, "https://images.example.net/image", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true, HTTPClient: source})
		require.ErrorIs(t, err, context.Canceled, name)
		require.ErrorIs(t, err, stop, name)
	}
	target.requireEmpty(t)
}

// TestImportRedirectToHTTP leaves https, which is refused unless the content is
// known.
func TestImportRedirectToHTTP(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD69, nil)
	data := unified(t, 0)
	plain := imageServer(t)
	plain.Set("image", data)
	secure := streamstest.NewTLSServer(nil)
	t.Cleanup(secure.Close)
	secure.Fault("image", streamstest.Redirect(plain.URL+"/image"))
	opts := &lxd.CreateFromURLOptions{Wait: true, HTTPClient: trusting(t, secure.CA)}
	_, err := target.client.Images.CreateFromURL(t.Context(), secure.URL+"/image", opts)
	errOf[*lxd.SourceError](t, err)
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
		data := unified(t, 100_000)
		at := source.Direct("image", streamstest.Direct{Content: data})
		_, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Wait: true})
		var untrusted x509.UnknownAuthorityError
		require.ErrorAs(t, err, &untrusted)
		errOf[*lxd.SourceError](t, err)
		target.requireEmpty(t)
		image, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Wait: true, HTTPClient: trusting(t, source.CA)})
		require.NoError(t, err)
		require.Equal(t, streamstest.Hash(data), image.Fingerprint)
	})
}

// TestImportTargetRefuses meets errors that the client would meet too, so that
// it does not try.
func TestImportTargetRefuses(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		c := target.client
		source := imageServer(t)
		at := source.Direct("image", streamstest.Direct{Content: unified(t, 0)})
		before := upload(t, c, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "taken"}}})
		for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaServer, lxd.ViaClient} {
			_, err := c.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Via: via, Aliases: []lxd.Alias{{Name: "taken"}}, Wait: true})
			require.ErrorIs(t, err, lxd.ErrExists)
			_, err = c.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Via: via, Profiles: []string{"none"}, Wait: true})
			require.ErrorIs(t, err, lxd.ErrNotFound)
			require.ErrorContains(t, err, `"none"`)
		}
		require.Empty(t, source.Requests(), "it was refused before anything was fetched")

		image, err := c.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Aliases: []lxd.Alias{{Name: "taken"}}, ReuseAliases: true, Wait: true})
		require.NoError(t, err)
		require.Equal(t, []lxd.Alias{{Name: "taken"}}, image.Aliases)
		now, err := c.Images.Get(t.Context(), before.Fingerprint)
		require.NoError(t, err)
		require.Empty(t, now.Aliases)

		// The alias is moved by nobody to an image that is not the wanted one.
		wrong := source.Direct("wrong", streamstest.Direct{Content: unified(t, 0)})
		_, err = c.Images.CreateFromURL(t.Context(), wrong, &lxd.CreateFromURLOptions{
			Aliases: []lxd.Alias{{Name: "taken"}}, ReuseAliases: true, Wait: true, Fingerprint: strings.Repeat("0", 64),
		})
		errOf[*lxd.FingerprintError](t, err)
		still, err := c.Images.GetByAlias(t.Context(), "taken")
		require.NoError(t, err)
		require.Equal(t, image.Fingerprint, still.Fingerprint)
	})
}

// TestImportAliasIsTakenMeanwhile makes the alias while the image is fetched.
func TestImportAliasIsTakenMeanwhile(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		c := target.client
		source := imageServer(t)
		data := unified(t, 0)
		at := source.Direct("image", streamstest.Direct{Content: data})
		other := upload(t, c, nil)
		var once sync.Once
		source.Fault("image.tar.gz", func(_ *streamstest.Server, next http.Handler) http.Handler {
			once.Do(func() { require.NoError(t, other.AddAlias(t.Context(), "contested", "")) })
			return next
		})
		image, err := c.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Aliases: []lxd.Alias{{Name: "contested"}}, Wait: true})
		require.ErrorIs(t, err, lxd.ErrExists)
		require.Equal(t, 1, fetches(source, "image.tar.gz"))
		images, aerr := c.Images.All(t.Context(), nil)
		require.NoError(t, aerr)
		if target.takesURLs {
			require.Equal(t, streamstest.Hash(data), image.Fingerprint, "the image that was made is given")
			require.Empty(t, image.Aliases)
			require.Len(t, images, 2)
		} else {
			require.Nil(t, image, "it was refused before it was sent")
			require.Len(t, images, 1)
		}
		still, err := c.Images.GetByAlias(t.Context(), "contested")
		require.NoError(t, err)
		require.Equal(t, other.Fingerprint, still.Fingerprint)
	})
}

// TestImportForbidden is not tried again by the client.
func TestImportForbidden(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD50, nil)
	source := imageServer(t)
	at := source.Direct("image", streamstest.Direct{Content: unified(t, 0)})
	target.fake.Inject(lxdtest.Status(http.StatusForbidden, "not for you").On(http.MethodPost, "/1.0/images"))
	_, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Wait: true})
	require.ErrorIs(t, err, lxd.ErrForbidden)
	require.Empty(t, source.Requests())
}

// TestImportFallsBackInWait begins at the server, which fails.
func TestImportFallsBackInWait(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD50, nil)
	source := imageServer(t)
	data := unified(t, 100_000)
	source.Set("plain", data)
	image, err := target.client.Images.CreateFromURL(t.Context(), source.URL+"/plain", &lxd.CreateFromURLOptions{
		Aliases: []lxd.Alias{{Name: "late"}}, Progress: func(lxd.Progress) {},
	})
	require.NoError(t, err)
	require.NotNil(t, image.Operation())
	for range 2 {
		require.NoError(t, image.Wait(t.Context()))
		require.Equal(t, streamstest.Hash(data), image.Fingerprint)
		require.Equal(t, []lxd.Alias{{Name: "late"}}, image.Aliases)
	}

	// Both causes are told.
	image, err = target.client.Images.CreateFromURL(t.Context(), source.URL+"/none", nil)
	require.NoError(t, err)
	err = image.Wait(t.Context())
	require.ErrorIs(t, err, lxd.ErrNotFound)
	errOf[*lxd.SourceError](t, err)
	errOf[*lxd.OperationError](t, err)
}

// TestImportIsForgotten has the server forget what became of an import.
func TestImportIsForgotten(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.Incus60} {
		for name, opts := range map[string]lxd.CreateFromURLOptions{
			"alias":       {Aliases: []lxd.Alias{{Name: "known"}}},
			"fingerprint": {Fingerprint: "set below"},
			"resolved":    {Via: lxd.ViaServer},
		} {
			t.Run(dialect.String()+" "+name, func(t *testing.T) {
				t.Parallel()
				target := importFake(t, dialect, nil)
				source := imageServer(t)
				data := unified(t, 0)
				at := source.Direct("image", streamstest.Direct{Content: data})
				target.fake.Inject(lxdtest.ForgetOperations())
				if opts.Fingerprint != "" {
					opts.Fingerprint = streamstest.Hash(data)
				}
				opts.Wait = true
				image, err := target.client.Images.CreateFromURL(t.Context(), at, &opts)
				require.NoError(t, err)
				require.Equal(t, streamstest.Hash(data), image.Fingerprint)
				require.Equal(t, len(opts.Aliases), len(image.Aliases))
			})
		}
		t.Run(dialect.String()+" restart", func(t *testing.T) {
			t.Parallel()
			target := importFake(t, dialect, nil)
			source := imageServer(t)
			at := source.Direct("image", streamstest.Direct{Content: unified(t, 100_000)})
			reached := make(chan struct{})
			var once sync.Once
			source.Fault("image.tar.gz", func(s *streamstest.Server, next http.Handler) http.Handler {
				once.Do(func() { close(reached) })
				return streamstest.Stall(10_000)(s, next)
			})
			image, err := target.client.Images.CreateFromURL(t.Context(), at, nil)
			require.NoError(t, err)
			<-reached
			target.fake.Restart()
			require.ErrorIs(t, image.Wait(t.Context()), lxd.ErrOutcomeUnknown)
			target.requireEmpty(t)
		})
	}
}

// TestImportTargetBreaks loses the way to the server in the middle of an
// upload: the source is read anew.
func TestImportTargetBreaks(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]lxdtest.Fault{
		"cut":  lxdtest.CutRequest(50_000).On(http.MethodPost, "/1.0/images").Times(1),
		"busy": lxdtest.Unavailable().On(http.MethodPost, "/1.0/images").Times(1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := importFake(t, lxdtest.LXD50, nil)
			source := imageServer(t)
			data := unified(t, 2<<20)
			at := source.Direct("image", streamstest.Direct{Content: data})
			injected := target.fake.Inject(fault)
			image, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true})
			require.NoError(t, err)
			require.Equal(t, streamstest.Hash(data), image.Fingerprint)
			require.Equal(t, 1, injected.Fired())
			require.Equal(t, 2, fetches(source, "image.tar.gz"))
		})
	}
}

func TestImportProgress(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD69, nil)
	source := imageServer(t)
	data := unified(t, 1<<20)
	at := source.Direct("image", streamstest.Direct{Content: data})
	var sent, total int64
	_, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Wait: true, Progress: func(p lxd.Progress) {
		sent, total = max(sent, p.Done), max(total, p.Total)
	}})
	require.NoError(t, err)
	require.Equal(t, int64(len(data)), total)
	require.LessOrEqual(t, sent, total)
}
