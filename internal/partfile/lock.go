package partfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// errLocked says that somebody else has the file.
var errLocked = errors.New("file is locked")

// poll is how often a locked file is looked at again: the systems' own waiting
// cannot be ended by a context.
const poll = 50 * time.Millisecond

// lock opens or creates the file at path for reading and writing and waits
// until no other process, and no other goroutine of this one, has it. The lock
// ends with the process, however that ends. It refuses what is not a regular
// file, and follows no symbolic link.
func lock(ctx context.Context, path string, perm fs.FileMode) (*os.File, error) {
	for {
		if err := ctxerr.Of(ctx); err != nil {
			return nil, err
		}
		if err := refuse(path); err != nil {
			return nil, err
		}
		f, err := openLocked(path, perm)
		if err == nil {
			// Whoever had it may have renamed or removed it meanwhile.
			if same(f, path) {
				return f, nil
			}
			_ = f.Close()
			continue
		}
		if !errors.Is(err, errLocked) {
			return nil, err
		}
		timer := time.NewTimer(poll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// refuse returns an error if something is at path that is not a regular file.
func refuse(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().IsRegular() {
		return nil // openLocked says what is wrong, if anything is
	}
	kind := "not a regular file"
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		kind = "a symbolic link, which is not followed"
	case info.IsDir():
		kind = "a directory"
	}
	return fmt.Errorf("%s is %s: remove it", path, kind)
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
