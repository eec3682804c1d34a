package lxd_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
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
	onImportTargetsWith(t, importOptions().RetryTimeout, test)
}

// onImportTargetsWith is onImportTargets with this timeout of retries.
func onImportTargetsWith(t *testing.T, retries time.Duration, test func(t *testing.T, target *importTarget)) {
	t.Helper()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60, lxdtest.Incus70} {
		t.Run("lxdtest "+dialect.String(), func(t *testing.T) {
			t.Parallel()
			test(t, importFake(t, dialect, &lxd.Options{RetryTimeout: retries}))
		})
	}
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, daemons := range [][]*testdaemon.Daemon{lxds, incuses} {
		if len(daemons) > 0 {
			t.Run(string(daemons[0].Family), func(t *testing.T) {
				t.Parallel()
				test(t, importReal(t, daemons[0], retries))
			})
		}
	}
}

// importFake starts a server without images. One of LXD69 has image registries,
// as an LXD with that extension, and so fetches through them alone.
func importFake(t *testing.T, dialect lxdtest.Dialect, opts *lxd.Options) *importTarget {
	t.Helper()
	if opts == nil {
		opts = importOptions()
	}
	server := &lxdtest.Options{Dialect: dialect}
	takes := dialect != lxdtest.LXD69
	if !takes {
		server.WithExtensions = []string{"image_registries"}
	}
	f := testkit.StartFakeWith(t, server, opts)
	return &importTarget{client: f.Client, family: lxd.Family(dialect.Family()), fake: f.Server, takesURLs: takes, takesStreams: takes}
}

// importOptions keep the tests of sources that stay bad short.
func importOptions() *lxd.Options { return &lxd.Options{RetryTimeout: time.Second} }

func importReal(t *testing.T, daemon *testdaemon.Daemon, retries time.Duration) *importTarget {
	t.Helper()
	project := "import-" + strings.ToLower(rand.Text())
	require.NoError(t, daemon.CreateProject(t.Context(), project))
	client := testkit.NewClient(t, "unix://"+daemon.Socket, &lxd.Options{RetryTimeout: retries}).InProject(project)
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

// TestImportTargetRefuses has errors that the client would get too, so it does not
// fetch.
func TestImportTargetRefuses(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		c := target.client
		source := imageServer(t)
		at := source.Direct("image", streamstest.Direct{Content: testkit.Unified(t, 0)})
		before := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "taken"}}})
		for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaServer, lxd.ViaClient} {
			_, err := c.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Via: via, Aliases: []lxd.Alias{{Name: "taken"}}, Wait: true})
			require.ErrorIs(t, err, lxd.ErrExists)
			_, err = c.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Via: via, Profiles: []string{"none"}, Wait: true})
			require.ErrorIs(t, err, lxd.ErrNotFound)
			require.ErrorContains(t, err, `"none"`)
		}
		require.Zero(t, fetches(source, "image"), "it was refused before anything was fetched")

		image, err := c.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Aliases: []lxd.Alias{{Name: "taken"}}, ReuseAliases: true, Wait: true})
		require.NoError(t, err)
		require.Equal(t, []lxd.Alias{{Name: "taken"}}, image.Aliases)
		now, err := c.Images.Get(t.Context(), before.Fingerprint)
		require.NoError(t, err)
		require.Empty(t, now.Aliases)

		// The alias is moved by nobody to an image that is not the wanted one.
		wrong := source.Direct("wrong", streamstest.Direct{Content: testkit.Unified(t, 0)})
		_, err = c.Images.CreateFromURL(t.Context(), wrong, &lxd.CreateFromURLOptions{
			Aliases: []lxd.Alias{{Name: "taken"}}, ReuseAliases: true, Wait: true, Fingerprint: strings.Repeat("0", 64),
		})
		testkit.ErrOf[*lxd.FingerprintError](t, err)
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
		data := testkit.Unified(t, 0)
		at := source.Direct("image", streamstest.Direct{Content: data})
		other := testkit.Upload(t, c, nil)
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

