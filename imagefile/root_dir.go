package imagefile

import "context"

// FromDirOptions are the options of [FromDir].
type FromDirOptions struct {
	// Owner returns the user and group that a file has in the image, from those on disk. The default is those on disk.
	Owner func(uid, gid int) (int, int)
}

// FromDir returns the root filesystem in a directory.
func FromDir(dir string, opts *FromDirOptions) Root {
	return &dirRoot{dir: dir}
}

type dirRoot struct {
	dir  string
	opts FromDirOptions
}

func (d *dirRoot) String() string                                         { return d.dir }
func (d *dirRoot) check() error                                           { return nil }
func (d *dirRoot) walk(ctx context.Context, add func(*entry) error) error { return nil }
