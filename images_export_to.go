package lxd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/lockfile"
	"github.com/golxd/lxd/internal/prealloc"
	"github.com/golxd/lxd/internal/progress"
)

// ExportToOptions say how to export into a folder.
type ExportToOptions struct {
	// Name is what the files are called, without the extension. Default: the
	// fingerprint. It must be a plain file name. It is for one image: of two
	// that are exported under one name, the second replaces those files of the
	// first whose extension is the same, and leaves the others.
	Name string
	// Sync makes the files durable (fsync) before they get their final names.
	// Default: that is left to the system.
	Sync bool
	// Connections is how many connections fetch a unified image at once, each
	// a part of it by a Range request. Default: 1; at most 64. More pay on a
	// line that loses packets, where the server's congestion control (cubic,
	// usually) takes that for congestion: 64 MiB over 200 Mbit/s with one packet
	// in a thousand lost took a third of the time and less (LXD 5.0.2, 8
	// connections, 10 and 50 ms; docs/performance.md). On a line that loses
	// none they gain little or cost time, long as it may be.
	//
	// No part is smaller than 1 MiB, and Options.Retries counts for each. The
	// content is verified when all of it is there. A split image comes over one
	// connection, as does what a server sends that ignores ranges; that takes
	// one request more.
	Connections int
	// Progress is told of the phases verify (of what is there already, and of
	// what came over several connections) and receive.
	Progress func(Progress)
}

// ExportedFiles are the paths of an image's files.
type ExportedFiles struct {
	// Image is the file of a unified image, or the metadata tarball of a split
	// one.
	Image string
	// Rootfs is the second file of a split image, else empty.
	Rootfs string
}

