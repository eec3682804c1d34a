package imagefile

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// FromTarOptions are the options of [FromTar].
type FromTarOptions struct {
	// Owner returns the user and group that a file has in the image, from those in the tarball. The default is those in the
	// tarball.
	Owner func(uid, gid int) (int, int)
	// MaxSize limits what is read of the tarball, and what it unpacks to, in bytes. The default is 256 GiB.
	MaxSize int64
}

// FromTar returns the root filesystem of a container in a tarball, compressed or not: etc/, not rootfs/etc/. Entries keep
// their order. A tarball that is an image is a [*Problem]; use [FromImage]. A path that is absolute or contains ".." is a
// [*Problem], and so is a hard link to such a path.
//
// The tarball is read once, so that the Root can be used once.
func FromTar(r io.Reader, opts *FromTarOptions) Root {
	t := &tarRoot{in: r}
	if opts != nil {
		t.opts = *opts
	}
	return t
}

type tarRoot struct {
	in   io.Reader
	opts FromTarOptions
}

// String implements Root.
func (t *tarRoot) String() string { return "the tarball" }

func (t *tarRoot) check() error {
	if t.in == nil {
		return &InputError{Field: "root", Problem: "has a nil reader"}
	}
	return checkMaxSize(t.opts.MaxSize)
}

func (t *tarRoot) walk(ctx context.Context, add func(*entry) error) error {
	s := startScanner(ctx, t.opts.MaxSize)
	described := false
	s.each = func(header *tar.Header, content io.Reader) error {
		return s.addEntry(header, content, "", func(e *entry) error {
			described = described || e.Name == "metadata.yaml"
			if described && (e.Name == "rootfs" || e.Name == "rootfs.img") {
				return &Problem{Kind: Swapped, Severity: Regretted, File: RootfsPart, Entry: s.entry, Offset: s.offset, Message: "the tarball is an image, not a root filesystem; use FromImage"}
			}
			if err := setOwner(&e.Header, t.opts.Owner, "FromTarOptions.Owner"); err != nil {
				return err
			}
			return add(e)
		})
	}
	var file File
	if err := s.scan(t.in, RootfsPart, &file); err != nil {
		return err
	}
	if file.Format != Tar {
		return &InputError{Field: "root", Problem: fmt.Sprintf("is a %s, not a tarball; use FromSquashfs or FromDisk", file.Format)}
	}
	return nil
}

// addEntry calls add with the entry that a tarball's header describes, if it is a file below prefix.
func (s *scanner) addEntry(header *tar.Header, content io.Reader, prefix string, add func(*entry) error) error {
	e, err := s.entryOf(header, content, prefix)
	if err != nil || e == nil {
		return err
	}
	if s.total += e.Size; s.total > s.maxSize {
		return &Problem{Kind: TooLarge, Severity: Unchecked, File: s.part, Entry: s.entry, Offset: s.offset, Message: fmt.Sprintf("the files have more than %d bytes; raise MaxSize if that is right", s.maxSize)}
	}
	if !isSparse(header) {
		return add(e)
	}
	// archive/tar returns zeros for holes, which must be known before the content is written.
	spool, err := os.CreateTemp("", "imagefile-sparse-")
	if err != nil {
		return err
	}
	defer spool.Close()
	if err := os.Remove(spool.Name()); err != nil {
		defer func() { _ = os.Remove(spool.Name()) }() // Windows removes no open file.
	}
	if e.data, err = findHoles(s.ctx, spool, content); err != nil {
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	e.content = spool
	return add(e)
}

// isSparse says whether an entry is a sparse file.
func isSparse(header *tar.Header) bool {
	if header.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range header.PAXRecords {
		if strings.HasPrefix(key, sparsePrefix) {
			return true
		}
	}
	return false
}

// findHoles copies what is not zero, and returns where it was. What follows maxPieces pieces has no holes.
func findHoles(ctx context.Context, to io.Writer, content io.Reader) ([]piece, error) {
	data := []piece{}
	out := bufio.NewWriterSize(to, blockSize)
	in := bufio.NewReaderSize(content, blockSize)
	block := make([]byte, sparseBlock)
	for offset := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := io.ReadFull(in, block)
		last := len(data) - 1
		follows := last >= 0 && data[last].offset+data[last].size == offset
		if n > 0 && (!bytes.Equal(block[:n], zeros[:n]) || follows && len(data) == maxPieces) {
			if _, err := out.Write(block[:n]); err != nil {
				return nil, err
			}
			if follows {
				data[last].size += int64(n)
			} else {
				data = append(data, piece{offset, int64(n)})
			}
		}
		offset += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF) && n > 0:
			return data, out.Flush()
		case err != nil:
			return nil, err
		}
	}
}

// entryOf returns the entry that a tarball's header describes, below prefix. It is nil for what is not a file, and for
// prefix itself as anything but a directory.
func (s *scanner) entryOf(header *tar.Header, content io.Reader, prefix string) (*entry, error) {
	refuse := func(kind ProblemKind, format string, args ...any) error {
		return &Problem{Kind: kind, Severity: Regretted, File: s.part, Entry: s.entry, Offset: s.offset, Message: fmt.Sprintf(format, args...)}
	}
	relative := func(name string) (string, bool) {
		if path.IsAbs(name) || strings.Contains("/"+name+"/", "/../") {
			return "", false
		}
		name = path.Clean(name)
		if prefix == "" {
			return name, true
		}
		if name == prefix {
			return ".", true
		}
		return strings.CutPrefix(name, prefix+"/")
	}
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil
	}
	e := &entry{Header: *header}
	var ok bool
	if e.Name, ok = relative(header.Name); !ok {
		return nil, refuse(EscapingPath, `the path is absolute or contains ".."; use a path relative to the tarball's root`)
	}
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		e.Typeflag, e.content = tar.TypeReg, content
	case tar.TypeLink:
		if e.Linkname, ok = relative(header.Linkname); !ok {
			return nil, refuse(EscapingLink, "the hard link to %.100q leaves the root filesystem; use the path of an entry of it", header.Linkname)
		}
	case tar.TypeSymlink, tar.TypeDir, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return nil, refuse(Damaged, "the entry has the unknown type %q", header.Typeflag)
	}
	if e.Typeflag != tar.TypeReg {
		e.Size = 0
	}
	if e.Name == "." && e.Typeflag != tar.TypeDir {
		return nil, refuse(NoRootfs, "the root filesystem is not a directory")
	}
	if e.Typeflag != tar.TypeChar && e.Typeflag != tar.TypeBlock {
		e.Devmajor, e.Devminor = 0, 0
	}
	e.Mode &= 0o7777
	for _, number := range []struct {
		name        string
		value, most int64
	}{{"owner", int64(e.Uid), maxID}, {"group", int64(e.Gid), maxID}, {"device's major number", e.Devmajor, maxDevice}, {"device's minor number", e.Devminor, maxDevice}} {
		if number.value < 0 || number.value > number.most {
			return nil, refuse(Damaged, "the %s is %d; it must be between 0 and %d", number.name, number.value, number.most)
		}
	}
	e.PAXRecords = map[string]string{}
	for key, value := range header.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") {
			e.PAXRecords[key] = value
		}
	}
	return e, nil
}
