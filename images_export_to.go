package lxd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/golxd/lxd/internal/partfile"
	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/rangeread"
	"github.com/golxd/lxd/internal/retry"
)

// ExportToOptions are the options of [Image.ExportTo].
type ExportToOptions struct {
	// Name is the name of the files, without the extension. The default is the
	// fingerprint. It must be a plain file name. Use another name for each image: an
	// export replaces existing files of the same name and extension, and leaves
	// those with other extensions. If the file system or Windows does not allow the
	// name, the error matches [ErrInvalid].
	Name string
	// Sync makes the files durable (fsync) before they get their final names, and
	// the names (fsync of the directory) before ExportTo returns, even if the files
	// already exist. On Windows only the files are synced. The default is to leave
	// that to the system.
	Sync bool
	// Connections is the number of connections over which a unified image is
	// downloaded, each a part of it by Range requests. The default is 1, the maximum
	// 64. More connections help on a lossy link, as the server's congestion control
	// (usually cubic) takes loss for congestion: 64 MiB over 200 Mbit/s with a
	// packet loss of 0.1 % took a third of the time or less (LXD 5.0.2, 8
	// connections, 10 and 50 ms; docs/performance.md). On a link without loss they
	// gain little or cost time, whatever its latency.
	//
	// No part is smaller than 1 MiB, and Options.RetryTimeout applies to each. The
	// content is verified when it is complete. A split image is downloaded over one
	// connection, as is any image from a server that ignores ranges; that takes one
	// more request.
	Connections int
	// Progress receives the phases verify (of existing files, and of content that
	// came over several connections) and receive.
	Progress func(Progress)
}

// ExportedFiles are the paths of an image's files: Image of a unified image, Metadata
// and Rootfs of a split one. The others are empty.
type ExportedFiles struct {
	Image    string
	Metadata string // the metadata tarball
	Rootfs   string // the root file system, or the disk of a virtual machine
}

// Verify reads the files and checks that they are the image with this fingerprint,
// without a server. If they are not, the error is a [*FingerprintError]. The files may
// be any that belong together, wherever they come from.
func (f *ExportedFiles) Verify(ctx context.Context, fingerprint string) error {
	if err := checkContext(ctx); err != nil {
		return err
	}
	if err := checkFullFingerprint("fingerprint", fingerprint); err != nil {
		return err
	}
	var paths []string
	switch {
	case f != nil && f.Image != "" && f.Metadata == "" && f.Rootfs == "":
		paths = []string{f.Image}
	case f != nil && f.Image == "" && f.Metadata != "" && f.Rootfs != "":
		paths = []string{f.Metadata, f.Rootfs}
	default:
		return invalid("files", "must have Image, or Metadata and Rootfs")
	}
	got, err := partfile.Hash(ctx, paths...)
	if err != nil {
		return err
	}
	if want := strings.ToLower(fingerprint); got != want {
		return &FingerprintError{Want: want, Got: got}
	}
	return nil
}

