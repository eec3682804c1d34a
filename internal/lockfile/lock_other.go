//go:build !windows && (!unix || solaris || aix)

package lockfile

import (
	"io/fs"
	"os"
)

// open takes no lock where the standard library knows none.
func open(path string, perm fs.FileMode) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, perm)
}
