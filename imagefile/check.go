package imagefile

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
)

// CheckOptions are the options of [Check] and [CheckFiles].
type CheckOptions struct {
	// Type is the type as which a split image is to be uploaded. The default is that of its root filesystem.
	Type ImageType
	// MaxSize is as in [InspectOptions].
	MaxSize int64
}

// Report is what [Check] has found.
type Report struct {
	// Info is what is known of the files. Fields are empty if a file could not be read.
	Info *Info
	// Problems are in the order of the files, at most 100.
	Problems []*Problem
	// Omitted is the number of further problems.
	Omitted int
}

// Err returns the problems for which a daemon refuses the upload, and those of which that is not known, as one error; nil if
// there are none. An image with regretted problems only, such as one that is cut, is no error: see Problems.
func (r *Report) Err() error {
	var refused []error
	for _, p := range r.Problems {
		if p.Severity != Regretted {
			refused = append(refused, p)
		}
	}
	return errors.Join(refused...)
}

// Check reads the files of an image to their ends and returns what LXD 5.0.2, Incus 6.0.4 or Incus 7.0.2 refuse in them, or
// regret when an instance is created; and what they contain, with the fingerprint. The arguments are those of [Inspect].
//
// The entries of tarballs are checked, also of a root filesystem. Of a squashfs only the size is checked, and of a disk nothing.
// A hard link to an entry that does not exist is not found.
//
// The error is that of a reader or of ctx, or an [*InputError]. What is wrong with the files is no error, but in the report.
func Check(ctx context.Context, image, rootfs io.Reader, opts *CheckOptions) (*Report, error) {
	if opts == nil {
		opts = &CheckOptions{}
	}
	switch opts.Type {
	case "", Container, VirtualMachine:
	default:
		return nil, &InputError{Field: "CheckOptions.Type", Problem: "is neither Container nor VirtualMachine: " + string(opts.Type)}
	}
	s, err := newScanner(ctx, image, rootfs, opts.MaxSize)
	if err != nil {
		return nil, err
	}
	s.check, s.sum = true, newHash()
	c := checker{scanner: s}
	if c.imageRead, err = c.scanFile(image, ImagePart, &s.info.Image); err != nil {
		return nil, err
	}
	c.checkTemplates()
	c.checkNames()
	if rootfs != nil {
		s.info.Rootfs = &File{}
		if c.rootfsRead, err = c.scanFile(rootfs, RootfsPart, s.info.Rootfs); err != nil {
			return nil, err
		}
		c.checkNames()
	}
	s.conclude()
	c.checkParts(opts.Type)
	if s.info.Size >= 0 {
		s.info.Fingerprint = hex.EncodeToString(s.sum.Sum(nil))
	}
	return &Report{Info: &s.info, Problems: s.problems, Omitted: s.omitted}, nil
}

// CheckFiles is [Check] of the files with these names. rootfs is empty for a unified image.
func CheckFiles(ctx context.Context, image, rootfs string, opts *CheckOptions) (*Report, error) {
	var report *Report
	err := withFiles(image, rootfs, func(first, second io.Reader, _ [2]int64) error {
		var err error
		report, err = Check(ctx, first, second, opts)
		return err
	})
	return report, err
}

// checker adds to a scanner what follows from both files.
type checker struct {
	*scanner
	imageRead, rootfsRead bool // without a problem that has ended the reading
}

// scanFile reads a file. What ends the reading becomes a problem of the report.
func (c *checker) scanFile(r io.Reader, part Part, file *File) (read bool, err error) {
	err = c.scan(r, part, file)
	var p *Problem
	if errors.As(err, &p) {
		c.report(*p)
		return false, nil
	}
	return err == nil, err
}

// checkTemplates reports the templates of metadata.yaml that the tarball does not contain.
func (c *checker) checkTemplates() {
	if c.info.Metadata == nil || !c.imageRead || c.names.full {
		return
	}
	for _, target := range sortedKeys(c.info.Metadata.Templates) {
		template := c.info.Metadata.Templates[target].Template
		if template != "" && !c.names.has(c.names.templates, template) {
			c.reportFile(BadTemplate, Regretted, "metadata.yaml names the template %.100q for %.100q, which the tarball does not contain; add templates/%.100s", template, target, template)
		}
	}
}

// checkNames reports that not all names of a tarball were kept, and forgets them.
func (c *checker) checkNames() {
	if c.names.full {
		c.reportFile(TooLarge, Unchecked, "the tarball has more than %d templates or symbolic links that leave it; the rest was not checked", maxNames)
	}
	c.names = nameSet{seed: c.names.seed}
}

// checkParts reports parts that are missing, swapped or of another type.
func (c *checker) checkParts(wanted ImageType) {
	info := &c.info
	c.part = ImagePart
	switch {
	case !c.imageRead:
	case !c.hasMetadata && c.rootfsMetadata:
		c.reportFile(Swapped, Refused, "the files are swapped: the second has metadata.yaml; give it as the first")
	case !c.hasMetadata && info.Image.Format != Tar:
		c.reportFile(NoMetadata, Refused, "the file is a root filesystem (%s); give it as the second file, and a metadata tarball as the first", info.Image.Format)
	case !c.hasMetadata && c.nearMetadata != "":
		c.reportFile(NoMetadata, Refused, "metadata.yaml is missing; rename %.100q to metadata.yaml, at the root of the tarball", c.nearMetadata)
	case !c.hasMetadata:
		c.reportFile(NoMetadata, Refused, "metadata.yaml is missing at the root of the tarball; for a root filesystem, give a metadata tarball as the first file")
	case info.Rootfs == nil && !c.hasRootfs:
		c.reportFile(NoRootfs, Refused, "the root filesystem is missing; add a directory rootfs (of a virtual machine: rootfs.img), or give the second file")
	case info.Rootfs != nil && c.hasRootfs:
		c.reportFile(AmbiguousRootfs, Regretted, "the tarball has a root filesystem, and there is a second file; give the tarball alone, or remove it from the tarball")
	}
	if info.Rootfs == nil || !c.rootfsRead {
		return
	}
	c.part = RootfsPart
	disk := info.Type == VirtualMachine
	switch {
	case info.Rootfs.Compression != None && info.Rootfs.Format != Tar:
		c.reportFile(UnknownFormat, Regretted, "a %s must not be compressed by %s, as the daemons take it for a tarball; decompress it", info.Rootfs.Format, info.Rootfs.Compression)
	case disk && wanted == Container:
		c.reportFile(WrongType, Regretted, "the file is a disk (%s), and the type is container; give the type virtual-machine", info.Rootfs.Format)
	case !disk && wanted == VirtualMachine:
		c.reportFile(WrongType, Regretted, "the file is a %s, and the type is virtual-machine; give a qcow2 disk, or the type container", info.Rootfs.Format)
	}
}
