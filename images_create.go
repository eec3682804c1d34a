package lxd

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/content"
)

// IfExists is what a call does if the server already has the image.
type IfExists string

// The values of IfExists.
const (
	// UseExisting returns the existing image. The options that are set are applied to
	// it: its properties, profiles, expiry, Public and aliases are then as those of a
	// new one. If the options determine another type, the error matches [ErrExists].
	// This is the default.
	UseExisting IfExists = ""
	// ErrorIfExists returns an error that matches [ErrExists].
	ErrorIfExists IfExists = "error"
)

// CreateOptions describe an image to upload.
type CreateOptions struct {
	// Rootfs is the second file of a split image: a squashfs, a tarball, or the
	// disk of a virtual machine. The first file is then the metadata tarball. The
	// default is a unified image.
	Rootfs io.Reader
	// Type is the type of a split image. The default is VirtualMachine if Rootfs is a
	// qcow2 disk, and otherwise Container. The metadata of a unified image contains its
	// type.
	Type ImageType

	// Size and RootfsSize are the lengths in bytes of readers that are not
	// seekable, if known. Create reads that many bytes and no more, so a reader may
	// be a connection that stays open. If a reader returns more bytes together with
	// the last one, the error matches [ErrBodyChanged]; if it returns fewer,
	// io.ErrUnexpectedEOF. The default 0 means unknown; the body is then sent in
	// chunks.
	Size       int64
	RootfsSize int64

	// Public allows everybody who can connect to the server to read the image. The
	// default is only clients that the server trusts.
	Public bool
	// Filename is the image's filename. The default is the base name if the reader
	// (of a split image: Rootfs) is an *os.File, and otherwise none.
	Filename string
	// Properties are added to those in the image's metadata, and override them.
	// They are set when the server has the content, before the aliases. Names and
	// values must be UTF-8 without NUL bytes.
	Properties map[string]string
	// Profiles are the default profiles of instances created from the image
	// (extension image_profiles). The default is "default".
	Profiles []string
	// Aliases are names for the image; Target and Type are ignored. They are
	// checked before anything is sent: each must be free, or point to this image. If
	// one exists, content that is seekable is hashed to find that out; for other
	// content without Fingerprint, the alias is compared after the upload.
	Aliases []Alias
	// ReuseAliases moves aliases that point to other images to this one. Those images
	// remain, without the alias. By default such an alias is an error that matches
	// ErrExists.
	ReuseAliases bool
	// DeleteReplaced deletes the images that have lost their last alias to
	// ReuseAliases, which must be set.
	DeleteReplaced bool
	// ExpiresAt is when the server may delete the image if it is cached. The
	// default is the expiry in the image's metadata.
	ExpiresAt time.Time

	// Fingerprint is the SHA-256 that the content must have. The server verifies
	// it, and nothing is sent if the server has the image. If the server creates
	// another image nevertheless, as behind a proxy that drops headers, that image
	// is deleted, and the error is a [*FingerprintError].
	Fingerprint string
	// Verify hashes the content while it is sent, and compares the hash with the
	// fingerprint that the server reports. It needs no Fingerprint.
	Verify bool
	// Dedupe hashes seekable content before anything is sent, so that nothing
	// is sent if the server has the image.
	Dedupe bool
	// IfExists is what happens if the server already has the image. The default is to
	// apply the options that are set to it.
	IfExists IfExists

	// Wait makes Create return when the image exists with all its attributes. The
	// default is to return when the server has received the content. Image.Wait
	// must then be called: it sets Properties, ExpiresAt, Aliases and, on LXD,
	// Profiles.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while the call waits for it (with Wait). By default it continues; the call
	// returns the Image beside the error, with the operation.
	CancelOnDone bool

	// Progress receives the phases hash (with Dedupe), send and server.
	Progress func(Progress)
}

