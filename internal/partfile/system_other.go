//go:build !unix && !windows

package partfile

import (
	"io/fs"
	"os"
)

const noFollow = 0

// foreignOwner tells nothing where the standard library does not.
func foreignOwner(fs.FileInfo) string { return "" }

func linked(*os.File) string { return "" }

func changeable(fs.FileInfo, string) string { return "" }

// badName does not know what a file system has against a name.
func badName(error) string { return "" }
