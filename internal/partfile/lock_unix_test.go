//go:build unix && !solaris && !aix

package partfile

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLockRefusesWhatIsNotRegular(t *testing.T) {
	const link = "a symbolic link, which is not followed"
	for name, c := range map[string]struct {
		create func(path, target string) error
		kind   string
	}{
		"link": {func(path, target string) error {
			if err := os.WriteFile(target, []byte("other"), 0o600); err != nil {
				return err
			}
			return os.Symlink(target, path)
		}, link},
		"link to nothing": {func(path, target string) error { return os.Symlink(target, path) }, link},
		"link to itself":  {func(path, _ string) error { return os.Symlink(path, path) }, link},
		"pipe":            {func(path, _ string) error { return syscall.Mkfifo(path, 0o600) }, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, target := filepath.Join(dir, "file"), filepath.Join(dir, "target")
			require.NoError(t, c.create(path, target))
			before, err := os.ReadDir(dir)
			require.NoError(t, err)
			_, err = lock(t.Context(), path, 0o600)
			require.EqualError(t, err, path+" is "+c.kind+": remove it")
			after, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, after, len(before), "nothing was created")
		})
	}
}

// TestLinkThatComesLate is there after lock has looked.
func TestLinkThatComesLate(t *testing.T) {
	dir := t.TempDir()
	path, target := filepath.Join(dir, "file"), filepath.Join(dir, "target")
	f, err := lock(t.Context(), target, 0o600)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, os.Symlink(target, path))
	require.False(t, same(f, path))
	require.NoError(t, f.Close())
	_, err = openLocked(path, 0o600)
	require.Error(t, err)
}
