package partfile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Find returns the finished files of an earlier transfer, whose content it
// verifies, or nil. Files of these names with other content are not those of the
// image.
func (i *Image) Find(ctx context.Context) (*Files, error) {
	for _, path := range i.candidates(i.Name) {
		same, err := i.holds(ctx, path)
		if err != nil {
			return nil, err
		}
		if same {
			return &Files{Image: path}, nil
		}
	}
	for _, metadata := range i.candidates(i.Name + metaSuffix) {
		for _, rootfs := range i.candidates(i.Name) {
			same, err := i.holds(ctx, metadata, rootfs)
			if err != nil {
				return nil, err
			}
			if same {
				return &Files{Image: metadata, Rootfs: rootfs}, nil
			}
		}
	}
	return nil, nil
}

// MayBeThere says whether Find has something to look at.
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

// holds says whether the files are the image. The length is looked at first, as
// hashing takes long.
func (i *Image) holds(ctx context.Context, paths ...string) (bool, error) {
	var size int64
	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		size += info.Size()
	}
	if i.Size > 0 && size != i.Size {
		return false, nil
	}
	count := i.Verifying(size)
	sum := sha256.New()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		err = hashFile(ctx, sum, f, count)
		_ = f.Close()
		if err != nil {
			return false, err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)) == i.Fingerprint, nil
}
