package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// TestImportURLResumes breaks transfers that can be resumed, with and without ranges.
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
		"stalled once": {streamstest.Times(1, streamstest.Stall(60_000)), lxd.CreateFromURLOptions{StallTimeout: 3 * time.Second}, []string{"", "bytes=60000-"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := importFake(t, lxdtest.LXD69, &lxd.Options{})
			source := imageServer(t)
			data := testkit.Unified(t, 200_000)
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
	source.Set("image", testkit.Unified(t, 200_000))
	var once sync.Once
	source.Fault("image", func(s *streamstest.Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				once.Do(func() {
					source.Set("image", testkit.Unified(t, 200_000))
					next = streamstest.Cut(100_000)(s, next)
				})
			}
			next.ServeHTTP(w, r)
		})
	})
	_, err := target.client.Images.CreateFromURL(t.Context(), source.URL+"/image", &lxd.CreateFromURLOptions{Wait: true})
	testkit.ErrOf[*lxd.SourceError](t, err)
	require.ErrorContains(t, err, "replaced")
	target.requireEmpty(t)
}

func TestImportFromStalledSources(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		for _, after := range []int64{-1, 50_000} {
			source := imageServer(t)
			at := source.Direct("image", streamstest.Direct{Content: testkit.Unified(t, 200_000)})
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
				require.Less(t, time.Since(begin), patience)
			}
			begin := time.Now()
			_, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{
				Via: lxd.ViaClient, Wait: true, StallTimeout: 500 * time.Millisecond,
			})
			require.ErrorContains(t, err, "no data was sent or received for too long")
			require.NotErrorIs(t, err, context.Canceled, "nobody has cancelled it")
			require.Contains(t, testkit.ErrOf[*lxd.SourceError](t, err).URL, path)
			require.Less(t, time.Since(begin), patience)
		}
		if target.fake != nil {
			require.Eventually(t, func() bool {
				images, err := target.client.Images.All(t.Context(), nil)
				return err == nil && len(images) == 0
			}, 30*time.Second, 10*time.Millisecond)
		}
	})
}

// TestImportKeepsSecrets follows redirects from a URL with a password.
func TestImportKeepsSecrets(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		data := testkit.Unified(t, 100_000)
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
			client = testkit.NewClient(t, target.fake.Endpoint(), &lxd.Options{RetryTimeout: -1, Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))})
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

// TestContextEndsAnImport ends the context when the source sends a Retry-After: before
// the pause, and within it.
func TestContextEndsAnImport(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD69, nil)
	client := testkit.NewClient(t, target.fake.Endpoint(), nil)
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

// TestPasswordStaysWithItsHost: the user name and password of a URL are sent to the
// host of LXD-Image-URL only if that is the same.
func TestPasswordStaysWithItsHost(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD69, nil)
	for location, want := range map[string]string{
		"https://images.example.net/image.tar.gz":          "user:s3cr3t",
		"https://own:other@images.example.net/image":       "own:other",
		"https://mirror.example.net/image.tar.gz":          "",
		"https://images.example.net:8443/image.tar.gz":     "",
		"https://images.example.net.example.org/image":     "",
		"https://own:other@mirror.example.net/image":       "own:other",
		"https://images.example.net@mirror.example.net/im": "images.example.net:",
	} {
		data := testkit.Unified(t, 10_000)
		got := "not fetched"
		source := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}
			if r.Method == http.MethodHead {
				res.Header.Set("LXD-Image-Hash", streamstest.Hash(data))
				res.Header.Set("LXD-Image-URL", location)
				return res, nil
			}
			got = ""
			if user, password, ok := r.BasicAuth(); ok {
				got = user + ":" + password
			}
			res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
			return res, nil
		})}
		image, err := target.client.Images.CreateFromURL(t.Context(), "https://user:s3cr3t@images.example.net/image", &lxd.CreateFromURLOptions{
			Via: lxd.ViaClient, Wait: true, HTTPClient: source,
		})
		require.NoError(t, err, location)
		require.Equal(t, streamstest.Hash(data), image.Fingerprint)
		require.Equal(t, want, got, location)
	}
}

// TestRedirectsOfASourceEnd: ten redirects are followed, and no more.
func TestRedirectsOfASourceEnd(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD69, nil)
	data := testkit.Unified(t, 10_000)
	for redirects, followed := range map[int]bool{10: true, 11: false} {
		var most int
		source := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			n, _ := strconv.Atoi(r.URL.Query().Get("n"))
			most = max(most, n)
			res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}
			switch {
			case n < redirects:
				res.StatusCode = http.StatusFound
				res.Header.Set("Location", "/image?n="+strconv.Itoa(n+1))
			case r.Method == http.MethodGet:
				res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
			}
			return res, nil
		})}
		_, err := target.client.Images.CreateFromURL(t.Context(), "https://images.example.net/image", &lxd.CreateFromURLOptions{
			Via: lxd.ViaClient, Wait: true, HTTPClient: source,
		})
		require.Equal(t, min(redirects, 10), most)
		if followed {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, "redirect not followed")
		require.False(t, lxd.IsTransient(testkit.ErrOf[*lxd.SourceError](t, err)))
	}
}
