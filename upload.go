package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/progress"
)

// upload is one sending of an image to a server.
type upload struct {
	images           *Images
	content          *content.Content
	fingerprint      string // known beforehand, or ""
	ifExists         IfExists
	hash             bool // compute the fingerprint while sending, and hold the server to it
	completeExisting bool // give an image that is there already all that is wanted, not the aliases alone
	spec             imageSpec
	meter            *progress.Meter
	report           func(Progress) // for a later Image.Wait; nil for none

	body *content.Body // the last sending; nil before the first
	sent int           // how often it was opened
	// When the first sending began, and when the server accepted the last.
	began, accepted time.Time
}

func (u *upload) run(ctx context.Context, wait bool) (*Image, error) {
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
	if !u.spec.reuse {
		if err := c.Aliases.checkFree(ctx, u.spec.aliases, u.fingerprint); err != nil {
			return nil, err
		}
	}
	server, err := c.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := u.spec.supported(server); err != nil {
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
	if !wait {
		return image, nil
	}
	return imageIfUploaded(image, image.pending.wait(ctx, image, u.meter))
}

// open begins a sending of the content.
func (u *upload) open(ctx context.Context, hreq *http.Request) error {
	body, err := u.content.Open(ctx, content.Options{Sent: u.meter.Counter(), Hash: u.hash})
	if err != nil {
		return err
	}
	if u.body != nil {
		u.body.Discard(ctx)
	}
	u.body = body
	if u.sent++; u.sent == 1 {
		u.began = time.Now()
	}
	u.meter.Phase(PhaseSend, 0, u.content.Size())
	hreq.Body, hreq.ContentLength = body, u.content.Size()
	if hreq.ContentLength == 0 {
		hreq.Body = http.NoBody
	}
	hreq.Header.Set("Content-Type", u.content.Type)
	if !u.content.Replayable() {
		// It can be sent once: not before the server has said that it wants it.
		hreq.Header.Set("Expect", "100-continue")
	}
	return nil
}

func (u *upload) replayable() bool { return u.content.Replayable() || !u.content.Used() }

// mayBlock: the reader is the caller's.
func (u *upload) mayBlock() bool { return true }

func (u *upload) cause() error { return u.body.Err() }

func (u *upload) discard() { _ = u.body.Close() }

// existing is the outcome where the server has the image.
func (u *upload) useExisting(ctx context.Context, image *Image) (*Image, error) {
	if u.ifExists == ErrorIfExists {
		return nil, fmt.Errorf("image %s: %w", image.Fingerprint, ErrExists)
	}
	err := error(nil)
	if u.completeExisting {
		image, err = u.spec.complete(ctx, u.images, nil, image.Fingerprint)
	} else {
		err = image.assign(ctx, u.spec.aliases, u.spec.reuse)
	}
	if err != nil {
		return nil, err
	}
	u.meter.Phase(PhaseSend, image.Size, image.Size)
	return image, nil
}

// settle looks for the image whose operation the server has forgotten.
func (u *upload) settle(ctx context.Context) error {
	fingerprint, err := u.contentFingerprint(ctx)
	if err != nil {
		return errUnsettled
	}
	_, err = u.images.Get(ctx, fingerprint)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("the server has neither the operation nor image %s any more: %w", fingerprint, ErrOutcomeUnknown)
	}
	return err
}

// contentFingerprint is what was sent.
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

// finish does what is left once the operation has ended.
func (u *upload) finish(ctx context.Context, op *Operation, failure error) (*Image, error) {
	told := op.fingerprint()
	if failure != nil {
		return u.afterFailure(ctx, op, told, failure)
	}
	want := u.fingerprint
	if u.hash || told == "" {
		// Where it tells nothing, it was forgotten most likely.
		sum, err := u.contentFingerprint(ctx)
		if err != nil {
			return nil, err
		}
		told, want = cmp.Or(told, sum), cmp.Or(want, sum)
		if told == want {
			want = sum
		}
	}
	told, err := u.images.createdFingerprint(ctx, op, told, want)
	if err != nil {
		return nil, err
	}
	return u.spec.complete(ctx, u.images, op, told)
}

// failed tells the image that is already there from a failure.
func (u *upload) afterFailure(ctx context.Context, op *Operation, told string, failure error) (*Image, error) {
	want := u.fingerprint
	if u.hash && want == "" && told != "" {
		var err error
		if want, err = u.body.Fingerprint(ctx); err != nil {
			return nil, err
		}
	}
	if want != "" && told != "" && told != want {
		return nil, &FingerprintError{Want: want, Got: told, Err: failure}
	}
	if told != "" && !errors.Is(failure, ErrCancelled) {
		existing, err := u.images.Get(ctx, told)
		if err == nil && u.createdEarlier(existing, op) {
			return u.spec.complete(ctx, u.images, op, told)
		}
		if err == nil {
			return u.useExisting(ctx, existing)
		}
	}
	if u.fingerprint != "" && (u.hash || u.content.Replayable()) {
		// The server says that the fingerprint is not right in words only.
		got, err := u.sentFingerprint(ctx)
		if err == nil && got != u.fingerprint {
			return nil, &FingerprintError{Want: u.fingerprint, Got: got, Err: failure}
		}
	}
	return nil, failure
}

// made says whether an earlier sending, whose response was lost, has made the
// image that op found there. The server's clock decides, which op tells.
func (u *upload) createdEarlier(existing *Image, op *Operation) bool {
	return u.sent > 1 && !existing.UploadedAt.Before(op.Status().CreatedAt.Add(-u.accepted.Sub(u.began)))
}

func (u *upload) sentFingerprint(ctx context.Context) (string, error) {
	if u.hash {
		return u.body.Fingerprint(ctx)
	}
	return u.content.HashAhead(ctx, nil)
}
