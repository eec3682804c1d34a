package partfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	metaSuffix = ".meta"         // of the metadata tarball of a split image
	lockSuffix = ".lock.partial" // of the lock of a name; see publishPair
)

// Publish renames the file, or the two files of a split image, to their final names.
// Their content must have been verified.
func (p *File) Publish(ctx context.Context) (*Files, error) {
	if p.rootfs != nil {
		return p.publishPair(ctx)
	}
	path, err := p.finish(ctx, p.image.Name)
	if err != nil {
		return nil, err
	}
	if err := p.rename(path); err != nil {
		return nil, err
	}
	return &Files{Image: path}, p.synced(ctx)
}

// publishPair publishes the two files of a split image. They must not be mixed with
// those of another image: only one call at a time has locked the name, and the
// metadata is removed before the rootfs is replaced, so that an interrupted call
// leaves no wrong pair.
func (p *File) publishPair(ctx context.Context) (*Files, error) {
	var files Files
	var err error
	if files.Image, err = p.finish(ctx, p.image.Name+metaSuffix); err != nil {
		return nil, err
	}
	if files.Rootfs, err = p.rootfs.finish(ctx, p.image.Name); err != nil {
		return nil, err
	}
	name, err := Lock(ctx, filepath.Join(p.image.Dir, p.image.Name+lockSuffix), privatePerm)
	if err != nil {
		return nil, fmt.Errorf("lock the name %s: %w", p.image.Name, err)
	}
	defer func() {
		_ = os.Remove(name.Name())
		_ = name.Close()
	}()
	if err := os.Remove(files.Image); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := p.rootfs.rename(files.Rootfs); err != nil {
		return nil, err
	}
	if err := p.rename(files.Image); err != nil {
		return nil, errors.Join(err, os.Remove(files.Rootfs))
	}
	return &files, p.synced(ctx)
}

// finish prepares a complete file for its final path, and returns that path.
func (p *File) finish(ctx context.Context, name string) (string, error) {
	if !same(p.f, p.path) {
		return "", p.errReplaced()
	}
	ext, err := extension(p.f)
	if err != nil {
		return "", err
	}
	if p.image.Sync {
		if err := syncFile(ctx, p.f); err != nil {
			return "", err
		}
	}
	return filepath.Join(p.image.Dir, name+ext), nil
}

// errReplaced is the error for a path at which there is another file than the one that
// was verified.
func (p *File) errReplaced() error {
	return fmt.Errorf("%s is no longer the file that was written; use a directory that nobody else may write to", p.path)
}

func (p *File) rename(path string) error {
	if err := rename(p.path, path); err != nil {
		return err
	}
	p.done = true
	return nil
}

// synced makes the final names durable if Sync is set.
func (p *File) synced(ctx context.Context) error {
	if !p.image.Sync {
		return nil
	}
	return p.image.syncDir(ctx)
}
