package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// plan returns the changes as text.
func plan(changes []lxd.EnsureChange) []string {
	lines := make([]string, len(changes))
	for n, change := range changes {
		lines[n] = change.String()
	}
	return lines
}

// versions is a source whose image changes.
type versions struct {
	current []byte
	err     error
	created int
}

func (v *versions) String() string { return "versions" }

func (v *versions) Resolve(context.Context, *lxd.Client) (*lxd.SourceImage, error) {
	return &lxd.SourceImage{Fingerprint: lxdtest.Fingerprint(v.current)}, v.err
}

func (v *versions) CreateIn(ctx context.Context, images *lxd.Images, opts *lxd.CreateFromOptions) (*lxd.Image, error) {
	v.created++
	return lxd.FromReader(bytes.NewReader(v.current), nil).CreateIn(ctx, images, opts)
}

func exported(t *testing.T, c *lxd.Client, fingerprint string) io.Reader {
	t.Helper()
	image, err := c.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	export, err := image.Export(t.Context(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, export.Close()) })
	return export
}

// TestEnsure: an image is created, kept, replaced by a newer one and retired.
func TestEnsure(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			ctx := t.Context()
			source := &versions{}
			next := func() (fingerprint string) {
				source.current = testkit.Unified(t, 0)
				return lxdtest.Fingerprint(source.current)
			}
			public := true
			name, second, previous := testkit.Unique("web"), testkit.Unique("also"), testkit.Unique("previous")
			opts := &lxd.EnsureOptions{
				Aliases: []lxd.Alias{{Name: name, Description: "first"}, {Name: second}}, Public: &public,
				Properties: map[string]string{"made": "here"}, Previous: previous, DeleteReplaced: true,
			}
			targets := func() map[string]string {
				found := map[string]string{}
				for _, alias := range []string{name, second, previous} {
					if a, err := c.Aliases.Get(ctx, alias); err == nil {
						found[alias] = a.Target
					}
				}
				return found
			}
			want := next()
			dry := *opts
			dry.DryRun = true
			ensured, err := c.Images.Ensure(ctx, source, &dry)
			require.NoError(t, err)
			require.Nil(t, ensured.Image)
			require.Equal(t, []string{
				fmt.Sprintf("create image %.12s from versions", want),
				fmt.Sprintf("create alias %q for image %.12s", name, want),
				fmt.Sprintf("create alias %q for image %.12s", second, want),
			}, plan(ensured.Changes))
			planned := plan(ensured.Changes)
			require.Empty(t, targets())

			ensured, err = c.Images.Ensure(ctx, source, opts)
			require.NoError(t, err)
			testkit.DeleteAfter(t, ensured.Image)
			require.Equal(t, want, ensured.Image.Fingerprint)
			require.Len(t, ensured.Image.Aliases, 2)
			require.True(t, ensured.Image.Public)
			require.Equal(t, "here", ensured.Image.Properties["made"])
			require.NotContains(t, ensured.Image.Properties, lxd.ReplacedProperty)
			require.Equal(t, map[string]string{name: want, second: want}, targets())
			require.Equal(t, planned, plan(ensured.Changes))

			ensured, err = c.Images.Ensure(ctx, source, opts)
			require.NoError(t, err)
			require.Empty(t, ensured.Changes)
			require.Equal(t, want, ensured.Image.Fingerprint)

			old := want
			want = next()
			expect := []string{
				fmt.Sprintf("create image %.12s from versions", want),
				fmt.Sprintf("update image %.12s", old),
				fmt.Sprintf("create alias %q for image %.12s", previous, old),
				fmt.Sprintf("move alias %q from image %.12s to image %.12s", name, old, want),
				fmt.Sprintf("move alias %q from image %.12s to image %.12s", second, old, want),
			}
			ensured, err = c.Images.Ensure(ctx, source, &dry)
			require.NoError(t, err)
			require.Equal(t, expect, plan(ensured.Changes))
			ensured, err = c.Images.Ensure(ctx, source, opts)
			require.NoError(t, err)
			testkit.DeleteAfter(t, ensured.Image)
			require.Equal(t, expect, plan(ensured.Changes))
			require.Equal(t, map[string]string{name: want, second: want, previous: old}, targets())
			alias, err := c.Aliases.Get(ctx, name)
			require.NoError(t, err)
			require.Equal(t, "first", alias.Description)

			// The image before the previous one is deleted.
			oldest, old := old, want
			want = next()
			ensured, err = c.Images.Ensure(ctx, source, &dry)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("delete image %.12s", oldest), plan(ensured.Changes)[5])
			planned = plan(ensured.Changes)
			ensured, err = c.Images.Ensure(ctx, source, opts)
			require.NoError(t, err)
			testkit.DeleteAfter(t, ensured.Image)
			require.Equal(t, map[string]string{name: want, second: want, previous: old}, targets())
			require.Equal(t, planned, plan(ensured.Changes))
			_, err = c.Images.Get(ctx, oldest)
			require.ErrorIs(t, err, lxd.ErrNotFound)
			require.Equal(t, 3, source.created)

			// The previous image becomes the current one again: it is not deleted.
			source.current, err = io.ReadAll(exported(t, c, old))
			require.NoError(t, err)
			ensured, err = c.Images.Ensure(ctx, source, opts)
			require.NoError(t, err)
			require.Equal(t, old, ensured.Image.Fingerprint)
			require.NotContains(t, ensured.Image.Properties, lxd.ReplacedProperty)
			require.Equal(t, map[string]string{name: old, second: old, previous: want}, targets())
			require.Equal(t, 3, source.created)
		})
	}
}

