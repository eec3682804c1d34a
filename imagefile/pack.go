package imagefile

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// PackOptions are the options of [Pack], [PackFiles], [NewReader] and [NewReaders].
type PackOptions struct {
	// Compression is None, Gzip, XZ or Zstd. The default is Gzip, which each daemon reads without further programs, and with
	// [FromImage] that of the image. Gzip and Zstd use several processors; Zstd needs about 50 MiB for each, at most 220
	// MiB. In a squashfs it compresses the blocks, and the default is XZ.
	Compression Compression
	// Level is 1 to 9 for Gzip and 1 to 22 for Zstd; a higher one is slower and smaller. The default 0 is that of the
	// library: about 6 for Gzip, and 3 for Zstd. XZ has none. With [FromImage] it needs Compression.
	Level int
	// Format is the format of the root filesystem of a container in a split image: Tar or Squashfs. The default is Tar, and
	// with [FromImage] that of the image. A Squashfs is made by the program
	// tar2sqfs (package squashfs-tools-ng); without it the error is a [*ProgramError].
	Format Format
	// TemplateFiles are the files in the directory templates of the image, by their names, to which Metadata.Templates
	// refer.
	TemplateFiles map[string][]byte
	// ModTime is the modification time of files that are newer. It makes images of the same files that were made at
	// different times the same. The default is the environment variable SOURCE_DATE_EPOCH, in seconds since 1970, and
	// without it no limit.
	ModTime time.Time
}

// Pack writes an image: a unified one to image or, if rootfs is not nil, the two files of a split one.
//
// metadata becomes metadata.yaml. Architecture is required. The default of CreatedAt is ModTime of the options, otherwise
// the current time. metadata must be nil if root is [FromImage], which has its own.
//
// The same input, options and CreatedAt result in the same bytes, and so in the same fingerprint, with the same version of
// this package. metadata.yaml is the first entry. Entries have whole seconds, numeric owners and no names of them, and no
// times but that of modification.
//
// The image is written in one pass, image before rootfs; memory does not depend on the size of the image. Only a
// squashfs, a raw disk that is converted, and a sparse file in a tarball need a temporary file. Pack returns soon after ctx
// has ended, unless a Write blocks. If it returns an error, what was written is useless: to write files, use [PackFiles].
//
// An [*InputError] is returned before anything is written, unless only the content of an image tells it ([FromImage]), and a
// [*Problem] if what [FromTar] or [FromImage] reads cannot
// be read.
//
// image and rootfs must not be files in the directory that is packed, which PackFiles refuses.
//
// Info describes what was written.
func Pack(ctx context.Context, image, rootfs io.Writer, root Root, metadata *Metadata, opts *PackOptions) (*Info, error) {
	p, err := newPacker(ctx, rootfs != nil, root, metadata, opts)
	if err != nil {
		return nil, err
	}
	if image == nil {
		return nil, &InputError{Field: "image", Problem: "is nil"}
	}
	return p.run(image, rootfs, func() {})
}

// packer writes one image.
type packer struct {
	ctx    context.Context
	opts   PackOptions
	blocks Compression // of a squashfs
	root   Root
	// metadata is nil if the root has its own. templates are the files in the directory templates.
	metadata  []byte
	templates map[string][]byte
	created   time.Time

	sum       hash.Hash
	image     *output
	rootfs    *output  // nil for a unified image
	imageDone func()   // called when the first file of a split image is complete
	entries   *tarball // to which the root filesystem's entries are written
	files     int      // in the root filesystem
	copied    bool     // the root filesystem was copied as it is
	info      Info
	buffer    []byte
}

// newPacker checks the arguments.
func newPacker(ctx context.Context, split bool, root Root, metadata *Metadata, opts *PackOptions) (*packer, error) {
	p := &packer{ctx: ctx, root: root, sum: newHash(), buffer: make([]byte, blockSize)}
	if opts != nil {
		p.opts = *opts
		p.blocks = p.opts.Compression
	}
	if root == nil {
		return nil, &InputError{Field: "root", Problem: "is nil"}
	}
	if err := p.checkOptions(); err != nil {
		return nil, err
	}
	_, own := root.(*imageRoot)
	switch {
	case own && metadata != nil:
		return nil, &InputError{Field: "metadata", Problem: "must be nil: the image has its own, which FromImageOptions.Edit changes"}
	case !own && metadata == nil:
		return nil, &InputError{Field: "metadata", Problem: "is nil; at least Architecture is needed"}
	case own && p.opts.Level != 0 && p.opts.Compression == "":
		return nil, &InputError{Field: "Level", Problem: "is set without Compression, which the image then determines"}
	case own:
		metadata = &Metadata{}
	default:
		if err := p.setMetadata(metadata, nil); err != nil {
			return nil, err
		}
		p.templates = p.opts.TemplateFiles
	}
	if err := p.checkFormat(split, own); err != nil {
		return nil, err
	}
	if err := p.checkTemplates(metadata.Templates); err != nil {
		return nil, err
	}
	return p, root.check()
}

