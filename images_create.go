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

// IfExists says what creating an image does where the server has it already.
type IfExists string

const (
	// UseExisting makes it a success that gives the image that is there. Its
	// attributes stay as they are, but it gets the aliases. This is the default.
	UseExisting IfExists = ""
	// ErrorIfExists makes it an [ErrExists].
	ErrorIfExists IfExists = "error"
)

// CreateOptions describe an image to upload.
type CreateOptions struct {
	// Rootfs makes it a split image: its second file, a squashfs, a tarball, or
	// the disk of a virtual machine. The first file is then the metadata
	// tarball.
	Rootfs io.Reader
	// Type says what Rootfs is. Default: Container. A unified image tells
	// itself.
	Type ImageType

	// Size and RootfsSize are the lengths in bytes of readers that are not
	// seekable, if known. So much is read and no more: a connection may stay
	// open behind it. A reader that gives more together with the last byte is
	// an [ErrBodyChanged], one that holds less an io.ErrUnexpectedEOF. Default: 0,
	// unknown; the body is then sent in chunks.
	Size       int64
	RootfsSize int64

	// Public lets everybody who reaches the server read the image. Default:
	// those whom the server trusts.
	Public bool
	// Filename is what the image's file is called. Default: the base name if
	// the reader (of a split image: Rootfs) is an *os.File, else none.
	Filename string
	// Properties are put over those in the image's own metadata, when the server
	// has the content and before the image gets its aliases.
	Properties map[string]string
	// Profiles are what instances of the image get. Default: "default".
	Profiles []string
	// Aliases are names for the image; Target and Type are ignored. That they
	// are free is seen to before anything is sent. One that stands for this very
	// image is free if Fingerprint or Dedupe tells that beforehand.
	Aliases []Alias
	// ReuseAliases moves aliases here that stand for other images. Default:
	// they are an ErrExists.
	ReuseAliases bool
	// ExpiresAt is when the server may delete the image if it is cached.
	// Default: as the image's own metadata says.
	ExpiresAt time.Time

	// Fingerprint is the SHA-256 that the content must have. The server
	// verifies it, and nothing is sent if the server has the image. Where the
	// server makes another image all the same, as behind a proxy that drops
	// headers, that image is deleted, and the error is a [*FingerprintError].
	Fingerprint string
	// Verify hashes the content while it is sent, and compares with what the
	// server has. It needs no Fingerprint.
	Verify bool
	// Dedupe hashes seekable content before anything is sent, so that nothing
	// is sent if the server has the image.
	Dedupe   bool
	IfExists IfExists

	// Wait returns when the image is there with all its attributes. Default:
	// when the server has received the content; Image.Wait does the rest, which
	// without it is not done: Properties, ExpiresAt, Aliases and, on LXD,
	// Profiles.
	Wait bool

	// Progress is told of the phases hash (with Dedupe), send and server.
	Progress func(Progress)
}

// Create uploads an image from a reader: a unified tarball, or with
// [CreateOptions.Rootfs] a split image. It begins where the reader stands. A
// reader that is also an [io.Seeker] is sent with its length, and again if the
// connection breaks; a file is sent by the kernel where that is possible. It is
// not read any more when Create has returned, unless ctx has ended while a Read
// of it blocked: that is then the last one, and the reader must be left alone
// until it returns. A server's refusal, too, is returned when the Read that
// goes on has ended.
//
// Without Wait, the Image has its fingerprint and what the options say, and
// Image.Wait completes it. Where an image was made but an alias could not be,
// both the Image and the error are given.
func (m *Images) Create(ctx context.Context, image io.Reader, opts *CreateOptions) (*Image, error) {
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
		// A one-shot reader tells its fingerprint now or never, and it is what
		// decides the outcome where the server forgets the operation.
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
		return invalid("image", "is nil; a rootfs needs its metadata tarball")
	case isNil(image):
		return invalid("image", "is nil")
	case o.Rootfs != nil && isNil(o.Rootfs):
		return invalid("CreateOptions.Rootfs", "is a nil *os.File")
	case o.Size < 0:
		return invalid("CreateOptions.Size", "is negative")
	case o.RootfsSize < 0:
		return invalid("CreateOptions.RootfsSize", "is negative")
	case o.Rootfs == nil && o.RootfsSize > 0:
		return invalid("CreateOptions.RootfsSize", "is set without Rootfs")
	case o.Rootfs == nil && o.Type == VirtualMachine:
		return invalid("CreateOptions.Type", "is set without Rootfs; a unified image tells its type itself")
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

// filename is the given one, or that of the file that names the image.
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
			return nil, invalid(field, "is %d, but the reader holds %d bytes", size, s.Size())
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