// TestEnsureAttributes: what is set is changed, what is not stays.
func TestEnsureAttributes(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			ctx := t.Context()
			content := testkit.Unified(t, 0)
			image, err := c.Images.Create(ctx, bytes.NewReader(content), &lxd.CreateOptions{Public: true, Properties: map[string]string{"a": "1", "b": "2"}, Wait: true})
			require.NoError(t, err)
			testkit.DeleteAfter(t, image)
			name := testkit.Unique("web")
			source := lxd.FromReader(bytes.NewReader(content), nil)
			ensured, err := c.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: name}}})
			require.NoError(t, err)
			require.Equal(t, []string{fmt.Sprintf("create alias %q for image %.12s", name, image.Fingerprint)}, plan(ensured.Changes))
			require.True(t, ensured.Image.Public)

			public, expires := false, time.Now().Add(time.Hour).Truncate(time.Second).UTC()
			opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: name}}, Public: &public, ExpiresAt: &expires, Properties: map[string]string{"b": "3"}}
			ensured, err = c.Images.Ensure(ctx, source, opts)
			require.NoError(t, err)
			require.Equal(t, []string{fmt.Sprintf("update image %.12s", image.Fingerprint)}, plan(ensured.Changes))
			require.False(t, ensured.Image.Public)
			require.True(t, expires.Equal(ensured.Image.ExpiresAt))
			require.Equal(t, "1", ensured.Image.Properties["a"])
			require.Equal(t, "3", ensured.Image.Properties["b"])
			ensured, err = c.Images.Ensure(ctx, source, opts)
			require.NoError(t, err)
			require.Empty(t, ensured.Changes)

			_, err = c.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: name}}, Profiles: []string{testkit.Unique("none")}})
			require.ErrorIs(t, err, lxd.ErrNotFound)
		})
	}
}

// TestEnsureRequests counts the requests of a call that has nothing to do.
func TestEnsureRequests(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	tree := streamstest.NewServer(rollingTree(testkit.Unified(t, 0)))
	t.Cleanup(tree.Close)
	source := lxd.FromSimplestreams(tree.URL, "rolling", &lxd.FromSimplestreamsOptions{AllowHTTP: true})
	for _, test := range []struct {
		policy   lxd.EnsurePolicy
		retire   bool
		requests int
	}{{lxd.EnsureNewest, false, 1}, {lxd.EnsureNewest, true, 2}, {lxd.EnsureMissing, false, 2}, {lxd.EnsureNever, false, 2}} {
		opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "a"}, {Name: "b"}}, Policy: test.policy, DeleteReplaced: test.retire}
		_, err := f.Client.Images.Ensure(t.Context(), source, opts)
		require.NoError(t, err)
		f.ForgetRequests()
		_, err = f.Client.Images.Ensure(t.Context(), source, opts)
		require.NoError(t, err)
		require.Len(t, f.Requests(), test.requests, "%+v", test)
	}
}

