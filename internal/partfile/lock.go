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

// errLocked says that somebody else has the file.
var errLocked = errors.New("file is locked")

// poll is how often a locked file is looked at again: the systems' own waiting
// cannot be ended by a context.
const poll = 50 * time.Millisecond

// lock opens the file at path for reading and writing and waits until no other
// process, and no other goroutine of this one, has it. The lock ends with the
// process, however that ends.
//
// Whoever else can write to a file can change it after its content was verified,
// and what is written to one with several names, or through a link, changes
// another. So what is at path is used only if it is a regular file of this user,
// with one name, that nobody else may write to. Otherwise, and if nothing is
// there, lock puts a new file with the permissions perm, before the umask, in
// its place, without opening the other.
func lock(ctx context.Context, path string, perm fs.FileMode) (*os.File, error) {
	for {
		if err := ctxerr.Of(ctx); err != nil {
			return nil, err
		}
		f, err := openOwn(path, perm)
		switch {
		case err == nil:
			// Whoever had it may have renamed or removed it meanwhile.
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

// errChanging says that somebody else changed what is at the path.
var errChanging = errors.New("file is changing")

// openOwn opens and locks what is at path, or creates it.
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
			_ = f.Close() // or it cannot be removed
			return nil, replace(path, func(fs.FileInfo) string { return why })
		}
	}
	if err == nil && info.Mode().Perm()&^perm != 0 {
		// It was begun for an image that was public then. Its owner is refused only
		// by file systems without modes, where a new file would have the same.
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

// beforeReplace is called, in tests, when a file was seen not to be used and is
// not yet looked at again.
var beforeReplace = func() {}

// replace removes the name of a file that is not to be used: why says for what
// reason, or "". Who comes second must not remove what the first has put there
// in the meantime, so the file is looked at again while nobody else replaces one.
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
		return fmt.Errorf("%s %s, and cannot be replaced: %w; remove it, or use a directory in which nobody else may write", path, reason, err)
	}
	return errChanging
}

// foreign returns why a file is not to be written to, or "".
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

// same says whether f is the regular file at path, and not what a link there
// leads to.
func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && b.Mode().IsRegular() && os.SameFile(a, b)
}
