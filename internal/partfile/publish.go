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
	metaSuffix = ".meta"         // of the name of the metadata tarball of a split image
	lockSuffix = ".lock.partial" // of the lock of a name, see pair
)

// Publish gives the file, or the two files of a split image, their final names.
// Their content must have been verified.
func (p *File) Publish(ctx context.Context) (*Files, error) {
	if p.rootfs != nil {
		return p.pair(ctx)
	}
	path, err := p.finish(p.image.Name)
	if err != nil {
		return nil, err
	}
	if err := p.rename(path); err != nil {
		return nil, err
	}
	return &Files{Image: path}, nil
}

// pair publishes the two files of a split image. Those of another image must
// not be mixed with them: only one call at a time has the name, and no metadata
// is there while the rootfs is replaced, so that if this ends early they are not
// taken for a pair.
func (p *File) pair(ctx context.Context) (*Files, error) {
	var files Files
	var err error
	if files.Image, err = p.finish(p.image.Name + metaSuffix); err != nil {
		return nil, err
	}
	if files.Rootfs, err = p.rootfs.finish(p.image.Name); err != nil {
		return nil, err
	}
	name, err := lock(ctx, filepath.Join(p.image.Dir, p.image.Name+lockSuffix), perm)
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
	return &files, nil
}

// finish does for a whole file what comes before it gets its final path, and
// returns that.
func (p *File) finish(name string) (string, error) {
	ext, err := extension(p.f)
	if err != nil {
		return "", err
	}
	if p.image.Sync {
		if err := p.f.Sync(); err != nil {
			return "", err
		}
	}
	return filepath.Join(p.image.Dir, name+ext), nil
}

func (p *File) rename(path string) error {
	if err := os.Rename(p.path, path); err != nil {
		return err
	}
	p.done = true
	return nil
}
