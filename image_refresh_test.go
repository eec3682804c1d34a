package lxd_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// rollingTree is a tree whose alias "rolling" has these versions.
func rollingTree(contents ...[]byte) map[string][]byte {
	var versions []streamstest.Version
	for n, content := range contents {
		versions = append(versions, streamstest.Version{Serial: []string{"20240101", "20240202"}[n], Family: "both", Unified: content})
	}
	return streamstest.Tree([]streamstest.Product{{Name: "product", Aliases: []string{"rolling"}, OS: "Distro", Release: "1", Versions: versions}}, nil)
}

// rollingImage imports the image of the alias, and returns it and the content of a
// newer version, which the server then has.
func rollingImage(t *testing.T, c *lxd.Client, aliases ...lxd.Alias) (image *lxd.Image, newer []byte) {
	t.Helper()
	old, newer := testkit.Unified(t, 0), testkit.Unified(t, 0)
	source := streamstest.NewServer(rollingTree(old))
	t.Cleanup(source.Close)
	image, err := c.Images.CreateFromSimplestreams(t.Context(), source.URL, "rolling", &lxd.CreateFromSimplestreamsOptions{
		Via: lxd.ViaServer, AutoUpdate: true, Public: true, Wait: true, Aliases: aliases,
	})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	for path, content := range rollingTree(old, newer) {
		source.Set(path, content)
	}
	return image, newer
}

// TestRefreshReturnsTheNewerImage: with Wait at once, without it after Wait; with
// aliases and without.
func TestRefreshReturnsTheNewerImage(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		for _, wait := range []bool{true, false} {
			for _, aliases := range [][]lxd.Alias{nil, {{Name: testkit.Unique("rolling")}}} {
				image, content := rollingImage(t, f.Client, aliases...)
				newer, err := image.Refresh(t.Context(), &lxd.RefreshOptions{Wait: wait})
				require.NoError(t, err)
				if !wait {
					require.Equal(t, image.Fingerprint, newer.Fingerprint)
					require.NoError(t, newer.Wait(t.Context()))
					require.NoError(t, image.Wait(t.Context()))
				}
				require.Equal(t, lxdtest.Fingerprint(content), newer.Fingerprint)
				require.NotEqual(t, newer.Fingerprint, image.Fingerprint)
				require.Equal(t, "rolling", newer.UpdateSource.Alias)
				require.Len(t, newer.Aliases, len(aliases))
				same, err := newer.Refresh(t.Context(), &lxd.RefreshOptions{Wait: true})
				require.NoError(t, err)
				require.Same(t, newer, same, "nothing is newer")
				require.NoError(t, newer.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			}
		}
	})
}

// TestRefreshFresh finds what is newer although the daemon has read the index within
// the last hour.
func TestRefreshFresh(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			refreshFresh(t, s.Client(t))
		})
	}
}

func TestRefreshFreshOfCache(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		f.Inject(lxdtest.CacheStreams())
		refreshFresh(t, f.Client)
	})
}

func refreshFresh(t *testing.T, c *lxd.Client) {
	t.Helper()
	alias := testkit.Unique("rolling")
	image, content := rollingImage(t, c, lxd.Alias{Name: alias, Description: "about it"})
	newer, err := image.Refresh(t.Context(), &lxd.RefreshOptions{Fresh: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, newer)
	require.Equal(t, lxdtest.Fingerprint(content), newer.Fingerprint)
	require.True(t, newer.Public)
	found, err := c.Images.GetByAlias(t.Context(), alias)
	require.NoError(t, err)
	require.Equal(t, newer.Fingerprint, found.Fingerprint)
	require.Equal(t, []lxd.Alias{{Name: alias, Description: "about it"}}, found.Aliases)
	_, err = c.Images.Get(t.Context(), image.Fingerprint)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	if newer.UpdateSource != nil { // the server has fetched it
		require.True(t, newer.AutoUpdate)
		same, err := newer.Refresh(t.Context(), &lxd.RefreshOptions{Fresh: true})
		require.NoError(t, err)
		require.Same(t, newer, same)
	}
}

// TestRefreshWithoutSource has the same sentinel on each daemon.
func TestRefreshWithoutSource(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			image := testkit.Upload(t, s.Client(t), nil)
			for _, opts := range []*lxd.RefreshOptions{{Wait: true}, {Fresh: true}} {
				_, err := image.Refresh(t.Context(), opts)
				require.ErrorIs(t, err, lxd.ErrNotFound)
				require.ErrorContains(t, err, "source")
			}
			current, err := image.Refresh(t.Context(), nil)
			require.NoError(t, err)
			require.ErrorIs(t, current.Wait(t.Context()), lxd.ErrNotFound)
			require.ErrorIs(t, image.Wait(t.Context()), lxd.ErrNotFound)
		})
	}
}
