package imagefile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// FromDisk returns the disk of a virtual machine in a file: a qcow2, or a raw disk with a boot record, which the program
// qemu-img (package qemu-utils) converts to a qcow2 in a temporary file; without it [Pack] returns a [*ProgramError]. A qcow2
// is packed as it is. One that needs another file (a backing file or a file of its data), is encrypted, cut, marked as damaged, or in use is
// refused with an [*InputError].
func FromDisk(file string) Root { return diskRoot(file) }

type diskRoot string

func (d diskRoot) String() string { return string(d) }

func (d diskRoot) check() error {
	_, stat, head, err := regularFile(string(d))
	if err != nil {
		return err
	}
	return d.checkHead(head, stat)
}

// checkHead checks the first bytes of the disk.
func (d diskRoot) checkHead(head []byte, stat fs.FileInfo) error {
	problem := ""
	switch compression, format := detect(head); {
	case compression == None && format == Qcow2:
		if problem = qcow2Problem(head); problem == "" && stat.Size() < qcow2Needs(head) {
			problem = "is a cut qcow2; copy or create it again"
		}
	case compression == None && format == Raw:
		return qemuImg.available()
	case compression != None:
		problem = fmt.Sprintf("is compressed with %s; decompress a disk, and use FromImage for an image", compression)
	default:
		problem = "is neither a qcow2 nor a disk with a boot record, as fdisk and boot loaders write it"
	}
	if problem != "" {
		return &InputError{Field: "root", Problem: problem + ": " + string(d)}
	}
	return nil
}

// qcow2Problem returns why a qcow2 cannot be an image's disk.
func qcow2Problem(head []byte) string {
	if len(head) < 104 {
		return "is a cut qcow2"
	}
	version := binary.BigEndian.Uint32(head[4:])
	features := uint64(0)
	if version >= 3 {
		features = binary.BigEndian.Uint64(head[72:])
	}
	const dirty, corrupt, externalData, known = 1, 2, 4, 31 // also: the type of compression, and extended L2 entries
	switch {
	case version < 2 || version > 3:
		return fmt.Sprintf("is a qcow2 of version %d, not 2 or 3", version)
	case binary.BigEndian.Uint64(head[8:]) != 0 || binary.BigEndian.Uint32(head[16:]) != 0:
		return "is a qcow2 with a backing file; convert it with qemu-img convert -O qcow2"
	case binary.BigEndian.Uint32(head[32:]) != 0:
		return "is an encrypted qcow2"
	case features&externalData != 0:
		return "is a qcow2 whose data is in another file; convert it with qemu-img convert -O qcow2"
	case features&corrupt != 0:
		return "is a qcow2 that is marked as corrupt; repair it with qemu-img check -r all"
	case features&dirty != 0:
		return "is a qcow2 that was not closed cleanly; end what uses it, or repair it with qemu-img check -r all"
	case features&^known != 0:
		return fmt.Sprintf("is a qcow2 with unknown features: %#x", features&^known)
	}
	return ""
}

func (d diskRoot) walk(context.Context, func(*entry) error) error {
	return &InputError{Field: "root", Problem: "is a disk, not a root filesystem of files: " + string(d)}
}

// open returns the disk as a qcow2, and its size. The caller must close content. A file that changes meanwhile is an error.
func (d diskRoot) open(ctx context.Context) (content io.ReadCloser, size int64, err error) {
	path, stat, head, err := regularFile(string(d))
	if err != nil {
		return nil, 0, err
	}
	if err := d.checkHead(head, stat); err != nil {
		return nil, 0, err
	}
	disk := &diskReader{path: path, stat: stat, cleanup: func() error { return nil }}
	if _, format := detect(head); format == Raw {
		if disk, err = d.convert(ctx, path, stat); err != nil {
			return nil, 0, err
		}
	}
	if disk.file, err = os.Open(disk.path); err != nil {
		return nil, 0, errors.Join(err, disk.cleanup())
	}
	// A file that grows must not make an entry of a tarball longer than its header says.
	disk.content = &contextReader{ctx, io.LimitReader(disk.file, disk.stat.Size())}
	return disk, disk.stat.Size(), nil
}

// convert writes the qcow2 of a raw disk to a temporary file.
func (d diskRoot) convert(ctx context.Context, path string, stat fs.FileInfo) (_ *diskReader, err error) {
	dir, err := os.MkdirTemp("", "imagefile-disk-")
	if err != nil {
		return nil, err
	}
	cleanup := func() error { return os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			err = errors.Join(err, cleanup())
		}
	}()
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "disk.qcow2")
	// Without -f a guest that writes the header of a qcow2 to its raw disk could name files of this machine.
	if err := qemuImg.command(ctx, "convert", "-f", "raw", "-O", "qcow2", path, name).run(); err != nil {
		return nil, fmt.Errorf("convert %s: %w", d, err)
	}
	if err := unchanged(path, stat); err != nil {
		return nil, err
	}
	if stat, err = os.Stat(name); err != nil {
		return nil, err
	}
	return &diskReader{path: name, stat: stat, cleanup: cleanup}, nil
}

// diskReader reads a qcow2.
type diskReader struct {
	path    string
	stat    fs.FileInfo
	file    *os.File
	content io.Reader
	cleanup func() error
	count   int64
}

func (r *diskReader) Read(p []byte) (int, error) {
	n, err := r.content.Read(p)
	r.count += int64(n)
	if errors.Is(err, io.EOF) {
		if err := unchanged(r.path, r.stat); err != nil {
			return n, err
		}
		if r.count < r.stat.Size() {
			return n, fmt.Errorf("%s: %w", r.path, io.ErrUnexpectedEOF)
		}
	}
	return n, err
}

// Close removes a temporary file.
func (r *diskReader) Close() error { return errors.Join(r.file.Close(), r.cleanup()) }
