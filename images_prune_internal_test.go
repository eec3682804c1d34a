package lxd

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPruneUnused: an image is unused since its last use or its upload, whichever was
// later.
func TestPruneUnused(t *testing.T) {
	t.Parallel()
	now := time.Now()
	p := &pruneJob{PruneOptions: PruneOptions{UnusedFor: 2 * time.Hour}, now: now}
	for _, test := range []struct {
		used, uploaded time.Duration // ago
		reason         string        // "" if the image remains
	}{
		{used: 3 * time.Hour, uploaded: 4 * time.Hour, reason: "not used for 2h0m0s"},
		{used: time.Hour, uploaded: 4 * time.Hour},
		{used: 4 * time.Hour, uploaded: 3 * time.Hour, reason: "not used for 2h0m0s"},
		{used: 4 * time.Hour, uploaded: time.Hour},
		{uploaded: 3 * time.Hour, reason: "not used for 2h0m0s, and never used"},
		{uploaded: time.Hour},
	} {
		image := &Image{UploadedAt: now.Add(-test.uploaded)}
		if test.used > 0 {
			image.LastUsedAt = now.Add(-test.used)
		}
		reason, met := p.meets(image)
		require.Equal(t, test.reason != "", met, "%+v", test)
		require.Equal(t, test.reason, reason)
	}
}
