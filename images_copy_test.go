package lxd_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestCopyBetweenFamilies copies images from LXD to Incus and back, on lxdtest and, if
// the environment names them, on real daemons.
func TestCopyBetweenFamilies(t *testing.T) {
	testkit.Parallel(t)
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
						copied, err := image.Copy(t.Context(), between, &lxd.CopyOptions{Mode: mode, CopyAliases: true, Wait: true})
						require.NoError(t, err)
						testkit.DeleteAfter(t, copied.Image)
						testkit.RequireCopy(t, image, copied)
						again, err := copied.Copy(t.Context(), back, &lxd.CopyOptions{Mode: mode, CopyAliases: true, Wait: true})
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
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{CopyAliases: true, Wait: wait})
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
}

// TestPullThatIsLeftLeavesNoToken has the context end while the target fetches the image.
func TestPullThatIsLeftLeavesNoToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fleet := testkit.StartFleet(t, nil, make([]lxdtest.Options, 2)...)
		source, target := fleet[0], fleet[1]
		image := testkit.Upload(t, source.Client, nil)
		stalled := source.Inject(lxdtest.StallHeaders().On("GET", "/1.0/images/*/export"))
		t.Cleanup(stalled.Remove)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := image.Copy(ctx, target.Client, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1, stalled.Fired())
		require.Empty(t, source.Tokens())
		require.Empty(t, target.Tokens())
	})
}

// TestEndedContextLeavesNoToken has the context end while the response with
// a token is on its way.
func TestEndedContextLeavesNoToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
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
		fleet := testkit.StartFleet(t, opts, make([]lxdtest.Options, 2)...)
		source, target := fleet[0], fleet[1]
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
			defer cancel()
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
	})
}

// TestEndedContextOfASecret: the wait for a response that does not come is short.
func TestEndedContextOfASecret(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, nil)
		image := testkit.Upload(t, source.Client, nil)
		stalled := source.Inject(lxdtest.StallHeaders().On("POST", "/1.0/images/*/secret"))
		t.Cleanup(stalled.Remove)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err := image.Secret(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(begin), 5*time.Second)
	})
}

// TestEndedCopyDoesNotWaitForItsToken has a source that does not respond when a token
// is revoked.
func TestEndedCopyDoesNotWaitForItsToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fleet := testkit.StartFleet(t, nil, make([]lxdtest.Options, 2)...)
		source, target := fleet[0], fleet[1]
		image := testkit.Upload(t, source.Client, nil)
		target.Inject(lxdtest.StallOperations())
		stalled := source.Inject(lxdtest.StallHeaders().On("DELETE", "/1.0/operations/*"))
		t.Cleanup(stalled.Remove)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := image.Copy(ctx, target.Client, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
			ended <- err
		}()
		synctest.Wait()
		require.True(t, slices.ContainsFunc(target.Requests(), func(r *lxdtest.Request) bool { return r.Method == http.MethodPost }))
		cancel()
		select {
		case err := <-ended:
			require.ErrorIs(t, err, context.Canceled)
		case <-time.After(3 * time.Second): // with a context that does not end it is five
			t.Error("Copy waits for the source")
		}
		require.NotZero(t, stalled.Fired())
	})
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
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{CopyAliases: true, Wait: wait})
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

