package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/progress"
)

// upload is one call that sends an image to a server. It is the request's body.
type upload struct {
	images      *Images
	content     *content.Content
	fingerprint string // known in advance, or ""
	hash        bool   // compute the fingerprint while sending, and require it of the server
	split       bool   // the content is two files
	spec        imageSpec
	meter       *progress.Meter
	report      func(Progress) // for a later Image.Wait; nil for none

	body     *content.Body // of the last attempt; nil before the first
	attempts int           // how often it was opened
	// When the first attempt began, and when the server accepted the last.
	began, accepted time.Time
	forgotten       atomic.Bool // settle has determined the outcome
}

// run uploads the image. It does not wait for the operation.
func (u *upload) run(ctx context.Context) (*Image, error) {
	c := u.images.client
	if u.fingerprint != "" {
		existing, err := u.images.Get(ctx, u.fingerprint)
		if err == nil {
			return u.useExisting(ctx, existing)
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	hashed := ""
	err := u.spec.checkTarget(ctx, c, u.fingerprint, func() (string, error) {
		if !u.content.Replayable() {
			return "", nil
		}
		var err error
		if hashed, err = u.content.HashAhead(ctx, nil); err != nil {
			return "", fmt.Errorf("read the image: %w", err)
		}
		return hashed, nil
	})
	if err != nil {
		return nil, err
	}
	if existing := u.images.existing(ctx, hashed); existing != nil {
		return u.useExisting(ctx, existing) // the alias pointed to it
	}
	server, err := c.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := u.spec.checkSupported(server); err != nil {
		return nil, err
	}
	u.meter.Phase(PhaseSend, 0, u.content.Size())
	req := &request{
		method: http.MethodPost, path: path("images"), query: c.query(), header: u.spec.headers(server, u.fingerprint), body: u, repeatable: true,
	}
	op, err := c.start(ctx, req, u.settle)
	if err != nil {
		if u.body != nil {
			u.body.Discard(ctx)
		}
		if errors.Is(err, ErrUnavailable) && ctx.Err() == nil && !u.content.Replayable() && u.content.Used() {
			err = fmt.Errorf("%w: %w", ErrNotReplayable, err)
		}
		return nil, err
	}
	u.accepted = time.Now()
	if u.body != nil {
		u.body.Finish(ctx)
	}
	image := u.spec.image(c, u.fingerprint)
	image.Size = max(u.content.SourceSize(), 0)
	if u.hash {
		sum, err := u.body.Fingerprint(ctx)
		if err != nil {
			u.body.Discard(ctx)
			return nil, fmt.Errorf("hash the image: %w", err)
		}
		image.Fingerprint = sum
	}
	image.pending = newPending(op, u.content.SourceSize(), func(ctx context.Context, failure error, _ *progress.Meter) (*Image, error) {
		return u.finish(ctx, op, failure)
	})
	image.pending.report = u.report
	return image, nil
}

// open begins an attempt to send the content.
func (u *upload) open(ctx context.Context, hreq *http.Request) error {
	body, err := u.content.Open(ctx, content.Options{Sent: u.meter.Counter(), Hash: u.hash})
	if err != nil {
		return err
	}
	if u.body != nil {
		u.body.Discard(ctx)
	}
	u.body = body
	if u.attempts++; u.attempts == 1 {
		u.began = time.Now()
	}
	u.meter.Phase(PhaseSend, 0, u.content.Size())
	hreq.Body, hreq.ContentLength = body, u.content.Size()
	if hreq.ContentLength == 0 {
		hreq.Body = http.NoBody
	}
	hreq.Header.Set("Content-Type", u.content.Type)
	if !u.content.Replayable() {
		// It can be sent only once, so the server must accept the headers first.
		// Without Close, net/http sends the body even after a refusal that leaves
		// the connection open, as proxies do.
		hreq.Header.Set("Expect", "100-continue")
		hreq.Close = true
	}
	return nil
}

func (u *upload) replayable() bool { return u.content.Replayable() || !u.content.Used() }

// mayBlock returns true: the reader is the caller's.
func (u *upload) mayBlock() bool { return true }

func (u *upload) cause() error { return u.body.Err() }

func (u *upload) discard() { _ = u.body.Close() }

// useExisting returns the image that the server already has.
func (u *upload) useExisting(ctx context.Context, image *Image) (*Image, error) {
	image, err := u.spec.useExisting(ctx, u.images, image)
	if err == nil {
		u.meter.Phase(PhaseSend, image.Size, image.Size)
	}
	return image, err
}

// settle determines the outcome of an operation that the server has forgotten: it
// looks for the image.
func (u *upload) settle(ctx context.Context) error {
	fingerprint, err := u.contentFingerprint(ctx)
	if err != nil {
		return errUnsettled
	}
	if err := u.images.settleImage(ctx, fingerprint); err != nil {
		return err
	}
	u.forgotten.Store(true)
	return nil
}

// contentFingerprint returns the fingerprint of what was sent.
func (u *upload) contentFingerprint(ctx context.Context) (string, error) {
	switch {
	case u.hash && u.body != nil:
		return u.body.Fingerprint(ctx)
	case u.fingerprint != "":
		return u.fingerprint, nil
	case u.content.Replayable():
		return u.content.HashAhead(ctx, nil)
	}
	return "", errUnsettled
}

// finish does the client's work after the operation has finished.
func (u *upload) finish(ctx context.Context, op *Operation, failure error) (*Image, error) {
	reported := op.fingerprint()
	if failure != nil {
		return u.afterFailure(ctx, op, reported, failure)
	}
	want := u.fingerprint
	if u.hash || reported == "" {
		// An operation without a fingerprint was probably forgotten.
		sum, err := u.contentFingerprint(ctx)
		if err != nil {
			return nil, err
		}
		reported, want = cmp.Or(reported, sum), cmp.Or(want, sum)
		if reported == want {
			want = sum
		}
	}
	created, err := u.images.createdFingerprint(ctx, op, reported, want)
	if err != nil {
		return nil, err
	}
	if u.forgotten.Load() {
		// The operation may have failed, and the image be an older one.
		existing, err := u.images.Get(ctx, created)
		if err != nil {
			return nil, err
		}
		if !existing.isNewOf(op) && !u.createdEarlier(existing, op) {
			return u.useExisting(ctx, existing)
		}
	}
	return u.spec.complete(ctx, u.images, op, created)
}

// afterFailure determines why the operation has failed: the image already exists,
// the content has another fingerprint, or something else.
func (u *upload) afterFailure(ctx context.Context, op *Operation, reported string, failure error) (*Image, error) {
	want := u.fingerprint
	if u.hash && want == "" && reported != "" {
		var err error
		if want, err = u.body.Fingerprint(ctx); err != nil {
			return nil, err
		}
	}
	if want != "" && reported != "" && reported != want {
		return nil, &FingerprintError{Want: want, Got: reported, Err: failure}
	}
	if errors.Is(failure, ErrCancelled) {
		return nil, failure
	}
	sent := ""
	if u.hash || u.content.Replayable() {
		var err error
		if sent, err = u.sentFingerprint(ctx); err != nil {
			return nil, errors.Join(failure, err)
		}
		if u.fingerprint != "" && sent != u.fingerprint {
			// Only the server's text says so.
			return nil, &FingerprintError{Want: u.fingerprint, Got: sent, Err: failure}
		}
	}
	// If two calls create one image in the same moment, the operation of one fails
	// without the fingerprint (LXD 5.0.2, Incus 6.0.4 and 7.0.2).
	if existing := u.images.existing(ctx, cmp.Or(reported, sent, want)); existing != nil {
		if u.createdEarlier(existing, op) {
			return u.spec.complete(ctx, u.images, op, existing.Fingerprint)
		}
		return u.useExisting(ctx, existing)
	}
	if u.split {
		return nil, withHint(failure, "the first file must be the metadata tarball, and Rootfs the root filesystem or disk of the Type")
	}
	return nil, withHint(failure, "a unified image contains metadata.yaml and a rootfs; the files of a split image are two readers, see CreateOptions.Rootfs")
}

// createdEarlier reports whether the existing image was created by an earlier
// attempt of this upload, whose response was lost. It compares times of the server's
// clock, which op contains.
func (u *upload) createdEarlier(existing *Image, op *Operation) bool {
	return u.attempts > 1 && !existing.UploadedAt.Before(op.Status().CreatedAt.Add(-u.accepted.Sub(u.began)))
}

// sentFingerprint returns the fingerprint of what was sent, even if another one was
// required.
func (u *upload) sentFingerprint(ctx context.Context) (string, error) {
	if u.hash {
		return u.body.Fingerprint(ctx)
	}
	return u.content.HashAhead(ctx, nil)
}