// ExportTo writes the image into files of a folder that exists: NAME.tar.gz for
// a unified image, NAME.meta.tar.xz and NAME.squashfs (or .qcow2, .tar.xz) for
// a split one; the extensions follow the content. They are verified, and get
// these names only when they are whole. If they are there already, they are
// verified and nothing is fetched; the folder may be read-only then.
//
// On Linux the room for a file is reserved before it is written, where the file
// system knows how and the content comes over one connection: if there is too
// little, the error wraps syscall.ENOSPC, or syscall.EDQUOT where that is a
// quota's, and nothing of that file was written.
//
// While it arrives the content is in FINGERPRINT.partial, the rootfs of a
// split image in FINGERPRINT.rootfs.partial. If the transfer of a unified
// image ends early, or the process does, its file stays, and the next ExportTo
// into the folder goes on from it. A split image starts over, within one call
// as often as Options.Retries says. Of two calls for one image and folder at
// once, one waits and finds the files of the other.
func (i *Image) ExportTo(ctx context.Context, dir string, opts *ExportToOptions) (*ExportedFiles, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	var o ExportToOptions
	if opts != nil {
		o = *opts
	}
	switch {
	case dir == "":
		return nil, invalid("dir", "is empty")
	case o.Name == "":
		o.Name = i.Fingerprint
	case o.Name == "." || o.Name == ".." || strings.ContainsAny(o.Name, `/\`) || filepath.Base(o.Name) != o.Name || checkFilename("", o.Name) != nil:
		return nil, invalid("ExportToOptions.Name", "%q is not a plain file name", o.Name)
	}
	if o.Connections < 0 || o.Connections > maxConnections {
		return nil, invalid("ExportToOptions.Connections", "%d is not between 0 and %d", o.Connections, maxConnections)
	}
	x := &exportTo{ExportToOptions: o, ctx: ctx, image: i, dir: dir}
	partial, err := lockfile.Open(ctx, x.partialPath(), exportedMode)
	if err != nil {
		return x.presentOr(fmt.Errorf("open the partial file: %w", err)) //nolint:contextcheck // It is in x.
	}
	x.partial = partial
	x.meter = meter(PhaseReceive, max(i.Size, -1), o.Progress)
	defer x.meter.Stop()
	files, err := x.run() //nolint:contextcheck // It is in x.
	if cerr := partial.Close(); err == nil && cerr != nil {
		return nil, cerr
	}
	return files, err
}

// exportedMode are the permissions of an exported file, before the umask.
const exportedMode = 0o644

// exportTo is one call of ExportTo.
type exportTo struct {
	ExportToOptions
	ctx     context.Context //nolint:containedctx // of the one call
	image   *Image
	dir     string
	partial *os.File
	meter   *progress.Meter

	resumed  bool // the last attempt went on from what was there
	oneShot  bool // the last attempt was for a split image
	noRanges bool // the server ignored a range
	attempts int
}

func (x *exportTo) partialPath() string {
	return filepath.Join(x.dir, x.image.Fingerprint+".partial")
}

func (x *exportTo) rootfsPartialPath() string {
	return filepath.Join(x.dir, x.image.Fingerprint+".rootfs.partial")
}

func (x *exportTo) run() (*ExportedFiles, error) {
	files, err := x.present()
	if err != nil || files != nil {
		if files != nil {
			_ = os.Remove(x.partialPath()) // what stays does no harm
		}
		return files, err
	}
	for {
		files, err := x.fetch()
		if err == nil {
			return files, nil
		}
		again, wait := x.again(err)
		if again {
			err = pause(x.ctx, wait, err)
		}
		if err != nil {
			x.leave()
			return nil, err
		}
	}
}

// again says whether a failed attempt is worth another from the beginning: what
// an earlier process left may not be what was sent to it, and of a split image
// no part can be asked for.
func (x *exportTo) again(err error) (bool, time.Duration) {
	var failed *FingerprintError
	if !errors.As(err, &failed) {
		return false, 0
	}
	if failed.Got != "" {
		return x.resumed, 0
	}
	if !x.oneShot || x.attempts >= x.image.client.t.retries {
		return false, 0
	}
	x.attempts++
	return true, backoff(x.attempts - 1)
}

// fetch is one attempt to get what is missing.
func (x *exportTo) fetch() (*ExportedFiles, error) {
	parts, err := x.parts()
	if err != nil {
		return nil, err
	}
	if parts != nil {
		files, err := x.fetchParts(parts)
		if !errors.Is(err, errNoRange) {
			return files, err
		}
		x.noRanges = true
	}
	sum := sha256.New()
	have, err := x.resumable(sum)
	if err != nil {
		return nil, err
	}
	if have > 0 && have == x.image.Size {
		// An earlier call ended between the last byte and the renaming.
		if hex.EncodeToString(sum.Sum(nil)) == x.image.Fingerprint {
			return x.unified()
		}
		sum, have = sha256.New(), 0
	}
	export, err := x.image.export(x.ctx, sum, have, x.meter)
	if errors.Is(err, errNoRange) && have > 0 {
		// This server, or this kind of image, starts over.
		sum, have = sha256.New(), 0
		export, err = x.image.export(x.ctx, sum, 0, x.meter)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = export.Close() }()
	x.resumed, x.oneShot = have > 0, export.Split()
	if err := x.cut(have); err != nil {
		return nil, err
	}
	if _, err := x.partial.Seek(have, io.SeekStart); err != nil {
		return nil, err
	}
	if export.Split() {
		return x.split(export)
	}
	if err := prealloc.Reserve(x.ctx, x.partial, have, export.Size()-have); err != nil {
		return nil, err
	}
	if _, err := export.WriteTo(x.partial); err != nil {
		var corrupt *FingerprintError
		if errors.As(err, &corrupt) && corrupt.Got != "" {
			return nil, errors.Join(err, x.cut(0))
		}
		return nil, err
	}
	return x.unified()
}

// cut makes the partial file no longer than size.
func (x *exportTo) cut(size int64) error { return cutFile(x.partial, size) }

// cutFile makes a file no longer than size. One that is empty already is left
// alone: ext4 writes a file that was ever truncated to nothing to the disk when
// it is closed, which takes as long as the transfer.
func cutFile(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil || info.Size() <= size {
		return err
	}
	return f.Truncate(size)
}

// unified publishes the file of a unified image.
func (x *exportTo) unified() (*ExportedFiles, error) {
	path, err := x.finish(x.partial, x.Name)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(x.partial.Name(), path); err != nil {
		return nil, err
	}
	return &ExportedFiles{Image: path}, nil
}

// leave is for the partial file of a call that failed: if it holds nothing to go
// on from it is removed, and otherwise takes no more room than what it holds.
func (x *exportTo) leave() {
	info, err := x.partial.Stat()
	switch {
	case err != nil: // the error that ended the call matters more
	case info.Size() == 0:
		_ = os.Remove(x.partialPath())
	default:
		_ = x.partial.Truncate(info.Size()) // gives back what was reserved behind it
	}
}

// resumable hashes what an earlier call left, and tells how much of it there
// is. What is longer than the image is not part of it.
func (x *exportTo) resumable(sum hash.Hash) (int64, error) {
	info, err := x.partial.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	if size == 0 || x.image.Size <= 0 || size > x.image.Size {
		return 0, x.cut(0)
	}
	x.meter.Phase(PhaseVerify, 0, size)
	return size, hashFile(x.ctx, sum, x.partial, x.meter.Add)
}

// split writes the two files of a split image.
func (x *exportTo) split(export *Export) (files *ExportedFiles, err error) {
	rootfs, err := lockfile.Open(x.ctx, x.rootfsPartialPath(), exportedMode)
	if err != nil {
		return nil, fmt.Errorf("open the partial file of the rootfs: %w", err)
	}
	defer func() {
		_ = rootfs.Close()
		if err != nil {
			// There is nothing to go on from.
			_ = os.Remove(x.rootfsPartialPath())
			err = errors.Join(err, x.cut(0))
		}
	}()
	if err := cutFile(rootfs, 0); err != nil {
		return nil, err
	}
	n, err := export.WriteTo(x.partial)
	if err != nil {
		return nil, err
	}
	if err := export.Next(); err != nil {
		if errors.Is(err, io.EOF) {
			err = &FingerprintError{Want: x.image.Fingerprint, Err: io.ErrUnexpectedEOF}
		}
		return nil, err
	}
	if err := prealloc.Reserve(x.ctx, rootfs, 0, x.image.Size-n); err != nil {
		return nil, err
	}
	if _, err := export.WriteTo(rootfs); err != nil {
		return nil, err
	}
	return x.pair(rootfs)
}

// pair publishes the two files of a split image. Those of another image must
// not be mixed with them: only one call at a time has the name, and no metadata
// is there while the rootfs is replaced, so that if this ends early they are not
// taken for a pair.
func (x *exportTo) pair(rootfs *os.File) (*ExportedFiles, error) {
	var files ExportedFiles
	var err error
	if files.Image, err = x.finish(x.partial, x.Name+".meta"); err != nil {
		return nil, err
	}
	if files.Rootfs, err = x.finish(rootfs, x.Name); err != nil {
		return nil, err
	}
	lock, err := lockfile.Open(x.ctx, filepath.Join(x.dir, x.Name+".lock.partial"), exportedMode)
	if err != nil {
		return nil, fmt.Errorf("lock the name %s: %w", x.Name, err)
	}
	defer func() {
		_ = os.Remove(lock.Name())
		_ = lock.Close()
	}()
	if err := os.Remove(files.Image); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.Rename(rootfs.Name(), files.Rootfs); err != nil {
		return nil, err
	}
	if err := os.Rename(x.partial.Name(), files.Image); err != nil {
		return nil, errors.Join(err, os.Remove(files.Rootfs))
	}
	return &files, nil
}

// finish does for a whole file what comes before it gets its final name, and
// gives that.
func (x *exportTo) finish(f *os.File, name string) (string, error) {
	ext, err := extension(f)
	if err != nil {
		return "", err
	}
	if x.Sync {
		if err := f.Sync(); err != nil {
			return "", err
		}
	}
	return filepath.Join(x.dir, name+ext), nil
}

// presentOr is for a folder in which no partial file can be opened: it may hold
// the files, and if not, the error is err.
func (x *exportTo) presentOr(err error) (*ExportedFiles, error) {
	if x.ctx.Err() != nil || len(x.candidates(x.Name)) == 0 {
		return nil, err
	}
	x.meter = meter(PhaseVerify, max(x.image.Size, -1), x.Progress)
	defer x.meter.Stop()
	files, perr := x.present()
	if files != nil {
		return files, nil
	}
	return nil, errors.Join(err, perr)
}

// present finds the files of an earlier call and verifies them. Files of these
// names with other content are not those of the image; they are replaced.
func (x *exportTo) present() (*ExportedFiles, error) {
	for _, path := range x.candidates(x.Name) {
		same, err := x.holdsImage(path)
		if err != nil {
			return nil, err
		}
		if same {
			return &ExportedFiles{Image: path}, nil
		}
	}
	for _, metadata := range x.candidates(x.Name + ".meta") {
		for _, rootfs := range x.candidates(x.Name) {
			same, err := x.holdsImage(metadata, rootfs)
			if err != nil {
				return nil, err
			}
			if same {
				return &ExportedFiles{Image: metadata, Rootfs: rootfs}, nil
			}
		}
	}
	return nil, nil
}

func (x *exportTo) candidates(name string) []string {
	var found []string
	for _, ext := range extensions() {
		path := filepath.Join(x.dir, name+ext)
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			found = append(found, path)
		}
	}
	return found
}

// holdsImage says whether the files are the image. The length is looked at
// first, as hashing takes long.
func (x *exportTo) holdsImage(paths ...string) (bool, error) {
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
	if x.image.Size > 0 && size != x.image.Size {
		return false, nil
	}
	x.meter.Phase(PhaseVerify, 0, size)
	sum := sha256.New()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		err = hashFile(x.ctx, sum, f, x.meter.Add)
		_ = f.Close()
		if err != nil {
			return false, err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)) == x.image.Fingerprint, nil
}

// hashFile hashes a file from its beginning, obeying ctx.
func hashFile(ctx context.Context, sum hash.Hash, f *os.File, count func(int)) error {
	block := make([]byte, 256<<10)
	var at int64
	for {
		if err := ctxerr.Of(ctx); err != nil {
			return fmt.Errorf("hash %s: %w", f.Name(), err)
		}
		n, err := f.ReadAt(block, at)
		sum.Write(block[:n])
		count(n)
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// formats are the kinds of file that images consist of, told by how they begin.
var formats = []struct {
	ext    string
	magic  string
	offset int64
}{
	{".tar.gz", "\x1f\x8b", 0},
	{".tar.xz", "\xfd7zXZ\x00", 0},
	{".tar.zst", "\x28\xb5\x2f\xfd", 0},
	{".tar.bz2", "BZh", 0},
	{".tar.lzma", "\x5d\x00\x00", 0},
	{".tar.lz4", "\x04\x22\x4d\x18", 0},
	{".squashfs", "hsqs", 0},
	{".qcow2", "QFI\xfb", 0},
	{".tar", "ustar", 257},
}

// unknownFormat is the extension of what is none of the formats.
const unknownFormat = ".img"

func extensions() []string {
	var list []string
	for _, f := range formats {
		list = append(list, f.ext)
	}
	return append(list, unknownFormat)
}

func extension(f *os.File) (string, error) {
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	head = head[:n]
	for _, format := range formats {
		if int64(len(head)) > format.offset && bytes.HasPrefix(head[format.offset:], []byte(format.magic)) {
			return format.ext, nil
		}
	}
	return unknownFormat, nil
}
