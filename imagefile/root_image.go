package imagefile

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// FromImageOptions are the options of [FromImage].
type FromImageOptions struct {
	// Edit is called with the metadata of the image, and changes it. Its maps are not nil. Fields of metadata.yaml that
	// Metadata does not have are kept, and so are properties and templates as they are written if Edit does not change
	// them.
	Edit func(*Metadata) error
	// MaxSize is as in [InspectOptions].
	MaxSize int64
}

// FromImage returns the content of an image, with its metadata and templates: [Pack] then writes the image in another
// layout, with another compression or with other metadata. What is not said in its options remains as it is. rootfs is the
// second file of a split image, or nil. A metadata tarball alone is possible as well: it results in another one.
//
// The second file of a split image is copied as it is if the result is a split image, and Compression and Format of the
// options do not say otherwise. Entries of a tarball that the daemons ignore, beside metadata.yaml, templates and the root
// filesystem, are left out.
//
// The readers are read once, in their order, from their current positions, with these exceptions: a unified image that
// becomes a split one is read twice if it is an [io.Seeker], and otherwise must have its templates before the root
// filesystem. An image with its metadata after the root filesystem must be an io.Seeker. So must be the disk of a virtual
// machine that becomes part of a unified image. A squashfs that is not copied must be an [*os.File]. The Root can be used
// once.
func FromImage(image, rootfs io.Reader, opts *FromImageOptions) Root {
	r := &imageRoot{image: image, rootfs: rootfs, templates: map[string][]byte{}}
	if opts != nil {
		r.opts = *opts
	}
	return r
}

type imageRoot struct {
	image, rootfs io.Reader
	opts          FromImageOptions

	p     *packer
	begun bool
	root  bool // the root filesystem was begun
	disk  bool // it is a disk, which was written
	// What the options said, before the image determined the rest.
	compression Compression
	format      Format
	// Of the first file.
	file         File
	metadata     []byte
	info         Info
	bad          *Problem // in the metadata, for what Metadata does not have of it
	templates    map[string][]byte
	templateSize int
	edited       Metadata // by Edit
}

// maxTemplates limits the memory for templates.
const maxTemplates = 16 << 20

// String implements Root.
func (r *imageRoot) String() string { return "the image" }

func (r *imageRoot) check() error {
	if r.image == nil {
		return &InputError{Field: "root", Problem: "has a nil reader"}
	}
	return checkMaxSize(r.opts.MaxSize)
}

// walk implements Root. Pack calls pack.
func (r *imageRoot) walk(context.Context, func(*entry) error) error {
	return errors.New("an image is more than a root filesystem")
}

// pack writes the image.
func (r *imageRoot) pack(p *packer) error {
	r.p, r.compression, r.format = p, p.opts.Compression, p.opts.Format
	rewind := func() error { return errors.ErrUnsupported }
	if seeker, ok := r.image.(io.Seeker); ok {
		if start, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			rewind = func() error {
				_, err := seeker.Seek(start, io.SeekStart)
				return err
			}
		}
	}
	err := errOrder
	if p.rootfs == nil || r.rootfs != nil || rewind() != nil {
		err = r.read(true)
	}
	if errors.Is(err, errOrder) && rewind() == nil {
		if err = r.read(false); err == nil {
			if err = rewind(); err == nil {
				err = r.read(true)
			}
		}
	}
	switch {
	case errors.Is(err, errOrder):
		return r.problem(NoMetadata, "metadata.yaml is not before the root filesystem; use a reader that is an io.Seeker, such as a file")
	case err != nil:
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	for _, target := range sortedKeys(r.edited.Templates) {
		file := r.edited.Templates[target].Template
		_, found := r.templates[file]
		_, given := p.opts.TemplateFiles[file]
		if !found && !given && file != r.info.Metadata.Templates[target].Template {
			return &InputError{Field: "TemplateFiles", Problem: fmt.Sprintf("does not have %q, which the template of %s needs, and nor has the image", file, target)}
		}
	}
	switch {
	case r.rootfs != nil:
		return r.packRootfs()
	case r.root:
		return nil
	case p.rootfs != nil:
		return r.problem(NoRootfs, "the image has no root filesystem, and none is given as the second file")
	}
	p.info.Layout = MetadataOnly
	return nil
}

