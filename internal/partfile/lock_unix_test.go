//go:build unix && !solaris && !aix

package partfile

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLockReplacesWhatIsNotItsOwn locks paths at which there is a file that other
// users can change, or through which other files would be changed.
func TestLockReplacesWhatIsNotItsOwn(t *testing.T) {
	const content = "other"
	file := func(path string, perm os.FileMode) error {
		return errors.Join(os.WriteFile(path, []byte(content), perm), os.Chmod(path, perm))
	}
	for name, create := range map[string]func(path, target string) error{
		"link": func(path, target string) error {
			return errors.Join(file(target, 0o600), os.Symlink(target, path))
		},
		"link to nothing": func(path, target string) error { return os.Symlink(target+".none", path) },
		"link to itself":  func(path, _ string) error { return os.Symlink(path, path) },
		"pipe":            func(path, _ string) error { return syscall.Mkfifo(path, 0o600) },
		"hard link": func(path, target string) error {
			return errors.Join(file(target, 0o600), os.Link(target, path))
		},
		"writable by the group":  func(path, _ string) error { return file(path, 0o620) },
		"writable by all":        func(path, _ string) error { return file(path, 0o602) },
		"another user's, and so": func(path, _ string) error { return file(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, target := filepath.Join(dir, "file"), filepath.Join(dir, "target")
			require.NoError(t, create(path, target))
			if name == "another user's, and so" {
				geteuid = func() int { return os.Geteuid() + 1 }
				defer func() { geteuid = os.Geteuid }()
			}
			f, err := Lock(t.Context(), path, 0o600)
			require.NoError(t, err)
			defer f.Close()
			after, err := os.Lstat(path)
			require.NoError(t, err)
			require.True(t, after.Mode().IsRegular())
			require.EqualValues(t, 0o600, after.Mode().Perm())
			require.Zero(t, after.Size())
			_, err = f.WriteString("new")
			require.NoError(t, err)
			if got, err := os.ReadFile(target); err == nil {
				require.Equal(t, content, string(got))
			}
			require.NoFileExists(t, target+".none")
		})
	}
}

// TestLockKeepsItsOwn locks a file that only this user can change, and removes the
// permissions that it should no longer have.
func TestLockKeepsItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte("own"), 0o600))
	require.NoError(t, os.Chmod(path, 0o644))
	f, err := Lock(t.Context(), path, 0o600)
	require.NoError(t, err)
	defer f.Close()
	got, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, "own", string(got))
	info, err := f.Stat()
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())
}

// TestLockOfFileThatIsRenamed has another process, between opening and locking,
// rename the file to its final name and create no file, or a new one, at the path.
func TestLockOfFileThatIsRenamed(t *testing.T) {
	for _, again := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(path, []byte("whole"), 0o600))
		var once sync.Once
		beforeFlock = func() {
			once.Do(func() {
				require.NoError(t, os.Rename(path, path+".final"))
				if again {
					require.NoError(t, os.WriteFile(path, nil, 0o600))
				}
			})
		}
		f, err := Lock(t.Context(), path, 0o600)
		beforeFlock = func() {}
		require.NoError(t, err)
		_, err = f.WriteString("new")
		require.NoError(t, err)
		require.NoError(t, f.Close())
		for name, want := range map[string]string{path + ".final": "whole", path: "new"} {
			got, err := os.ReadFile(name)
			require.NoError(t, err)
			require.Equal(t, want, string(got))
		}
	}
}

// TestLockKeepsWhatAnotherHasReplaced has another process replace an unusable file
// by its own between the first check and the second.
func TestLockKeepsWhatAnotherHasReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Chmod(path, 0o666))
	var other *os.File
	defer func() { beforeReplace = func() {} }()
	beforeReplace = func() {
		beforeReplace = func() {}
		var err error
		other, err = Lock(t.Context(), path, 0o600)
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*poll)
	defer cancel()
	_, err := Lock(ctx, path, 0o600)
	require.ErrorIs(t, err, context.DeadlineExceeded, "the other has it")
	require.True(t, same(other, path))
	require.NoError(t, other.Close())
	f, err := Lock(t.Context(), path, 0o600)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// TestLockWithoutModes locks a file on a file system that has one mode for all files
