package lxd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/golxd/lxd/internal/retry"
)

// errNoRange says that the server sent everything where a range was asked for.
var errNoRange = fmt.Errorf("the server does not continue a transfer: %w: it ignored the Range header", ErrBadResponse)

// resuming reads the content of a unified image, or a part of it, and asks for
// the rest where the connection breaks.
type resuming struct {
	ctx    context.Context //nolint:containedctx // of the transfer
	image  *Image
	mu     sync.Mutex // held while body changes, as Close may come from elsewhere
	body   io.ReadCloser
	offset int64
	size   int64 // of the image, -1 where unknown
	end    int64 // where to stop if it is not the image's end, else 0
	err    error // of the break

	retries *retry.Retries
}

func (r *resuming) Read(p []byte) (int, error) {
	for {
		if r.err != nil {
			if err := r.resume(); err != nil {
				return 0, err
			}
		}
		n, err := r.body.Read(p)
		r.offset += int64(n)
		if n > 0 {
			r.retries.Progress()
		}
		switch {
		case err == nil:
			return n, nil
		case err == io.EOF && (r.size < 0 || r.offset == r.stop()):
			return n, io.EOF
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
		}
		r.err = err
		if n > 0 {
			return n, nil
		}
	}
}

func (r *resuming) resume() error {
	c, ctx := r.image.client, r.ctx
	if r.size < 0 || ctx.Err() != nil || !retry.Transient(r.err) {
		return r.err
	}
	_ = r.body.Close()
	if err := r.retries.Pause(ctx, r.err); err != nil {
		return err
	}
	c.t.log.DebugContext(ctx, "lxd export goes on after a cut", "fingerprint", r.image.Fingerprint, "offset", r.offset, "error", r.err)
	if r.offset == r.stop() {
		return io.EOF
	}
	if r.offset == 0 && r.end == 0 {
		// Nothing had come: the whole is asked for.
		res, err := c.t.stream(ctx, r.image.exportRequest(0, 0))
		if err != nil {
			return err
		}
		if res.ContentLength != r.size {
			_ = res.Body.Close()
			return fmt.Errorf("%w: the image has %d bytes now, not %d", ErrBadResponse, res.ContentLength, r.size)
		}
		r.setBody(res.Body)
	} else if err := r.open(); err != nil {
		return err
	}
	r.err = nil
	return nil
}

// open asks for what is missing, as a range.
func (r *resuming) open() error {
	res, err := r.image.client.t.stream(r.ctx, r.image.exportRequest(r.offset, r.end))
	if err != nil {
		return err
	}
	if err := checkRange(res, r.offset, r.stop(), r.size); err != nil {
		_ = res.Body.Close()
		return err
	}
	r.setBody(res.Body)
	return nil
}

func (r *resuming) setBody(body io.ReadCloser) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.body = body
}

// checkRange sees that an answer is the part of an image that was asked for.
func checkRange(res *http.Response, from, end, size int64) error {
	if res.StatusCode != http.StatusPartialContent {
		return errNoRange
	}
	header := res.Header.Get("Content-Range")
	gotFrom, gotEnd, gotSize, err := parseContentRange(header)
	if err != nil || gotFrom != from || gotEnd != end || gotSize != size {
		return fmt.Errorf("%w: asked for the bytes from %d to %d of %d, the answer is the range %q", ErrBadResponse, from, end-1, size, header)
	}
	return nil
}

// stop is where to stop reading.
func (r *resuming) stop() int64 {
	if r.end > 0 {
		return r.end
	}
	return r.size
}

// Close lets go of what is there. Whoever calls it while a Read goes on must end
// the context before.
func (r *resuming) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.body.Close()
}

// parseContentRange reads "bytes 5-8/10" into where it begins, where it ends
// (the offset after its last byte, 9) and the total.
func parseContentRange(s string) (from, end, total int64, err error) {
	bad := fmt.Errorf("%w: Content-Range is %q", ErrBadResponse, s)
	rest, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, 0, bad
	}
	span, size, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, 0, bad
	}
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, 0, bad
	}
	from, err1 := strconv.ParseInt(first, 10, 64)
	to, err2 := strconv.ParseInt(last, 10, 64)
	total, err3 := strconv.ParseInt(size, 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || from < 0 || to < from || total <= to {
		return 0, 0, 0, bad
	}
	return from, to + 1, total, nil
}
