// Package rangeread reads content over HTTP, and goes on with a Range request
// where the connection breaks.
package rangeread

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/stall"
)

var (
	// ErrNoRange says that the server has sent all of the content where a part
	// was asked for.
	ErrNoRange = errors.New("the server ignored the Range header")
	// ErrChanged says that the server has other content than before.
	ErrChanged = errors.New("the content was replaced meanwhile")
	// ErrRange says that the server has sent another part than the one that was
	// asked for.
	ErrRange = errors.New("the response is not the range that was asked for")
	// ErrClosed is what a Read returns after Close.
	ErrClosed = errors.New("the transfer is closed")
)

// Options say how content is read.
type Options struct {
	// Open sends one request with the header, which may be nil, and returns the
	// response if its status is 200 or 206. It does not retry.
	Open func(ctx context.Context, header http.Header) (*http.Response, error)

	// From and To are the offsets of the first byte that is read and of the one
	// behind the last. To is 0 for the end of the content.
	From, To int64
	// Size of the whole content in bytes; -1 if only the response tells.
	Size int64

	// Verified says that a hash decides in the end whether the content is right.
	// Without it, only a response that carries the same ETag or Last-Modified as
	// the first continues a transfer.
	Verified bool
	// ReadOver reads over what is there already where the server ignores the
	// Range header. Otherwise that is ErrNoRange.
	ReadOver bool

	// Retry is how long a transfer is retried. Its time begins anew when a
	// response has brought 4 KiB.
	Retry retry.Policy
	// StallTimeout is how long the server may take to send the next byte, or the
	// headers. Not positive: without limit.
	StallTimeout time.Duration

	// Broken gives the error of a cut the words of the caller; nil for none. It
	// is called before the error is judged and logged.
	Broken func(offset int64, err error) error
	// Retrying is told of each retry; nil for nobody.
	Retrying func(offset int64, err error)
}

// minProgress is how many bytes of one response are progress. A server that
// sends less with each would otherwise be asked for ever.
const minProgress = 4 << 10

// Reader is content while it arrives. Read is for one goroutine at a time; Close
// may come from another one.
type Reader struct {
	o       Options
	ctx     context.Context //nolint:containedctx // of the transfer
	cancel  context.CancelFunc
	retries *retry.Retries

	first        *http.Response
	etag         string
	lastModified string
	resumable    bool
	offset       int64
	fresh        int64 // bytes of the current response
	err          error

	mu     sync.Mutex // guards body and closed
	body   io.ReadCloser
	closed bool
}

// Start sends the first request, and retries it. The caller must close the
// Reader.
func Start(ctx context.Context, o Options) (*Reader, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &Reader{o: o, ctx: ctx, cancel: cancel, retries: o.Retry.Begin(), offset: o.From, resumable: true}
	if err := r.connect(nil); err != nil { //nolint:contextcheck // It is in r.
		cancel()
		return nil, err
	}
	return r, nil
}

// Status returns the status of the first response.
func (r *Reader) Status() int { return r.first.StatusCode }

// Header returns the header of the first response.
func (r *Reader) Header() http.Header { return r.first.Header }

// Size of the whole content in bytes, or -1 where nobody tells.
func (r *Reader) Size() int64 { return r.o.Size }

// Offset of the next byte in the content.
func (r *Reader) Offset() int64 { return r.offset }

// NoResume makes a cut final.
func (r *Reader) NoResume() { r.resumable = false }

// Read returns io.EOF only at To, or at the end of the content. An end that
// comes too soon and cannot be mended is an io.ErrUnexpectedEOF.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.err == nil {
		n, cut := r.read(p)
		if cut != nil && cut != io.EOF {
			cut = r.broken(cut)
			if r.mayResume() {
				cut = r.connect(cut)
			}
		}
		r.err = cut
		if n > 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// read reads from the current response.
