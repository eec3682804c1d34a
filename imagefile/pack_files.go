package imagefile

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// PackFiles is [Pack] to files with these names, which do not determine the formats: the options do. rootfs is empty for a
// unified image. The files get their names when they are complete, and replace files of the same names; after an error
// there are neither new nor partial ones. Of a split image, the second file is renamed first; if renaming the first one
// fails, the second is the new one. They must not be in the directory that is packed.
func PackFiles(ctx context.Context, image, rootfs string, root Root, metadata *Metadata, opts *PackOptions) (*Info, error) {
	p, err := newPacker(ctx, rootfs != "", root, metadata, opts)
	if err != nil {
		return nil, err
	}
	names := []string{image}
	if rootfs != "" {
		names = append(names, rootfs)
	}
	if err := checkNames(root, names); err != nil {
		return nil, err
	}
	files := make([]*os.File, len(names))
	defer func() {
		for _, file := range files {
			if file != nil {
				_ = file.Close()
				_ = os.Remove(file.Name())
			}
		}
	}()
	for n, name := range names {
		if files[n], err = createTemp(name); err != nil {
			return nil, fmt.Errorf("imagefile: %w", err)
		}
	}
	var second io.Writer
	if rootfs != "" {
		second = files[1]
	}
	info, err := p.run(files[0], second, func() {})
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if err := errors.Join(file.Sync(), file.Close()); err != nil {
			return nil, fmt.Errorf("imagefile: %w", err)
		}
	}
	for n := len(files) - 1; n >= 0; n-- {
		if err := os.Rename(files[n].Name(), names[n]); err != nil {
			return nil, fmt.Errorf("imagefile: %w", err)
		}
		files[n] = nil
	}
	return info, nil
}

// checkNames refuses names that cannot be those of an image's files.
func checkNames(root Root, names []string) error {
	fields := []string{"image", "rootfs"}
	dirs := make([]fs.FileInfo, len(names))
	for n, name := range names {
		if name == "" {
			return &InputError{Field: fields[n], Problem: "is empty"}
		}
		if stat, err := os.Stat(name); err == nil && stat.IsDir() {
			return &InputError{Field: fields[n], Problem: "is a directory: " + name}
		}
		dir, err := os.Stat(filepath.Dir(name))
		if err != nil {
			return &InputError{Field: fields[n], Problem: fmt.Sprintf("cannot be created; make its directory first: %v", err)}
		}
		dirs[n] = dir
		if packed, ok := root.(*dirRoot); ok && isInside(filepath.Dir(name), dir, packed.dir) {
			return &InputError{Field: fields[n], Problem: fmt.Sprintf("%s is in the directory that is packed, %s; write it elsewhere", name, packed.dir)}
		}
	}
	if len(names) == 2 && filepath.Base(names[0]) == filepath.Base(names[1]) && os.SameFile(dirs[0], dirs[1]) {
		return &InputError{Field: "rootfs", Problem: "is the same file as image: " + names[1]}
	}
	return nil
}

// isInside says whether a directory is root or below it.
func isInside(dir string, stat fs.FileInfo, root string) bool {
	rootStat, err := os.Stat(root)
	if err != nil {
		return false
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return false
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return false
	}
	for !os.SameFile(stat, rootStat) {
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
		if stat, err = os.Stat(dir); err != nil {
			return false
		}
	}
	return true
}

// createTemp creates the file that is renamed to name, with the mode of new files.
func createTemp(name string) (*os.File, error) {
	for {
		file, err := os.OpenFile(filepath.Join(filepath.Dir(name), ".imagefile-"+rand.Text()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if !errors.Is(err, fs.ErrExist) {
			return file, err
		}
	}
}
