//go:build !linux

package imagefile

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/golxd/lxd/internal/ctxerr"
)

// fileID is not used, as hard links are not recognized.
type fileID struct{}

type fileStat struct{ fs.FileInfo }

func (s fileStat) same(other fileStat) bool {
	return os.SameFile(s.FileInfo, other.FileInfo) && s.Mode() == other.Mode() && s.Size() == other.Size() && s.ModTime().Equal(other.ModTime())
}

func (s fileStat) size() int64 { return s.Size() }

func (s fileStat) mode() fs.FileMode { return s.Mode() }

func (s fileStat) linked() (fileID, bool) { return fileID{}, false }

func (s fileStat) header(target string) (*tar.Header, error) {
	return tar.FileInfoHeader(s.FileInfo, target)
}

func vanished(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// dirHandle is an open directory.
type dirHandle struct{ root *os.Root }

func openTop(dir string) (*dirHandle, error) {
	root, err := os.OpenRoot(dir)
	return &dirHandle{root}, err
}

func (d *dirHandle) openDir(name string) (*dirHandle, error) {
	root, err := d.root.OpenRoot(name)
	return &dirHandle{root}, err
}

// open opens a regular file. What has taken its place is not waited for, and the caller sees that it is another.
func (d *dirHandle) open(name string) (*fileHandle, error) {
	file, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	return &fileHandle{file}, err
}

func (d *dirHandle) close() { d.root.Close() }

// release and reopen do nothing, as an os.Root does not return its parent.
func (d *dirHandle) release() error { return nil }

func (d *dirHandle) reopen(*dirHandle) (same bool, err error) { return true, nil }

func (d *dirHandle) stat() (fileStat, error) {
	info, err := d.root.Stat(".")
	return fileStat{info}, err
}

func (d *dirHandle) lstat(name string) (fileStat, error) {
	info, err := d.root.Lstat(name)
	return fileStat{info}, err
}

func (d *dirHandle) names(ctx context.Context, _ []byte) ([]string, error) {
	file, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var names []string
	for {
		if err := ctxerr.Of(ctx); err != nil {
			return nil, err
		}
		more, err := file.Readdirnames(4096)
		names = append(names, more...)
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (d *dirHandle) readlink(name string) (string, error) {
	target, err := d.root.Readlink(name)
	return filepath.ToSlash(target), err
}

func (d *dirHandle) attributes() (map[string]string, error) { return nil, nil }

func (d *dirHandle) attributesOf(string, fileStat) (attributes map[string]string, same bool, err error) {
	return nil, true, nil
}

// fileHandle is an open regular file.
type fileHandle struct{ file *os.File }

func (f *fileHandle) close() { f.file.Close() }

func (f *fileHandle) stat() (fileStat, error) {
	info, err := f.file.Stat()
	return fileStat{info}, err
}

func (f *fileHandle) readAt(p []byte, offset int64) (int, error) { return f.file.ReadAt(p, offset) }

func (f *fileHandle) attributes() (map[string]string, error) { return nil, nil }

func (f *fileHandle) nextHole(_, size int64) (int64, error) { return size, nil }

func (f *fileHandle) nextData(offset, _ int64) (int64, error) { return offset, nil }
