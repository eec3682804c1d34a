package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/golxd/lxd/internal/content"
)

// FromFileOptions describe an image file.
type FromFileOptions struct {
	// Rootfs is the path of the root file system or disk of a split image, whose
	// metadata tarball is the file.
	Rootfs string
	// Type is the type of a split image; see CreateOptions.Type.
	Type ImageType
}

type fileSource struct {
	path string
	opts FromFileOptions
}

// FromFile returns a source that is a file: a unified image or, with Rootfs, a split
// one. Resolve reads it to compute the fingerprint; nothing is sent if the server has
// the image.
func FromFile(path string, opts *FromFileOptions) Source {
	s := &fileSource{path: path}
	if opts != nil {
		s.opts = *opts
	}
	return s
}

func (s *fileSource) String() string { return "file " + s.path }

// open opens the files; rootfs is nil if there is none.
func (s *fileSource) open() (image, rootfs *os.File, err error) {
	if s.path == "" {
		return nil, nil, invalid("path", "is empty")
	}
	if image, err = os.Open(s.path); err != nil || s.opts.Rootfs == "" {
		return image, nil, err
	}
	if rootfs, err = os.Open(s.opts.Rootfs); err != nil {
		return nil, nil, errors.Join(err, image.Close())
	}
	return image, rootfs, nil
}

// Resolve returns the fingerprint and the size.
func (s *fileSource) Resolve(ctx context.Context, _ *Client) (*SourceImage, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	image, rootfs, err := s.open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close() }()
	o := CreateOptions{Type: s.opts.Type}
	if rootfs != nil {
		defer func() { _ = rootfs.Close() }()
		o.Rootfs = rootfs
	}
	return resolveReader(ctx, image, &o)
}

// resolveReader computes the fingerprint of an image that can be read again, and leaves
// its readers where they are. Others it does not read.
func resolveReader(ctx context.Context, image io.Reader, o *CreateOptions) (*SourceImage, error) {
	resolved := &SourceImage{Type: o.Type, Size: o.Size + o.RootfsSize}
	readers := []io.Reader{image}
	if o.Rootfs != nil {
		readers = append(readers, o.Rootfs)
	}
	positions := make([]int64, len(readers))
	for n, r := range readers {
		source, err := content.NewSource(r, -1)
		if err != nil {
			return nil, err
		}
		if !source.Replayable() {
			return resolved, nil
		}
		if positions[n], err = r.(io.Seeker).Seek(0, io.SeekCurrent); err != nil {
			return nil, fmt.Errorf("read the image: %w", err)
		}
	}
	body, err := o.content(ctx, image)
	if err != nil {
		return nil, err
	}
	resolved.Type, resolved.Size = o.Type, body.Size()
	if resolved.Fingerprint, err = body.HashAhead(ctx, func(int) {}); err != nil {
		return nil, fmt.Errorf("read the image: %w", err)
	}
	for n, r := range readers {
		if _, err := r.(io.Seeker).Seek(positions[n], io.SeekStart); err != nil {
			return nil, fmt.Errorf("rewind the reader: %w", err)
		}
	}
	return resolved, nil
}

// CreateIn uploads the file, unless the server has the image.
func (s *fileSource) CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error) {
	image, rootfs, err := s.open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close() }()
	from := &readerSource{name: s.String(), image: image, opts: CreateOptions{Type: s.opts.Type, Dedupe: true}}
	if rootfs != nil {
		defer func() { _ = rootfs.Close() }()
		from.opts.Rootfs = rootfs
	}
	return from.CreateIn(ctx, images, opts)
}

// FromReaderOptions describe the content of a reader.
type FromReaderOptions struct {
	// Rootfs is the root file system or disk of a split image, whose metadata tarball
	// is the reader.
	Rootfs io.Reader
	// Type is the type of a split image; see CreateOptions.Type.
	Type ImageType
	// Size and RootfsSize are the lengths in bytes of readers that are not seekable,
	// if they are known.
	Size       int64
	RootfsSize int64
	// Fingerprint is the fingerprint that the image must have, if it is known.
	Fingerprint string
}

type readerSource struct {
	name  string
	image io.Reader
	opts  CreateOptions
}

// FromReader returns a source that is a reader, from its current position; see
// [Images.Create]. A reader that is not seekable can be used once, and Resolve does
// not read it.
func FromReader(image io.Reader, opts *FromReaderOptions) Source {
	s := &readerSource{name: "a reader", image: image}
	if opts != nil {
		s.opts = CreateOptions{Rootfs: opts.Rootfs, Type: opts.Type, Size: opts.Size, RootfsSize: opts.RootfsSize, Fingerprint: opts.Fingerprint}
	}
	return s
}

func (s *readerSource) String() string { return s.name }

// Resolve returns the fingerprint of a seekable reader, and the size if it is known.
func (s *readerSource) Resolve(ctx context.Context, _ *Client) (*SourceImage, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := s.opts.check(s.image); err != nil {
		return nil, err
	}
	if s.opts.Fingerprint != "" {
		return &SourceImage{Fingerprint: s.opts.Fingerprint, Type: s.opts.Type, Size: s.opts.Size + s.opts.RootfsSize}, nil
	}
	o := s.opts
	return resolveReader(ctx, s.image, &o)
}

// CreateIn uploads the content, unless the server has it and it can be read again.
func (s *readerSource) CreateIn(ctx context.Context, images *Images, opts *CreateFromOptions) (*Image, error) {
	if err := opts.refuseAutoUpdate(s); err != nil {
		return nil, err
	}
	o := s.opts
	o.Fingerprint = cmp.Or(o.Fingerprint, opts.resolvedFingerprint())
	o.Public, o.Filename, o.Properties, o.Profiles, o.Aliases = opts.Public, opts.Filename, opts.Properties, opts.Profiles, opts.Aliases
	o.ReuseAliases, o.DeleteReplaced, o.ExpiresAt, o.IfExists = opts.ReuseAliases, opts.DeleteReplaced, opts.ExpiresAt, opts.IfExists
	o.Wait, o.CancelOnDone, o.Progress = opts.Wait, opts.CancelOnDone, opts.Progress
	return images.Create(ctx, s.image, &o)
}