// and refuses to change it.
func TestLockWithoutModes(t *testing.T) {
	chmod = func(*os.File, fs.FileMode) error { return syscall.EPERM }
	defer func() { chmod = (*os.File).Chmod }()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte("begun"), 0o600))
	require.NoError(t, os.Chmod(path, 0o644))
	f, err := Lock(t.Context(), path, 0o600)
	require.NoError(t, err)
	got, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, "begun", string(got))
	require.NoError(t, f.Close())
}

// TestPermissions checks the permissions before the umask; those of a private image
// allow others nothing.
func TestPermissions(t *testing.T) {
	for _, c := range []struct {
		public bool
		umask  int
		want   os.FileMode
	}{
		{false, 0, 0o600},
		{true, 0, 0o644},
		{true, 0o027, 0o640},
	} {
		old := syscall.Umask(c.umask)
		defer syscall.Umask(old)
		metadata, rootfs := []byte("metadata"), []byte("rootfs")
		image := imageOf(t, "web", metadata, rootfs)
		image.Public = c.public
		f := splitIn(t, image, metadata, rootfs)
		for _, name := range namesIn(t, image.Dir) {
			requirePerm(t, c.want, filepath.Join(image.Dir, name))
		}
		files, err := f.Publish(t.Context())
		require.NoError(t, err)
		require.NoError(t, f.Close())
		requirePerm(t, c.want, files.Image)
		requirePerm(t, c.want, files.Rootfs)
	}
}

func requirePerm(t *testing.T, want os.FileMode, path string) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.EqualValues(t, want, info.Mode().Perm(), path)
}

// TestFindOfWhatOthersCanChange finds a complete image in files that another user
// could change after they were verified.
func TestFindOfWhatOthersCanChange(t *testing.T) {
	data := []byte("\x1f\x8b and more")
	image := imageOf(t, "web", data)
	path := filepath.Join(image.Dir, "web.tar.gz")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	find := func() (*Files, error) { return image.Find(t.Context()) }
	files, err := find()
	require.NoError(t, err)
	require.NotNil(t, files)

	require.NoError(t, os.Chmod(path, 0o620))
	files, err = find()
	require.Nil(t, files)
	require.ErrorIs(t, err, ErrNotOurs)
	require.ErrorContains(t, err, path+" is writable by others (mode 0620)")
	require.NoError(t, os.Chmod(path, 0o600))

	stranger := fs.FileInfo(strangers{})
	require.Equal(t, "belongs to the user 4242", changeable(stranger, image.Dir))
	require.NoError(t, os.Link(path, path+".backup"), "another name does no harm to what is only read")
	files, err = find()
	require.NoError(t, err)
	require.NotNil(t, files)
}

// strangers is the information of a file whose owner is neither this user nor root.
type strangers struct{ fs.FileInfo }

func (strangers) Mode() fs.FileMode { return 0o644 }
func (strangers) Sys() any          { return &syscall.Stat_t{Uid: 4242, Nlink: 1} }

// TestLinkThatComesLate creates a link after the check of lock.
func TestLinkThatComesLate(t *testing.T) {
	dir := t.TempDir()
	path, target := filepath.Join(dir, "file"), filepath.Join(dir, "target")
	f, err := Lock(t.Context(), target, 0o600)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, os.Symlink(target, path))
	require.False(t, same(f, path))
	require.NoError(t, f.Close())
	_, err = openLocked(path, 0o600, false)
	require.Error(t, err)
}

// TestSettle makes a complete file public in spite of the umask, and refuses a file
// that has replaced it.
func TestSettle(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	content := []byte("whole")
	image := imageOf(t, "web", content)
	image.Public = true
	f, err := image.Open(t.Context())
	require.NoError(t, err)
	defer f.Close()
	_, err = f.Write(content)
	require.NoError(t, err)
	require.NoError(t, f.Settle(t.Context()))
	requirePerm(t, 0o644, f.path)
	got, err := io.ReadAll(f.Content(3))
	require.NoError(t, err)
	require.Equal(t, "who", string(got))
	require.NoError(t, os.Remove(f.path))
	require.NoError(t, os.WriteFile(f.path, content, 0o600))
	require.ErrorContains(t, f.Settle(t.Context()), "is no longer the file that was written")
}
