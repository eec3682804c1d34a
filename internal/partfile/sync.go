package partfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"

	"github.com/golxd/lxd/internal/ctxerr"
)

// fsync and rename are replaced in tests.
var (
	fsync  = (*os.File).Sync
	rename = os.Rename
)

// syncFile makes the content of f durable. The system call cannot be interrupted: if
// ctx ends, it continues in the background.
func syncFile(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() { done <- fsync(f) }()
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sync %s: %w", f.Name(), ctxerr.Of(ctx))
	}
}

// syncDir makes the names in the directory durable, if the operating system and the
// file system support it: Windows does not, and it needs permission to read the
// directory.
func (i *Image) syncDir(ctx context.Context) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	dir, err := os.Open(i.Dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := syncFile(ctx, dir); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}