// TestEnsurePolicy: when the source is asked, and what a source that fails leaves.
func TestEnsurePolicy(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	ctx := t.Context()
	source := &versions{current: testkit.Unified(t, 0)}
	aliases := []lxd.Alias{{Name: "web"}}
	_, err := f.Client.Images.Ensure(ctx, nil, &lxd.EnsureOptions{Aliases: aliases, Policy: lxd.EnsureNever})
	require.ErrorIs(t, err, lxd.ErrNotFound)
	require.ErrorContains(t, err, "web")
	source.err = errors.New("the source is down")
	ensured, err := f.Client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: aliases})
	require.ErrorIs(t, err, source.err)
	require.NotContains(t, err.Error(), "still has")
	require.Nil(t, ensured.Image)

	source.err = nil
	ensured, err = f.Client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: aliases, Policy: lxd.EnsureMissing})
	require.NoError(t, err)
	first := ensured.Image.Fingerprint
	source.current, source.err = testkit.Unified(t, 0), errors.New("the source is down")
	for _, policy := range []lxd.EnsurePolicy{lxd.EnsureMissing, lxd.EnsureNever} {
		ensured, err = f.Client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: aliases, Policy: policy})
		require.NoError(t, err)
		require.Equal(t, first, ensured.Image.Fingerprint)
		require.Empty(t, ensured.Changes)
	}
	ensured, err = f.Client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: aliases})
	require.ErrorIs(t, err, source.err)
	require.ErrorContains(t, err, fmt.Sprintf("alias %q still has image %.12s", "web", first))
	require.Equal(t, first, ensured.Image.Fingerprint)
	require.Empty(t, ensured.Changes)
}

// TestEnsureKeep: the last replaced images remain; images that were not Ensure's, and
// those with a name, remain too.
func TestEnsureKeep(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	ctx := t.Context()
	named := testkit.Upload(t, f.Client, &lxd.CreateOptions{Properties: map[string]string{lxd.ReplacedProperty: "web"}, Aliases: []lxd.Alias{{Name: "other"}}})
	foreign := testkit.Upload(t, f.Client, nil)
	source := &versions{}
	var made []string
	for range 5 {
		source.current = testkit.Unified(t, 0)
		ensured, err := f.Client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "web"}}, DeleteReplaced: true, Keep: 2})
		require.NoError(t, err)
		made = append(made, ensured.Image.Fingerprint)
	}
	images, err := f.Client.Images.All(ctx, nil)
	require.NoError(t, err)
	require.ElementsMatch(t, append(made[2:], named.Fingerprint, foreign.Fingerprint), testkit.Fingerprints(images))
}

// TestEnsureConflict: an alias that somebody moves in the meantime is not overwritten,
// and nothing is deleted.
func TestEnsureConflict(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	ctx := t.Context()
	theirs := testkit.Upload(t, f.Client, nil)
	source := &versions{current: testkit.Unified(t, 0)}
	opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "web"}}, DeleteReplaced: true}
	ensured, err := f.Client.Images.Ensure(ctx, source, opts)
	require.NoError(t, err)
	old := ensured.Image
	for _, change := range []func(){
		func() {
			require.NoError(t, f.Client.Aliases.Set(ctx, lxd.Alias{Name: "web", Target: theirs.Fingerprint}))
		},
		func() { require.NoError(t, f.Client.Aliases.Delete(ctx, "web")) },
	} {
		meddled := &meddled{versions{current: testkit.Unified(t, 0)}, change}
		_, err = f.Client.Images.Ensure(ctx, meddled, opts)
		require.ErrorIs(t, err, lxd.ErrConflict)
		require.ErrorContains(t, err, `alias "web"`)
	}
	_, err = f.Client.Images.Get(ctx, old.Fingerprint)
	require.NoError(t, err)
	meddled := &meddled{versions{current: testkit.Unified(t, 0)}, func() {
		require.NoError(t, f.Client.Aliases.Create(ctx, lxd.Alias{Name: "web", Target: theirs.Fingerprint}))
	}}
	_, err = f.Client.Images.Ensure(ctx, meddled, opts)
	require.ErrorIs(t, err, lxd.ErrConflict)
	alias, err := f.Client.Aliases.Get(ctx, "web")
	require.NoError(t, err)
	require.Equal(t, theirs.Fingerprint, alias.Target)
}

