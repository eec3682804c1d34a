package lxd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime/multipart"
	"net"
	"sync"

	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/pump"
)

// ExportOptions say how to export.
type ExportOptions struct {
	// Progress is told of the phase receive. Of a split image the total is not
	// known to the server beforehand and is what it says of the image.
	Progress func(Progress)
}

// Export is the content of an image while it arrives. It is hashed on the way:
// the last Read gives a [*FingerprintError] in place of io.EOF if the content
// is not that of the image, so that io.Copy and its kin cannot miss it. WriteTo
// does the same.
//
// A split image is two files. Read ends with io.EOF after each, Next goes on to
// the second. What is wrong with the content shows at the end of the last.
//
// An Export must be closed. Close may be called at any time and from any
// goroutine; the other methods are for one goroutine at a time.
type Export struct {
	image  *Image
	ctx    context.Context //nolint:containedctx // of the transfer, which is what an Export is
	cancel context.CancelFunc
	source io.ReadCloser
	hash   hash.Hash
	meter  *progress.Meter
	own    bool // the meter is the export's to stop

	filename string
	size     int64
	left     int64 // bytes that the image still has, where its size is known
	split    bool
	form     *multipart.Reader
	part     int // 0, and 1 for the rootfs of a split image

	mu     sync.Mutex // guards what follows, as Close may come from elsewhere
	closed bool
	pump   *pump.Pump
	err    error // what every later Read returns
}

// Export begins to fetch the image's content. It returns when the server has
// begun to send. After a cut, the content of a unified image is fetched from
// there on, for Options.RetryTimeout without a new byte; a split image cannot be,
// the error is then a [*FingerprintError] that wraps the cause.
func (i *Image) Export(ctx context.Context, opts *ExportOptions) (*Export, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	var o ExportOptions
	if opts != nil {
		o = *opts
	}
	m := meter(PhaseReceive, max(i.Size, -1), o.Progress)
	own := false
	defer func() {
		if !own {
			m.Stop()
		}
	}()
	e, err := i.export(ctx, sha256.New(), 0, m)
	if err != nil {
		return nil, err
	}
	own, e.own = true, true
	return e, nil
}

// export fetches from an offset on, with the hash of what is before it. The
// meter is the caller's to stop.
func (i *Image) export(ctx context.Context, h hash.Hash, offset int64, m *progress.Meter) (*Export, error) {
	ctx, cancel := context.WithCancel(ctx)
	e := &Export{image: i, ctx: ctx, cancel: cancel, hash: h, meter: m, left: i.Size - offset}
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

func (e *Export) open(offset int64) error {
	src, err := e.image.content(e.ctx, offset, 0)
	if err != nil {
		return err
	}
	if err := e.accept(src, offset); err != nil {
		_ = src.Close()
		return err
	}
	e.source = src
	return nil
}

// begin starts to read the next file.
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
	e.pump, e.err = pump.Start(src, e.hash, e.meter.Counter()), nil
	return nil
}

// current is what Read and WriteTo read from, or the error that there is
// nothing.
func (e *Export) current() (*pump.Pump, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pump, e.err
}

// ended notes the error that ended the reading of a file, and returns what is to
// be said of it: where the export was closed meanwhile, that is why.
func (e *Export) ended(err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		err = e.errClosed()
	}
	e.err = err
	return err
}

// errClosed is what the methods return after Close.
func (e *Export) errClosed() error {
	return fmt.Errorf("export of image %s: %w", e.image.Fingerprint, net.ErrClosed)
}

// atMost reads no more than the image has: what a server sends without a length
// could fill the disk before its hash shows that it is wrong.
type atMost struct {
	r    io.Reader
	left *int64
}

func (a *atMost) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if *a.left -= int64(n); *a.left < 0 {
		return n + int(*a.left), fmt.Errorf("%w: the server sends more than the image has", ErrBadResponse)
	}
	return n, err
}

// Split says whether the image is two files, the metadata tarball and the
// rootfs.
func (e *Export) Split() bool { return e.split }

// Filename is what the server calls the current file: the last element of it,
// not to be trusted as a path on its own. It may be empty.
func (e *Export) Filename() string { return e.filename }

// Size is the number of bytes of the current file, or -1 where the server does
// not tell (a split image).
func (e *Export) Size() int64 { return e.size }

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
		return n, toErr // of w: the transfer itself is well
	case err == nil:
		err = io.EOF
	}
	if err = e.ended(e.end(err)); err == io.EOF {
		err = nil
	}
	return n, err
}

// writerErr tells an error of the writer from one of the source.
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

// Next goes on to the rootfs of a split image, reading what is left of the
// metadata. It gives io.EOF if there is no further file; the content as a whole
// was then verified.
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

// end decides what the end of a file means.
func (e *Export) end(err error) error {
	if err != io.EOF {
		return e.contentError(err)
	}
	if e.split && e.part == 0 {
		return io.EOF
	}
	if e.split {
		// A server that fails in the middle may still end the form properly,
		// but what comes behind the rootfs tells of a broken connection.
		if _, err := e.form.NextPart(); err == nil {
			return e.contentError(errors.New("there is a third file in it"))
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
	return io.EOF
}

func (e *Export) contentError(err error) error { return e.image.contentError(e.ctx, err) }

// incomplete is the error for content that ended too soon.
func (i *Image) contentError(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return i.client.t.connectionError(ctx, i.exportRequest(nil), cause)
	}
	var typed *Error
	if errors.As(err, &typed) {
		return err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &FingerprintError{Want: i.Fingerprint, Err: err}
}

// Close ends the transfer, at any time: a Read, WriteTo or Next that goes on in
// another goroutine returns soon, and it and every later one with an error that
// wraps [net.ErrClosed], unless the content had ended before. A Write of the
// writer that was given to WriteTo is not interrupted. Close may be called more
// than once, also by Progress; it waits for no Progress that goes on, and none
// begins after it. Closing before the end is not an error.
func (e *Export) Close() error {
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
