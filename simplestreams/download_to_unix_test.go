//go:build unix

package simplestreams_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/simplestreams"
)

// TestDownloadToFollowsNoLink has symbolic links where the partial files are to be, and in place of a finished file.
func TestDownloadToFollowsNoLink(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", ".rootfs"} {
		s := newSaved(t, "big", nil, nil)
		other := filepath.Join(t.TempDir(), "other")
		require.NoError(t, os.WriteFile(other, []byte("other"), 0o600))
		require.NoError(t, os.Symlink(other, s.partial(name)))
		require.NoError(t, os.Symlink(other, filepath.Join(s.dir, "web.squashfs")))
		files, err := s.to(t, &simplestreams.DownloadToOptions{Name: "web"})
		require.NoError(t, err)
		s.requireWhole(t, files)
		got, err := os.ReadFile(other)
		require.NoError(t, err)
		require.Equal(t, "other", string(got))
	}
}
