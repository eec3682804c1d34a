//go:build unix && !solaris && !aix

package partfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// beforeFlock is replaced in tests. It is called between opening and locking.
var beforeFlock = func() {}

func openLocked(path string, perm fs.FileMode, create bool) (*os.File, error) {
	flags := os.O_RDWR | noFollow
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, perm)
	if err != nil {
		return nil, err
	}
	beforeFlock()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errLocked
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// lockDirectory lets one process at a time replace files in a directory. If the
// directory cannot be read, or its file system has no such locks, it does nothing.
func lockDirectory(path string) (unlock func(), err error) {
	dir, err := os.Open(path)
	if err != nil {
		return func() {}, nil //nolint:nilerr // documented above
	}
	unlock = func() { _ = dir.Close() }
	if errors.Is(syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK) {
		unlock()
		return nil, errLocked
	}
	return unlock, nil
}