// meddled calls change when the image has been created.
type meddled struct {
	versions
	change func()
}

func (m *meddled) CreateIn(ctx context.Context, images *lxd.Images, opts *lxd.CreateFromOptions) (*lxd.Image, error) {
	defer m.change()
	return m.versions.CreateIn(ctx, images, opts)
}

// failing makes one request fail: its response is lost, or it gets a 500.
type failing struct {
	http.RoundTripper

	left int // requests before that one; negative for none
	lost bool
}

func (f *failing) RoundTrip(r *http.Request) (*http.Response, error) {
	f.left--
	switch {
	case f.left != -1:
		return f.RoundTripper.RoundTrip(r)
	case f.lost:
		res, err := f.RoundTripper.RoundTrip(r)
		if err == nil {
			err = errors.Join(io.ErrUnexpectedEOF, res.Body.Close())
		}
		return nil, err
	}
	if r.Body != nil {
		_ = r.Body.Close()
	}
	return &http.Response{
		StatusCode: http.StatusInternalServerError, Header: http.Header{"Content-Type": {"application/json"}}, Request: r,
		Body: io.NopCloser(strings.NewReader(`{"type": "error", "error_code": 500, "error": "broken"}`)),
	}, nil
}

// TestEnsureIsCompleted: whatever request is the first that fails, no alias is missing
// or has an incomplete image, and the next call completes the work.
func TestEnsureIsCompleted(t *testing.T) {
	t.Parallel()
	var broken *failing
	f := testkit.StartFakeWith(t, nil, &lxd.Options{RetryTimeout: -1, Transport: func(base http.RoundTripper) http.RoundTripper {
		broken = &failing{RoundTripper: base, left: -1}
		return broken
	}})
	ctx := t.Context()
	source := &versions{}
	public := true
	opts := &lxd.EnsureOptions{
		Aliases: []lxd.Alias{{Name: "web"}, {Name: "also"}}, Public: &public, Properties: map[string]string{"made": "here"},
		Previous: "previous", DeleteReplaced: true,
	}
	next := func() { source.current = testkit.Unified(t, 0) }
	for range 2 {
		next()
		f.ForgetRequests()
		_, err := f.Client.Images.Ensure(ctx, source, opts)
		require.NoError(t, err)
	}
	steps := f.Requests()
	require.Greater(t, len(steps), 8)
	failures := 0
	for n, step := range steps {
		for _, lost := range []bool{true, false} {
			next()
			before, err := f.Client.Aliases.Get(ctx, "web")
			require.NoError(t, err)
			broken.left, broken.lost = n, lost
			if _, err = f.Client.Images.Ensure(ctx, source, opts); err != nil {
				failures++
			}
			broken.left = -1
			for _, name := range []string{"web", "also"} {
				image, gerr := f.Client.Images.GetByAlias(ctx, name)
				require.NoError(t, gerr, "%s %s: %v", step.Method, step.Path, err)
				require.True(t, image.Public)
				require.Equal(t, "here", image.Properties["made"])
			}
			ensured, err := f.Client.Images.Ensure(ctx, source, opts)
			require.NoError(t, err)
			require.Equal(t, lxdtest.Fingerprint(source.current), ensured.Image.Fingerprint)
			require.Len(t, ensured.Image.Aliases, 2)
			previous, err := f.Client.Aliases.Get(ctx, "previous")
			require.NoError(t, err)
			require.Equal(t, before.Target, previous.Target, "%s %s", step.Method, step.Path)
			images, err := f.Client.Images.All(ctx, nil)
			require.NoError(t, err)
			require.Len(t, images, 2, "%s %s", step.Method, step.Path)
		}
	}
	require.Greater(t, failures, len(steps)/2)
}

