//go:build !unix

package cliconfig

import "io/fs"

// exposed does not know the rights of other systems.
func exposed(fs.FileInfo) bool { return false }
