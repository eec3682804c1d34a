package cliconfig

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFilesAreBounded checks that a file that is too large is refused, and not
// truncated.
func TestFilesAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yml")
	for size, fits := range map[int]bool{maxFile: true, maxFile + 1: false} {
		require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("#"), size), 0o600))
		data, err := ReadFile(path)
		if fits {
			require.NoError(t, err)
			require.Len(t, data, size)
			continue
		}
		var refused *SyntaxError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, path, refused.File)
		require.Nil(t, data)
	}
	// The rest of a file that is too large is not read.
	require.NoError(t, os.Truncate(path, 1<<30))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := ReadFile(path)
	runtime.ReadMemStats(&after)
	require.Error(t, err)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
}
