package imagefile

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// scanner reads the files of an image once, for Inspect and Check alike.
type scanner struct {
	ctx     context.Context
	maxSize int64
	check   bool // read all, and report whatever is wrong
	// each is called with each entry of a tarball, all of which are then read. Its error ends the reading, and is returned.
	// errStop ends it without an error.
	each  func(header *tar.Header, content io.Reader) error
	sum   hash.Hash // nil if no fingerprint is wanted
	now   time.Time
	split bool

	info     Info
	problems []*Problem
	omitted  int

	// Of the tarball that is being read.
	part        Part
	hasMetadata bool
	hasRootfs   bool // a directory rootfs, or rootfs.img
	disk        bool // rootfs.img
	names       nameSet
	// nearMetadata is an entry that may be meant as metadata.yaml; rootfsMetadata says that the second file has one.
	nearMetadata   string
	rootfsMetadata bool
	entry          string
	offset         int64
	total          int64 // the size of the files that were added to another image
}

// errStop is returned by scanner.each to end the reading.
var errStop = errors.New("stop")

// eachError is an error of scanner.each, which is not one of the file.
type eachError struct{ error }

// maxProblems limits the memory for problems, and what a reader of a report must read.
const maxProblems = 100

// report adds a problem.
func (s *scanner) report(p Problem) {
	if len(s.problems) == maxProblems {
		s.omitted++
		return
	}
	p.File = s.part
	s.problems = append(s.problems, &p)
}

// reportFile adds a problem of the file as a whole.
func (s *scanner) reportFile(kind ProblemKind, severity Severity, format string, args ...any) {
	s.report(Problem{Kind: kind, Severity: severity, Offset: -1, Message: fmt.Sprintf(format, args...)})
}

// reportEntry adds a problem of the entry of the tarball that is being read.
func (s *scanner) reportEntry(kind ProblemKind, format string, args ...any) {
	s.report(Problem{Kind: kind, Severity: Regretted, Entry: s.entry, Offset: s.offset, Message: fmt.Sprintf(format, args...)})
}

// unreadable is a problem that ends the reading of a file.
func unreadable(kind ProblemKind, offset int64, err error, message string) *Problem {
	p := &Problem{Kind: kind, Severity: Regretted, Offset: offset, Err: err, Message: message}
	if kind == TooLarge {
		p.Severity = Unchecked
	}
	return p
}

// scan reads one file. A *Problem is a file that cannot be read; other errors are those of the reader and the context.
func (s *scanner) scan(r io.Reader, part Part, file *File) error {
	s.part = part
	src := newSource(s.ctx, r, s.maxSize, s.sum)
	defer src.close()
	err := s.read(src, file)
	if failure := (eachError{}); errors.As(err, &failure) {
		if errors.Is(failure.error, errStop) {
			return nil
		}
		return failure.error
	}
	if err == nil && (s.sum != nil || s.check) {
		err = src.drain()
	}
	if failure := src.failure(); failure != nil {
		if s.each != nil {
			return fmt.Errorf("read the %s: %w", part, failure) // Pack names the package.
		}
		return fmt.Errorf("imagefile: read the %s: %w", part, failure)
	}
	file.Size = -1
	if errors.Is(src.err, io.EOF) {
		file.Size = src.count
	}
	var problem *Problem
	if errors.Is(err, errLimit) && !errors.As(err, &problem) {
		err = s.tooLarge(src)
	}
	if errors.As(err, &problem) {
		problem.File = part
	}
	return err
}