// Create uploads an image from a reader: a unified tarball, or with
// [CreateOptions.Rootfs] a split image. It reads from the reader's current
// position. If the reader is an [io.Seeker], it is sent with its length, and sent again if
// the connection breaks; the kernel sends a file if possible. Create does not read after it has returned, with one exception: if
// ctx ends while a Read blocks, that Read is the last one, and the reader must not be
// used until it returns. If the server refuses the upload, Create returns when the
// current Read has returned.
//
// The first Read of a reader that is not seekable, of at most 512 bytes, is made before
// anything is sent. The error is an [*InputError] for what cannot be an image:
//   - a reader that is empty, or whose first bytes are those of a text or of another file
//     of the image
//   - a tarball without metadata.yaml or, with no Rootfs, without a root filesystem, plain
//     or compressed by gzip, if the reader can seek and has at most 64 KiB
//   - a squashfs that is shorter than it says, if its length is known; it may be longer
//   - an xz file, if the reader can seek, that is cut: it ends with neither the end of a
//     stream nor zeros after one, which must be a multiple of four
//
// Of the last two, LXD 5.0.2, Incus 6.0.4 and Incus 7.0.2 accept the upload, and can
// create no instance. No other format has an end that can be checked without reading all;
// package imagefile does that.
//
// Without Wait, the Image has its fingerprint and the attributes in the options,
// and Image.Wait completes it. If the image was created but an alias was not,
// Create returns both the Image and the error.
//
// To upload only what the server does not have, and to move an alias to it, see
// [Images.Ensure] and [FromFile].
func (m *Images) Create(ctx context.Context, image io.Reader, opts *CreateOptions) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	var o CreateOptions
	if opts != nil {
		o = *opts
	}
	if err := o.check(image); err != nil {
		return nil, err
	}
	spec := imageSpec{
		attributes: attributes{ExpiresAt: o.ExpiresAt, Profiles: o.Profiles, Properties: o.Properties, Public: o.Public}.clone(),
		filename:   o.filename(image), aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases, replaced: o.DeleteReplaced, ifExists: o.IfExists,
	}
	if err := spec.check("CreateOptions"); err != nil {
		return nil, err
	}
	body, err := o.content(ctx, image)
	if err != nil {
		return nil, err
	}
	if spec.kind = o.Type; o.Rootfs == nil {
		spec.kind = ""
	}
	u := &upload{
		images: m, content: body, split: o.Rootfs != nil, fingerprint: strings.ToLower(o.Fingerprint),
		// If the server forgets the operation, the fingerprint determines the
		// outcome. A one-shot reader can be hashed only while it is sent.
		hash: o.Verify || (o.Fingerprint == "" && (!o.Wait || !body.Replayable())),
		spec: spec,
	}
	first := PhaseSend
	if o.Dedupe {
		first = PhaseHash
	}
	u.meter, u.report = meter(first, body.Size(), o.Progress), o.Progress
	defer u.meter.Stop()
	if o.Dedupe && u.fingerprint == "" && body.Replayable() {
		if u.fingerprint, err = body.HashAhead(ctx, u.meter.Counter()); err != nil {
			return nil, fmt.Errorf("read the image: %w", err)
		}
	}
	created, err := u.run(ctx)
	if err != nil || !o.Wait || created.pending == nil { // nil if the server had the image
		return created, err
	}
	return created.pending.waitInCall(ctx, created, u.meter, o.CancelOnDone)
}

func (o *CreateOptions) check(image io.Reader) error {
	switch {
	case isNil(image) && o.Rootfs != nil:
		return invalid("image", "is nil; Rootfs needs a metadata tarball")
	case isNil(image):
		return invalid("image", "is nil")
	case o.Rootfs != nil && isNil(o.Rootfs):
		return invalid("CreateOptions.Rootfs", "is a nil %T", o.Rootfs)
	case o.Size < 0:
		return invalid("CreateOptions.Size", "is negative")
	case o.RootfsSize < 0:
		return invalid("CreateOptions.RootfsSize", "is negative")
	case o.Rootfs == nil && o.RootfsSize > 0:
		return invalid("CreateOptions.RootfsSize", "is set without Rootfs")
	case o.Rootfs == nil && o.Type == VirtualMachine:
		return invalid("CreateOptions.Type", "is set without Rootfs; the metadata of a unified image contains its type")
	}
	if err := checkOneOf("CreateOptions.Type", o.Type, "", Container, VirtualMachine); err != nil {
		return err
	}
	if sameReader(image, o.Rootfs) {
		return invalid("CreateOptions.Rootfs", "is the same reader as image; give the metadata tarball as image")
	}
	if o.Fingerprint != "" {
		return checkFullFingerprint("CreateOptions.Fingerprint", o.Fingerprint)
	}
	return nil
}