// checkOptions checks the options that need nothing else, and sets their defaults.
func (p *packer) checkOptions() error {
	o := &p.opts
	bad := func(field, format string, args ...any) error {
		return &InputError{Field: field, Problem: fmt.Sprintf(format, args...)}
	}
	switch o.Compression {
	case "", None, Gzip, XZ, Zstd:
	case Bzip2, LZMA:
		return bad("Compression", "is %s, which is only read; use none, gzip, xz or zstd", o.Compression)
	default:
		return bad("Compression", "is %q; use none, gzip, xz or zstd", o.Compression)
	}
	if most := map[Compression]int{"": 9, Gzip: 9, Zstd: 22}[o.Compression]; o.Level < 0 || o.Level > most {
		if most == 0 {
			return bad("Level", "is %d; %s has no levels", o.Level, o.Compression)
		}
		return bad("Level", "is %d; %s has 1 to %d, and 0 for the default", o.Level, cmp.Or(o.Compression, Gzip), most)
	}
	if !slices.Contains([]Format{"", Tar, Squashfs}, o.Format) {
		return bad("Format", "is %q; use tar or squashfs", o.Format)
	}
	if o.Format == Squashfs && o.Compression == None {
		return bad("Compression", "is none; a squashfs is compressed by gzip, xz or zstd")
	}
	if epoch, ok := os.LookupEnv("SOURCE_DATE_EPOCH"); ok && o.ModTime.IsZero() {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil || seconds < 0 || seconds > maxSeconds {
			return bad("SOURCE_DATE_EPOCH", "of the environment is %.40q; it must be seconds since 1970", epoch)
		}
		o.ModTime = time.Unix(seconds, 0)
	}
	if !o.ModTime.IsZero() && (o.ModTime.Unix() < 0 || o.ModTime.Unix() > maxSeconds) {
		return bad("ModTime", "is %s; it must be between 1970 and 9999", o.ModTime)
	}
	return nil
}

// checkFormat checks the option Format, for which there must be a file and a program. own says that the root has its own
// metadata, which is not known yet.
func (p *packer) checkFormat(split, own bool) error {
	_, disk := p.root.(diskRoot)
	switch {
	case p.opts.Format == "":
		return nil
	case !split:
		return &InputError{Field: "Format", Problem: "is that of the second file of a split image; a unified image is a tarball"}
	case disk:
		return &InputError{Field: "Format", Problem: "is that of a root filesystem; a disk is written as it is"}
	case p.opts.Format == Squashfs:
		if !own {
			if err := checkSquashfsTime(p.created); err != nil {
				return err
			}
		}
		return squashfsAvailable()
	}
	return nil
}

// run writes the image.
func (p *packer) run(image, rootfs io.Writer, imageDone func()) (*Info, error) {
	p.image, p.imageDone = newOutput(image, p.sum), imageDone
	if rootfs != nil {
		p.rootfs = newOutput(rootfs, p.sum)
		p.info.Rootfs = &File{}
	}
	defer p.discard()
	if err := p.pack(); err != nil {
		var input *InputError
		var problem *Problem
		switch {
		case p.ctx.Err() != nil:
			err = fmt.Errorf("imagefile: pack %s: %w", p.root, ctxerr.Of(p.ctx))
		case !errors.As(err, &input) && !errors.As(err, &problem):
			err = fmt.Errorf("imagefile: pack %s: %w", p.root, err)
		}
		return nil, err
	}
	p.info.Image.Size = p.image.count
	p.info.Size = p.image.count
	if p.rootfs != nil {
		p.info.Rootfs.Size = p.rootfs.count
		p.info.Size += p.rootfs.count
	}
	p.info.Fingerprint = hex.EncodeToString(p.sum.Sum(nil))
	return &p.info, nil
}

// pack writes everything that the root has.
func (p *packer) pack() error {
	switch root := p.root.(type) {
	case *imageRoot:
		if err := root.pack(p); err != nil {
			return err
		}
	case diskRoot:
		content, size, err := root.open(p.ctx)
		if err != nil {
			return err
		}
		defer content.Close()
		if err := p.begin(); err != nil {
			return err
		}
		if err := p.addDisk(content, size); err != nil {
			return err
		}
	default:
		if err := p.begin(); err != nil {
			return err
		}
		if err := p.beginRoot(); err != nil {
			return err
		}
		if err := root.walk(p.ctx, p.add); err != nil {
			return err
		}
	}
	if p.info.Type == Container && p.files == 0 && !p.copied {
		return &Problem{Kind: NoRootfs, Severity: Refused, File: RootfsPart, Offset: -1, Message: "the root filesystem has no files"}
	}
	if p.entries != nil {
		if err := p.entries.close(); err != nil {
			return err
		}
		p.entries = nil
	}
	if p.rootfs != nil {
		return p.rootfs.flush()
	}
	return p.image.flush()
}