// read reads a file as far as it is needed.
func (s *scanner) read(src *source, file *File) error {
	in := bufio.NewReaderSize(src, 4096)
	head, err := in.Peek(headSize)
	if len(head) == 0 && errors.Is(err, io.EOF) {
		return s.empty()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	file.Compression, file.Format = detect(head)
	switch file.Format {
	case Qcow2:
		file.DiskSize = qcow2Size(head)
		if size := qcow2Needs(head); s.check && size > 0 {
			if err := src.drain(); err == nil && src.count < size {
				return unreadable(Cut, src.count, nil, fmt.Sprintf("the qcow2 has %d bytes, and tables up to %d; copy or create it again", src.count, size))
			}
		}
	case Squashfs:
		if size := squashfsSize(head); s.check && size > 0 {
			if err := src.drain(); err == nil && src.count < size {
				return unreadable(Cut, src.count, nil, fmt.Sprintf("the squashfs has %d bytes, and says that it has %d; copy or create it again", src.count, size))
			}
		}
	}
	if file.Compression == None && file.Format == "" {
		return s.unknown()
	}
	if file.Compression == None && file.Format != Tar {
		return nil
	}
	return s.unpack(in, file)
}

// tooLarge is the problem of a file that has more than MaxSize.
func (s *scanner) tooLarge(src *source) *Problem {
	p := unreadable(TooLarge, src.count, errLimit, fmt.Sprintf("the file is larger than %d bytes; raise MaxSize if that is right", s.maxSize))
	p.File = s.part
	return p
}

// empty is the problem of a file without a byte.
func (s *scanner) empty() *Problem {
	p := unreadable(Empty, 0, nil, "the file is empty")
	p.File = s.part
	if s.part == ImagePart {
		p.Severity = Refused
	}
	return p
}

// unknown is the problem of a file that is nothing which the daemons know.
func (s *scanner) unknown() *Problem {
	p := unreadable(UnknownFormat, -1, nil, "the file is not a tarball; an image is a tarball with metadata.yaml, compressed or not")
	p.File = s.part
	p.Severity = Refused
	if s.part == RootfsPart {
		p.Severity = Regretted
		p.Message = "the file is neither a squashfs, a tarball nor a disk with a boot record"
	}
	return p
}

// unpack reads a compressed file or a tarball.
func (s *scanner) unpack(in *bufio.Reader, file *File) error {
	unpacked, free, err := decompress(file.Compression, in)
	defer free()
	guard := &unpackedReader{ctx: s.ctx, in: unpacked, limit: s.maxSize}
	if err != nil {
		return s.broken(guard, err, true)
	}
	content := bufio.NewReaderSize(guard, 4096)
	head, err := content.Peek(headSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return s.broken(guard, err, true)
	}
	if file.Format = detectFormat(head); file.Format != "" && file.Format != Tar {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return s.broken(guard, io.ErrUnexpectedEOF, true)
	}
	if err := s.readTar(&blockReader{in: content, scanner: s}, file.Format == Tar); err != nil {
		return s.broken(guard, err, !s.found())
	}
	file.Format = Tar
	if s.check || s.each != nil {
		if _, err := io.Copy(io.Discard, content); err != nil { // The compressor's checksum follows.
			return s.broken(guard, err, false)
		}
	}
	return nil
}

// found says whether what the daemons look for in an upload was found.
func (s *scanner) found() bool {
	return s.part == RootfsPart || s.hasMetadata && (s.hasRootfs || s.split)
}

// broken turns an error of a decompressor or of the tarball into a problem.
func (s *scanner) broken(guard *unpackedReader, err error, refused bool) error {
	var p *Problem
	switch {
	case errors.As(err, &p):
		return p
	case s.ctx.Err() != nil:
		return fmt.Errorf("imagefile: read the %s: %w", s.part, ctxerr.Of(s.ctx))
	case errors.Is(err, errLimit):
		return unreadable(TooLarge, guard.count, err, fmt.Sprintf("the file, or what it unpacks to, is larger than %d bytes; raise MaxSize if that is right", s.maxSize))
	case errors.Is(err, io.ErrUnexpectedEOF), isCut(err):
		p = unreadable(Cut, guard.count, nil, "the file ends too early; copy or create it again")
	case isMemoryLimit(err):
		return unreadable(TooLarge, guard.count, err, fmt.Sprintf("the file needs a decompressor with a window of more than %d MiB; compress it again", maxWindow>>20))
	default:
		p = unreadable(Damaged, guard.count, err, "the file is damaged, or not a tarball; copy or create it again")
	}
	p.Entry = s.entry
	if refused && s.part == ImagePart {
		p.Severity = Refused
	}
	return p
}

// unpackedReader counts and limits what a decompressor returns.
type unpackedReader struct {
	ctx   context.Context
	in    io.Reader
	limit int64
	count int64
}

// Read implements io.Reader.
func (u *unpackedReader) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := u.in.Read(p)
	if u.count += int64(n); u.count > u.limit {
		return 0, errLimit
	}
	return n, err
}

// blockReader is what the tarball's reader reads. It limits the blocks of one header, as archive/tar reads headers that
// describe the next entry for ever.
type blockReader struct {
	in      io.Reader
	scanner *scanner
	count   int64
	headers int    // since the last entry; -1 for no limit
	last    []byte // the last block of a header
}