func (r *Reader) read(p []byte) (int, error) {
	end := r.end()
	if end >= 0 && r.offset >= end {
		return 0, r.excess()
	}
	if end >= 0 && int64(len(p)) > end-r.offset {
		p = p[:end-r.offset]
	}
	n, err := r.body.Read(p)
	r.offset += int64(n)
	if r.fresh += int64(n); r.fresh >= minProgress {
		r.retries.Progress()
	}
	switch {
	case end >= 0 && r.offset == end:
		// What follows, and a break behind the last byte, do not matter: a body
		// of known length has nothing more.
		return n, nil
	case err == io.EOF && end < 0:
		return n, io.EOF
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// excess tells content that is longer than its size from its end.
func (r *Reader) excess() error {
	if r.first.ContentLength >= 0 || r.o.To > 0 {
		return io.EOF
	}
	var one [1]byte
	if n, _ := r.body.Read(one[:]); n > 0 {
		return fmt.Errorf("%w: it has more than %d bytes", ErrChanged, r.o.Size)
	}
	return io.EOF
}

// end is where to stop, or -1 where that is not known.
func (r *Reader) end() int64 {
	if r.o.To > 0 {
		return r.o.To
	}
	return r.o.Size
}

// mayResume does not ask for the size: whatever it is, an error other than
// io.EOF is a cut.
func (r *Reader) mayResume() bool {
	return r.resumable && (r.o.Verified || r.strongETag() != "" || r.lastModified != "")
}

// strongETag returns the ETag, unless it is weak: other bytes may have the same
// weak one.
func (r *Reader) strongETag() string {
	if strings.HasPrefix(r.etag, "W/") {
		return ""
	}
	return r.etag
}

func (r *Reader) broken(err error) error {
	if ended := ctxerr.Of(r.ctx, stall.Err); ended != nil && !errors.Is(err, ended) {
		err = ended
	}
	if r.o.Broken != nil {
		return r.o.Broken(r.offset, err)
	}
	return err
}

// connect asks for what is missing until a response has come, or nothing is to
// be retried. cut is the break that made it necessary; nil for none.
func (r *Reader) connect(cut error) error {
	err := cut
	for {
		if err != nil {
			if r.isClosed() {
				return ErrClosed
			}
			if r.ctx.Err() != nil || !retry.Transient(err) {
				return err
			}
			if perr := r.retries.Pause(r.ctx, err); perr != nil {
				return perr
			}
			if r.o.Retrying != nil {
				r.o.Retrying(r.offset, err)
			}
		}
		if err = r.ask(); err == nil {
			return nil
		}
		if errors.Is(err, ErrChanged) || errors.Is(err, ErrRange) || errors.Is(err, ErrNoRange) {
			if cut != nil {
				return fmt.Errorf("%w; and it cannot go on: %w", cut, err)
			}
			return err
		}
	}
}

// ask sends one request for what is missing.
func (r *Reader) ask() error {
	header := r.header()
	ctx, watch := stall.New(r.ctx, r.o.StallTimeout)
	watch.Start()
	res, err := r.o.Open(ctx, header) //nolint:bodyclose // Close does.
	watch.Stop()
	if err != nil {
		if !errors.Is(err, stall.Err) {
			err = stall.Cause(ctx, err)
		}
		watch.Close()
		return err
	}
	body := stall.Body(ctx, watch, res.Body)
	if err := r.accept(res, body, header); err != nil {
		_ = body.Close()
		return err
	}
	if !r.adopt(body) {
		return ErrClosed
	}
	return nil
}

// header asks for a part, where it is one.
func (r *Reader) header() http.Header {
	if r.offset == 0 && r.o.To == 0 {
		return nil
	}
	header := http.Header{}
	if r.o.To > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.offset, r.o.To-1))
	} else {
		header.Set("Range", fmt.Sprintf("bytes=%d-", r.offset))
	}
	if !r.o.Verified {
		switch {
		case r.strongETag() != "":
			header.Set("If-Range", r.etag)
		case r.lastModified != "":
			header.Set("If-Range", r.lastModified)
		}
	}
	return header
}

