// Package partfile stores the files of an image on disk: the partial file to which
// the content is written, which is locked by one process at a time, and the finished
// files, which get their names only when they are complete.
//
// It knows nothing about servers: the caller provides the content.
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

// Image is an image and the directory that its files are, or will be, in.
type Image struct {
	Dir         string
	Name        string // of the finished files, without the extension
	Fingerprint string // the SHA-256 of the content, lower-case hexadecimal
	Size        int64  // of the content in bytes; not positive if unknown
	Metadata    int64  // the part of Size that is the metadata of a split image; not positive if unknown
	Public      bool   // others may read the files: mode 0644 instead of 0600, before the umask
	Sync        bool   // make the files durable before they get their names, and then the names

	// Verifying is called before files are hashed, with their length in bytes. The
	// function that it returns is called with the length of each block.
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
	pair   bool  // both files of a split image can be resumed
	done   bool  // the file was renamed or removed
}

// Open opens or creates the partial file, and waits until no other process, and no
// other goroutine of this one, has locked it. The caller must close it. A file that
// other users can change is replaced by a new one.
func (i *Image) Open(ctx context.Context) (*File, error) {
	return i.open(ctx, i.Fingerprint+".partial")
}

// OpenPair opens the partial files of a split image whose two files can be resumed
// independently. The caller must close the first, which publishes and closes both.
func (i *Image) OpenPair(ctx context.Context) (metadata, rootfs *File, err error) {
	if metadata, err = i.Open(ctx); err != nil {
		return nil, nil, err
	}
	if err := metadata.openRootfs(ctx); err != nil {
		_ = metadata.Close()
		return nil, nil, err
	}
	metadata.pair = true
	return metadata, metadata.rootfs, nil
}

func (i *Image) open(ctx context.Context, name string) (*File, error) {
	path := filepath.Join(i.Dir, name)
	var perm fs.FileMode = privatePerm
	if i.Public {
		perm = publicPerm
	}
	f, err := Lock(ctx, path, perm)
	if err != nil {
		return nil, err
	}
	return &File{image: i, path: path, f: f}, nil
}

// Close unlocks and closes the file. If it was not published it is kept, without the
// space reserved after its content, so that a transfer can resume after the next
// [Image.Open]. If it is empty, or the image is split and does not come from
// [Image.OpenPair], it is removed.
func (p *File) Close() error {
	switch {
	case p.rootfs == nil:
	case p.pair, p.done:
		_ = p.rootfs.Close()
	default:
		_ = p.Discard()
	}
	if !p.done {
		p.keep()
	}
	return p.f.Close()
}

// keep prepares the file for a later transfer. It ignores errors: the one that ended
// this transfer matters more.
func (p *File) keep() {
	info, err := p.f.Stat()
	switch {
	case err != nil:
	case info.Size() == 0:
		p.Remove()
	default:
		_ = p.f.Truncate(info.Size()) // releases the space reserved after its content
	}
}

// Remove removes the file, which is not needed because the image already exists. It
// ignores errors: a remaining file does no harm.
func (p *File) Remove() {
	if !p.done {
		_ = os.Remove(p.path)
		p.done = true
	}
}

// Resume writes the content of an earlier transfer to sum and returns its length. It
// empties a file that cannot be the beginning of content of this size.
func (p *File) Resume(ctx context.Context, sum io.Writer, size int64) (have int64, err error) {
	info, err := p.f.Stat()
	if err != nil {
		return 0, err
	}
	have = info.Size()
	if have == 0 || size <= 0 || have > size {
		return 0, p.truncate(0)
	}
	return have, hashFile(ctx, sum, p.f, p.image.Verifying(have))
}

// Begin truncates the file to have bytes, to which Write then appends.
func (p *File) Begin(have int64) error {
	if err := p.truncate(have); err != nil {
		return err
	}
	_, err := p.f.Seek(have, io.SeekStart)
	return err
}

// Reserve reserves space for the next n bytes, if the operating system and the file
// system support it; otherwise, and if n is negative, it does nothing. The error
// wraps syscall.ENOSPC or syscall.EDQUOT if there is not enough space, and ctx's
// error if ctx ends.
func (p *File) Reserve(ctx context.Context, n int64) error {
	at, err := p.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	return reserve(ctx, p.f, at, n)
}

func (p *File) Write(b []byte) (int, error) { return p.f.Write(b) }

// Content returns a reader of the first size bytes. Windows does not let another
// handle read the file.
func (p *File) Content(size int64) io.Reader { return io.NewSectionReader(p.f, 0, size) }

// Settle makes a complete file public, whatever the umask is, and durable, for a
// caller that moves it elsewhere.
func (p *File) Settle(ctx context.Context) error {
	if !same(p.f, p.path) {
		return p.errReplaced()
	}
	_ = chmod(p.f, publicPerm) // It fails only on file systems without modes.
	return syncFile(ctx, p.f)
}

// Discard empties the file and removes that of the rootfs, because their content is
// useless.
func (p *File) Discard() error {
	if p.rootfs != nil {
		p.rootfs.Remove()
		_ = p.rootfs.f.Close()
		p.rootfs = nil
	}
	return p.truncate(0)
}

// truncate shortens the file to size, if it is longer. It does not truncate an empty
// file: ext4 flushes a file that was ever truncated to 0 when it is closed, which
// takes as long as the transfer.
func (p *File) truncate(size int64) error {
	info, err := p.f.Stat()
	if err != nil || info.Size() <= size {
		return err
	}
	return p.f.Truncate(size)
}

// Hash truncates the file to the size of the image, which must be complete, and
// returns its SHA-256.
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

// Rootfs opens the partial file for the rootfs of a split image; p is then that of
// the metadata. It is published and closed with p.
func (p *File) Rootfs(ctx context.Context) (*File, error) {
	if err := p.openRootfs(ctx); err != nil {
		return nil, err
	}
	return p.rootfs, p.rootfs.Begin(0)
}

func (p *File) openRootfs(ctx context.Context) (err error) {
	if p.rootfs, err = p.image.open(ctx, p.image.Fingerprint+".rootfs.partial"); err != nil {
		return fmt.Errorf("open the partial file of the rootfs: %w", err)
	}
	return nil
}

// Hash returns the SHA-256 of these files together.
func Hash(ctx context.Context, paths ...string) (string, error) {
	sum := sha256.New()
	for _, path := range paths {
		if err := hashPath(ctx, sum, path); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func hashPath(ctx context.Context, sum hash.Hash, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() { // opening a pipe would block
		return fmt.Errorf("hash %s: it is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return hashFile(ctx, sum, f, func(int) {})
}

// hashFile hashes a whole file; it stops if ctx ends.
func hashFile(ctx context.Context, sum io.Writer, f *os.File, count func(int)) error {
	block := make([]byte, 256<<10)
	var at int64
	for {
		if err := ctxerr.Of(ctx); err != nil {
			return fmt.Errorf("hash %s: %w", f.Name(), err)
		}
		n, err := f.ReadAt(block, at)
		_, _ = sum.Write(block[:n])
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