// TestEnsureAtOnce: many callers of one client share one download, and all succeed.
func TestEnsureAtOnce(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			source := &versions{current: testkit.Unified(t, 0)}
			name := testkit.Unique("web")
			var group sync.WaitGroup
			errs := make([]error, 32)
			for n := range errs {
				group.Go(func() {
					_, errs[n] = c.Images.Ensure(t.Context(), source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: name}}})
				})
			}
			group.Wait()
			require.NoError(t, errors.Join(errs...))
			require.Equal(t, 1, source.created)
			image, err := c.Images.GetByAlias(t.Context(), name)
			require.NoError(t, err)
			testkit.DeleteAfter(t, image)
		})
	}
}

// TestEnsureAutoUpdate: only an image that the server can update is set to be updated.
func TestEnsureAutoUpdate(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	content := testkit.Unified(t, 0)
	tree := streamstest.NewServer(rollingTree(content))
	t.Cleanup(tree.Close)
	update := true
	opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "web"}}, AutoUpdate: &update}
	uploaded := testkit.Upload(t, f.Client, nil)
	_, err := f.Client.Images.Ensure(t.Context(), lxd.FromImage(f.Client, uploaded.Fingerprint, nil), opts)
	require.ErrorIs(t, err, lxd.ErrUnsupported)
	_, err = f.Client.Aliases.Get(t.Context(), "web")
	require.ErrorIs(t, err, lxd.ErrNotFound)
	ensured, err := f.Client.Images.Ensure(t.Context(), lxd.FromSimplestreams(tree.URL, "rolling", &lxd.FromSimplestreamsOptions{AllowHTTP: true}), opts)
	require.NoError(t, err)
	require.True(t, ensured.Image.AutoUpdate)
	require.Equal(t, "rolling", ensured.Image.UpdateSource.Alias)
}

// TestEnsureOfCachedIndex: the image is the newest one even if the server has read the
// index before that was in it, who fetches it notwithstanding.
func TestEnsureOfCachedIndex(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			if f := s.Fake; f != nil {
				f.Inject(lxdtest.CacheStreams())
			}
			c := s.Client(t)
			contents := [][]byte{testkit.Unified(t, 0), testkit.Unified(t, 0)}
			tree := streamstest.NewServer(rollingTree(contents[0]))
			t.Cleanup(tree.Close)
			opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: testkit.Unique("rolling")}}}
			ensure := func(opts *lxd.EnsureOptions, via lxd.Via) (*lxd.Ensured, error) {
				return c.Images.Ensure(t.Context(), lxd.FromSimplestreams(tree.URL, "rolling", &lxd.FromSimplestreamsOptions{AllowHTTP: true, Via: via}), opts)
			}
			ensured, err := ensure(opts, "")
			require.NoError(t, err)
			testkit.DeleteAfter(t, ensured.Image)
			require.Equal(t, lxdtest.Fingerprint(contents[0]), ensured.Image.Fingerprint)
			first := ensured.Image.Fingerprint
			byServer := ensured.Image.UpdateSource != nil // LXD 6.9 lets the client fetch it

			for path, content := range rollingTree(contents...) {
				tree.Set(path, content)
			}
			if byServer {
				_, err := ensure(opts, lxd.ViaServer)
				require.ErrorContains(t, err, "once in an hour")
				require.ErrorContains(t, err, fmt.Sprintf("still has image %.12s", first))
				require.Equal(t, first, testkit.ErrOf[*lxd.FingerprintError](t, err).Got)

				update := *opts
				update.AutoUpdate = new(true)
				_, err = ensure(&update, "")
				require.ErrorIs(t, err, lxd.ErrUnsupported)
			}
			ensured, err = ensure(opts, "")
			require.NoError(t, err)
			testkit.DeleteAfter(t, ensured.Image)
			require.Equal(t, lxdtest.Fingerprint(contents[1]), ensured.Image.Fingerprint)
			require.Len(t, ensured.Image.Aliases, 1)
			transfer := ensured.Image.Transfer()
			require.Equal(t, string(lxd.ViaClient), transfer.Way)
			require.Equal(t, string(lxd.ViaServer), transfer.Failed[0].Way)
		})
	}
}

