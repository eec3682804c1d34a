package lxd_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestCopyBetweenFamilies copies images from LXD to Incus and back, on lxdtest and, if
// the environment names them, on real daemons.
func TestCopyBetweenFamilies(t *testing.T) {
	subjects := testkit.Subjects(t)
	first := map[string]*testkit.Subject{}
	for _, s := range subjects {
		kind := string(s.Family)
		if s.Real != nil {
			kind += " real"
		}
		if first[kind] == nil {
			first[kind] = s
		}
	}
	pairs := map[string][2]*testkit.Subject{"lxdtest": {first["lxd"], first["incus"]}}
	if first["lxd real"] != nil && first["incus real"] != nil {
		pairs["real"] = [2]*testkit.Subject{first["lxd real"], first["incus real"]}
	}
	for name, pair := range pairs {
		for _, overTLS := range []bool{false, true} {
			first, second := *pair[0], *pair[1]
			first.TLS, second.TLS = overTLS, overTLS
			for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyRelay, lxd.CopyAuto} {
				for _, split := range []bool{false, true} {
					t.Run(name, func(t *testing.T) {
						there, back := first.Client(t), twinClient(t, &first)
						between := second.Client(t)
						image := testkit.CopySource(t, there, split)
						copied, err := image.Copy(t.Context(), between, &lxd.CopyOptions{Mode: mode, Wait: true})
						require.NoError(t, err)
						testkit.DeleteAfter(t, copied.Image)
						testkit.RequireCopy(t, image, copied)
						again, err := copied.Copy(t.Context(), back, &lxd.CopyOptions{Mode: mode, Wait: true})
						require.NoError(t, err)
						testkit.DeleteAfter(t, again.Image)
						testkit.RequireCopy(t, image, again)
						require.Equal(t, image.Fingerprint, again.Fingerprint)
						if mode == lxd.CopyAuto {
							require.Equal(t, lxd.CopyPull, again.Mode)
						}
					})
				}
			}
			t.Run(name+" push", func(t *testing.T) {
				image := testkit.CopySource(t, first.Client(t), false)
				_, err := image.Copy(t.Context(), second.Client(t), &lxd.CopyOptions{Mode: lxd.CopyPush, Wait: true})
				require.ErrorIs(t, err, lxd.ErrUnsupported)
			})
		}
	}
	for _, s := range subjects {
		testkit.RequireNoTokens(t, s)
	}
}

func twinClient(t *testing.T, s *testkit.Subject) *lxd.Client {
	t.Helper()
	twin := *s.Twin
	twin.TLS = s.TLS
	return twin.Client(t)
}

// TestCopyAuto tries the next mode if one is not supported, and reports why.
func TestCopyAuto(t *testing.T) {
	source, target := testkit.StartFake(t), testkit.StartFake(t)
	image := testkit.CopySource(t, source.Client, false)

	// Neither listens on the network.
	for _, wait := range []bool{true, false} {
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: wait})
		require.NoError(t, err)
		require.NoError(t, copied.Wait(t.Context()))
		require.Equal(t, lxd.CopyRelay, copied.Mode)
		require.Len(t, copied.Failed, 2)
		require.Equal(t, lxd.CopyPull, copied.Failed[0].Mode)
		require.ErrorIs(t, copied.Failed[0].Err, lxd.ErrUnsupported)
		require.Equal(t, lxd.CopyPush, copied.Failed[1].Mode)
		require.ErrorContains(t, copied.Failed[1].Err, "core.https_address")
		testkit.RequireCopy(t, image, copied)
		require.NoError(t, copied.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
	}
	require.Empty(t, source.Tokens())
	require.Empty(t, target.Tokens())
}

// TestFailedCopyLeavesNoToken: the tokens of failed copies are revoked.
func TestFailedCopyLeavesNoToken(t *testing.T) {
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	image := testkit.Upload(t, source.Client, nil)
	for name, test := range map[string]struct {
		on    *testkit.Fake
		fault lxdtest.Fault
	}{
		"the target refuses":            {target, lxdtest.Status(400, "no room").On("POST", "/1.0/images")},
		"the target cannot fetch":       {source, lxdtest.Status(500, "disk broken").On("GET", "/1.0/images/*/export")},
		"the source refuses to push":    {source, lxdtest.Status(400, "not so").On("POST", "/1.0/images/*/export")},
		"the export is another content": {source, lxdtest.Corrupt(100).On("GET", "/1.0/images/*/export")},
	} {
		for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay} {
			for _, wait := range []bool{true, false} {
				injected := test.on.Inject(test.fault)
				copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: mode, Wait: wait})
				if err == nil {
					err = copied.Wait(t.Context())
				}
				injected.Remove()
				if injected.Fired() > 0 {
					require.Error(t, err, "%s: %s", name, mode)
				} else {
					require.NoError(t, err, "%s: %s", name, mode)
					require.NoError(t, copied.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
				}
				require.Empty(t, source.Tokens(), "%s: %s", name, mode)
				require.Empty(t, target.Tokens(), "%s: %s", name, mode)
				require.Empty(t, target.Images(), "%s: %s", name, mode)
			}
		}
	}

	// A context that ends while the target is at work.
	stalled := source.Inject(lxdtest.StallHeaders().On("GET", "/1.0/images/*/export"))
	for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := image.Copy(ctx, target.Client, &lxd.CopyOptions{Mode: mode, Wait: true})
		cancel()
		if mode == lxd.CopyPull {
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		require.Empty(t, source.Tokens(), mode)
		require.Empty(t, target.Tokens(), mode)
	}
	stalled.Remove()
}

