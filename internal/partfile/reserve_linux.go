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

// room returns syscall.ENOSPC if this user cannot write n more bytes in the file
// system of f.
func room(f *os.File, n int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // it cannot be told
	}
	var stat syscall.Statfs_t
	var callErr error
	err = raw.Control(func(fd uintptr) { callErr = syscall.Fstatfs(int(fd), &stat) })
	if err != nil || callErr != nil || stat.Blocks == 0 || stat.Bsize <= 0 {
		return nil //nolint:nilerr // it cannot be told
	}
	free := stat.Bavail
	if geteuid() == 0 {
		free = stat.Bfree // the part that is kept for root too
	}
	if uint64(n)/uint64(stat.Bsize) > free {
		return syscall.ENOSPC
	}
	return nil
}