// sameReader reports whether a and b are one pointer.
func sameReader(a, b io.Reader) bool {
	v, w := reflect.ValueOf(a), reflect.ValueOf(b)
	return v.Kind() == reflect.Pointer && w.Kind() == reflect.Pointer && v.Pointer() == w.Pointer() && v.Type() == w.Type()
}

// filename returns Filename or its default.
func (o *CreateOptions) filename(image io.Reader) string {
	if o.Filename != "" {
		return o.Filename
	}
	if o.Rootfs != nil {
		return fileBase(o.Rootfs)
	}
	return fileBase(image)
}

func fileBase(r io.Reader) string {
	if f, ok := r.(*os.File); ok {
		if base := filepath.Base(f.Name()); checkFilename("", base) == nil {
			return base
		}
	}
	return ""
}

// The first bytes of formats of file systems, disks and archives, and the last ones of an
// xz stream.
const (
	magicSquashfs = "hsqs"
	magicQcow2    = "QFI\xfb"
	magicXZ       = "\xfd7zXZ\x00"
	endXZ         = "YZ"
)

// peekSize is how much of a reader is looked at before anything is sent; a file of at
// most peekWhole bytes is looked at whole.
const (
	peekSize  = 512
	peekWhole = 64 << 10
)

// checkStart returns an error if the content cannot be what it is given for. rootfs
// says that it is the second file of a split image. It returns the start of the
// content.
func checkStart(ctx context.Context, field string, s *content.Source, rootfs bool) ([]byte, error) {
	n := peekSize
	if s.Size() <= peekWhole {
		n = max(n, int(s.Size())) // -1 if it is unknown
	}
	start, err := s.Peek(ctx, n)
	switch kind := http.DetectContentType(start); {
	case errors.Is(err, io.EOF):
		return nil, invalid(field, "is empty, or was read to its end before")
	case err != nil:
		return nil, fmt.Errorf("read the image: %w", err)
	case (len(start) >= minText || int64(len(start)) == s.Size()) && strings.HasPrefix(kind, "text/"):
		return nil, invalid(field, "is text (%s), not an image", kind)
	case rootfs:
	case bytes.HasPrefix(start, []byte(magicSquashfs)), bytes.HasPrefix(start, []byte(magicQcow2)):
		return nil, invalid(field, "is a file system or a disk; give it as CreateOptions.Rootfs, and its metadata tarball as image")
	}
	return start, checkCut(ctx, field, s, start)
}

// superblockSize is the length of the superblock of a squashfs.
const superblockSize = 96

// checkCut returns an error if the content is certainly cut. A qcow2 disk may be shorter
// than the clusters that it names, and the other formats have no length or end.
func checkCut(ctx context.Context, field string, s *content.Source, start []byte) error {
	switch {
	case bytes.HasPrefix(start, []byte(magicSquashfs)):
		size := uint64(superblockSize)
		if len(start) >= 48 && binary.LittleEndian.Uint16(start[28:]) == 4 { // the version; others have another superblock
			size = max(size, binary.LittleEndian.Uint64(start[40:]))
		}
		if s.Size() >= 0 && uint64(s.Size()) < size {
			return invalid(field, "is cut: the squashfs has %d bytes and should have %d; copy or create it again", s.Size(), size)
		}
	case bytes.HasPrefix(start, []byte(magicXZ)):
		end, err := s.PeekEnd(ctx, peekSize)
		if err != nil {
			return fmt.Errorf("read the image: %w", err)
		}
		stream := bytes.TrimRight(end, "\x00")
		// If the end is zeros alone, it is not known what is before them.
		if len(stream) > 0 && (!bytes.HasSuffix(stream, []byte(endXZ)) || (len(end)-len(stream))%4 != 0) {
			return invalid(field, "is cut or damaged: the %d bytes of the xz file do not end as one; copy or create it again", s.Size())
		}
	}
	return nil
}

