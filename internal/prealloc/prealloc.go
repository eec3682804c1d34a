// Package prealloc reserves the space of a file that is about to be written.
//
// A file system that knows how much is coming finds its place once and not with
// every write: on ext4 that spares about a third of the time that writing takes.
// And a disk that is too small shows before anything is written to it.
package prealloc

import (
	"fmt"
	"os"
)

// Reserve makes room for the n bytes of f from offset on, without changing its
// size. Where the system or the file system knows no such thing, it does
// nothing. The error wraps syscall.ENOSPC or syscall.EDQUOT if there is no such
// room.
//
// What is not written afterwards stays reserved until Release.
func Reserve(f *os.File, offset, n int64) error {
	if n <= 0 {
		return nil
	}
	if err := reserve(f, offset, n); err != nil {
		return fmt.Errorf("make room for %d bytes: %w", n, &os.PathError{Op: "fallocate", Path: f.Name(), Err: err})
	}
	return nil
}

// Release gives back what is reserved behind the end of f.
func Release(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return f.Truncate(info.Size())
}
