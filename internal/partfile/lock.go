package partfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// errLocked says that another process or goroutine has locked the file.
var errLocked = errors.New("file is locked")

// poll is the interval at which Lock retries: a context cannot end the operating
// system's own wait.
const poll = 50 * time.Millisecond

// Lock opens the file at path for reading and writing, and waits until no other
// process, and no other goroutine of this one, has locked it. The lock ends with
// the process, however that ends.
//
// If other users can write to a file, they can change it after its content was
// verified; if it has several names or is a link, writing to it changes another
// file. So an existing file is used only if it is a regular file of this user, with
// one name, that nobody else may write to. Otherwise Lock replaces it, without
// opening it, by a new file with the permissions perm before the umask.
// Close ends the lock.
func Lock(ctx context.Context, path string, perm fs.FileMode) (*os.File, error) {
	for {
		if err := ctxerr.Of(ctx); err != nil {
			return nil, err
		}
		f, err := openOwn(path, perm)
		switch {
		case err == nil:
			// The previous holder of the lock may have renamed or removed it.
			if same(f, path) {
				return f, nil
			}
			_ = f.Close()
		case errors.Is(err, errChanging):
		case errors.Is(err, errLocked):
			timer := time.NewTimer(poll)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
		default:
			return nil, err
		}
	}
}

// errChanging says that another process has changed what is at the path.
var errChanging = errors.New("file is changing")

// openOwn opens and locks the file at path, or creates it.
func openOwn(path string, perm fs.FileMode) (*os.File, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		f, err := openLocked(path, perm, true)
		if errors.Is(err, fs.ErrExist) {
			return nil, errChanging
		}
		return f, err
	}
	if err != nil {
		return nil, err
	}
	if foreign(info) != "" {
		return nil, replace(path, foreign)
	}
	f, err := openLocked(path, perm, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errChanging
	}
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err == nil {
		if why := foreign(info); why != "" {
			err = errChanging
		} else if why := linked(f); why != "" {
			_ = f.Close() // Windows cannot remove an open file
			return nil, replace(path, func(fs.FileInfo) string { return why })
		}
	}
	if err == nil && info.Mode().Perm()&^perm != 0 {
		// The image was public when the file was created. An owner's chmod fails only
		// on file systems without modes, where a new file would have the same mode.
		_ = chmod(f, info.Mode().Perm()&perm)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// chmod is replaced in tests.
var chmod = (*os.File).Chmod

// beforeReplace is replaced in tests. It is called between the first check of a
// file and the second.
var beforeReplace = func() {}

// replace removes a file that must not be used; why returns the reason, or "". Of
// two processes the second must not remove the first one's new file, so replace
// checks the file again under a lock of the directory.
func replace(path string, why func(fs.FileInfo) string) error {
	beforeReplace()
	unlock, err := lockDirectory(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unlock()
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errChanging
	case err != nil:
		return err
	}
	reason := why(info)
	switch {
	case reason == "":
		return errChanging
	case info.IsDir():
		return fmt.Errorf("%s %s: remove it", path, reason)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s %s, and cannot be replaced: %w; remove it, or use a directory that nobody else may write to", path, reason, err)
	}
	return errChanging
}

// foreign returns why a file must not be written to, or "".
func foreign(info fs.FileInfo) string {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return "is a symbolic link"
	case info.IsDir():
		return "is a directory"
	case !info.Mode().IsRegular():
		return "is not a regular file"
	}
	return foreignOwner(info)
}

// same reports whether f is the regular file at path, and not the target of a link
// there.
func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && b.Mode().IsRegular() && os.SameFile(a, b)
}
