//go:build !unix && !windows

package partfile

import (
	"io/fs"
	"os"
)

const noFollow = 0

// foreignOwner checks nothing: the standard library has no owners here.
func foreignOwner(fs.FileInfo) string { return "" }

func linked(*os.File) string { return "" }

func changeable(fs.FileInfo, string) string { return "" }

// badName does not know the errors for invalid names.
func badName(error) string { return "" }
