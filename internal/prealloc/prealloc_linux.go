package prealloc

import (
	"errors"
	"os"
	"syscall"
)

// keepSize is FALLOC_FL_KEEP_SIZE of linux/falloc.h.
const keepSize = 1

func reserve(f *os.File, offset, n int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	var callErr error
	err = raw.Control(func(fd uintptr) {
		callErr = syscall.Fallocate(int(fd), keepSize, offset, n)
	})
	if err == nil && (errors.Is(callErr, syscall.ENOSPC) || errors.Is(callErr, syscall.EDQUOT)) {
		return os.NewSyscallError("fallocate", callErr)
	}
	// Whatever else it is, writing tells if it matters.
	return nil
}
