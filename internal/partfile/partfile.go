// Package partfile keeps the files of an image on the disk: the partial file
// that the content arrives in, which one process at a time has, and the finished
// files, which appear under their names only when they are whole.
//
// It knows nothing of servers: the caller brings the content.
package partfile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/golxd/lxd/internal/ctxerr"
)

// The permissions of the files, before the umask.
const (
	publicPerm  = 0o644
	privatePerm = 0o600
)

// Image is an image that is, or is to be, in the files of a directory.
type Image struct {
	Dir         string
	Name        string // of the finished files, without the extension
	Fingerprint string // the SHA-256 of the content, in lower-case hex
	Size        int64  // of the content in bytes; not positive if unknown
	Public      bool   // others may read the files: mode 0644 in place of 0600, before the umask
	Sync        bool   // make the files durable before they get their names, and the names then

	// Verifying is called before files are hashed, with their length in bytes.
	// The function that it returns is called with the length of every piece.
	Verifying func(size int64) (count func(n int))
}

// Files are the paths of a finished image: the file of a unified image, or the
// metadata tarball and the rootfs of a split one.
type Files struct {
	Image  string
	Rootfs string // empty for a unified image
}

// File is the locked partial file of an image, or of the rootfs of a split one.
type File struct {
	image  *Image
	path   string
	f      *os.File
	rootfs *File // of a split image
	done   bool  // the file has its final name, or none
}

// Open opens the partial file, or creates it, and waits until no other process,
// and no other goroutine of this one, has it. It must be closed. A file that is
// not this user's alone is not gone on from: a new one takes its place.
func (i *Image) Open(ctx context.Context) (*File, error) {
	return i.open(ctx, i.Fingerprint+".partial")
}

func (i *Image) open(ctx context.Context, name string) (*File, error) {
	path := filepath.Join(i.Dir, name)
	var perm fs.FileMode = privatePerm
	if i.Public {
		perm = publicPerm
	}
	f, err := lock(ctx, path, perm)
	if err != nil {
		return nil, err
	}
	return &File{image: i, path: path, f: f}, nil
}

// Close lets go of the file. If it was not published it stays, without what was
// reserved behind its content, for the next [Image.Open] to go on from. If it is
// empty, or the image turned out to be split, it is removed.
func (p *File) Close() error {
	if p.rootfs != nil {
		if p.done {
			_ = p.rootfs.f.Close()
		} else {
			_ = p.Discard()
		}
	}
	if !p.done {
		p.leave()
	}
	return p.f.Close()
}

// leave is best effort: the error that ended the transfer matters more.
func (p *File) leave() {
	info, err := p.f.Stat()
	switch {
	case err != nil:
	case info.Size() == 0:
		p.Remove()
	default:
		_ = p.f.Truncate(info.Size()) // releases what was reserved behind it
	}
}

// Remove removes the file, which is not needed: the image is there.
func (p *File) Remove() {
	if !p.done {
		_ = os.Remove(p.path) // what stays does no harm
		p.done = true
	}
}

// Resume hashes what an earlier transfer left and returns its length. A file
// that does not hold the beginning of the image is emptied.
func (p *File) Resume(ctx context.Context, sum hash.Hash) (have int64, err error) {
	info, err := p.f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	if size == 0 || p.image.Size <= 0 || size > p.image.Size {
		return 0, p.truncate(0)
	}
	return size, hashFile(ctx, sum, p.f, p.image.Verifying(size))
}

// Begin makes Write append behind the first have bytes, and drops the rest.
func (p *File) Begin(have int64) error {
	if err := p.truncate(have); err != nil {
		return err
	}
	_, err := p.f.Seek(have, io.SeekStart)
	return err
}

// Reserve makes room for the n bytes that are written next, where the system and
// the file system can; otherwise, and if n is negative, it does nothing. The
// error wraps syscall.ENOSPC or syscall.EDQUOT if there is no such room, and that
// of ctx if it ends.
func (p *File) Reserve(ctx context.Context, n int64) error {
	at, err := p.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	return reserve(ctx, p.f, at, n)
}

func (p *File) Write(b []byte) (int, error) { return p.f.Write(b) }

// Discard empties the file, whose content is of no use, and removes that of the
// rootfs.
func (p *File) Discard() error {
	if p.rootfs != nil {
		p.rootfs.Remove()
		_ = p.rootfs.f.Close()
		p.rootfs = nil
	}
	return p.truncate(0)
}

// truncate makes the file no longer than size. One that is empty already is left
// alone: ext4 writes a file that was ever truncated to nothing to the disk when
// it is closed, which takes as long as the transfer.
func (p *File) truncate(size int64) error {
	info, err := p.f.Stat()
	if err != nil || info.Size() <= size {
		return err
	}
	return p.f.Truncate(size)
}

// Hash drops what is behind the image, which must be whole, and returns its
// SHA-256.
func (p *File) Hash(ctx context.Context) (string, error) {
	if err := p.f.Truncate(p.image.Size); err != nil {
		return "", err
	}
	sum := sha256.New()
	if err := hashFile(ctx, sum, p.f, p.image.Verifying(p.image.Size)); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// Rootfs begins the second file of a split image. The first is then its
// metadata. It is published and closed with the first.
func (p *File) Rootfs(ctx context.Context) (*File, error) {
	rootfs, err := p.image.open(ctx, p.image.Fingerprint+".rootfs.partial")
	if err != nil {
		return nil, fmt.Errorf("open the partial file of the rootfs: %w", err)
	}
	p.rootfs = rootfs
	return rootfs, rootfs.Begin(0)
}

// hashFile hashes a file from its beginning, obeying ctx.
func hashFile(ctx context.Context, sum hash.Hash, f *os.File, count func(int)) error {
	block := make([]byte, 256<<10)
	var at int64
	for {
		if err := ctxerr.Of(ctx); err != nil {
			return fmt.Errorf("hash %s: %w", f.Name(), err)
		}
		n, err := f.ReadAt(block, at)
		sum.Write(block[:n])
		count(n)
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
