//go:build !windows && (!unix || solaris || aix)

package partfile

import (
	"io/fs"
	"os"
)

// openLocked takes no lock where the standard library knows none.
func openLocked(path string, perm fs.FileMode) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, perm)
}
