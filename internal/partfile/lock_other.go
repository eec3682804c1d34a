//go:build !windows && (!unix || solaris || aix)

package partfile

import (
	"io/fs"
	"os"
)

// openLocked does not lock: the standard library has no file locks here.
func openLocked(path string, perm fs.FileMode, create bool) (*os.File, error) {
	flags := os.O_RDWR | noFollow
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	return os.OpenFile(path, flags, perm)
}

// lockDirectory does nothing: there is no such lock.
func lockDirectory(string) (unlock func(), err error) { return func() {}, nil }