// TestImportForbidden: the client does not fetch the image.
func TestImportForbidden(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD50, nil)
	source := imageServer(t)
	at := source.Direct("image", streamstest.Direct{Content: testkit.Unified(t, 0)})
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
	data := testkit.Unified(t, 100_000)
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

	// Both causes are reported.
	image, err = target.client.Images.CreateFromURL(t.Context(), source.URL+"/none", nil)
	require.NoError(t, err)
	err = image.Wait(t.Context())
	require.ErrorIs(t, err, lxd.ErrNotFound)
	testkit.ErrOf[*lxd.SourceError](t, err)
	testkit.ErrOf[*lxd.OperationError](t, err)
}

// TestImportWhoseOperationIsForgotten has the server forget the operation of an import.
func TestImportWhoseOperationIsForgotten(t *testing.T) {
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
				data := testkit.Unified(t, 0)
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
			at := source.Direct("image", streamstest.Direct{Content: testkit.Unified(t, 100_000)})
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

// TestImportTargetBreaks breaks the connection to the server in the middle of an
// upload: the source is read again from its start.
func TestImportTargetBreaks(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault   lxdtest.Fault
		fetches int
	}{
		"cut":  {lxdtest.CutRequest(50_000), 2},
		"busy": {lxdtest.Unavailable(), 1}, // nothing of the content was sent
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := importFake(t, lxdtest.LXD50, nil)
			source := imageServer(t)
			data := testkit.Unified(t, 2<<20)
			at := source.Direct("image", streamstest.Direct{Content: data})
			injected := target.fake.Inject(test.fault.On(http.MethodPost, "/1.0/images").Times(1))
			image, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true})
			require.NoError(t, err)
			require.Equal(t, streamstest.Hash(data), image.Fingerprint)
			require.Equal(t, 1, injected.Fired())
			require.Equal(t, test.fetches, fetches(source, "image.tar.gz"))
		})
	}
}

func TestImportProgress(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD69, nil)
	source := imageServer(t)
	data := testkit.Unified(t, 1<<20)
	at := source.Direct("image", streamstest.Direct{Content: data})
	var sent, total int64
	_, err := target.client.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Wait: true, Progress: func(p lxd.Progress) {
		sent, total = max(sent, p.Done), max(total, p.Total)
	}})
	require.NoError(t, err)
	require.Equal(t, int64(len(data)), total)
	require.LessOrEqual(t, sent, total)
}

// TestImportOfAnotherImage: an import by a full fingerprint accepts no other image.
func TestImportOfAnotherImage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	target := importFake(t, lxdtest.LXD50, importOptions())
	source := importStreams(t, tree(t, "both", nil))["http"]
	opts := target.streamsFrom(source)
	opts.Via = lxd.ViaServer
	var known []string
	for _, alias := range []string{"distro", "unified"} {
		image, err := target.client.Images.CreateFromSimplestreams(ctx, source.URL, alias, opts)
		require.NoError(t, err)
		known = append(known, image.Fingerprint)
		require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
	}
	replaced := rewriting(t, target.fake.Endpoint(), func(req *http.Request) {
		if req.Method == http.MethodPost && req.URL.Path == "/1.0/images" {
			body, err := io.ReadAll(req.Body)
			if err == nil {
				body = bytes.ReplaceAll(body, []byte(known[0]), []byte(known[1]))
			}
			req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
	}, nil)
	_, err := replaced.Images.CreateFromSimplestreams(ctx, source.URL, known[0], opts)
	mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
	require.Equal(t, known, []string{mismatch.Want, mismatch.Got})
	target.requireEmpty(t)
	image, err := target.client.Images.CreateFromSimplestreams(ctx, source.URL, known[0], opts)
	require.NoError(t, err)
	require.Equal(t, known[0], image.Fingerprint)
	require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
}