// begin writes metadata.yaml and the templates.
func (p *packer) begin() error {
	p.info.Metadata, p.info.MetadataYAML = parseMetadata(p.metadata, p.created, func(Problem) {}), p.metadata
	p.info.Layout = Unified
	p.info.Image.Format, p.info.Image.Compression = Tar, cmp.Or(p.opts.Compression, Gzip)
	image, err := newTarball(p.image, p.info.Image.Compression, p.opts.Level)
	if err != nil {
		return err
	}
	p.entries = image
	if err := p.addFile("metadata.yaml", p.metadata); err != nil {
		return err
	}
	for _, name := range sortedKeys(p.templates) {
		if err := p.addFile("templates/"+name, p.templates[name]); err != nil {
			return err
		}
	}
	if p.rootfs == nil {
		return nil
	}
	p.info.Layout = Split
	if err := image.close(); err != nil {
		return err
	}
	p.entries = nil
	if err := p.image.flush(); err != nil {
		return err
	}
	p.imageDone()
	return nil
}

// beginRoot begins a container's root filesystem.
func (p *packer) beginRoot() (err error) {
	p.info.Type = Container
	if p.rootfs == nil {
		p.entries.prefix = "rootfs/"
		return nil
	}
	p.info.Rootfs.Format, p.info.Rootfs.Compression = Tar, cmp.Or(p.opts.Compression, Gzip)
	if p.opts.Format != Squashfs {
		p.entries, err = newTarball(p.rootfs, p.info.Rootfs.Compression, p.opts.Level)
		return err
	}
	p.info.Rootfs.Format, p.info.Rootfs.Compression = Squashfs, None
	made, err := newSquashfsWriter(p.ctx, p.rootfs, p.blocks, p.created)
	if err != nil {
		return err
	}
	p.entries, _ = newTarball(made, None, 0) // It cannot fail without a compressor.
	p.entries.below = made
	return nil
}

// add writes an entry of the root filesystem.
func (p *packer) add(e *entry) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	if limit := p.opts.ModTime; !limit.IsZero() && e.ModTime.After(limit) {
		e.ModTime = limit
	}
	p.files++
	return p.entries.add(e, p.copy)
}

// addDisk writes a virtual machine's disk.
func (p *packer) addDisk(content io.Reader, size int64) error {
	p.info.Type = VirtualMachine
	if p.rootfs != nil {
		in := bufio.NewReaderSize(content, headSize)
		head, err := in.Peek(headSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		p.info.Rootfs.Compression, p.info.Rootfs.Format = detect(head)
		if p.info.Rootfs.Format == Qcow2 {
			p.info.Rootfs.DiskSize = qcow2Size(head)
		}
		return p.copy(p.rootfs, in, size)
	}
	e := &entry{content: content}
	e.Name, e.Typeflag, e.Mode, e.Size, e.ModTime = "rootfs.img", tar.TypeReg, 0o644, size, p.created
	return p.entries.add(e, p.copy)
}

// addFile writes a file beside the root filesystem.
func (p *packer) addFile(name string, data []byte) error {
	return p.entries.addFile(name, data, p.created)
}

// copy copies size bytes, or all if size is negative, until ctx ends.
func (p *packer) copy(to io.Writer, from io.Reader, size int64) error {
	for left := size; left != 0; {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		block := p.buffer
		if left >= 0 {
			block = block[:min(left, int64(len(block)))]
		}
		n, err := from.Read(block)
		if n > 0 {
			if _, err := to.Write(block[:n]); err != nil {
				return err
			}
			if left > 0 {
				left -= int64(n)
			}
		}
		switch {
		case errors.Is(err, io.EOF) && left > 0:
			return io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// discard frees what an error has left, and writes nothing more.
func (p *packer) discard() {
	if p.entries != nil {
		p.image.discarded.Store(true)
		if p.rootfs != nil {
			p.rootfs.discarded.Store(true)
		}
		p.entries.discard()
	}
}

// output counts, hashes and buffers what is written to a file of the image.
type output struct {
	to    io.Writer
	sum   hash.Hash
	count int64
	block []byte
	// discarded says that nothing more is written. A compressor writes in a goroutine of its own.
	discarded atomic.Bool
}

func newOutput(to io.Writer, sum hash.Hash) *output {
	return &output{to: to, sum: sum, block: make([]byte, 0, blockSize)}
}

// Write implements io.Writer.
func (o *output) Write(data []byte) (int, error) {
	written := 0
	for len(data) > 0 {
		n := copy(o.block[len(o.block):cap(o.block)], data)
		o.block = o.block[:len(o.block)+n]
		data = data[n:]
		if len(o.block) == cap(o.block) {
			if err := o.flush(); err != nil {
				return written, err
			}
		}
		written += n
	}
	return written, nil
}

// flush writes what is buffered.
func (o *output) flush() error {
	if o.discarded.Load() {
		o.block = o.block[:0]
		return nil
	}
	o.sum.Write(o.block)
	o.count += int64(len(o.block))
	n, err := o.to.Write(o.block)
	if err == nil && n < len(o.block) {
		err = io.ErrShortWrite
	}
	o.block = o.block[:0]
	return err
}