// archiveHas reports whether a whole file is a tar archive, plain or compressed by gzip,
// that is read to its end, and whether it has metadata.yaml and a root filesystem. The
// daemons refuse one without metadata.yaml ("Metadata tarball is missing metadata.yaml"), or
// as a unified image without a root filesystem ("Invalid instance type"), when it has been
// sent (LXD 5.0.2, Incus 6.0.4 and 7.0.2).
func archiveHas(file []byte) (metadata, rootfs, whole bool) {
	var r io.Reader = bytes.NewReader(file)
	if unzipped, err := gzip.NewReader(bytes.NewReader(file)); err == nil {
		r = io.LimitReader(unzipped, maxUnzipped)
	}
	for archive := tar.NewReader(r); ; {
		entry, err := archive.Next()
		if err != nil {
			return metadata, rootfs, errors.Is(err, io.EOF)
		}
		name := strings.TrimPrefix(entry.Name, "./")
		rootfs = rootfs || strings.HasPrefix(name, "rootfs")
		metadata = metadata || name == "metadata.yaml"
	}
}

// maxUnzipped is how much of a compressed file is looked at. It ends within a block of
// the archive, so that what is longer does not look like one that ends there.
const maxUnzipped = 1<<20 + 1

// minText is the length of a start that is enough to tell a text.
const minText = 16

// content returns the content of the upload. It sets Type if the content determines
// it.
func (o *CreateOptions) content(ctx context.Context, image io.Reader) (*content.Content, error) {
	source := func(r io.Reader, field string, size int64) (*content.Source, error) {
		if size == 0 {
			size = -1
		}
		s, err := content.NewSource(r, size)
		if err != nil {
			return nil, err
		}
		if size >= 0 && s.Size() != size {
			return nil, invalid(field, "is %d, but the reader has %d bytes", size, s.Size())
		}
		return s, nil
	}
	first, err := source(image, "CreateOptions.Size", o.Size)
	if err != nil {
		return nil, err
	}
	start, err := checkStart(ctx, "image", first, false)
	if err != nil {
		return nil, err
	}
	if int64(len(start)) == first.Size() {
		switch metadata, rootfs, whole := archiveHas(start); {
		case whole && !metadata:
			return nil, invalid("image", "is a tarball without metadata.yaml; give a root filesystem as CreateOptions.Rootfs, and its metadata tarball as image")
		case whole && !rootfs && o.Rootfs == nil:
			return nil, invalid("image", "is a metadata tarball without a root filesystem, which is the other file of a split image; give it as CreateOptions.Rootfs")
		}
	}
	if o.Rootfs == nil {
		return content.Unified(first), nil
	}
	second, err := source(o.Rootfs, "CreateOptions.RootfsSize", o.RootfsSize)
	if err != nil {
		return nil, err
	}
	start, err = checkStart(ctx, "CreateOptions.Rootfs", second, true)
	if err != nil {
		return nil, err
	}
	if o.Type == "" && bytes.HasPrefix(start, []byte(magicQcow2)) {
		o.Type = VirtualMachine
	}
	field, name := "rootfs", cmp.Or(o.filename(image), "rootfs")
	if o.Type == VirtualMachine {
		field, name = "rootfs.img", cmp.Or(o.filename(image), "rootfs.img")
	}
	return content.Split(first, cmp.Or(fileBase(image), "metadata"), second, field, name)
}
