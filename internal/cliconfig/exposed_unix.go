//go:build unix

package cliconfig

import "io/fs"

// exposed reports whether others than the owner may access the file.
func exposed(info fs.FileInfo) bool { return info.Mode().Perm()&0o077 != 0 }