// accept checks that a response is what is missing.
func (r *Reader) accept(res *http.Response, body io.Reader, asked http.Header) error {
	etag, lastModified := res.Header.Get("ETag"), res.Header.Get("Last-Modified")
	if r.first != nil && !r.o.Verified && (etag != r.etag || lastModified != r.lastModified) {
		return ErrChanged
	}
	switch {
	case res.StatusCode == http.StatusPartialContent && asked == nil:
		return fmt.Errorf("%w: it is a part, and all was asked for", ErrRange)
	case res.StatusCode == http.StatusPartialContent:
		if err := r.acceptPart(res.Header.Get("Content-Range")); err != nil {
			return err
		}
	default:
		if asked != nil && !r.o.ReadOver {
			return ErrNoRange
		}
		if length := res.ContentLength; length >= 0 {
			if r.o.Size >= 0 && length != r.o.Size {
				return fmt.Errorf("%w: it has %d bytes, not %d", ErrChanged, length, r.o.Size)
			}
			r.o.Size = length
		}
		if asked != nil {
			if _, err := io.CopyN(io.Discard, body, r.offset); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return r.broken(err)
			}
		}
	}
	if r.first == nil {
		r.first, r.etag, r.lastModified = res, etag, lastModified
	}
	return nil
}

// acceptPart checks the range that a response says it is.
func (r *Reader) acceptPart(header string) error {
	from, end, total, err := Parse(header)
	if err != nil {
		return fmt.Errorf("%w: Content-Range is %q", ErrRange, header)
	}
	if r.o.Size >= 0 && total >= 0 && total != r.o.Size {
		return fmt.Errorf("%w: it has %d bytes, not %d", ErrChanged, total, r.o.Size)
	}
	if r.o.Size < 0 {
		r.o.Size = total
	}
	if r.end() < 0 {
		// It may end before the content does.
		return fmt.Errorf("%w: Content-Range is %q, without the length", ErrRange, header)
	}
	if from != r.offset || end != r.end() {
		return fmt.Errorf("%w: asked for the bytes from %d on, Content-Range is %q", ErrRange, r.offset, header)
	}
	return nil
}

// adopt makes a response the one that is read, unless the Reader was closed.
func (r *Reader) adopt(body io.ReadCloser) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.body != nil {
		_ = r.body.Close()
	}
	if r.closed {
		_ = body.Close()
		return false
	}
	r.body, r.fresh = body, 0
	return true
}

func (r *Reader) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// Close ends the transfer, also a Read that goes on.
func (r *Reader) Close() error {
	r.mu.Lock()
	r.closed = true
	body := r.body
	r.mu.Unlock()
	r.cancel()
	if body != nil {
		_ = body.Close()
	}
	return nil
}

// Parse reads a Content-Range, "bytes 5-8/10": where it begins, where it ends
// (the offset behind its last byte, 9) and the length of the whole, -1 for "*".
func Parse(header string) (from, end, total int64, err error) {
	bad := fmt.Errorf("%w: Content-Range is %q", ErrRange, header)
	rest, isBytes := strings.CutPrefix(header, "bytes ")
	span, size, hasSize := strings.Cut(rest, "/")
	first, last, isSpan := strings.Cut(span, "-")
	if !isBytes || !hasSize || !isSpan {
		return 0, 0, 0, bad
	}
	number := func(s string) (int64, bool) {
		n, err := strconv.ParseUint(s, 10, 62)
		return int64(n), err == nil
	}
	from, okFrom := number(first)
	to, okTo := number(last)
	total, okTotal := number(size)
	if size == "*" {
		total, okTotal = -1, true
	}
	if !okFrom || !okTo || !okTotal || to < from || (total >= 0 && total <= to) {
		return 0, 0, 0, bad
	}
	return from, to + 1, total, nil
}
