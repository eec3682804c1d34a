package partfile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// ErrNotOurs says that files of these names exist, but that other users can change
// them after they were verified.
var ErrNotOurs = errors.New("others can change it")

// Find returns the finished files of an earlier transfer, or nil if there are none.
// It verifies their content, and ignores files with other content. It also ignores
// files that other users may write to, or whose owner is neither this user, nor
// root, nor the owner of the directory: if there are only such files, the error is
// [ErrNotOurs].
func (i *Image) Find(ctx context.Context) (*Files, error) {
	var notOurs error
	try := func(files *Files, paths ...string) (*Files, error) {
		same, err := i.matches(ctx, paths...)
		switch {
		case errors.Is(err, ErrNotOurs):
			notOurs = err
			return nil, nil
		case err != nil || !same:
			return nil, err
		}
		return files, nil
	}
	for _, path := range i.candidates(i.Name) {
		if files, err := try(&Files{Image: path}, path); files != nil || err != nil {
			return files, err
		}
	}
	for _, metadata := range i.candidates(i.Name + metaSuffix) {
		for _, rootfs := range i.candidates(i.Name) {
			if files, err := try(&Files{Image: metadata, Rootfs: rootfs}, metadata, rootfs); files != nil || err != nil {
				return files, err
			}
		}
	}
	return nil, notOurs
}

// MayBeThere reports whether Find has files to verify.
func (i *Image) MayBeThere() bool { return len(i.candidates(i.Name)) > 0 }

func (i *Image) candidates(name string) []string {
	var found []string
	for _, ext := range extensions() {
		path := filepath.Join(i.Dir, name+ext)
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			found = append(found, path)
		}
	}
	return found
}

// matches reports whether the files are the image, and makes them durable if Sync
// is set. It compares the length first, as hashing takes long.
func (i *Image) matches(ctx context.Context, paths ...string) (bool, error) {
	var size, first int64
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	var notOurs error
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			return false, fmt.Errorf("%w: %w", err, ErrNotOurs)
		}
		if err != nil {
			return false, err
		}
		files = append(files, f)
		info, err := f.Stat()
		if err != nil {
			return false, err
		}
		if why := changeable(info, i.Dir); why != "" {
			notOurs = fmt.Errorf("%s %s: %w", path, why, ErrNotOurs)
		}
		if len(files) == 1 {
			first = info.Size()
		}
		size += info.Size()
	}
	if i.Size > 0 && size != i.Size || i.Metadata > 0 && (len(paths) < 2 || first != i.Metadata) {
		return false, nil
	}
	if notOurs != nil {
		return false, notOurs
	}
	count := i.Verifying(size)
	sum := sha256.New()
	for _, f := range files {
		if err := hashFile(ctx, sum, f, count); err != nil {
			return false, err
		}
	}
	if hex.EncodeToString(sum.Sum(nil)) != i.Fingerprint {
		return false, nil
	}
	if i.Sync && runtime.GOOS != "windows" { // Windows syncs only files that are open for writing
		for _, f := range files {
			if err := syncFile(ctx, f); err != nil {
				return false, err
			}
		}
		return true, i.syncDir(ctx)
	}
	return true, nil
}