// ExportTo writes the image to files in an existing directory: NAME.tar.gz for a
// unified image, NAME.meta.tar.xz and NAME.squashfs (or .qcow2, .tar.xz) for a
// split one; the content determines the extensions. The files get these names only
// when they are complete and verified. If they already exist, they are verified
// and nothing is downloaded; the directory may then be read-only.
//
// The files of a public image have the mode 0644, less the umask, those of
// another image 0600. During the download the content is in FINGERPRINT.partial,
// the rootfs of a split image in FINGERPRINT.rootfs.partial. If the download of
// a unified image, or the process, ends early, its partial file remains, and the
// next ExportTo to the directory resumes it. A split image starts over, within one
// call until Options.RetryTimeout has passed. Of two concurrent calls for one image
// and directory, one waits and finds the files of the other.
//
// Files that others can change are neither resumed nor accepted as the image: new
// files replace them, and their content is not changed. A partial file must belong
// to this user, have one name, and be writable by nobody else; a finished file must
// be writable by nobody else, and belong to this user, to root or to the
// directory's owner. (On Windows only links are checked; the directory's access
// list determines who may write.) Whoever may write to the directory can still
// replace files after they were verified: use one of your own.
//
// If the length of the content is not that of the image, the error is a
// [*FingerprintError]; if the server sends the length in advance, nothing is
// written. On Linux the space for a file is reserved before it is written, if the
// file system supports that and the content comes over one connection: if there is
// not enough, the error wraps syscall.ENOSPC, or for a quota syscall.EDQUOT, and
// nothing of that file was written.
func (i *Image) ExportTo(ctx context.Context, dir string, opts *ExportToOptions) (*ExportedFiles, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := i.checkExists(); err != nil {
		return nil, err
	}
	var o ExportToOptions
	if opts != nil {
		o = *opts
	}
	switch {
	case dir == "":
		return nil, invalid("dir", `is empty; "." is the current directory`)
	case o.Name == "":
		o.Name = i.Fingerprint
	case checkFilename("", o.Name) != nil:
		return nil, invalid("ExportToOptions.Name", "%q is not a plain file name", o.Name)
	}
	if why := partfile.CheckName(dir, o.Name); why != "" {
		return nil, invalid("ExportToOptions.Name", "%q %s", o.Name, why)
	}
	if o.Connections < 0 || o.Connections > maxConnections {
		return nil, invalid("ExportToOptions.Connections", "%d is not between 0 and %d", o.Connections, maxConnections)
	}
	x := &exportJob{ExportToOptions: o, ctx: ctx, image: i, retries: i.client.t.retry.Begin()}
	x.files = &partfile.Image{Dir: dir, Name: o.Name, Fingerprint: i.Fingerprint, Size: i.Size, Public: i.Public, Sync: o.Sync, Verifying: x.verifying}
	partial, err := x.files.Open(ctx)
	if err != nil {
		return x.presentOr(fmt.Errorf("open the partial file: %w", err)) //nolint:contextcheck // It is in x.
	}
	x.partial = partial
	defer func() { _ = partial.Close() }() // after a panic, of a callback, too
	x.meter = meter(PhaseReceive, max(i.Size, -1), o.Progress)
	defer x.meter.Stop()
	files, err := x.run() //nolint:contextcheck // It is in x.
	if errors.Is(err, ErrUnavailable) && !x.split && !x.noRanges {
		err = fmt.Errorf("%w; call ExportTo again to resume the download", err)
	}
	if cerr := partial.Close(); err == nil && cerr != nil {
		return nil, cerr
	}
	return exported(files), err
}

func exported(files *partfile.Files) *ExportedFiles {
	if files == nil {
		return nil
	}
	if files.Rootfs != "" {
		return &ExportedFiles{Metadata: files.Image, Rootfs: files.Rootfs}
	}
	return &ExportedFiles{Image: files.Image}
}

// exportJob is one call of ExportTo: the transfer to the files of internal/partfile.
type exportJob struct {
	ExportToOptions
	ctx     context.Context //nolint:containedctx // of the one call
	image   *Image
	files   *partfile.Image
	partial *partfile.File
	meter   *progress.Meter

	resumed  bool // the last attempt resumed a partial file
	split    bool // the last attempt was for a split image
	noRanges bool // the server ignores ranges
	retries  *retry.Retries
}

// verifying begins the phase verify, and returns the function that counts its bytes.
func (x *exportJob) verifying(size int64) (count func(int)) {
	x.meter.Phase(PhaseVerify, 0, size)
	return x.meter.Add
}

func (x *exportJob) run() (*partfile.Files, error) {
	files, err := x.files.Find(x.ctx)
	if errors.Is(err, partfile.ErrNotOurs) {
		err = nil // they are replaced
	}
	if err != nil || files != nil {
		if files != nil {
			x.partial.Remove()
		}
		return files, err
	}
	for {
		files, err := x.fetch()
		if err == nil {
			return files, nil
		}
		if err := x.pauseBeforeRetry(err); err != nil {
			return nil, err
		}
	}
}

