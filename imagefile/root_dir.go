package imagefile

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/golxd/lxd/internal/ctxerr"
)

// ErrChanged says that a file or directory changed while it was packed: it was written, replaced or deleted, or a directory got
// or lost a file. The error names the path.
var ErrChanged = errors.New("changed while it was packed; pack a directory that nobody writes to")

// FromDirOptions are the options of [FromDir].
type FromDirOptions struct {
	// Owner returns the user and group that a file has in the image, from those on disk. The default is those on disk.
	// The ids in access control lists and capabilities remain those on disk.
	Owner func(uid, gid int) (int, int)
}

// FromDir returns the root filesystem in a directory. The same tree always results in the same sequence of files. dir itself
// may be a symbolic link; those in it are packed as such, and never followed. Filesystems that are mounted in dir are packed
// as well.
//
// A file has its mode, numeric owner, modification time, hard links and holes. Devices and FIFOs are packed; sockets are
// not, as they mean nothing in an image. The extended attributes user.*, security.capability, system.posix_acl_access and
// system.posix_acl_default are packed; others, such as security.selinux and trusted.*, belong to the host.
//
// What changes meanwhile is an error that matches [ErrChanged], and what cannot be read is an error, too. Directories may be
// nested 10000 deep. The names in a directory are held in memory while it is packed, and those of the files with several hard
// links until the end; other memory does not depend on the tree.
//
// On other systems than Linux, hard links are packed as separate files, holes as zeros, and extended attributes are not
// packed; a file descriptor is held for each level of depth. On Windows all files belong to 0:0.
func FromDir(dir string, opts *FromDirOptions) Root {
	d := &dirRoot{dir: dir}
	if opts != nil {
		d.owner = opts.Owner
	}
	return d
}

type dirRoot struct {
	dir   string
	owner func(uid, gid int) (int, int) // may be nil
}

func (d *dirRoot) String() string { return d.dir }

func (d *dirRoot) check() error {
	if d.dir == "" {
		return &InputError{Field: "root", Problem: "has an empty name of a directory"}
	}
	stat, err := os.Stat(d.dir)
	if err != nil {
		return &InputError{Field: "root", Problem: fmt.Sprintf("cannot be read: %v", err)}
	}
	if !stat.IsDir() {
		return &InputError{Field: "root", Problem: fmt.Sprintf("is not a directory: %s; use FromTar, FromSquashfs or FromDisk for a file", d.dir)}
	}
	return nil
}

const (
	// maxOpenDirs limits the descriptors of a walk. The directories that are nested deeper are reopened from below.
	maxOpenDirs = 64
	// sparseBlock is the unit in which holes are looked for. What the filesystem says depends on how the file was written.
	sparseBlock = 4096
)

// maxDepth limits the stack of a walk. A test lowers it.
var maxDepth = 10000

func (d *dirRoot) walk(ctx context.Context, add func(*entry) error) error {
	w := &dirWalk{dirRoot: d, ctx: ctx, add: add, path: []byte("."), links: map[fileID]linkedFile{}, buffer: make([]byte, blockSize)}
	top, err := openTop(d.dir)
	if err != nil {
		return w.failed(err)
	}
	defer top.close()
	stat, err := top.stat()
	if err != nil {
		return w.failed(err)
	}
	return w.directory(nil, top, stat, 0)
}

// dirWalk is one walk of a directory. The types dirHandle, fileHandle, fileStat and fileID are those of the operating system.
type dirWalk struct {
	*dirRoot
	ctx    context.Context
	add    func(*entry) error
	path   []byte // of the present file, relative to dir; one for all levels, as the paths of deep trees are long
	links  map[fileID]linkedFile
	buffer []byte
}

// linkedFile is the first of the hard links of a file.
type linkedFile struct {
	name string
	stat fileStat
}

// changed returns the error for a file that is not what it was.
func (w *dirWalk) changed() error { return w.named(ErrChanged) }

// failed returns the error for what the operating system says of the present file.
func (w *dirWalk) failed(err error) error {
	if string(w.path) != "." && vanished(err) {
		return w.changed()
	}
	return w.named(err)
}

func (w *dirWalk) named(err error) error {
	name := w.dir
	if string(w.path) != "." {
		name += "/" + string(w.path)
	}
	return fmt.Errorf("%.1000q: %w", name, err)
}