// TestCopyProfiles: the copy has the target's default profiles, those that are named,
// or the source's, of which there may be none.
func TestCopyProfiles(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		from, to := s.Client(t), s.Twin.Client(t)
		named := s.Twin.AddProfile(t)
		only := s.AddProfile(t) // the target does not have it
		for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay, lxd.CopyAuto} {
			if mode == lxd.CopyPush && !s.Pushes(t) {
				continue
			}
			image := testkit.Upload(t, from, nil)
			for n, test := range []struct {
				source []string
				opts   lxd.CopyOptions
				want   []string
			}{
				{[]string{only}, lxd.CopyOptions{}, []string{"default"}},
				{[]string{only}, lxd.CopyOptions{Profiles: []string{named}}, []string{named}},
				{[]string{"default"}, lxd.CopyOptions{CopyProfiles: true}, []string{"default"}},
				{[]string{}, lxd.CopyOptions{CopyProfiles: true}, []string{}},
			} {
				image.Profiles = test.source
				require.NoError(t, image.Update(t.Context(), nil))
				test.opts.Mode, test.opts.Wait = mode, true
				copied, err := image.Copy(t.Context(), to, &test.opts)
				require.NoError(t, err, "%s %s %d", s.Column, mode, n)
				testkit.DeleteAfter(t, copied.Image)
				require.ElementsMatch(t, test.want, copied.Profiles, "%s %s %d", s.Column, mode, n)
				require.NoError(t, copied.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			}

			// A missing one is refused before anything is copied.
			image.Profiles = []string{only}
			require.NoError(t, image.Update(t.Context(), nil))
			for _, opts := range []lxd.CopyOptions{{CopyProfiles: true}, {Profiles: []string{named, only}}} {
				opts.Mode = mode
				_, err := image.Copy(t.Context(), to, &opts)
				require.ErrorIs(t, err, lxd.ErrNotFound, "%s %s", s.Column, mode)
				require.ErrorContains(t, err, only)
				exists, err := to.Images.Exists(t.Context(), image.Fingerprint)
				require.NoError(t, err)
				require.False(t, exists)
			}
		}
		testkit.RequireNoTokens(t, s)
		testkit.RequireNoTokens(t, s.Twin)
	}
	image := testkit.Upload(t, testkit.StartFake(t).Client, nil)
	_, err := image.Copy(t.Context(), testkit.StartFake(t).Client, &lxd.CopyOptions{Profiles: []string{"default"}, CopyProfiles: true})
	require.Equal(t, "CopyOptions.Profiles", testkit.ErrOf[*lxd.InputError](t, err).Field)
}

// TestCopyNeedsProfiles: a target that would ignore the profiles gets no image.
func TestCopyNeedsProfiles(t *testing.T) {
	t.Parallel()
	source := testkit.StartFake(t)
	target := testkit.StartFakeWith(t, &lxdtest.Options{WithoutExtensions: []string{"image_profiles"}}, nil)
	source.AddProfile("special")
	target.AddProfile("special")
	image := testkit.Upload(t, source.Client, &lxd.CreateOptions{Profiles: []string{"special"}})
	for _, opts := range []*lxd.CopyOptions{{Profiles: []string{"special"}}, {CopyProfiles: true}} {
		_, err := image.Copy(t.Context(), target.Client, opts)
		require.ErrorIs(t, err, lxd.ErrUnsupported)
		require.ErrorContains(t, err, "image_profiles")
		require.Empty(t, target.Images())
	}
	_, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true})
	require.NoError(t, err)
}

// TestCopyAliases: without being asked for, the copy has no alias, and a name that is
// taken does not matter.
func TestCopyAliases(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		from, to := s.Client(t), s.Twin.Client(t)
		for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay} {
			if mode == lxd.CopyPush && !s.Pushes(t) {
				continue
			}
			image := testkit.CopySource(t, from, false)
			other := testkit.Upload(t, to, nil)
			require.NoError(t, other.AddAlias(t.Context(), image.Aliases[0].Name, ""))
			copied, err := image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, Wait: true})
			require.NoError(t, err)
			testkit.DeleteAfter(t, copied.Image)
			require.Empty(t, copied.Aliases)
			require.Equal(t, image.Properties, copied.Properties)
			require.True(t, image.ExpiresAt.Equal(copied.ExpiresAt))
			require.NoError(t, copied.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))

			_, err = image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, CopyAliases: true, Wait: true})
			require.ErrorIs(t, err, lxd.ErrExists)
			require.NoError(t, other.DeleteAlias(t.Context(), image.Aliases[0].Name))
			mine := []lxd.Alias{{Name: testkit.Unique("mine")}, {Name: image.Aliases[0].Name, Description: "other words"}}
			copied, err = image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, Aliases: mine, CopyAliases: true, Wait: true})
			require.NoError(t, err)
			testkit.DeleteAfter(t, copied.Image)
			require.ElementsMatch(t, append(mine, image.Aliases[1:]...), copied.Aliases)
		}
	}
}

