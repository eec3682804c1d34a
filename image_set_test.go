package lxd_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
)

// TestImageSet: what is found after each change. That it has what a server has is checked
// by all tests of Watch.
func TestImageSet(t *testing.T) {
	t.Parallel()
	image := func(project, fingerprint string, aliases ...string) *lxd.Image {
		i := &lxd.Image{Project: project, Fingerprint: fingerprint, Properties: map[string]string{"os": fingerprint}}
		for _, name := range aliases {
			i.Aliases = append(i.Aliases, lxd.Alias{Name: name})
		}
		return i
	}
	var set lxd.ImageSet
	require.Nil(t, set.Get("", "a"))
	require.Nil(t, set.GetByAlias("", "one"))
	require.Equal(t, []*lxd.Image{}, set.Find(nil))
	has := func(want map[string]string) {
		t.Helper()
		got := map[string]string{}
		for _, name := range []string{"one", "two", "three"} {
			if i := set.GetByAlias("", name); i != nil {
				got[name] = i.Fingerprint
			}
		}
		require.Equal(t, want, got)
	}
	apply := func(kind lxd.ImageChangeKind, former, now *lxd.Image, aliases ...lxd.AliasChange) {
		set.Apply(lxd.ImageChange{Kind: kind, Image: now, Former: former, Aliases: aliases})
		if now != nil {
			now.Properties["os"] = "changed"
		}
	}
	apply(lxd.ImagePresent, nil, image("web", "a"))
	apply(lxd.ImagePresent, nil, image("default", "a", "one"), lxd.AliasChange{Name: "one", To: "a"})
	require.False(t, set.Synced())
	set.Apply(lxd.ImageChange{Kind: lxd.ImagesSynced})
	require.True(t, set.Synced())
	apply(lxd.ImageAdded, nil, image("default", "b", "two"), lxd.AliasChange{Name: "two", To: "b"})
	has(map[string]string{"one": "a", "two": "b"})
	require.Equal(t, "web", set.Get("web", "A").Project)
	require.Equal(t, "default", set.Get("", "a").Project)
	require.Nil(t, set.GetByAlias("web", "one"))
	require.Equal(t, []*lxd.Image{image("default", "a", "one"), image("default", "b", "two"), image("web", "a")}, set.Find(nil))
	require.Len(t, set.Find(func(i *lxd.Image) bool { return i.Properties["os"] == "a" }), 2)

	// Each gets an alias that the other, or it itself, had.
	apply(lxd.ImageChanged, image("default", "b", "two"), image("default", "b", "one"), lxd.AliasChange{Name: "one", OldName: "two", From: "b", To: "b"})
	has(map[string]string{"one": "b"})
	apply(lxd.ImageChanged, image("default", "a", "one"), image("default", "a", "three"), lxd.AliasChange{Name: "three", OldName: "one", From: "a", To: "a"})
	has(map[string]string{"one": "b", "three": "a"})

	// An alias that is moved is always found.
	moved := lxd.AliasChange{Name: "one", From: "b", To: "a"}
	apply(lxd.ImageRemoved, image("default", "b", "one"), nil, moved)
	has(map[string]string{"one": "b", "three": "a"})
	require.Nil(t, set.Get("", "b"))
	apply(lxd.ImageChanged, image("default", "a", "three"), image("default", "a", "one", "three"), moved)
	has(map[string]string{"one": "a", "three": "a"})
	apply(lxd.ImageChanged, image("default", "a", "one", "three"), image("default", "a", "one"), lxd.AliasChange{Name: "three", From: "a"})
	has(map[string]string{"one": "a"})

	// The images are the caller's.
	for _, i := range append(set.Find(nil), set.Get("", "a"), set.GetByAlias("", "one")) {
		i.Properties["os"] = "changed"
	}
	require.Len(t, set.Find(func(i *lxd.Image) bool { return i.Properties["os"] == "a" }), 2)
	apply(lxd.ImageRemoved, image("default", "a", "one"), nil, lxd.AliasChange{Name: "one", From: "a"})
	has(map[string]string{})
	require.Len(t, set.Find(nil), 1)
}
