package partfile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// noFollow is 0: os.OpenFile has no such flag here.
const noFollow = 0

// foreignOwner does not check owners and access lists, which the standard library
// does not read here. The directory's access list decides who may write.
func foreignOwner(fs.FileInfo) string { return "" }

// linked returns that a file has other names, or "".
func linked(f *os.File) string {
	var info syscall.ByHandleFileInformation
	if err := syscall.GetFileInformationByHandle(syscall.Handle(f.Fd()), &info); err == nil && info.NumberOfLinks > 1 {
		return "has other names (hard links)"
	}
	return ""
}

func changeable(fs.FileInfo, string) string { return "" }

// badName returns why a file system does not accept a name, or "".
func badName(err error) string {
	const invalidName, nameTooLong = syscall.Errno(123), syscall.Errno(206) // ERROR_INVALID_NAME, ERROR_FILENAME_EXCED_RANGE
	if errors.Is(err, invalidName) || errors.Is(err, nameTooLong) {
		return "is too long for the file system"
	}
	return ""
}
