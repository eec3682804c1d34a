package lxd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/golxd/lxd/internal/partfile"
	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/rangeread"
	"github.com/golxd/lxd/internal/retry"
)

// ExportToOptions say how to export into a folder.
type ExportToOptions struct {
	// Name is what the files are called, without the extension. Default: the
	// fingerprint. It must be a plain file name. It is for one image: of two
	// that are exported under one name, the second replaces those files of the
	// first whose extension is the same, and leaves the others. A name that the
	// file system or Windows does not take is an [ErrInvalid].
	Name string
	// Sync makes the files durable (fsync) before they get their final names,
	// and the names (fsync of the directory) before ExportTo returns; so too if
	// they are there already. Windows does the first only. Default: that is left
	// to the system.
	Sync bool
	// Connections is how many connections fetch a unified image at once, each
	// a part of it by a Range request. Default: 1; at most 64. More pay on a
	// line that loses packets, where the server's congestion control (cubic,
	// usually) takes that for congestion: 64 MiB over 200 Mbit/s with one packet
	// in a thousand lost took a third of the time and less (LXD 5.0.2, 8
	// connections, 10 and 50 ms; docs/performance.md). On a line that loses
	// none they gain little or cost time, long as it may be.
	//
	// No part is smaller than 1 MiB, and Options.RetryTimeout counts for each. The
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

// ExportTo writes the image into files of a directory that exists: NAME.tar.gz
// for a unified image, NAME.meta.tar.xz and NAME.squashfs (or .qcow2, .tar.xz)
// for a split one; the extensions follow the content. They are verified, and get
// these names only when they are whole. If they are there already, they are
// verified and nothing is fetched; the directory may be read-only then.
//
// The files of a public image have the mode 0644, less the umask, those of
// another image 0600. While it arrives the content is in FINGERPRINT.partial,
// the rootfs of a split image in FINGERPRINT.rootfs.partial. If the transfer of
// a unified image ends early, or the process does, its file stays, and the next
// ExportTo into the directory goes on from it. A split image starts over, within
// one call for Options.RetryTimeout. Of two calls for one image and
// directory at once, one waits and finds the files of the other.
//
// Files that others can change are neither gone on from nor taken for the
// image: new ones take their place, and what they were is not touched. A
// partial file must be this user's, have one name and give nobody else the
// permission to write; a finished file must give nobody else that permission, and
// be this user's, root's or the directory's owner's. (On Windows only links are
// looked at; the directory's access list decides who may write.) Whoever may
// write to the directory can still replace files after they were verified: use
// one of your own.
//
// A content that is not as long as the image is a [*FingerprintError]; if its
// length is announced, nothing is written. On Linux the room for a file is
// reserved before it is written, where the file system knows how and the content
// comes over one connection: if there is too little, the error wraps
// syscall.ENOSPC, or syscall.EDQUOT where that is a quota's, and nothing of that
// file was written.
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
	if cerr := partial.Close(); err == nil && cerr != nil {
		return nil, cerr
	}
	return exported(files), err
}

func exported(files *partfile.Files) *ExportedFiles {
	if files == nil {
		return nil
	}
	return &ExportedFiles{Image: files.Image, Rootfs: files.Rootfs}
}

// exportTo is one call of ExportTo: the transfer into what internal/partfile
// keeps on the disk.
type exportJob struct {
	ExportToOptions
	ctx     context.Context //nolint:containedctx // of the one call
	image   *Image
	files   *partfile.Image
	partial *partfile.File
	meter   *progress.Meter

	resumed  bool // the last attempt went on from what was there
	oneShot  bool // the last attempt was for a split image
	noRanges bool // the server ignored a range
	retries  *retry.Retries
}

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

// again returns nil when a failed attempt may be repeated from the beginning:
// what an earlier process left may not be what was sent to it, and of a split
// image no part can be asked for. Otherwise it returns why not.
func (x *exportJob) pauseBeforeRetry(err error) error {
	var failed *FingerprintError
	switch {
	case !errors.As(err, &failed):
		return err
	case failed.Got != "" && x.resumed:
		return retry.Pause(x.ctx, 0, err)
	case failed.Got != "", !x.oneShot, !retry.Transient(err):
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
	have, err := x.partial.Resume(x.ctx, sum)
	if err != nil {
		return nil, err
	}
	if have > 0 && have == x.image.Size {
		// An earlier call ended between the last byte and the renaming.
		if hex.EncodeToString(sum.Sum(nil)) == x.image.Fingerprint {
			return x.partial.Publish(x.ctx)
		}
		sum, have = sha256.New(), 0
	}
	export, err := x.image.export(x.ctx, sum, have, x.meter)
	if errors.Is(err, rangeread.ErrNoRange) && have > 0 {
		// This server, or this kind of image, starts over.
		sum, have = sha256.New(), 0
		export, err = x.image.export(x.ctx, sum, 0, x.meter)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = export.Close() }()
	x.resumed, x.oneShot = have > 0, export.Split()
	if err := x.partial.Begin(have); err != nil {
		return nil, err
	}
	if export.Split() {
		return x.split(export)
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

// split writes the two files of a split image.
func (x *exportJob) split(export *Export) (files *partfile.Files, err error) {
	defer func() {
		if err != nil {
			// There is nothing to go on from.
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

// presentOr is for a folder in which no partial file can be opened: it may hold
// the files, and if not, the error is err.
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
