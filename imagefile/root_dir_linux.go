package imagefile

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/golxd/lxd/internal/ctxerr"
)

// fileID is the identity of a file.
type fileID struct{ dev, ino uint64 }

// fileStat is what is compared to notice that a file changes. Its change time is not in it, as another hard link of the file
// may be made or deleted meanwhile.
type fileStat struct {
	id             fileID
	rdev           uint64
	bytes          int64
	modified       unix.Timespec
	kind, uid, gid uint32 // kind is the type and the permissions
	links          uint64
}

func newFileStat(s *unix.Stat_t) fileStat {
	return fileStat{
		id: fileID{uint64(s.Dev), s.Ino}, rdev: uint64(s.Rdev), bytes: s.Size, modified: s.Mtim, //nolint:unconvert // 32 bits on mips
		kind: s.Mode, uid: s.Uid, gid: s.Gid, links: uint64(s.Nlink), //nolint:unconvert // 32 bits on arm64
	}
}

func (s fileStat) same(other fileStat) bool {
	other.links = s.links
	return s == other
}

func (s fileStat) size() int64 { return s.bytes }

// linked returns whether the file, which is no directory, has several hard links.
func (s fileStat) linked() (fileID, bool) { return s.id, s.links > 1 }

// mode returns the type alone.
func (s fileStat) mode() fs.FileMode {
	switch s.kind & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFCHR:
		return fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		return fs.ModeDevice
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	}
	return fs.ModeIrregular
}

func (s fileStat) header(target string) (*tar.Header, error) {
	h := &tar.Header{
		Mode: int64(s.kind & 0o7777), Uid: int(s.uid), Gid: int(s.gid), Linkname: target,
		ModTime: time.Unix(s.modified.Unix()),
	}
	switch s.mode() {
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, s.bytes
	case fs.ModeDir:
		h.Typeflag = tar.TypeDir
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
	case fs.ModeDevice | fs.ModeCharDevice:
		h.Typeflag = tar.TypeChar
	case fs.ModeDevice:
		h.Typeflag = tar.TypeBlock
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, fmt.Errorf("is of the unknown type %#o", s.kind&unix.S_IFMT)
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(s.rdev)), int64(unix.Minor(s.rdev))
	}
	return h, nil
}

// vanished says that there is not the file that was there: none, or one of another type.
func vanished(err error) bool {
	for _, gone := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENXIO, unix.ESTALE} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

// uninterrupted repeats a system call that a signal has interrupted, as filesystems in user space and of the network have it.
func uninterrupted[T any](call func() (T, error)) (T, error) {
	for {
		if v, err := call(); !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}

func openAt(dir int, name string, flags int) (int, error) {
	return uninterrupted(func() (int, error) { return unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0) })
}

func statOf(fd int) (fileStat, error) {
	return uninterrupted(func() (fileStat, error) {
		var s unix.Stat_t
		err := unix.Fstat(fd, &s)
		return newFileStat(&s), err
	})
}

// dirHandle is an open directory.
type dirHandle struct {
	fd int
	id fileID // while it is released
}

