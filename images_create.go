package lxd

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/content"
)

// IfExists is what a call does if the server already has the image.
type IfExists string

// The values of IfExists.
const (
	// UseExisting returns the existing image. Its attributes do not change, but it
	// receives the aliases. This is the default.
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
	// Type is the type of a split image. The default is Container. The metadata of
	// a unified image contains its type.
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
	// They are set when the server has the content, before the aliases.
	Properties map[string]string
	// Profiles are the default profiles of instances created from the image
	// (extension image_profiles). The default is "default".
	Profiles []string
	// Aliases are names for the image; Target and Type are ignored. They are
	// checked before anything is sent: each must be free, or point to this image
	// if Fingerprint or Dedupe determines the fingerprint in advance.
	Aliases []Alias
	// ReuseAliases moves aliases that point to other images to this one. By
	// default such an alias is an error that matches ErrExists.
	ReuseAliases bool
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
	Dedupe   bool
	IfExists IfExists

	// Wait makes Create return when the image exists with all its attributes. The
	// default is to return when the server has received the content. Image.Wait
	// must then be called: it sets Properties, ExpiresAt, Aliases and, on LXD,
	// Profiles.
	Wait bool

	// Progress receives the phases hash (with Dedupe), send and server.
	Progress func(Progress)
}

// Create uploads an image from a reader: a unified tarball, or with
// [CreateOptions.Rootfs] a split image. It reads from the reader's current
// position. If the reader is an [io.Seeker], it is sent with its length, and sent
// again if the connection breaks; the kernel sends a file if possible. Create does
// not read after it has returned, with one exception: if ctx ends while a Read
// blocks, that Read is the last one, and the reader must not be used until it
// returns. If the server refuses the upload, Create returns when the current Read
// has returned.
//
// Without Wait, the Image has its fingerprint and the attributes in the options,
// and Image.Wait completes it. If the image was created but an alias was not,
// Create returns both the Image and the error.
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
	body, err := o.content(image)
	if err != nil {
		return nil, err
	}
	u := &upload{
		images: m, content: body, fingerprint: strings.ToLower(o.Fingerprint), ifExists: o.IfExists,
		// If the server forgets the operation, the fingerprint determines the
		// outcome. A one-shot reader can be hashed only while it is sent.
		hash: o.Verify || (o.Fingerprint == "" && (!o.Wait || !body.Replayable())),
		spec: imageSpec{
			attributes: attributes{ExpiresAt: o.ExpiresAt, Profiles: o.Profiles, Properties: o.Properties, Public: o.Public}.clone(),
			filename:   o.filename(image), aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases,
		},
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
	return u.run(ctx, o.Wait)
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
	case o.Type != "" && o.Type != Container && o.Type != VirtualMachine:
		return invalid("CreateOptions.Type", "is %q, not %q or %q", o.Type, Container, VirtualMachine)
	case o.IfExists != UseExisting && o.IfExists != ErrorIfExists:
		return invalid("CreateOptions.IfExists", "is %q", o.IfExists)
	}
	if o.Fingerprint != "" {
		if err := checkFullFingerprint("CreateOptions.Fingerprint", o.Fingerprint); err != nil {
			return err
		}
	}
	if err := checkFilename("CreateOptions.Filename", o.Filename); err != nil {
		return err
	}
	if err := checkNames("CreateOptions.Profiles", o.Profiles); err != nil {
		return err
	}
	if _, ok := o.Properties[""]; ok {
		return invalid("CreateOptions.Properties", "has an empty name")
	}
	return checkAliases("CreateOptions.Aliases", o.Aliases)
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

func (o *CreateOptions) content(image io.Reader) (*content.Content, error) {
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
	if o.Rootfs == nil {
		return content.Unified(first), nil
	}
	second, err := source(o.Rootfs, "CreateOptions.RootfsSize", o.RootfsSize)
	if err != nil {
		return nil, err
	}
	field, name := "rootfs", cmp.Or(o.filename(image), "rootfs")
	if o.Type == VirtualMachine {
		field, name = "rootfs.img", cmp.Or(o.filename(image), "rootfs.img")
	}
	return content.Split(first, cmp.Or(fileBase(image), "metadata"), second, field, name)
}
