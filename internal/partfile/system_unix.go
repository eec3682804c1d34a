//go:build unix

package partfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// noFollow makes opening a symbolic link fail, and opening a pipe not block.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// geteuid is replaced in tests.
var geteuid = os.Geteuid

// otherWriters are the write permissions of group and others.
const otherWriters = 0o022

// foreignOwner returns why other users can change a regular file, or why writing to
// it changes other files, or "".
func foreignOwner(info fs.FileInfo) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return "has an unknown owner"
	case int(stat.Uid) != geteuid():
		return fmt.Sprintf("belongs to the user %d", stat.Uid)
	case stat.Nlink != 1:
		return "has other names (hard links)"
	case info.Mode().Perm()&otherWriters != 0:
		return fmt.Sprintf("is writable by others (mode %04o)", info.Mode().Perm())
	}
	return ""
}

// linked is for systems whose FileInfo does not contain the number of links.
func linked(*os.File) string { return "" }

// changeable returns why other users can change a finished file after it was
// verified, or "". Root and the owner of the directory can replace any file anyway.
func changeable(info fs.FileInfo, dir string) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "has an unknown owner"
	}
	if info.Mode().Perm()&otherWriters != 0 {
		return fmt.Sprintf("is writable by others (mode %04o)", info.Mode().Perm())
	}
	if uid := int(stat.Uid); uid == geteuid() || uid == 0 {
		return ""
	}
	if parent, err := os.Stat(dir); err == nil {
		if owner, ok := parent.Sys().(*syscall.Stat_t); ok && owner.Uid == stat.Uid {
			return ""
		}
	}
	return fmt.Sprintf("belongs to the user %d", stat.Uid)
}

// badName returns why a file system does not accept a name, or "".
func badName(err error) string {
	switch {
	case errors.Is(err, syscall.ENAMETOOLONG):
		return "is too long for the file system"
	case errors.Is(err, syscall.EILSEQ):
		return "contains characters that the file system does not accept"
	}
	return ""
}
