//go:build !unix

package cliconfig

import "io/fs"

// exposed does not check permissions on other systems.
func exposed(fs.FileInfo) bool { return false }
