package prealloc

import (
	"errors"
	"os"
	"syscall"
)

// keepSize is FALLOC_FL_KEEP_SIZE of linux/falloc.h.
const keepSize = 1

// reserve says whether it can be told that there is room.
func reserve(f *os.File, offset, n int64) (known bool, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, nil
	}
	var callErr error
	err = raw.Control(func(fd uintptr) {
		callErr = syscall.Fallocate(int(fd), keepSize, offset, n)
	})
	switch {
	case err != nil:
		return false, nil
	case errors.Is(callErr, syscall.ENOSPC), errors.Is(callErr, syscall.EDQUOT):
		return true, os.NewSyscallError("fallocate", callErr)
	}
	// A signal may interrupt it in a tmpfs: what comes behind can still be had.
	return callErr == nil || errors.Is(callErr, syscall.EINTR), nil
}