// directory packs the directory dir, and what is in it: siblings in the order of the bytes of their names, each followed by
// what is in it. parent is nil at the top.
func (w *dirWalk) directory(parent, dir *dirHandle, stat fileStat, depth int) error {
	if depth > maxDepth {
		return w.named(fmt.Errorf("is nested more than %d deep", maxDepth))
	}
	attributes, err := dir.attributes()
	if err != nil {
		return w.failed(err)
	}
	if err := w.emit(stat, &entry{Header: tar.Header{PAXRecords: attributes}}); err != nil {
		return err
	}
	names, err := dir.names(w.ctx, w.buffer)
	if err != nil {
		return w.failed(err)
	}
	slices.Sort(names)
	if depth > maxOpenDirs && len(names) > 0 {
		if err := parent.release(); err != nil {
			return w.failed(err)
		}
	}

	length := len(w.path)
	for _, name := range names {
		if depth > 0 {
			w.path = append(append(w.path[:length], '/'), name...)
		} else {
			w.path = append(w.path[:0], name...)
		}
		if err := w.file(dir, name, depth); err != nil {
			return err
		}
	}
	w.path = w.path[:length]
	if depth == 0 {
		w.path = append(w.path[:0], '.')
	}

	now, err := dir.stat()
	if err != nil {
		return w.failed(err)
	}
	if !now.same(stat) {
		return w.changed()
	}
	if depth > maxOpenDirs && len(names) > 0 {
		if same, err := parent.reopen(dir); err != nil {
			return w.failed(err)
		} else if !same {
			return w.changed()
		}
	}
	return nil
}

// file packs a file of the directory dir, of any type.
func (w *dirWalk) file(dir *dirHandle, name string, depth int) error {
	stat, err := dir.lstat(name)
	if err != nil {
		return w.failed(err)
	}
	switch stat.mode() & fs.ModeType {
	case fs.ModeSocket:
		return nil
	case fs.ModeDir:
		return w.subdirectory(dir, name, stat, depth)
	}
	if id, linked := stat.linked(); linked {
		first, known := w.links[id]
		if known && !first.stat.same(stat) {
			return w.changed()
		}
		if known {
			return w.emit(stat, &entry{Header: tar.Header{Typeflag: tar.TypeLink, Linkname: first.name}})
		}
		w.links[id] = linkedFile{string(w.path), stat}
	}
	switch stat.mode() & fs.ModeType {
	case 0:
		return w.regular(dir, name, stat)
	case fs.ModeSymlink:
		return w.symlink(dir, name, stat)
	}
	return w.special(dir, name, stat)
}

func (w *dirWalk) subdirectory(dir *dirHandle, name string, stat fileStat, depth int) error {
	sub, err := dir.openDir(name)
	if err != nil {
		return w.failed(err)
	}
	defer sub.close()
	now, err := sub.stat()
	if err != nil {
		return w.failed(err)
	}
	if !now.same(stat) {
		return w.changed()
	}
	return w.directory(dir, sub, stat, depth+1)
}

func (w *dirWalk) symlink(dir *dirHandle, name string, stat fileStat) error {
	target, err := dir.readlink(name)
	if err != nil {
		return w.failed(err)
	}
	now, err := dir.lstat(name)
	if err != nil {
		return w.failed(err)
	}
	if !now.same(stat) {
		return w.changed()
	}
	return w.emit(stat, &entry{Header: tar.Header{Linkname: target}})
}

// special packs a device or FIFO.
func (w *dirWalk) special(dir *dirHandle, name string, stat fileStat) error {
	attributes, same, err := dir.attributesOf(name, stat)
	if err != nil {
		return w.failed(err)
	}
	if !same {
		return w.changed()
	}
	return w.emit(stat, &entry{Header: tar.Header{PAXRecords: attributes}})
}

func (w *dirWalk) regular(dir *dirHandle, name string, stat fileStat) error {
	file, err := dir.open(name)
	if err != nil {
		return w.failed(err)
	}
	defer file.close()
	verify := func() error {
		now, err := file.stat()
		if err != nil {
			return w.failed(err)
		}
		if !now.same(stat) {
			return w.changed()
		}
		return nil
	}
	if err := verify(); err != nil {
		return err
	}
	e := &entry{}
	if e.PAXRecords, err = file.attributes(); err != nil {
		return w.failed(err)
	}
	if size := stat.size(); size > 0 {
		if e.data, err = w.pieces(file, size); err != nil {
			return err
		}
		rest := e.data
		if rest == nil {
			rest = []piece{{0, size}}
		}
		e.content = &dirContent{walk: w, file: file, rest: rest}
	}
	if err := w.emit(stat, e); err != nil {
		return err
	}
	return verify()
}