// silentSource is a source whose image is told only when it is created.
type silentSource struct{ lxd.Source }

func (silentSource) Resolve(context.Context, *lxd.Client) (*lxd.SourceImage, error) { return nil, nil }

// forbiddenSource must not be asked.
type forbiddenSource struct {
	lxd.Source

	t *testing.T
}

func (s forbiddenSource) Resolve(context.Context, *lxd.Client) (*lxd.SourceImage, error) {
	s.t.Error("the source is asked")
	return nil, lxd.ErrNotFound
}

// TestEnsureKind: an image of another type or architecture gets no alias, and does not
// remain.
func TestEnsureKind(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			content := testkit.Unified(t, 0)
			known := lxd.FromReader(bytes.NewReader(content), nil)
			opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: testkit.Unique("web")}}}
			for _, source := range []lxd.Source{known, silentSource{known}} {
				for want, wrong := range map[string]lxd.EnsureOptions{
					"is for container on x86_64, not for virtual-machine on any architecture": {Type: lxd.VirtualMachine},
					"is for container on x86_64, not for any type on aarch64":                 {Architecture: "arm64"},
				} {
					wrong.Aliases = opts.Aliases
					_, err := c.Images.Ensure(t.Context(), source, &wrong)
					require.ErrorIs(t, err, lxd.ErrNotFound)
					require.ErrorContains(t, err, want)
					_, err = c.Aliases.Get(t.Context(), opts.Aliases[0].Name)
					require.ErrorIs(t, err, lxd.ErrNotFound)
					_, err = c.Images.Get(t.Context(), lxdtest.Fingerprint(content))
					require.ErrorIs(t, err, lxd.ErrNotFound)
				}
			}
			opts.Type, opts.Architecture = lxd.Container, "amd64"
			for _, source := range []lxd.Source{known, silentSource{known}} {
				ensured, err := c.Images.Ensure(t.Context(), source, opts)
				require.NoError(t, err)
				testkit.DeleteAfter(t, ensured.Image)
			}
			wrong := *opts
			wrong.Type = lxd.VirtualMachine
			wrong.Policy = lxd.EnsureMissing
			ensured, err := c.Images.Ensure(t.Context(), forbiddenSource{known, t}, &wrong)
			require.ErrorIs(t, err, lxd.ErrNotFound)
			require.ErrorContains(t, err, fmt.Sprintf("alias %q is for container", opts.Aliases[0].Name))
			require.Equal(t, lxdtest.Fingerprint(content), ensured.Image.Fingerprint)
			for _, policy := range []lxd.EnsurePolicy{lxd.EnsureNewest, lxd.EnsureMissing, lxd.EnsureNever} {
				wrong.Policy = policy
				for _, source := range []lxd.Source{known, silentSource{known}} {
					_, err := c.Images.Ensure(t.Context(), source, &wrong)
					require.ErrorIs(t, err, lxd.ErrNotFound)
					image, err := c.Images.GetByAlias(t.Context(), opts.Aliases[0].Name)
					require.NoError(t, err, "an image that was there remains")
					require.Equal(t, lxdtest.Fingerprint(content), image.Fingerprint)
				}
			}
		})
	}
}

// TestEnsureAsksBeforehand: what the source says of its image is compared before
// anything is created.
func TestEnsureAsksBeforehand(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	tree := streamstest.NewServer(rollingTree(testkit.Unified(t, 0)))
	t.Cleanup(tree.Close)
	source := lxd.FromSimplestreams(tree.URL, "rolling", &lxd.FromSimplestreamsOptions{AllowHTTP: true})
	for _, wrong := range []lxd.EnsureOptions{{Type: lxd.VirtualMachine}, {Architecture: "s390x"}} {
		wrong.Aliases = []lxd.Alias{{Name: "web"}}
		_, err := f.Client.Images.Ensure(t.Context(), source, &wrong)
		require.ErrorIs(t, err, lxd.ErrNotFound)
		require.ErrorContains(t, err, "is for container on x86_64")
	}
	for _, r := range f.Requests() {
		require.Equal(t, "GET", r.Method)
	}
}