// maxHeaders is the number of blocks that the headers of one entry may have, among them those of a sparse file, each of
// which describes 21 pieces of it.
const maxHeaders = 8192

// Read implements io.Reader.
func (b *blockReader) Read(p []byte) (int, error) {
	if len(p) > 512 || b.headers < 0 {
		n, err := b.in.Read(p)
		b.count += int64(n)
		return n, err
	}
	n, err := io.ReadFull(b.in, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	b.count += int64(n)
	if b.last = append(b.last[:0], p[:n]...); err == nil {
		if b.headers++; b.headers > maxHeaders {
			return 0, &Problem{Kind: TooLarge, Severity: Unchecked, File: b.scanner.part, Offset: b.count, Message: fmt.Sprintf("the headers of an entry have more than %d blocks", maxHeaders)}
		}
	}
	return n, err
}

// readTar reads the entries of a tarball. magic says that it has the magic of one.
func (s *scanner) readTar(blocks *blockReader, magic bool) error {
	archive := tar.NewReader(blocks)
	for entries := 0; ; entries++ {
		blocks.headers = 0
		header, err := archive.Next()
		blocks.headers = -1
		if errors.Is(err, io.EOF) {
			if entries == 0 && !magic {
				return s.unknown()
			}
			s.entry = ""
			if (s.check || s.each != nil) && !isZero(blocks.last) {
				return unreadable(Cut, blocks.count, nil, "the tarball does not end with empty blocks; copy or create it again")
			}
			return nil
		}
		if err != nil {
			return err
		}
		s.entry, s.offset = strings.Clone(header.Name[:min(len(header.Name), maxName)]), blocks.count-512
		if err := s.readEntry(header, archive); err != nil {
			return err
		}
		if s.each != nil {
			content := &entryReader{in: archive}
			switch err := s.each(header, content); {
			case content.err != nil:
				return content.err
			case err != nil:
				return eachError{err}
			}
			continue
		}
		if !s.check && s.found() && s.part == ImagePart {
			return nil
		}
		if !s.check && s.part == RootfsPart {
			return nil
		}
	}
}

// entryReader keeps an error of the tarball apart from those of who reads it.
type entryReader struct {
	in  io.Reader
	err error
}

// Read implements io.Reader.
func (e *entryReader) Read(p []byte) (int, error) {
	n, err := e.in.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		e.err = err
	}
	return n, err
}

// isZero says whether a block is whole and empty.
func isZero(block []byte) bool {
	return len(block) == 512 && !slices.ContainsFunc(block, func(b byte) bool { return b != 0 })
}

// readEntry looks at one entry of a tarball. The daemons know these names with and without "./" before them, and no other
// spelling (LXD 5.0.2, Incus 6.0.4, Incus 7.0.2).
func (s *scanner) readEntry(header *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(header.Name, "./")
	if s.part == ImagePart {
		switch {
		case name == "metadata.yaml" && s.hasMetadata:
			if s.check {
				s.reportEntry(DuplicateMetadata, "the tarball has more than one metadata.yaml; the first counts; remove the others")
			}
		case name == "metadata.yaml":
			if err := s.readMetadata(content); err != nil {
				return err
			}
		case strings.HasPrefix(name, "rootfs/"):
			s.foundRootfs(false)
		case name == "rootfs.img":
			s.foundRootfs(true)
		}
	}
	if s.check {
		s.noteMetadata(name)
		s.checkEntry(name, header)
	}
	return nil
}

// noteMetadata notes where metadata.yaml is instead of where it belongs.
func (s *scanner) noteMetadata(name string) {
	if s.part == RootfsPart {
		s.rootfsMetadata = s.rootfsMetadata || name == "metadata.yaml"
	} else if s.nearMetadata == "" && !strings.HasPrefix(name, "rootfs/") && strings.EqualFold(path.Base(name), "metadata.yaml") {
		s.nearMetadata = strings.Clone(name[max(0, len(name)-maxName):])
	}
}

// maxName limits a name that is kept.
const maxName = 4096

// foundRootfs notes the root filesystem of a unified image, of which the first counts.
func (s *scanner) foundRootfs(disk bool) {
	if !s.hasRootfs {
		s.hasRootfs, s.disk = true, disk
	} else if s.check && disk != s.disk && !s.names.both {
		s.names.both = true
		s.reportEntry(AmbiguousRootfs, "the tarball has a directory rootfs and a disk rootfs.img; the first counts; remove the other")
	}
}

