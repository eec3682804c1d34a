package lxd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"mime/multipart"
	"net"
	"sync"

	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/pump"
)

// ExportOptions are the options of [Image.Export].
type ExportOptions struct {
	// Progress receives the phase receive. The total is the length of the content,
	// or for a split image Image.Size, as the server does not send a length.
	Progress func(Progress)
}

// Export reads the content of an image while it arrives, and hashes it. The end of
// the content, 256 KiB or less, is held back until all has arrived and is verified.
// If it is not that of the image, or the connection breaks, Read and WriteTo return
// a [*FingerprintError] instead of the end, so that whoever receives what they
// return, such as the client of a web handler that sets Content-Length, receives
// no complete wrong copy.
//
// A split image is two files. Read returns io.EOF after each; Next starts the
// second. The fingerprint is that of both together, so the end of the second is held
// back. All of the first has then been returned: use it only when the second has been
// read without an error.
//
// An Export must be closed. Close may be called at any time and from any goroutine;
// the other methods are not safe for concurrent use.
type Export struct {
	image  *Image
	ctx    context.Context //nolint:containedctx // of the transfer, which is what an Export is
	cancel context.CancelFunc
	source io.ReadCloser
	hash   hash.Hash
	meter  *progress.Meter
	own    bool // the Export must stop the meter

	filename string
	size     int64
	left     int64 // the bytes of the image that are still to come, if its size is known
	split    bool
	form     *multipart.Reader
	part     int  // 0, and 1 for the rootfs of a split image
	ranged   bool // Files has been ranged over

	mu     sync.Mutex // guards the fields below, as Close may be called concurrently
	closed bool
	pump   *pump.Pump
	err    error // what every later Read returns
}

// Export starts to download the image's content. It returns when the server has
// begun to send. If the connection breaks, the download of a unified image resumes
// at that byte, until Options.RetryTimeout has passed without progress; 4 KiB of one
// response are progress. A split image cannot be resumed. The error of content that
// ends too early is a [*FingerprintError]; if the connection broke, it matches
// [ErrUnavailable] too, and wraps the cause. To read from an offset, see
// [Image.Content].
func (i *Image) Export(ctx context.Context, opts *ExportOptions) (*Export, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := i.checkExists(); err != nil {
		return nil, err
	}
	var o ExportOptions
	if opts != nil {
		o = *opts
	}
	m := meter(PhaseReceive, max(i.Size, -1), o.Progress)
	started := false
	defer func() {
		if !started { // after a panic, too
			m.Stop()
		}
	}()
	e, err := i.export(ctx, sha256.New(), 0, m, true)
	started = err == nil
	return e, err
}

// export downloads from an offset. h is the hash of the content before it. Unless
// own is set, the caller must stop the meter, and may read content that is wrong.
func (i *Image) export(ctx context.Context, h hash.Hash, offset int64, m *progress.Meter, own bool) (*Export, error) {
	ctx, cancel := context.WithCancel(ctx)
	e := &Export{image: i, ctx: ctx, cancel: cancel, hash: h, meter: m, own: own, left: i.Size - offset}
	if err := e.open(offset); err != nil {
		cancel()
		return nil, err
	}
	total := e.size
	if e.split && i.Size > 0 {
		total = i.Size
	}
	e.meter.Phase(PhaseReceive, offset, total)
	if err := e.begin(); err != nil {
		_ = e.Close()
		return nil, err
	}
	return e, nil
}

// open sends the request for the content from an offset.
func (e *Export) open(offset int64) error {
	src, err := e.image.content(e.ctx, offset, 0, false)
	if err != nil {
		return err
	}
	if err := e.accept(src); err != nil {
		_ = src.Close()
		return err
	}
	e.source = src
	return nil
}

// begin starts to read the current file.
func (e *Export) begin() error {
	src := io.Reader(e.source)
	if e.split {
		part, err := e.form.NextPart()
		if err != nil {
			return e.contentError(err)
		}
		e.filename = dispositionName(part.Header.Get("Content-Disposition"))
		src = part
	}
	if e.image.Size > 0 {
		src = &atMost{src, &e.left}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return e.errClosed()
	}
	// ExportTo writes to a file without its final name, and resumes what it has.
	var verify func() error
	if e.own && e.last() {
		verify = e.verify
	}
	e.pump, e.err = pump.Start(src, e.hash, e.meter.Counter(), verify), nil
	return nil
}

// check returns an error if the export does not come from an image.
func (e *Export) check() error {
	if e == nil || e.image == nil {
		return invalid("export", "does not come from Image.Export")
	}
	return nil
}

// current returns what Read and WriteTo read from, or the error that they return.
func (e *Export) current() (*pump.Pump, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pump, e.err
}

// ended records the error that ended the current file, and returns the error for
// the caller. If Close was called in the meantime, that is the cause.
func (e *Export) ended(err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		err = e.errClosed()
	}
	e.err = err
	return err
}

// errClosed is the error of the methods after Close.
func (e *Export) errClosed() error {
	return fmt.Errorf("export of image %s: %w", e.image.Fingerprint, net.ErrClosed)
}

// atMost returns an error if the server sends more than the image's size: without
// a length, the content could fill the disk before its hash shows that it is wrong.
type atMost struct {
	r    io.Reader
	left *int64
}