// errOrder says that the metadata comes after the root filesystem.
var errOrder = errors.New("the metadata comes after the root filesystem")

func (r *imageRoot) problem(kind ProblemKind, format string, args ...any) error {
	return &Problem{Kind: kind, Severity: Refused, File: ImagePart, Offset: -1, Message: fmt.Sprintf(format, args...)}
}

// read reads the first file, and writes what is in it. If write is false, it only collects the metadata and the templates.
func (r *imageRoot) read(write bool) error {
	s := startScanner(r.p.ctx, r.opts.MaxSize)
	s.each = func(header *tar.Header, content io.Reader) error {
		if s.info.MetadataYAML != nil && r.metadata == nil {
			r.metadata, r.info.Metadata = s.info.MetadataYAML, s.info.Metadata
			if n := slices.IndexFunc(s.problems, func(p *Problem) bool { return p.Kind == BadMetadata }); n >= 0 {
				r.bad = s.problems[n]
			}
		}
		name := strings.TrimPrefix(header.Name, "./")
		if strings.HasPrefix(name, "templates/") {
			e, err := s.entryOf(header, content, "templates")
			switch {
			case err != nil || e == nil || e.Typeflag == tar.TypeDir:
				return err
			case e.Typeflag != tar.TypeReg:
				return r.problem(BadTemplate, "the template %.100q is a link or a device; make it a file", e.Name)
			}
			return r.addTemplate(e)
		}
		isDisk := name == "rootfs.img"
		if !write || r.rootfs != nil || !isDisk && name != "rootfs" && !strings.HasPrefix(name, "rootfs/") {
			return nil
		}
		if r.metadata == nil {
			return errOrder
		}
		if !r.root {
			if err := r.begin(); err != nil {
				return err
			}
			if r.root = true; !isDisk {
				if err := r.p.beginRoot(); err != nil {
					return err
				}
			}
		}
		switch {
		case isDisk != (r.p.info.Type != Container):
			return nil // The first root filesystem counts, for the daemons too.
		case isDisk && r.disk:
			return r.problem(AmbiguousRootfs, "the image has more than one rootfs.img; remove the others")
		case isDisk && header.Typeflag != tar.TypeReg && header.Typeflag != tar.TypeGNUSparse:
			return r.problem(NoRootfs, "rootfs.img is not a file")
		case isDisk:
			r.disk = true
			return r.p.addDisk(content, header.Size)
		}
		return s.addEntry(header, content, "rootfs", r.p.add)
	}
	return s.scan(r.image, ImagePart, &r.file)
}

// addTemplate keeps a template until the metadata is written. One that comes later is written where it is.
func (r *imageRoot) addTemplate(e *entry) error {
	name := e.Name
	if _, ok := r.templates[name]; ok {
		return nil
	}
	// An empty one needs memory as well.
	if r.templateSize += int(min(e.Size, maxTemplates)) + len(name) + 512; r.templateSize > maxTemplates {
		return r.problem(TooLarge, "the templates have more than %d bytes", maxTemplates)
	}
	data, err := io.ReadAll(e.content)
	if err != nil {
		return err
	}
	r.templates[name] = data
	switch _, replaced := r.p.opts.TemplateFiles[name]; {
	case !r.begun || replaced:
		return nil
	case r.p.rootfs != nil:
		return r.problem(BadTemplate, "the template %.100q is not before the root filesystem; use a reader that is an io.Seeker, such as a file", name)
	}
	return r.p.addFile("templates/"+name, data)
}

