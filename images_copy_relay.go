package lxd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/formname"
	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/retry"
)

// relay streams the image through this client: the body of the source's response is
// the body of the request to the target, which verifies the fingerprint.
func (j *copyJob) relay(ctx context.Context) (*Image, error) {
	c := j.target
	to, err := c.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	body := &relayBody{image: j.source, shared: j.shared, filename: j.spec.filename, meter: j.meter}
	defer body.discard()
	req := &request{
		method: http.MethodPost, path: path("images"), query: c.query(), header: j.spec.headers(to, j.source.Fingerprint), body: body, repeatable: true,
	}
	op, err := c.start(ctx, req, j.settle)
	if err != nil {
		var source *sourceError
		if ctx.Err() == nil && errors.As(err, &source) {
			return nil, source // without the mark that it must not be retried here
		}
		return nil, err
	}
	accepted := time.Now()
	image := j.expectedImage()
	image.pending = newPending(op, j.source.Size, func(ctx context.Context, failure error, _ *progress.Meter) (*Image, error) {
		if failure != nil {
			return j.afterFailure(ctx, op, body.explain(failure), func(existing *Image) bool { return body.createdEarlier(existing, op, accepted) })
		}
		if _, err := c.Images.createdFingerprint(ctx, op, op.fingerprint(), j.source.Fingerprint); err != nil {
			return nil, err
		}
		return j.spec.complete(ctx, c.Images, op, j.source.Fingerprint)
	})
	return image, nil
}

// relayBody is the request body of a relay: the content as the source sends it.
type relayBody struct {
	image    *Image
	shared   *sharedReader // for the first attempt; nil for a reading of its own
	filename string        // of the copy
	meter    *progress.Meter

	attempts int       // how often it was opened
	began    time.Time // when the first attempt began

	mu     sync.Mutex
	reader *relayReader // of the last attempt; nil once it is discarded
	err    error        // the source's error that ended the attempt; nil for none
	final  bool         // err was retried: the content is one that resumes
}

func (r *relayBody) open(ctx context.Context, hreq *http.Request) (err error) {
	r.discard()
	if r.attempts++; r.attempts == 1 {
		r.began = time.Now()
	}
	// A target may refuse the upload before it has read all of it. net/http then
	// closes the body, which must not look like a broken connection to a Read that is
	// still running.
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	var src *relayContent
	if r.shared != nil && r.attempts == 1 {
		src, err = r.shared.open(ctx)
	} else {
		src, err = r.image.relayContent(ctx)
	}
	if err != nil {
		return err
	}
	var body io.Reader = src
	size := src.size
	if src.split && r.filename != "" {
		// The target takes the image's filename from that of the rootfs.
		body = formname.Rename(src, src.boundary, r.filename)
		size = -1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.final = !src.split
	r.reader, r.err = &relayReader{ctx, cancel, r, src, body}, nil
	r.meter.Phase(PhaseSend, 0, max(r.image.Size, size))
	hreq.Body, hreq.ContentLength = r.reader, size
	hreq.Header.Set("Content-Type", src.header.Get("Content-Type"))
	return nil
}

// createdEarlier is that of upload.
func (r *relayBody) createdEarlier(existing *Image, op *Operation, accepted time.Time) bool {
	return r.attempts > 1 && !existing.UploadedAt.Before(op.Status().CreatedAt.Add(-accepted.Sub(r.began)))
}

func (r *relayBody) replayable() bool { return true }

// mayBlock returns false: ctx ends a read from the source.
func (r *relayBody) mayBlock() bool { return false }

func (r *relayBody) cause() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil && r.final {
		return retry.Permanent(r.err)
	}
	return r.err
}

func (r *relayBody) discard() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reader != nil {
		_ = r.reader.Close()
		r.reader = nil
	}
}

// explain adds the source's error, if there is one, to that of the target.
func (r *relayBody) explain(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		return err
	}
	return errors.Join(err, r.err)
}

// relayReader is the body of one attempt.
type relayReader struct {
	ctx    context.Context //nolint:containedctx // of the transfer
	cancel context.CancelFunc
	r      *relayBody
	src    io.Closer
	body   io.Reader
}

func (r *relayReader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.r.meter.Add(n)
	if err != nil && err != io.EOF && r.ctx.Err() == nil {
		cause := err
		var refused *Error
		var connection *ConnectionError
		if !errors.As(err, &refused) && !errors.As(err, &connection) && !errors.Is(err, ErrBadResponse) {
			// A ConnectionError is retryable.
			cause = r.r.image.client.t.connectionError(r.ctx, r.r.image.exportRequest(nil), err)
		}
		r.r.mu.Lock()
		r.r.err = &sourceError{cause}
		r.r.mu.Unlock()
	}
	return n, err
}

func (r *relayReader) Close() error {
	r.cancel()
	return r.src.Close()
}