// pauseBeforeRetry returns nil if the failed attempt may be repeated from the
// beginning: the partial file of an earlier process may have wrong content, and a
// split image cannot be resumed. Otherwise it returns the error.
func (x *exportJob) pauseBeforeRetry(err error) error {
	var failed *FingerprintError
	switch {
	case !errors.As(err, &failed):
		return err
	case failed.Got != "" && x.resumed:
		return retry.Pause(x.ctx, 0, err)
	case failed.Got != "", !x.split, !retry.Transient(err):
		return err
	}
	return x.retries.Pause(x.ctx, err)
}

// fetch is one attempt to get what is missing.
func (x *exportJob) fetch() (*partfile.Files, error) {
	var parts []*partfile.Part
	if !x.noRanges {
		var err error
		if parts, err = x.partial.Parts(x.Connections); err != nil {
			return nil, err
		}
	}
	if parts != nil {
		files, err := x.fetchParts(parts)
		if !errors.Is(err, rangeread.ErrNoRange) {
			return files, err
		}
		x.noRanges = true
	}
	sum := sha256.New()
	have, err := x.partial.Resume(x.ctx, sum, x.image.Size)
	if err != nil {
		return nil, err
	}
	if have > 0 && have == x.image.Size {
		// An earlier call ended between the last byte and the rename.
		if hex.EncodeToString(sum.Sum(nil)) == x.image.Fingerprint {
			return x.partial.Publish(x.ctx)
		}
		sum, have = sha256.New(), 0
	}
	export, err := x.image.export(x.ctx, sum, have, x.meter, false)
	if errors.Is(err, rangeread.ErrNoRange) && have > 0 {
		// The server ignores ranges, or the image is split: start over.
		sum, have = sha256.New(), 0
		export, err = x.image.export(x.ctx, sum, 0, x.meter, false)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = export.Close() }()
	x.resumed, x.split = have > 0, export.Split()
	if err := x.partial.Begin(have); err != nil {
		return nil, err
	}
	if export.Split() {
		return x.writeSplit(export)
	}
	if err := x.partial.Reserve(x.ctx, x.image.Size-have); err != nil {
		return nil, err
	}
	if _, err := export.WriteTo(x.partial); err != nil {
		var corrupt *FingerprintError
		if errors.As(err, &corrupt) && corrupt.Got != "" {
			return nil, errors.Join(err, x.partial.Discard())
		}
		return nil, err
	}
	return x.partial.Publish(x.ctx)
}

// writeSplit writes the two files of a split image.
func (x *exportJob) writeSplit(export *Export) (files *partfile.Files, err error) {
	defer func() {
		if err != nil {
			// There is nothing to resume.
			err = errors.Join(err, x.partial.Discard())
		}
	}()
	rootfs, err := x.partial.Rootfs(x.ctx)
	if err != nil {
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
	if err := rootfs.Reserve(x.ctx, x.image.Size-n); err != nil {
		return nil, err
	}
	if _, err := export.WriteTo(rootfs); err != nil {
		return nil, err
	}
	return x.partial.Publish(x.ctx)
}

// presentOr returns the files of the image if they already exist in a directory in
// which no partial file can be opened. Otherwise it returns err.
func (x *exportJob) presentOr(err error) (*ExportedFiles, error) {
	if x.ctx.Err() != nil || !x.files.MayBeThere() {
		return nil, err
	}
	x.meter = meter(PhaseVerify, max(x.image.Size, -1), x.Progress)
	defer x.meter.Stop()
	files, ferr := x.files.Find(x.ctx)
	if files != nil {
		return exported(files), nil
	}
	return nil, errors.Join(err, ferr)
}