// TestEndedContextLeavesNoToken has the context end while the response with
// a token is on its way.
func TestEndedContextLeavesNoToken(t *testing.T) {
	t.Parallel()
	var cancel context.CancelFunc
	opts := &lxd.Options{Transport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripFunc(func(req *http.Request) (*http.Response, error) {
			res, err := next.RoundTrip(req)
			if err == nil && req.Method == http.MethodPost {
				cancel()
				if err = req.Context().Err(); err != nil {
					_ = res.Body.Close()
					return nil, err
				}
			}
			return res, err
		})
	}}
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, opts)
	target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, opts)
	fingerprint, err := source.AddImage(lxdtest.UnifiedImage("token", 0), nil)
	require.NoError(t, err)
	image, err := source.Client.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	var ctx context.Context
	for name, call := range map[string]func() error{
		"Secret": func() error {
			_, err := image.Secret(ctx)
			return err
		},
		"pull": func() error {
			_, err := image.Copy(ctx, target.Client, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
			return err
		},
		"push": func() error {
			_, err := image.Copy(ctx, target.Client, &lxd.CopyOptions{Mode: lxd.CopyPush, Wait: true})
			return err
		},
	} {
		ctx, cancel = context.WithCancel(t.Context())
		source.ForgetRequests()
		target.ForgetRequests()
		require.ErrorIs(t, call(), context.Canceled, name)
		posts := slices.DeleteFunc(append(source.Requests(), target.Requests()...), func(r *lxdtest.Request) bool { return r.Method != http.MethodPost })
		require.Len(t, posts, 1, name)
		require.Empty(t, source.Tokens(), name)
		require.Empty(t, target.Tokens(), name)
		// One that is over asks for nothing.
		require.ErrorIs(t, call(), context.Canceled, name)
		require.Empty(t, source.Tokens(), name)
		require.Empty(t, target.Tokens(), name)
	}

	// The wait for a response that does not come is short.
	source.Inject(lxdtest.StallHeaders().On("POST", "/1.0/images/*/secret"))
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err = image.Secret(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(begin), 5*time.Second)
}

// TestEndedCopyDoesNotWaitForItsToken has a source that does not respond when a token
// is revoked.
func TestEndedCopyDoesNotWaitForItsToken(t *testing.T) {
	t.Parallel()
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	image := testkit.Upload(t, source.Client, nil)
	target.Inject(lxdtest.StallOperations())
	stalled := source.Inject(lxdtest.StallHeaders().On("DELETE", "/1.0/operations/*"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := image.Copy(ctx, target.Client, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
		ended <- err
	}()
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(target.Requests(), func(r *lxdtest.Request) bool { return r.Method == http.MethodPost })
	}, exportWait, exportTick)
	cancel()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(3 * time.Second): // with a context that does not end it is five
		t.Error("Copy waits for the source")
	}
	stalled.Release()
}

// TestCopyOfExistingImageReportsProgress: one report.
func TestCopyOfExistingImageReportsProgress(t *testing.T) {
	t.Parallel()
	source, target := testkit.StartFake(t), testkit.StartFake(t)
	image := testkit.Upload(t, source.Client, nil)
	_, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true})
	require.NoError(t, err)
	var reports []lxd.Progress
	_, err = image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Progress: func(p lxd.Progress) { reports = append(reports, p) }})
	require.NoError(t, err)
	require.NotEmpty(t, reports)
	last := reports[len(reports)-1]
	require.Equal(t, lxd.PhaseServer, last.Phase)
	require.Positive(t, image.Size)
	require.Equal(t, image.Size, last.Done)
	require.Equal(t, image.Size, last.Total)
}

// TestCopyAutoFallsBack tries the next mode if one fails after it has started.
func TestCopyAutoFallsBack(t *testing.T) {
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	for _, wait := range []bool{true, false} {
		image := testkit.CopySource(t, source.Client, wait)
		// The source's https address is of no use to the target; its socket works.
		injected := source.Inject(lxdtest.Status(502, "a proxy").On("GET", "/1.0/images/*").Times(4))
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: wait})
		require.NoError(t, err)
		require.NoError(t, copied.Wait(t.Context()))
		injected.Remove()
		testkit.RequireCopy(t, image, copied)
		require.NotEmpty(t, copied.Failed)
		require.NotEqual(t, lxd.CopyPull, copied.Mode)
		require.Empty(t, source.Tokens())
		require.Empty(t, target.Tokens())
	}
}