// requireImportFails has each of the ways of an import fail, and checks that none
// leaves anything on the server. What the client says is also checked; a server's
// own words are not.
func requireImportFails(t *testing.T, target *importTarget, vias []lxd.Via, check func(*testing.T, error), mention string, create func(lxd.Via) (*lxd.Image, error)) {
	t.Helper()
	for _, via := range vias {
		image, err := create(via)
		require.Error(t, err, via)
		require.Nil(t, image)
		target.requireEmpty(t)
		if via == lxd.ViaServer {
			continue
		}
		check(t, err)
		require.Contains(t, err.Error(), mention)
	}
}

// TestCancelledImportEnds: the client does not make the import that somebody has
// cancelled on the server.
func TestCancelledImportEnds(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	data := testkit.Unified(t, 0)
	proceed := make(chan struct{})
	var web *httptest.Server
	web = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/image" {
			w.Header().Set("LXD-Image-Hash", lxdtest.Fingerprint(data))
			w.Header().Set("LXD-Image-URL", web.URL+"/data")
			return
		}
		if r.Method == http.MethodGet {
			<-proceed
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(web.Close)
	image, err := f.Client.Images.CreateFromURL(t.Context(), web.URL+"/image", nil)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return image.Operation().Cancel(t.Context()) == nil }, exportWait, exportTick)
	close(proceed)
	require.ErrorIs(t, image.Wait(t.Context()), lxd.ErrCancelled)
	require.Empty(t, f.Images())
}

// TestImportSaysWhoFetched: an import says who has fetched the image, and why not the
// server if it was the client.
func TestImportSaysWhoFetched(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			c := s.Client(t)
			source := streamstest.NewServer(nil)
			t.Cleanup(source.Close)
			for _, wait := range []bool{true, false} {
				load := func(at string, opts lxd.CreateFromURLOptions) *lxd.Image {
					opts.Wait = wait
					image, err := c.Images.CreateFromURL(t.Context(), at, &opts)
					require.NoError(t, err)
					require.NoError(t, image.Wait(t.Context()))
					testkit.DeleteAfter(t, image)
					return image
				}
				direct := func() string {
					return source.Direct(testkit.Unique("direct"), streamstest.Direct{Content: testkit.Unified(t, 1000)})
				}
				image := load(direct(), lxd.CreateFromURLOptions{})
				if len(image.Transfer().Failed) == 0 {
					require.EqualValues(t, lxd.ViaServer, image.Transfer().Way)
				} else {
					require.Contains(t, s.Column, "6.9", "only it fetches from no URL")
					require.EqualValues(t, lxd.ViaClient, image.Transfer().Way)
					require.EqualValues(t, lxd.ViaServer, image.Transfer().Failed[0].Way)
					require.ErrorContains(t, image.Transfer().Failed[0].Err, "not supported")
				}

				again := load(direct(), lxd.CreateFromURLOptions{Fingerprint: image.Fingerprint})
				require.Equal(t, image.Fingerprint, again.Fingerprint)
				require.Empty(t, again.Transfer().Way, "the server had it")

				source.Set("plain", testkit.Unified(t, 1000))
				image = load(source.URL+"/plain", lxd.CreateFromURLOptions{})
				require.EqualValues(t, lxd.ViaClient, image.Transfer().Way)
				require.Len(t, image.Transfer().Failed, 1)
				require.EqualValues(t, lxd.ViaServer, image.Transfer().Failed[0].Way)
				require.Regexp(t, "Missing .*-Image-Hash header|not supported", image.Transfer().Failed[0].Err.Error())
				again = load(source.URL+"/plain", lxd.CreateFromURLOptions{Fingerprint: image.Fingerprint})
				require.Empty(t, again.Transfer().Way)
				require.Empty(t, again.Transfer().Failed)

				image = load(direct(), lxd.CreateFromURLOptions{Via: lxd.ViaClient})
				require.EqualValues(t, lxd.ViaClient, image.Transfer().Way)
				require.Empty(t, image.Transfer().Failed)
			}
		})
	}
}