func openTop(dir string) (*dirHandle, error) {
	fd, err := openAt(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	return &dirHandle{fd: fd}, err
}

func (d *dirHandle) openDir(name string) (*dirHandle, error) {
	fd, err := openAt(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	return &dirHandle{fd: fd}, err
}

// open opens a regular file. What has taken its place is neither followed nor waited for.
func (d *dirHandle) open(name string) (*fileHandle, error) {
	fd, err := openAt(d.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	return &fileHandle{fd}, err
}

func (d *dirHandle) close() {
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
		d.fd = -1
	}
}

// release closes the directory until reopen.
func (d *dirHandle) release() error {
	stat, err := statOf(d.fd)
	d.id = stat.id
	d.close()
	return err
}

// reopen opens the directory again as the parent of one in it, and returns whether it is the same.
func (d *dirHandle) reopen(child *dirHandle) (same bool, err error) {
	if d.fd, err = openAt(child.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return false, err
	}
	stat, err := statOf(d.fd)
	return stat.id == d.id, err
}

func (d *dirHandle) stat() (fileStat, error) { return statOf(d.fd) }

func (d *dirHandle) lstat(name string) (fileStat, error) {
	return uninterrupted(func() (fileStat, error) {
		var s unix.Stat_t
		err := unix.Fstatat(d.fd, name, &s, unix.AT_SYMLINK_NOFOLLOW)
		return newFileStat(&s), err
	})
}

// names returns the names in the directory, once.
func (d *dirHandle) names(ctx context.Context, buffer []byte) ([]string, error) {
	var names []string
	for {
		if err := ctxerr.Of(ctx); err != nil {
			return nil, err
		}
		n, err := uninterrupted(func() (int, error) { return unix.ReadDirent(d.fd, buffer) })
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buffer[:n], -1, names)
	}
}

func (d *dirHandle) readlink(name string) (string, error) {
	for size := 256; ; size *= 2 {
		target := make([]byte, size)
		n, err := uninterrupted(func() (int, error) { return unix.Readlinkat(d.fd, name, target) })
		switch {
		case errors.Is(err, unix.EINVAL):
			return "", unix.ENOENT // it is no link
		case err != nil:
			return "", err
		case n < size:
			return string(target[:n]), nil
		}
	}
}

func (d *dirHandle) attributes() (map[string]string, error) { return attributesOf(d.fd) }

// attributesOf returns the extended attributes of a device or FIFO, without opening it, as that has effects: a tape is
// rewound, a writer goes on. It also returns whether the file is still the same.
func (d *dirHandle) attributesOf(name string, stat fileStat) (attributes map[string]string, same bool, err error) {
	fd, err := openAt(d.fd, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = unix.Close(fd) }()
	now, err := statOf(fd)
	if err != nil || !now.same(stat) {
		return nil, false, err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	attributes, err = readAttributes(
		func(p []byte) (int, error) { return unix.Listxattr(path, p) },
		func(name string, p []byte) (int, error) { return unix.Getxattr(path, name, p) },
	)
	if errors.Is(err, unix.ENOENT) {
		return nil, false, errors.New("the extended attributes of a device or FIFO cannot be read without /proc; mount it")
	}
	return attributes, true, err
}

// fileHandle is an open regular file.
type fileHandle struct{ fd int }

func (f *fileHandle) close() { _ = unix.Close(f.fd) }

func (f *fileHandle) stat() (fileStat, error) { return statOf(f.fd) }

func (f *fileHandle) readAt(p []byte, offset int64) (int, error) {
	return uninterrupted(func() (int, error) { return unix.Pread(f.fd, p, offset) })
}

func (f *fileHandle) attributes() (map[string]string, error) { return attributesOf(f.fd) }

// nextHole returns where the first hole from offset on begins, size if there is none.
func (f *fileHandle) nextHole(offset, size int64) (int64, error) {
	return f.seek(offset, size, unix.SEEK_HOLE, size)
}

// nextData returns where the first data from offset on begins, size if there is none.
func (f *fileHandle) nextData(offset, size int64) (int64, error) {
	return f.seek(offset, size, unix.SEEK_DATA, offset)
}

// seek returns unknown if the filesystem does not know holes.
func (f *fileHandle) seek(offset, size int64, whence int, unknown int64) (int64, error) {
	at, err := uninterrupted(func() (int64, error) { return unix.Seek(f.fd, offset, whence) })
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return unknown, nil
	}
	return min(at, size), err
}

func attributesOf(fd int) (map[string]string, error) {
	return readAttributes(
		func(p []byte) (int, error) { return unix.Flistxattr(fd, p) },
		func(name string, p []byte) (int, error) { return unix.Fgetxattr(fd, name, p) },
	)
}

// recordName writes the name of an extended attribute as GNU tar does, as a record's key has no "=".
var recordName = strings.NewReplacer("%", "%25", "=", "%3D")

// readAttributes returns the records of the extended attributes that belong to an image.
func readAttributes(list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string]string, error) {
	names, err := readAttribute(list)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var records map[string]string
	for name := range strings.SplitSeq(names, "\x00") {
		switch {
		case strings.HasPrefix(name, "user."), name == "security.capability",
			name == "system.posix_acl_access", name == "system.posix_acl_default":
		default:
			continue
		}
		value, err := readAttribute(func(p []byte) (int, error) { return get(name, p) })
		if errors.Is(err, unix.ENODATA) {
			return nil, unix.ENOENT // it was deleted
		}
		if err != nil {
			return nil, fmt.Errorf("extended attribute %q: %w", name, err)
		}
		if records == nil {
			records = map[string]string{}
		}
		records["SCHILY.xattr."+recordName.Replace(name)] = value
	}
	return records, nil
}

// readAttribute calls read with a buffer that is large enough. Linux limits values and lists of names to 64 KiB.
func readAttribute(read func([]byte) (int, error)) (string, error) {
	var small [512]byte
	p := small[:]
	for {
		n, err := uninterrupted(func() (int, error) { return read(p) })
		switch {
		case errors.Is(err, unix.ERANGE) && len(p) == len(small):
			p = make([]byte, 64<<10)
		case err != nil:
			return "", err
		default:
			return string(p[:n]), nil
		}
	}
}
