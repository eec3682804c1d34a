package cliconfig

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFilesAreBounded: one that is larger than any configuration is refused, not
// cut.
func TestFilesAreBounded(t *testing.T) {
	t.Parallel()
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
	require.Less(t, maxFile, 16<<20)
}