// TestMissingExtensions: the error names the extension that a server lacks; no
// parameter is omitted silently.
func TestMissingExtensions(t *testing.T) {
	all := []string{"image_profiles", "image_source_project", "images_target_project", "images_push_relay", "image_force_refresh", "image_compression_algorithm", "images_expiry"}
	old := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true, WithoutExtensions: all}, nil)
	old.AddProject("apart", true)
	old.AddProfile("special")
	old.AddInstance("web", nil)
	other := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	other.AddProject("apart", true)
	ctx, c := t.Context(), old.Client
	apart := testkit.Upload(t, c.InProject("apart"), nil)
	here := testkit.Upload(t, c, nil)
	second := func(_ any, err error) error { return err }
	for extension, err := range map[string]error{
		"image_profiles":              second(c.Images.Create(ctx, bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Profiles: []string{"special"}, Wait: true})),
		"images_push_relay":           second(here.Copy(ctx, other.Client, &lxd.CopyOptions{Mode: lxd.CopyPush, Wait: true})),
		"image_force_refresh":         second(here.Refresh(ctx, nil)),
		"images_all_projects":         second(c.Images.All(ctx, &lxd.ListOptions{AllProjects: true})),
		"image_registries":            second(c.Registries.All(ctx)),
		"image_compression_algorithm": second(c.Images.CreateFromInstance(ctx, "web", &lxd.CreateFromInstanceOptions{Compression: "none"})),
		"images_expiry":               second(c.Images.CreateFromInstance(ctx, "web", &lxd.CreateFromInstanceOptions{ExpiresAt: time.Now().Add(time.Hour)})),
		"image_source_project":        second(testkit.Upload(t, other.Client.InProject("apart"), nil).Copy(ctx, c, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})),
	} {
		require.ErrorIs(t, err, lxd.ErrUnsupported, extension)
		require.ErrorContains(t, err, extension)
	}
	// An automatic copy goes the way that is left.
	copied, err := apart.Copy(ctx, other.Client.InProject("apart"), &lxd.CopyOptions{Wait: true})
	require.NoError(t, err)
	require.Equal(t, apart.Fingerprint, copied.Fingerprint)
	require.Empty(t, old.Tokens())
	require.Empty(t, other.Tokens())
}

// TestCopyWithoutProfiles asks for no profiles, which is not the same as for the
// default ones.
func TestCopyWithoutProfiles(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay} {
		from, to := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil), testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
		image, err := from.Client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		require.Equal(t, []string{"default"}, image.Profiles)
		copied, err := image.Copy(t.Context(), to.Client, &lxd.CopyOptions{Mode: mode, Profiles: []string{}, Wait: true})
		require.NoError(t, err, mode)
		require.Empty(t, copied.Profiles, mode)
	}
}

// TestCopyOfAnotherImage: the source sends other content than the image's, and
// the target does not get the fingerprint.
func TestCopyOfAnotherImage(t *testing.T) {
	t.Parallel()
	source, target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil), testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	data, otherData := testkit.Unified(t, 1000), testkit.Unified(t, 1000)
	fingerprint, err := source.AddImage(data, nil)
	require.NoError(t, err)
	_, err = source.AddImage(otherData, nil)
	require.NoError(t, err)
	other := lxdtest.Fingerprint(otherData)
	// Every request and response about the image is about the other one.
	from := rewriting(t, source.Endpoint(), func(req *http.Request) {
		req.URL.Path = strings.ReplaceAll(req.URL.Path, fingerprint, other)
	}, func(_ *http.Request, body []byte) []byte {
		return bytes.ReplaceAll(body, []byte(other), []byte(fingerprint))
	})
	image, err := from.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	to := rewriting(t, target.Endpoint(), func(req *http.Request) { req.Header.Del("X-LXD-fingerprint") }, nil)
	for _, wait := range []bool{true, false} {
		copied, err := image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: wait})
		if !wait {
			require.NoError(t, err)
			err = copied.Wait(t.Context())
		}
		mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
		require.Equal(t, []string{fingerprint, other}, []string{mismatch.Want, mismatch.Got})
		require.Empty(t, target.Images())
	}
	// A target that pulls another image than the requested one.
	pulled := rewriting(t, target.Endpoint(), func(req *http.Request) {
		if req.Method == http.MethodPost && req.URL.Path == "/1.0/images" {
			body, err := io.ReadAll(req.Body)
			if err == nil {
				body = bytes.ReplaceAll(body, []byte(fingerprint), []byte(other))
			}
			req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
	}, nil)
	for _, fp := range []string{fingerprint, other} {
		public, err := source.Client.Images.Get(t.Context(), fp)
		require.NoError(t, err)
		public.Public = true
		require.NoError(t, public.Update(t.Context(), nil))
	}
	image, err = source.Client.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	_, err = image.Copy(t.Context(), pulled, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
	mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
	require.Equal(t, []string{fingerprint, other}, []string{mismatch.Want, mismatch.Got})
	require.Empty(t, target.Images())
}
