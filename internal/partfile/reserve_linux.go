package partfile

import (
	"errors"
	"os"
	"syscall"
)

// keepSize is FALLOC_FL_KEEP_SIZE of linux/falloc.h.
const keepSize = 1

// allocate reserves space in f. It returns errors.ErrUnsupported if that fails for
// any reason but a lack of space.
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
		// In a tmpfs a signal may interrupt the call; the rest can still be reserved.
		return nil
	case errors.Is(callErr, syscall.ENOSPC), errors.Is(callErr, syscall.EDQUOT):
		return os.NewSyscallError("fallocate", callErr)
	}
	return errors.ErrUnsupported
}

// room returns syscall.ENOSPC if the file system of f has less than n bytes for this
// user.
func room(f *os.File, n int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // unknown
	}
	var stat syscall.Statfs_t
	var callErr error
	err = raw.Control(func(fd uintptr) { callErr = syscall.Fstatfs(int(fd), &stat) })
	if err != nil || callErr != nil || stat.Blocks == 0 || stat.Bsize <= 0 {
		return nil //nolint:nilerr // unknown
	}
	free := stat.Bavail
	if geteuid() == 0 {
		free = stat.Bfree // includes the blocks reserved for root
	}
	if uint64(n)/uint64(stat.Bsize) > free {
		return syscall.ENOSPC
	}
	return nil
}