// emit completes the header of the present file and adds it.
func (w *dirWalk) emit(stat fileStat, e *entry) error {
	if err := ctxerr.Of(w.ctx); err != nil {
		return err
	}
	header, err := stat.header(e.Linkname)
	if err != nil {
		return w.named(err)
	}
	header.Name = string(w.path)
	header.PAXRecords = e.PAXRecords
	if e.Typeflag == tar.TypeLink {
		header.Typeflag, header.Size, header.Devmajor, header.Devminor = tar.TypeLink, 0, 0, 0
	}
	if err := setOwner(header, w.owner, "FromDirOptions.Owner"); err != nil {
		return err
	}
	e.Header = *header
	return w.add(e)
}

// pieces returns the pieces of a file that are not holes, nil if it has no hole. They depend on the content alone, once there
// is a hole.
func (w *dirWalk) pieces(file *fileHandle, size int64) ([]piece, error) {
	hole, err := file.nextHole(0, size)
	if err != nil {
		return nil, w.failed(err)
	}
	if hole >= size {
		return nil, nil
	}
	list := pieceList{pieces: []piece{}, block: sparseBlock, size: size}
	for offset := int64(0); offset < size; {
		start, err := file.nextData(offset, size)
		if err != nil {
			return nil, w.failed(err)
		}
		if start >= size {
			break
		}
		end, err := file.nextHole(start, size)
		if err != nil {
			return nil, w.failed(err)
		}
		// A block that has data in part counts as a whole.
		start = max(start/sparseBlock*sparseBlock, offset)
		end = min((end+sparseBlock-1)/sparseBlock*sparseBlock, size)
		for start < end {
			chunk := w.buffer[:min(int64(len(w.buffer)), end-start)]
			if err := w.readFull(file, chunk, start); err != nil {
				return nil, err
			}
			for block := range slices.Chunk(chunk, sparseBlock) {
				if !bytes.Equal(block, zeros[:len(block)]) {
					list.add(start, start+int64(len(block)))
				}
				start += int64(len(block))
			}
		}
		offset = end
	}
	if slices.Equal(list.pieces, []piece{{0, size}}) {
		return nil, nil
	}
	return list.pieces, nil
}

var zeros [sparseBlock]byte

// readFull reads at an offset where the file has had all of p.
func (w *dirWalk) readFull(file *fileHandle, p []byte, offset int64) error {
	for len(p) > 0 {
		if err := ctxerr.Of(w.ctx); err != nil {
			return err
		}
		n, err := file.readAt(p, offset)
		if n == 0 && (err == nil || errors.Is(err, io.EOF)) {
			return w.changed()
		}
		if n == 0 {
			return w.failed(err)
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// maxPieces limits the pieces of a file, so that their list has less than the 1 MiB that archive/tar reads, as Check and the
// daemons use it.
var maxPieces = 1 << 15

// pieceList collects the blocks of a file that are not holes.
type pieceList struct {
	pieces []piece
	block  int64 // the pieces begin at its multiples, and end there or at size
	size   int64
}

// add adds what is from start to end. It must be called in the order of the offsets.
func (l *pieceList) add(start, end int64) {
	start = start / l.block * l.block
	end = min((end+l.block-1)/l.block*l.block, l.size)
	if n := len(l.pieces); n > 0 && l.pieces[n-1].offset+l.pieces[n-1].size >= start {
		l.pieces[n-1].size = max(l.pieces[n-1].size, end-l.pieces[n-1].offset)
		return
	}
	l.pieces = append(l.pieces, piece{start, end - start})
	if len(l.pieces) > maxPieces {
		// The result is that of blocks of double the size from the beginning, whatever the filesystem.
		l.block *= 2
		all := l.pieces
		l.pieces = all[:0]
		for _, p := range all {
			l.add(p.offset, p.offset+p.size)
		}
	}
}

// dirContent reads the pieces of a file.
type dirContent struct {
	walk *dirWalk
	file *fileHandle
	rest []piece
	done int64 // of the first of rest
}

// Read implements io.Reader. A file that has become shorter is an error.
func (c *dirContent) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	next := c.rest[0]
	p = p[:min(int64(len(p)), next.size-c.done, blockSize)]
	if err := c.walk.readFull(c.file, p, next.offset+c.done); err != nil {
		return 0, err
	}
	if c.done += int64(len(p)); c.done == next.size {
		c.rest, c.done = c.rest[1:], 0
	}
	return len(p), nil
}