// TestEnsureReadsOnce: a file is read once to compute its fingerprint, and once to send it.
func TestEnsureReadsOnce(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	content := testkit.Unified(t, 1<<20)
	file := bytes.NewReader(content)
	reader := &countingSeeker{Seeker: file, from: file}
	opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "web"}}}
	for _, passes := range []int{2, 1} {
		reader.read = 0
		file.Reset(content)
		_, err := f.Client.Images.Ensure(t.Context(), lxd.FromReader(reader, nil), opts)
		require.NoError(t, err)
		require.Less(t, reader.read, passes*len(content)+len(content)/2)
		require.GreaterOrEqual(t, reader.read, passes*len(content))
	}
}

type countingSeeker struct {
	io.Seeker
	from io.Reader
	read int
}

func (r *countingSeeker) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	r.read += n
	return n, err
}

// TestEnsureByManyPrograms: clients that share nothing ensure the same image, and then a
// newer one. All succeed, and nothing else is left.
func TestEnsureByManyPrograms(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			clients := make([]*lxd.Client, 4)
			for n := range clients {
				clients[n] = s.Client(t)
			}
			name, made := testkit.Unique("web"), testkit.Unique("made")
			opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: name}}, Properties: map[string]string{"made": made}, DeleteReplaced: true}
			for range 3 {
				content := testkit.Unified(t, 0)
				var group sync.WaitGroup
				errs := make([]error, 32)
				for n := range errs {
					group.Go(func() {
						_, errs[n] = clients[n%len(clients)].Images.Ensure(t.Context(), lxd.FromReader(bytes.NewReader(content), nil), opts)
					})
				}
				group.Wait()
				require.NoError(t, errors.Join(errs...))
				image, err := clients[0].Images.GetByAlias(t.Context(), name)
				require.NoError(t, err)
				testkit.DeleteAfter(t, image)
				require.Equal(t, lxdtest.Fingerprint(content), image.Fingerprint)
				images, err := clients[0].Images.All(t.Context(), &lxd.ListOptions{Properties: map[string]string{"made": made}})
				require.NoError(t, err)
				require.Len(t, images, 1)
			}
		})
	}
}

// TestEnsureInput: what is refused before anything is sent.
func TestEnsureInput(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	web := []lxd.Alias{{Name: "web"}}
	bad := map[string]string{"a": "\x00"}
	never := time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	for field, opts := range map[string]*lxd.EnsureOptions{
		"EnsureOptions.Aliases":           {},
		"EnsureOptions.Policy":            {Aliases: web, Policy: "always"},
		"EnsureOptions.Type":              {Aliases: web, Type: "vm"},
		"EnsureOptions.Architecture":      {Aliases: web, Architecture: "pdp11"},
		"EnsureOptions.Previous":          {Aliases: web, Previous: "web"},
		"EnsureOptions.Keep":              {Aliases: web, Keep: 1},
		"EnsureOptions.Properties":        {Aliases: web, Properties: bad},
		"EnsureOptions.ExpiresAt":         {Aliases: web, ExpiresAt: &never},
		"source":                          nil,
		"EnsureOptions.Aliases (twice)":   {Aliases: []lxd.Alias{{Name: "web"}, {Name: "web"}}},
		"EnsureOptions.Keep (negative)":   {Aliases: web, Keep: -1, DeleteReplaced: true},
		"EnsureOptions.Aliases (no name)": {Aliases: []lxd.Alias{{}}},
	} {
		source := lxd.Source(&versions{})
		if field == "source" {
			source, opts = nil, &lxd.EnsureOptions{Aliases: web}
		}
		_, err := f.Client.Images.Ensure(t.Context(), source, opts)
		want, _, _ := strings.Cut(field, " ")
		require.True(t, strings.HasPrefix(testkit.ErrOf[*lxd.InputError](t, err).Field, want), field)
	}
	require.Empty(t, f.Requests())
}
