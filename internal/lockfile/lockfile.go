// Package lockfile opens a file for one process, and one goroutine of it, at a
// time. The lock ends with the process, however it ends.
package lockfile

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"
)

// errLocked says that somebody else has the file.
var errLocked = errors.New("file is locked")

// poll is how often a locked file is looked at again: the systems' own waiting
// cannot be ended by a context.
const poll = 50 * time.Millisecond

// Open opens or creates the file at path for reading and writing and waits
// until nobody else has it.
func Open(ctx context.Context, path string, perm fs.FileMode) (*os.File, error) {
	for {
		f, err := open(path, perm)
		if err == nil {
			// Whoever had it may have renamed or removed it meanwhile.
			if same(f, path) {
				return f, nil
			}
			_ = f.Close()
			continue
		}
		if !errors.Is(err, errLocked) {
			return nil, err
		}
		timer := time.NewTimer(poll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