// TestCopyAutoUpdate: a copy is updated only if it is pulled by alias from a public
// image, and the flag is not inherited otherwise.
func TestCopyAutoUpdate(t *testing.T) {
	testkit.Parallel(t)
	yes, no := true, false
	for _, s := range testkit.Subjects(t) {
		from, to := s.Client(t), s.Twin.Client(t)
		for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay, lxd.CopyAuto} {
			if mode == lxd.CopyPush && !s.Pushes(t) {
				continue
			}
			image := testkit.Upload(t, from, nil)
			image.AutoUpdate = true
			require.NoError(t, image.Update(t.Context(), nil))
			check := func(want *bool, updates bool) {
				t.Helper()
				copied, err := image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, AutoUpdate: want, Wait: true})
				if want != nil && *want && !updates {
					require.ErrorIs(t, err, lxd.ErrUnsupported, "%s %s", s.Column, mode)
					require.ErrorContains(t, err, "AutoUpdate")
					_, err = to.Images.Get(t.Context(), image.Fingerprint)
					require.ErrorIs(t, err, lxd.ErrNotFound)
					return
				}
				require.NoError(t, err, "%s %s", s.Column, mode)
				require.Equal(t, image.Fingerprint, copied.Fingerprint)
				require.Equal(t, updates, copied.AutoUpdate, "%s %s", s.Column, mode)
				if updates {
					require.Equal(t, image.Aliases[0].Name, copied.UpdateSource.Alias)
				}
				again, err := image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, AutoUpdate: &yes})
				if updates {
					require.NoError(t, err)
					require.Equal(t, image.Fingerprint, again.Fingerprint)
				} else if len(image.Aliases) > 0 {
					require.ErrorIs(t, err, lxd.ErrUnsupported, "%s %s", s.Column, mode)
				}
				require.NoError(t, copied.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			}
			check(&yes, false) // private
			check(nil, false)
			image.Public = true
			require.NoError(t, image.Update(t.Context(), nil))
			check(&yes, false) // without a name
			check(nil, false)
			require.NoError(t, image.AddAlias(t.Context(), testkit.Unique("updates"), ""))
			pulls := mode == lxd.CopyPull || mode == lxd.CopyAuto
			check(&yes, pulls)
			check(nil, pulls)
			check(&no, false)
			image.Public = false // and with a name
			require.NoError(t, image.Update(t.Context(), nil))
			check(&yes, false)
			check(nil, false)
		}
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

// TestCopyOfExistingImageAppliesOptions applies what is set, and leaves the rest as the
// target has it.
func TestCopyOfExistingImageAppliesOptions(t *testing.T) {
	t.Parallel()
	source, target := testkit.StartFake(t), testkit.StartFake(t)
	target.AddProfile("web")
	data := testkit.Unified(t, 10_000)
	image, err := source.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Properties: map[string]string{"of": "source"}})
	require.NoError(t, err)
	_, err = target.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Properties: map[string]string{"of": "target"}})
	require.NoError(t, err)

	copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true})
	require.NoError(t, err)
	require.Equal(t, "target", copied.Properties["of"])
	require.False(t, copied.Public)

	public, expires := true, time.Date(2031, 2, 3, 0, 0, 0, 0, time.UTC)
	copied, err = image.Copy(t.Context(), target.Client, &lxd.CopyOptions{
		Wait: true, Public: &public, ExpiresAt: &expires, Profiles: []string{"web"}, Aliases: []lxd.Alias{{Name: "web"}},
	})
	require.NoError(t, err)
	read, err := target.Client.Images.GetByAlias(t.Context(), "web")
	require.NoError(t, err)
	for _, i := range []*lxd.Image{copied.Image, read} {
		require.True(t, i.Public)
		require.True(t, i.ExpiresAt.Equal(expires))
		require.Equal(t, []string{"web"}, i.Profiles)
		require.Equal(t, "target", i.Properties["of"])
	}
	_, err = image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true, Properties: map[string]string{"only": "this"}})
	require.NoError(t, err)
	read, err = target.Client.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"only": "this"}, read.Properties)
	_, err = image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true, Profiles: []string{"missing"}})
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

// TestCopyAutoUpdateFromAProject: a server keeps the alias of the source of an image,
// but not its project.
func TestCopyAutoUpdateFromAProject(t *testing.T) {
	t.Parallel()
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	source.AddProject("other", true)
	image := testkit.Upload(t, source.Client.InProject("other"), &lxd.CreateOptions{Public: true, Aliases: []lxd.Alias{{Name: "name"}}})
	yes := true
	_, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: lxd.CopyPull, AutoUpdate: &yes, Wait: true})
	require.ErrorIs(t, err, lxd.ErrUnsupported)
	require.ErrorContains(t, err, "not in the default project")
}
