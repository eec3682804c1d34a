package imagefile

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/golxd/lxd/internal/ctxerr"
)

// FromFS returns the root filesystem that fsys has, in the order of [fs.WalkDir]. Modes and times are those of fsys; all
// files belong to 0:0. Symbolic links are packed as such, and need fsys to be an [fs.ReadLinkFS]. FIFOs are packed, sockets
// are not, and a device is an error, as fsys does not have its numbers: see [FromDir].
//
// A file that changes meanwhile is an error that matches [ErrChanged]. A Read of fsys that blocks is waited for.
func FromFS(fsys fs.FS) Root { return &fsRoot{fsys} }

type fsRoot struct{ fsys fs.FS }

func (f *fsRoot) String() string { return fmt.Sprintf("%T", f.fsys) }

func (f *fsRoot) check() error {
	if f.fsys == nil {
		return &InputError{Field: "root", Problem: "has no fs.FS"}
	}
	stat, err := fs.Stat(f.fsys, ".")
	if err != nil {
		return &InputError{Field: "root", Problem: fmt.Sprintf("cannot be read: %v", err)}
	}
	if !stat.IsDir() {
		return &InputError{Field: "root", Problem: "is not a directory"}
	}
	return nil
}

func (f *fsRoot) walk(ctx context.Context, add func(*entry) error) error {
	return fs.WalkDir(f.fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if ended := ctxerr.Of(ctx); ended != nil {
			return ended
		}
		named := func(err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				err = ErrChanged
			}
			return fmt.Errorf("%.1000q: %w", name, err)
		}
		if err != nil {
			return named(err)
		}
		if !fs.ValidPath(name) {
			return named(errors.New("is not a path of an fs.FS"))
		}
		stat, err := d.Info()
		if err != nil {
			return named(err)
		}
		target := ""
		switch stat.Mode() & fs.ModeType {
		case fs.ModeSocket:
			return nil
		case fs.ModeSymlink:
			if target, err = fs.ReadLink(f.fsys, name); err != nil {
				return named(err)
			}
		case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			return named(errors.New("is a device, whose numbers an fs.FS does not have; use FromDir"))
		}
		header, err := tar.FileInfoHeader(stat, target)
		if err != nil {
			return named(err)
		}
		e := &entry{Header: tar.Header{
			Typeflag: header.Typeflag, Name: name, Linkname: target, Size: header.Size, Mode: header.Mode, ModTime: stat.ModTime(),
		}}
		if !stat.Mode().IsRegular() {
			return add(e)
		}
		file, err := f.fsys.Open(name)
		if err != nil {
			return named(err)
		}
		defer func() { _ = file.Close() }()
		unchanged := func() error {
			now, err := file.Stat()
			if err != nil {
				return named(err)
			}
			if now.Mode() != stat.Mode() || now.Size() != stat.Size() || !now.ModTime().Equal(stat.ModTime()) {
				return named(ErrChanged)
			}
			return nil
		}
		if err := unchanged(); err != nil {
			return err
		}
		content := &fsContent{ctx: ctx, file: file, rest: e.Size, named: named}
		if e.Size > 0 {
			e.content = content
		}
		if err := add(e); err != nil {
			return err
		}
		if n, _ := file.Read(make([]byte, 1)); n > 0 && content.rest == 0 {
			return named(ErrChanged)
		}
		return unchanged()
	})
}

// fsContent reads the bytes of a file that it has by its size.
type fsContent struct {
	ctx   context.Context
	file  fs.File
	rest  int64
	named func(error) error
}

// Read implements io.Reader. A file that is shorter than its size is an error.
func (c *fsContent) Read(p []byte) (int, error) {
	if c.rest == 0 {
		return 0, io.EOF
	}
	if err := ctxerr.Of(c.ctx); err != nil {
		return 0, err
	}
	n, err := c.file.Read(p[:min(int64(len(p)), c.rest)])
	c.rest -= int64(n)
	switch {
	case c.rest == 0:
		return n, nil
	case errors.Is(err, io.EOF):
		return n, c.named(ErrChanged)
	case err != nil:
		return n, c.named(err)
	}
	return n, nil
}