func (a *atMost) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if *a.left -= int64(n); *a.left < 0 {
		return n + int(*a.left), fmt.Errorf("%w: the server sends more bytes than the image has", ErrBadResponse)
	}
	return n, err
}

// Split reports whether the image is two files, the metadata tarball and the
// rootfs.
func (e *Export) Split() bool { return e != nil && e.split }

// Filename returns the server's name of the current file, without directories. It
// must not be used as a path without a check. It may be empty.
func (e *Export) Filename() string {
	if e == nil {
		return ""
	}
	return e.filename
}

// Size returns the size of the current file in bytes, or -1 if the server does not
// send it (a split image).
func (e *Export) Size() int64 {
	if e == nil {
		return -1
	}
	return e.size
}

// Read reads the current file.
func (e *Export) Read(p []byte) (int, error) {
	pump, err := e.current()
	if err != nil {
		return 0, err
	}
	n, err := pump.Read(p)
	if err != nil {
		err = e.ended(e.end(err))
	}
	return n, err
}

// WriteTo writes the rest of the current file to w, in large blocks.
func (e *Export) WriteTo(w io.Writer) (int64, error) {
	pump, err := e.current()
	if err == io.EOF {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var toErr error
	n, err := pump.WriteTo(writerErr{w, &toErr})
	switch {
	case toErr != nil:
		return n, toErr // of w; the Export itself has not failed
	case err == nil:
		err = io.EOF
	}
	if err = e.ended(e.end(err)); err == io.EOF {
		err = nil
	}
	return n, err
}

// writerErr records the error of the writer, to distinguish it from one of the
// source.
type writerErr struct {
	w   io.Writer
	err *error
}

func (w writerErr) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	*w.err = err
	return n, err
}

// Next starts the rootfs of a split image, after reading the rest of the metadata
// tarball. It returns io.EOF if there is no other file; the whole content has then
// been verified.
func (e *Export) Next() error {
	if _, err := e.WriteTo(io.Discard); err != nil {
		return err
	}
	pump, err := e.current()
	if err != io.EOF || !e.split || e.part > 0 {
		return err
	}
	pump.Close()
	e.part = 1
	if err := e.begin(); err != nil {
		return e.ended(err)
	}
	return nil
}

// Files returns the file of a unified image, or the metadata tarball and the rootfs of
// a split one, each as a reader that is to be read to its end before the next is
// taken; what was not read of it is dropped. That a file is not the image's is an error
// of its reader, or of the sequence. Files does not close the Export, whose content
// can be read once: a sequence after the first, or after the end, has only an error.
//
// For a function that takes one or two files in order, such as a simplestreams tree's.
func (e *Export) Files() iter.Seq2[io.Reader, error] {
	return func(yield func(io.Reader, error) bool) {
		_, err := e.current()
		if err == io.EOF || err == nil && e.ranged {
			err = invalid("export", "has been read: open another one")
		}
		for err == nil {
			e.ranged = true
			if !yield(e, nil) {
				return
			}
			err = e.Next()
		}
		if err != io.EOF {
			yield(nil, err)
		}
	}
}

// last reports whether the current file is the last one.
func (e *Export) last() bool { return !e.split || e.part > 0 }

// end returns the error for the end of a file, which err describes.
func (e *Export) end(err error) error {
	switch {
	case err != io.EOF:
		return e.contentError(err)
	case e.own || !e.last(): // if it is the last one, the pump has called verify
		return io.EOF
	}
	if err := e.verify(); err != nil {
		return err
	}
	return io.EOF
}

// verify checks the content when the last file has been read.
func (e *Export) verify() error {
	if e.split {
		// A server that fails during the rootfs may still end the form properly;
		// what follows the rootfs shows that the connection broke.
		if _, err := e.form.NextPart(); err == nil {
			return e.contentError(errors.New("it contains a third file"))
		} else if err != io.EOF {
			return e.contentError(err)
		}
	}
	if e.own {
		e.meter.Stop()
	}
	if got := hex.EncodeToString(e.hash.Sum(nil)); got != e.image.Fingerprint {
		return &FingerprintError{Want: e.image.Fingerprint, Got: got}
	}
	return nil
}

// contentError returns the error for content that ended too early.
func (e *Export) contentError(err error) error { return e.image.contentError(e.ctx, err) }

// contentError returns the error for content that ended too early.
func (i *Image) contentError(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return i.client.t.connectionError(ctx, i.exportRequest(nil), cause)
	}
	var typed *Error
	var wrong *FingerprintError
	if errors.As(err, &typed) || errors.As(err, &wrong) {
		return err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &FingerprintError{Want: i.Fingerprint, Err: err}
}

// Close ends the transfer. A Read, WriteTo or Next in another goroutine returns
// soon; it and all later calls return an error that wraps [net.ErrClosed], unless
// the content had ended before. Close does not interrupt a Write of the writer of
// WriteTo. It may be called more than once, even by Progress; it does not wait for a
// Progress that is running, and none starts after it. Closing before the end is not
// an error.
func (e *Export) Close() error {
	if err := e.check(); err != nil {
		return err
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	if e.err == nil {
		e.err = e.errClosed()
	}
	pump := e.pump
	e.mu.Unlock()
	e.cancel() // ends a Read of the source that blocks
	if pump != nil {
		pump.Close()
	}
	_ = e.source.Close()
	if e.own {
		e.meter.Leave()
	}
	return nil
}
