package imagefile

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"os"
	"time"

	"github.com/golxd/lxd/simplestreams"
)

// InputError names the argument or option that was refused. It is the type of package lxd.
type InputError = simplestreams.InputError

// InspectOptions are the options of [Inspect] and [InspectFiles].
type InspectOptions struct {
	// Fingerprint sets Info.Fingerprint. The files are then read to their ends. By default only what is needed is read:
	// of a tarball that begins with its metadata, as most do, one block of 128 KiB.
	Fingerprint bool
	// MaxSize limits what is read of each file, and what is unpacked of it, in bytes. A file that exceeds it is a [Problem]
	// of kind [TooLarge]. The default is 256 GiB.
	MaxSize int64
}

const defaultMaxSize = 256 << 30

// Inspect returns what the files of an image are. image is a unified image, or the metadata tarball of a split one; rootfs
// is the second file, or nil. They are read once, image first, and need not be seekable.
//
// The error is a [*Problem] if a file cannot be read that far: it is empty, cut, damaged or no image at all, or metadata.yaml
// cannot be understood. The Info then has what was read before. What the daemons would refuse but can be read is no error;
// [Check] reports it. Other errors are those of the readers and of ctx.
func Inspect(ctx context.Context, image, rootfs io.Reader, opts *InspectOptions) (*Info, error) {
	if opts == nil {
		opts = &InspectOptions{}
	}
	s, err := newScanner(ctx, image, rootfs, opts.MaxSize)
	if err != nil {
		return nil, err
	}
	if opts.Fingerprint {
		s.sum = newHash()
	}
	err = s.inspect(image, rootfs)
	var p *Problem
	if err != nil && !errors.As(err, &p) {
		return nil, err
	}
	s.conclude()
	if s.sum != nil && s.info.Size >= 0 {
		s.info.Fingerprint = hex.EncodeToString(s.sum.Sum(nil))
	}
	return &s.info, err
}

// inspect reads the files.
func (s *scanner) inspect(image, rootfs io.Reader) error {
	if rootfs != nil {
		s.info.Rootfs = &File{Size: -1}
	}
	if err := s.scan(image, ImagePart, &s.info.Image); err != nil {
		return err
	}
	for _, p := range s.problems {
		if s.info.Metadata == nil && p.Kind == BadMetadata {
			return p
		}
	}
	if rootfs == nil {
		return nil
	}
	return s.scan(rootfs, RootfsPart, s.info.Rootfs)
}

// InspectFiles is [Inspect] of the files with these names. rootfs is empty for a unified image. The sizes of regular files
// are always known.
func InspectFiles(ctx context.Context, image, rootfs string, opts *InspectOptions) (*Info, error) {
	var info *Info
	err := withFiles(image, rootfs, func(first, second io.Reader, sizes [2]int64) error {
		var err error
		if info, err = Inspect(ctx, first, second, opts); info == nil {
			return err
		}
		info.Image.Size = max(info.Image.Size, sizes[0])
		info.Size = info.Image.Size
		if info.Rootfs != nil {
			info.Rootfs.Size = max(info.Rootfs.Size, sizes[1])
			if info.Size = -1; info.Image.Size >= 0 && info.Rootfs.Size >= 0 {
				info.Size = info.Image.Size + info.Rootfs.Size
			}
		}
		return err
	})
	return info, err
}

// withFiles calls use with the files, and their sizes, -1 for what is no regular file. The second reader is nil if rootfs
// is empty.
func withFiles(image, rootfs string, use func(first, second io.Reader, sizes [2]int64) error) error {
	sizes := [2]int64{-1, -1}
	readers := [2]io.Reader{}
	for n, name := range []string{image, rootfs} {
		if n == 1 && name == "" {
			break
		}
		file, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("imagefile: %w", err)
		}
		defer file.Close()
		stat, err := file.Stat()
		if err != nil {
			return fmt.Errorf("imagefile: %w", err)
		}
		if stat.IsDir() {
			return &InputError{Field: [2]string{"image", "rootfs"}[n], Problem: fmt.Sprintf("is a directory: %s", name)}
		}
		if stat.Mode().IsRegular() {
			sizes[n] = stat.Size()
		}
		readers[n] = file
	}
	return use(readers[0], readers[1], sizes)
}

// newScanner checks the arguments.
func newScanner(ctx context.Context, image, rootfs io.Reader, maxSize int64) (*scanner, error) {
	if image == nil {
		return nil, &InputError{Field: "image", Problem: "is nil"}
	}
	if err := checkMaxSize(maxSize); err != nil {
		return nil, err
	}
	s := startScanner(ctx, maxSize)
	s.split = rootfs != nil
	return s, nil
}

func checkMaxSize(maxSize int64) error {
	if maxSize < 0 {
		return &InputError{Field: "MaxSize", Problem: fmt.Sprintf("is negative: %d", maxSize)}
	}
	return nil
}

// startScanner returns a scanner of the files of one image.
func startScanner(ctx context.Context, maxSize int64) *scanner {
	return &scanner{
		ctx: ctx, maxSize: min(cmp.Or(maxSize, defaultMaxSize), math.MaxInt64-blockSize), now: time.Now(),
		names: nameSet{seed: maphash.MakeSeed()},
	}
}
