//go:build unix

package imagefile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFromSquashfsLateFailure: a program that fails after the end of its tarball fails.
func TestFromSquashfsLateFailure(t *testing.T) {
	root, err := filepath.Abs(kinds)
	require.NoError(t, err)
	dir := t.TempDir()
	script := "#!/bin/sh\nfor i in 1 2; do printf '\\000%.0s'" + strings.Repeat(" x", 512) + "; done\necho broken >&2\nexit 3\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sqfs2tar"), []byte(script), 0o700))
	t.Setenv("PATH", dir)
	err = FromSquashfs(root).walk(t.Context(), nil)
	var failed *ProgramError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, "broken", failed.Stderr)
	require.ErrorContains(t, err, "exit status 3")
}