// begin writes the metadata and the templates, once.
func (r *imageRoot) begin() error {
	if r.begun {
		return nil
	}
	r.begun = true
	switch {
	case r.metadata == nil:
		return r.problem(NoMetadata, "metadata.yaml is missing")
	case r.bad != nil && (r.info.Metadata == nil || r.opts.Edit != nil): // Edit would not keep what cannot be read.
		return r.bad
	}
	p := r.p
	p.opts.Compression = cmp.Or(r.compression, writable(r.file.Compression))
	p.metadata, p.created = r.metadata, r.info.Metadata.CreatedAt
	if r.opts.Edit != nil {
		r.edited = *r.info.Metadata
		r.edited.Properties, r.edited.Templates = map[string]string{}, map[string]Template{}
		maps.Copy(r.edited.Properties, r.info.Metadata.Properties)
		maps.Copy(r.edited.Templates, r.info.Metadata.Templates)
		if err := r.opts.Edit(&r.edited); err != nil {
			return err
		}
		if err := p.setMetadata(&r.edited, r.metadata); err != nil {
			return err
		}
	}
	p.templates = maps.Clone(r.templates)
	maps.Copy(p.templates, p.opts.TemplateFiles)
	return p.begin()
}

// writable is a compression, or Gzip if this package does not write it.
func writable(c Compression) Compression {
	if c == Bzip2 || c == LZMA {
		return Gzip
	}
	return c
}

// packRootfs writes the second file.
func (r *imageRoot) packRootfs() (err error) {
	p := r.p
	size := int64(-1)
	if seeker, ok := r.rootfs.(io.Seeker); ok {
		at, err := seeker.Seek(0, io.SeekCurrent)
		if err == nil {
			var end int64
			if end, err = seeker.Seek(0, io.SeekEnd); err == nil {
				_, err = seeker.Seek(at, io.SeekStart)
				size = end - at
			}
		}
		if err != nil {
			size = -1
		}
	}
	s := startScanner(p.ctx, r.opts.MaxSize)
	s.part = RootfsPart
	src := newSource(p.ctx, r.rootfs, s.maxSize, nil)
	defer src.close()
	defer func() {
		problem := new(Problem)
		switch failure := src.failure(); {
		case failure != nil:
			err = fmt.Errorf("read the %s: %w", s.part, failure)
		case errors.Is(err, errLimit) && !errors.As(err, &problem):
			err = s.tooLarge(src)
		}
	}()
	in := bufio.NewReaderSize(src, 4096)
	head, err := in.Peek(headSize)
	switch {
	case len(head) == 0 && errors.Is(err, io.EOF):
		return s.empty()
	case err != nil && !errors.Is(err, io.EOF):
		return err
	}
	compression, format := detect(head)
	if compression != None {
		format = Tar // A compressed disk is none for the daemons.
	}
	if format == "" {
		return s.unknown()
	}
	isDisk := format == Qcow2 || format == Raw
	same := cmp.Or(r.format, format) == format && r.compression == ""
	switch {
	case isDisk && p.rootfs == nil && size < 0:
		return &InputError{Field: "root", Problem: "has a disk of unknown size; use a reader that is an io.Seeker, such as a file"}
	case isDisk:
		return p.addDisk(in, size)
	case p.rootfs != nil && same:
		p.info.Type, p.info.Rootfs.Format, p.info.Rootfs.Compression = typeOf(format), format, compression
		p.copied = true
		return p.copy(p.rootfs, in, -1)
	}
	if p.opts.Format = cmp.Or(r.format, format); p.opts.Format != Squashfs && format != Squashfs {
		p.opts.Compression = cmp.Or(r.compression, writable(compression))
	}
	if err := p.beginRoot(); err != nil {
		return err
	}
	if format == Squashfs {
		file, ok := r.rootfs.(*os.File)
		if !ok {
			return &InputError{Field: "root", Problem: "has a squashfs that is not an *os.File"}
		}
		return FromSquashfs(file.Name()).walk(p.ctx, p.add)
	}
	return FromTar(in, &FromTarOptions{MaxSize: r.opts.MaxSize}).walk(p.ctx, p.add)
}
