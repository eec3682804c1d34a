package imagefile

import (
	"archive/tar"
	"context"
	"io"
)

// Root is the content of the image that [Pack] writes: the root filesystem of a container ([FromDir], [FromFS], [FromTar],
// [FromSquashfs]), the disk of a virtual machine ([FromDisk]), or both with the metadata of another image ([FromImage]).
type Root interface {
	// String names the content in errors.
	String() string
	// check returns an *InputError for what cannot be packed, before anything is written.
	check() error
	// walk calls add for the files of the root filesystem, a directory before what is in it. It returns an error of add at
	// once.
	walk(ctx context.Context, add func(*entry) error) error
}

// entry is a file of a root filesystem.
type entry struct {
	// Header has a Name relative to the root directory, which itself is ".", and so has the Linkname of a hard link. No
	// name begins with "./" or ends with "/". Uname, Gname, AccessTime, ChangeTime and Format are ignored.
	tar.Header
	// content has Size bytes; nil if the entry has none. Of a sparse file it has the bytes of data alone.
	content io.Reader
	// data are the pieces of a sparse file that are not holes, in their order, not adjacent. nil if the file is not sparse.
	data []piece
}

// piece is a part of a sparse file.
type piece struct{ offset, size int64 }