// readMetadata reads metadata.yaml.
func (s *scanner) readMetadata(content io.Reader) error {
	s.hasMetadata = true
	data, err := io.ReadAll(io.LimitReader(content, maxMetadata+1))
	if err != nil {
		return err
	}
	if len(data) > maxMetadata {
		return &Problem{Kind: TooLarge, Severity: Unchecked, Entry: s.entry, Offset: s.offset, Message: fmt.Sprintf("metadata.yaml has more than %d bytes", maxMetadata)}
	}
	s.info.MetadataYAML = data
	s.info.Metadata = parseMetadata(data, s.now, func(p Problem) {
		p.Entry, p.Offset = s.entry, s.offset
		s.report(p)
	})
	return nil
}

// nameSet are the names of a tarball that other entries may refer to, as hashes, so that its memory is limited.
type nameSet struct {
	seed      maphash.Seed
	templates map[uint64]struct{}
	links     map[uint64]struct{} // symbolic links that are absolute or contain ".."
	both      bool                // two root filesystems were reported
	full      bool
}

// maxNames limits the memory of a nameSet. A test lowers it.
var maxNames = 200_000

func (n *nameSet) add(set *map[uint64]struct{}, name string) {
	if *set == nil {
		*set = map[uint64]struct{}{}
	}
	if len(*set) == maxNames {
		n.full = true
		return
	}
	(*set)[maphash.String(n.seed, name)] = struct{}{}
}

func (n *nameSet) has(set map[uint64]struct{}, name string) bool {
	_, ok := set[maphash.String(n.seed, name)]
	return ok
}

// checkEntry reports what tar, as the daemons call it, refuses or drops.
func (s *scanner) checkEntry(name string, header *tar.Header) {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return // Its name, such as /tmp/GlobalHead.1, is that of no file.
	}
	escapes := func(p string) bool { return path.IsAbs(p) || strings.Contains("/"+p+"/", "/../") }
	if escapes(header.Name) {
		s.reportEntry(EscapingPath, `the path is absolute or contains ".."; tar strips or refuses it; use a path relative to the tarball's root`)
		return
	}
	name = path.Clean(name)
	for at := range len(name) {
		if name[at] == '/' && len(s.names.links) > 0 && s.names.has(s.names.links, name[:at]) {
			s.reportEntry(EscapingLink, "the entry is below the symbolic link %.100q, which leaves the directory; tar refuses it", name[:at])
			break
		}
	}
	switch header.Typeflag {
	case tar.TypeLink:
		if escapes(header.Linkname) {
			s.reportEntry(EscapingLink, `the hard link to %.100q is absolute or contains ".."; tar refuses it; use the path of an entry of the tarball`, header.Linkname)
		}
	case tar.TypeSymlink:
		if escapes(header.Linkname) {
			s.names.add(&s.names.links, name)
		}
	case tar.TypeChar, tar.TypeBlock:
		s.reportEntry(DeviceNode, "a device needs a daemon that runs as root, and is useless in an unprivileged container, which gets its devices from the daemon; remove it")
	}
	if strings.HasPrefix(name, "templates/") && s.part == ImagePart {
		s.names.add(&s.names.templates, strings.TrimPrefix(name, "templates/"))
	}
}

// conclude determines the layout and type, and reports what is missing.
func (s *scanner) conclude() {
	info := &s.info
	info.Size = info.Image.Size
	if info.Rootfs != nil {
		if info.Size = -1; info.Image.Size >= 0 && info.Rootfs.Size >= 0 {
			info.Size = info.Image.Size + info.Rootfs.Size
		}
	}
	switch {
	case info.Rootfs != nil:
		info.Layout, info.Type = Split, typeOf(info.Rootfs.Format)
	case s.hasMetadata && s.hasRootfs:
		info.Layout, info.Type = Unified, Container
		if s.disk {
			info.Type = VirtualMachine
		}
	case s.hasMetadata:
		info.Layout = MetadataOnly
	default:
		info.Layout, info.Type = RootfsOnly, typeOf(info.Image.Format)
	}
}

// typeOf returns the type of image that a root filesystem is for.
func typeOf(format Format) ImageType {
	switch format {
	case Qcow2, Raw:
		return VirtualMachine
	case Tar, Squashfs:
		return Container
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
