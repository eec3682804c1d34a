package partfile

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/golxd/lxd/internal/ctxerr"
)

// reserveStep is how much is reserved between two looks at the context. Where room is
// memory, in a tmpfs, a gigabyte takes a quarter of a second and more.
const reserveStep = 64 << 20

// reserve makes room for the n bytes of f from offset on, without changing its
// size. A file system that knows how much is coming finds its place once and not
// with every write: on ext4 that spares about a third of the time that writing
// takes. And a disk that is too small shows before anything is written to it.
//
// Where the system or the file system knows no such thing, it does
// nothing. The error wraps syscall.ENOSPC or syscall.EDQUOT if there is no such
// room, and that of ctx if it ends.
//
// No more is asked for than the file system has: others would find it full
// meanwhile.
//
// What is not written, after an error too, stays reserved until the file is
// truncated, be it to the size that it has.
func reserve(ctx context.Context, f *os.File, offset, n int64) error {
	for done := int64(0); done < n; done += min(n-done, reserveStep) {
		err := ctxerr.Of(ctx)
		if err == nil {
			err = allocate(f, offset+done, min(n-done, reserveStep))
		}
		if err == nil && done == 0 && n > reserveStep {
			err = room(f, n-reserveStep)
		}
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			return nil // writing tells if it matters
		case err != nil:
			return fmt.Errorf("make room for %d bytes in %s: %w", n, f.Name(), err)
		}
	}
	return nil
}
