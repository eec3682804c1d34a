//go:build unix

package cliconfig

import "io/fs"

func exposed(info fs.FileInfo) bool { return info.Mode().Perm()&0o077 != 0 }
