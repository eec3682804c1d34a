package lxdtest

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestImagesAreDeterministic(t *testing.T) {
	require.Equal(t, UnifiedImage("a", 5000), UnifiedImage("a", 5000))
	require.NotEqual(t, Fingerprint(UnifiedImage("a", 0)), Fingerprint(UnifiedImage("b", 0)))
	meta, root := SplitImage("a", 0)
	require.Equal(t, Fingerprint(append(bytes.Clone(meta), root...)), Fingerprint(meta, root))
}

func TestImageSizes(t *testing.T) {
	for _, size := range []int64{50_000, 1 << 20} {
		_, root := SplitImage("s", size)
		_, disk := VMImage("s", size)
		for _, n := range []int{len(UnifiedImage("s", size)), len(root), len(disk)} {
			require.InDelta(t, size, n, float64(size)/10)
		}
	}
	require.Less(t, len(UnifiedImage("s", 0)), 4096)
}

func TestUnusualSeeds(t *testing.T) {
	for _, seed := range []string{"", "a: b", "日本", "x\ny", `"quoted" \ back`} {
		s := newTestServer(t, &Options{InMemory: true})
		fingerprint, err := s.AddImage(UnifiedImage(seed, 0), nil)
		require.NoError(t, err)
		img, ok := s.Image(fingerprint)
		require.True(t, ok)
		require.Equal(t, seed, img.Properties["seed"])
		require.Equal(t, "1", img.Properties["release"])
	}
}
