package partfile

import (
	"errors"
	"os"
	"syscall"
)

// keepSize is FALLOC_FL_KEEP_SIZE of linux/falloc.h.
const keepSize = 1

// allocate returns errors.ErrUnsupported where nothing can be told of the room.
func allocate(f *os.File, offset, n int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return errors.ErrUnsupported
	}
	var callErr error
	err = raw.Control(func(fd uintptr) {
		callErr = syscall.Fallocate(int(fd), keepSize, offset, n)
	})
	switch {
	case err != nil:
		return errors.ErrUnsupported
	case callErr == nil, errors.Is(callErr, syscall.EINTR):
		// A signal may interrupt it in a tmpfs: what is behind can still be had.
		return nil
	case errors.Is(callErr, syscall.ENOSPC), errors.Is(callErr, syscall.EDQUOT):
		return os.NewSyscallError("fallocate", callErr)
	}
	return errors.ErrUnsupported
}
