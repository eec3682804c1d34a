package simplestreams

import (
	"context"
	"io"
)

// Store is a place for the files of a [Tree], such as a directory ([DirStore]) or a bucket of an object store. Paths are
// relative, have "/" as separator, and are as [io/fs.ValidPath] wants them. A Store must be safe for concurrent use, by
// several processes too.
type Store interface {
	// Open opens a file. If there is none, the error matches [io/fs.ErrNotExist].
	Open(ctx context.Context, path string) (io.ReadCloser, error)

	// Load returns a file of a few megabytes at most, and its tag for Swap, which is not empty and differs for each
	// content: such as the ETag, or a hash. If there is no such file, the error matches [io/fs.ErrNotExist].
	Load(ctx context.Context, path string) (content []byte, tag string, err error)

	// Put stores a file: whole, or not at all if a Read of content fails. It replaces a file of this path.
	Put(ctx context.Context, path string, content io.Reader) error

	// Swap replaces a file if its tag is still the one that Load returned; an empty tag means that there is no such file
	// yet. Otherwise it changes nothing and returns an error that matches [ErrConflict]. Whoever reads the file gets the
	// old or the new content, and of two calls with the same tag at most one succeeds.
	Swap(ctx context.Context, path string, content []byte, tag string) error

	// Delete deletes a file. It is no error if there is none.
	Delete(ctx context.Context, path string) error
}
