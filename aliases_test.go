package lxd_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestDotsAreNames: an alias of dots does not lead to another path.
func TestDotsAreNames(t *testing.T) {
	t.Parallel()
	var got []string
	c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			got = append(got, req.URL.EscapedPath())
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"type":"sync","metadata":{}}`)), Request: req}, nil
		})
	}})
	for _, name := range []string{".", "..", "../..", "...", "a/../b"} {
		require.NoError(t, c.Aliases.Delete(t.Context(), name))
	}
	require.Equal(t, []string{
		"/1.0/images/aliases/%2E", "/1.0/images/aliases/%2E%2E", "/1.0/images/aliases/..%2F..", "/1.0/images/aliases/...", "/1.0/images/aliases/a%2F..%2Fb",
	}, got)
}

// between is a client of the server whose requests go through hop.
func between(t *testing.T, f *testkit.Fake, hop func(*http.Request, http.RoundTripper) (*http.Response, error)) *lxd.Client {
	t.Helper()
	return testkit.NewClient(t, f.Endpoint(), &lxd.Options{Transport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) { return hop(req, next) })
	}})
}

// changesAt are the requests that a server has seen, without those that only read.
func changesAt(f *testkit.Fake) []string {
	var list []string
	for _, r := range f.Requests() {
		if r.Method != http.MethodGet {
			list = append(list, r.Method+" "+r.Path)
		}
	}
	return list
}

func TestAliasesAreOfTheirProject(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	f.AddProject("other", true)
	image := testkit.Upload(t, f.Client, nil)
	there := f.Client.InProject("other")
	foreign := testkit.Upload(t, there, nil)
	require.NoError(t, f.Client.Aliases.Create(t.Context(), lxd.Alias{Name: "name", Description: "here", Target: image.Fingerprint}))
	require.NoError(t, there.Aliases.Create(t.Context(), lxd.Alias{Name: "name", Description: "there", Target: foreign.Fingerprint}))
	here, err := f.Client.Aliases.All(t.Context())
	require.NoError(t, err)
	require.Equal(t, []lxd.Alias{{Name: "name", Description: "here", Target: image.Fingerprint, Type: lxd.Container}}, here)
	alias, err := there.Aliases.Get(t.Context(), "name")
	require.NoError(t, err)
	require.Equal(t, lxd.Alias{Name: "name", Description: "there", Target: foreign.Fingerprint, Type: lxd.Container}, alias)
	require.NoError(t, there.Aliases.Set(t.Context(), lxd.Alias{Name: "name", Description: "moved", Target: foreign.Fingerprint}))
	require.NoError(t, there.Aliases.Rename(t.Context(), "name", "other name"))
	require.NoError(t, there.Aliases.Rename(t.Context(), "other name", "name"))
	require.NoError(t, there.Aliases.Delete(t.Context(), "name"))
	_, err = there.Aliases.Get(t.Context(), "name")
	require.ErrorIs(t, err, lxd.ErrNotFound)
	unchanged, err := f.Client.Aliases.All(t.Context())
	require.NoError(t, err)
	require.Equal(t, here, unchanged, "it is another project's")
}

// TestAliasTargetsInUpperCase: servers know an image only by its fingerprint in lower
// case.
func TestAliasTargetsInUpperCase(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	one, two := testkit.Upload(t, f.Client, nil), testkit.Upload(t, f.Client, nil)
	upper := strings.ToUpper
	target := func() string {
		alias, err := f.Client.Aliases.Get(t.Context(), "name")
		require.NoError(t, err)
		return alias.Target
	}
	require.NoError(t, f.Client.Aliases.Create(t.Context(), lxd.Alias{Name: "name", Target: upper(one.Fingerprint)}))
	require.Equal(t, one.Fingerprint, target(), "Create")
	require.NoError(t, f.Client.Aliases.Update(t.Context(), "name", func(a *lxd.Alias) { a.Target = upper(two.Fingerprint) }))
	require.Equal(t, two.Fingerprint, target(), "Update")
	require.NoError(t, f.Client.Aliases.Set(t.Context(), lxd.Alias{Name: "name", Target: upper(one.Fingerprint)}))
	require.Equal(t, one.Fingerprint, target(), "Set")
	for _, r := range f.Requests() {
		require.NotContains(t, string(r.Text()), upper(one.Fingerprint))
		require.NotContains(t, string(r.Text()), upper(two.Fingerprint))
	}
}

// TestAliasUpdateLosesNoChange has another client change the alias while it is
// updated.
func TestAliasUpdateLosesNoChange(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	one, two := testkit.Upload(t, f.Client, nil), testkit.Upload(t, f.Client, nil)
	require.NoError(t, one.AddAlias(t.Context(), "name", "first"))

	require.NoError(t, f.Client.Aliases.Update(t.Context(), "name", func(a *lxd.Alias) {
		require.Equal(t, "first", a.Description)
		a.Description = "second"
	}))
	alias, err := f.Client.Aliases.Get(t.Context(), "name")
	require.NoError(t, err)
	require.Equal(t, "second", alias.Description)
	require.Equal(t, one.Fingerprint, alias.Target, "what is not changed stays")

	other := testkit.NewClient(t, f.Endpoint(), nil)
	err = f.Client.Aliases.Update(t.Context(), "name", func(a *lxd.Alias) {
		a.Description = "mine"
		require.NoError(t, other.Aliases.Set(t.Context(), lxd.Alias{Name: "name", Description: "theirs", Target: two.Fingerprint}))
	})
	require.ErrorIs(t, err, lxd.ErrConflict)
	alias, err = f.Client.Aliases.Get(t.Context(), "name")
	require.NoError(t, err)
	require.Equal(t, "theirs", alias.Description)
	require.Equal(t, two.Fingerprint, alias.Target)

	require.ErrorIs(t, f.Client.Aliases.Update(t.Context(), "none", func(*lxd.Alias) { t.Error("there is none") }), lxd.ErrNotFound)
	err = f.Client.Aliases.Update(t.Context(), "name", func(a *lxd.Alias) { a.Target = "not hexadecimal" })
	require.Equal(t, "Alias.Target", testkit.ErrOf[*lxd.InputError](t, err).Field)
}

// TestSetAlias makes an alias or moves it, also where another client does the
// same in between.
func TestSetAlias(t *testing.T) {
	t.Parallel()
	const at = "/1.0/images/aliases"
	for name, test := range map[string]struct {
		there   bool // before
		between bool // another client makes it once this one has found none
		want    []string
	}{
		"new":                 {false, false, []string{"PUT " + at + "/name", "POST " + at}},
		"moved at once":       {true, false, []string{"PUT " + at + "/name"}},
		"made in between too": {false, true, []string{"PUT " + at + "/name", "POST " + at, "POST " + at, "PUT " + at + "/name"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFake(t)
			one, two := testkit.Upload(t, f.Client, nil), testkit.Upload(t, f.Client, nil)
			if test.there {
				require.NoError(t, one.AddAlias(t.Context(), "name", ""))
			}
			c := between(t, f, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
				if test.between && req.Method == http.MethodPost {
					require.NoError(t, one.AddAlias(t.Context(), "name", ""))
				}
				return next.RoundTrip(req)
			})
			f.ForgetRequests()
			require.NoError(t, c.Aliases.Set(t.Context(), lxd.Alias{Name: "name", Description: "set", Target: two.Fingerprint}))
			require.Equal(t, test.want, changesAt(f))
			alias, err := f.Client.Aliases.Get(t.Context(), "name")
			require.NoError(t, err)
			require.Equal(t, two.Fingerprint, alias.Target)
			require.Equal(t, "set", alias.Description)
		})
	}
	t.Run("of no image", func(t *testing.T) {
		t.Parallel()
		f := testkit.StartFake(t)
		err := f.Client.Aliases.Set(t.Context(), lxd.Alias{Name: "name", Target: oneFingerprint})
		require.ErrorIs(t, err, lxd.ErrNotFound)
		require.Empty(t, f.Aliases())
	})
}

func TestRenameAlias(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	one, two := testkit.Upload(t, f.Client, nil), testkit.Upload(t, f.Client, nil)
	require.NoError(t, one.AddAlias(t.Context(), "a/b", "text"))
	require.NoError(t, two.AddAlias(t.Context(), "taken", ""))
	require.NoError(t, f.Client.Aliases.Rename(t.Context(), "a/b", "c d"))
	alias, err := f.Client.Aliases.Get(t.Context(), "c d")
	require.NoError(t, err)
	require.Equal(t, "text", alias.Description)
	require.ErrorIs(t, f.Client.Aliases.Rename(t.Context(), "a/b", "x"), lxd.ErrNotFound)
	require.ErrorIs(t, f.Client.Aliases.Rename(t.Context(), "c d", "taken"), lxd.ErrExists)
	require.Equal(t, map[string]string{"c d": one.Fingerprint, "taken": two.Fingerprint}, f.Aliases())
}

// TestDeleteAliasWithALostResponse succeeds, although the repeated request gets a 404.
func TestDeleteAliasWithALostResponse(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	require.NoError(t, image.AddAlias(t.Context(), "name", ""))
	lost := f.Inject(lxdtest.LoseResponse().On(http.MethodDelete, "/1.0/images/aliases/*").Times(1))
	require.NoError(t, f.Client.Aliases.Delete(t.Context(), "name"))
	require.Equal(t, 1, lost.Fired())
	require.Empty(t, f.Aliases())
	require.ErrorIs(t, f.Client.Aliases.Delete(t.Context(), "name"), lxd.ErrNotFound)
}

// TestTakenAliases: an upload whose name is taken by another image sends nothing, or
// moves the name with ReuseAliases.
func TestTakenAliases(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	one := testkit.Upload(t, f.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "name"}}})
	data := testkit.Unified(t, 0)
	opts := &lxd.CreateOptions{Wait: true, Aliases: []lxd.Alias{{Name: "free"}, {Name: "name", Description: "moved"}}}
	f.ForgetRequests()
	_, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), opts)
	require.ErrorIs(t, err, lxd.ErrExists)
	require.Empty(t, changesAt(f))
	require.Equal(t, map[string]string{"name": one.Fingerprint}, f.Aliases())
	opts.ReuseAliases = true
	two, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), opts)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"free": two.Fingerprint, "name": two.Fingerprint}, f.Aliases())

	// An image that has its name already keeps it.
	again, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Dedupe: true, Aliases: []lxd.Alias{{Name: "name"}}})
	require.NoError(t, err)
	require.Equal(t, two.Fingerprint, again.Fingerprint)
}

// TestLostResponsesToAliases: an alias that was created is not an error.
func TestLostResponsesToAliases(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image, other := testkit.Upload(t, f.Client, nil), testkit.Upload(t, f.Client, nil)
	lost := f.Inject(lxdtest.LoseResponse().On("POST", "/1.0/images/aliases").Times(1))
	require.NoError(t, f.Client.Aliases.Create(t.Context(), lxd.Alias{Name: "made", Target: strings.ToUpper(image.Fingerprint), Description: "d"}))
	require.EqualValues(t, 1, lost.Fired())

	// A request that did not arrive is sent again.
	lost = f.Inject(lxdtest.Reset().On("POST", "/1.0/images/aliases").Times(1))
	require.NoError(t, image.AddAlias(t.Context(), "again", ""))
	require.EqualValues(t, 1, lost.Fired())
	alias, err := f.Client.Aliases.Get(t.Context(), "again")
	require.NoError(t, err)
	require.Equal(t, image.Fingerprint, alias.Target)

	// Another's alias is not this call's.
	f.Inject(lxdtest.LoseResponse().On("POST", "/1.0/images/aliases").Times(1))
	require.Error(t, other.AddAlias(t.Context(), "made", ""))

	// Without retries the client only looks.
	strict := testkit.NewClient(t, f.Endpoint(), &lxd.Options{RetryTimeout: -1})
	f.Inject(lxdtest.LoseResponse().On("POST", "/1.0/images/aliases").Times(1))
	require.NoError(t, strict.Aliases.Create(t.Context(), lxd.Alias{Name: "looked", Target: image.Fingerprint}))
	f.Inject(lxdtest.Reset().On("POST", "/1.0/images/aliases").Times(1))
	require.ErrorIs(t, strict.Aliases.Create(t.Context(), lxd.Alias{Name: "gone", Target: image.Fingerprint}), lxd.ErrUnavailable)
}
