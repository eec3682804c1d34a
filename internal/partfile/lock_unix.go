//go:build unix && !solaris && !aix

package partfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// beforeFlock is called, in tests, when a file was opened and is not yet locked.
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

// lockDirectory lets one at a time replace files in a directory. Where the
// directory cannot be read, or its file system has no such locks, it locks
// nothing.
func lockDirectory(path string) (unlock func(), err error) {
	dir, err := os.Open(path)
	if err != nil {
		return func() {}, nil //nolint:nilerr // as said
	}
	unlock = func() { _ = dir.Close() }
	if errors.Is(syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK) {
		unlock()
		return nil, errLocked
	}
	return unlock, nil
}
