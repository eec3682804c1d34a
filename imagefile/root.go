package imagefile

import (
	"archive/tar"
	"context"
	"fmt"
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

const (
	// maxID is the largest id of a user or group. 1<<32-1 is the -1 of the kernel, which is nobody's.
	maxID = 1<<32 - 2
	// maxDevice is the largest number that a header of a tarball has for a device beside other records. Linux has smaller ones.
	maxDevice = 1<<21 - 1
)

// setOwner sets the owner that owner, the option field, returns for the present one. owner may be nil.
func setOwner(h *tar.Header, owner func(uid, gid int) (int, int), field string) error {
	if owner == nil {
		return nil
	}
	uid, gid := owner(h.Uid, h.Gid)
	if int64(min(uid, gid)) < 0 || int64(max(uid, gid)) > maxID {
		return &InputError{Field: field, Problem: fmt.Sprintf("returns %d:%d for %d:%d; ids are at least 0 and below 4294967295", uid, gid, h.Uid, h.Gid)}
	}
	h.Uid, h.Gid = uid, gid
	return nil
}

// piece is a part of a sparse file.
type piece struct{ offset, size int64 }
