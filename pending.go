package lxd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/golxd/lxd/internal/progress"
)

// pending is an operation on an image, and the client's work after it. An Image has
// at most one; copies of the Image share it. It is safe for concurrent use.
type pending struct {
	op *Operation
	// finish does the client's work when the operation has finished; failure is
	// the operation's error or nil. It returns the image in its new state, even
	// beside an error, or nil if the image does not exist. After an error it may be
	// called again. If finish is nil, the operation's outcome is the outcome.
	finish finishFunc
	// onRelease frees what the work needed, such as a token. It may be called
	// several times. It may be nil.
	onRelease func(context.Context)
	// before is work that must be completed first; nil for none.
	before *pending

	report  func(Progress) // for a later Image.Wait; nil for none
	size    int64          // of the image in bytes, -1 if unknown
	watched bool           // the server reports the operation's progress

	turn  chan struct{} // the lock of finish, done and image; a context can end the wait for it
	done  bool          // the work succeeded
	image *Image        // as finish returned it
}

type finishFunc = func(ctx context.Context, failure error, m *progress.Meter) (*Image, error)

func newPending(op *Operation, size int64, finish finishFunc) *pending {
	return &pending{op: op, size: size, finish: finish, turn: make(chan struct{}, 1)}
}

// then calls f with the results of finish, and uses the results of f instead.
func (p *pending) then(f func(ctx context.Context, image *Image, err error, m *progress.Meter) (*Image, error)) {
	finish := p.finish
	p.finish = func(ctx context.Context, failure error, m *progress.Meter) (*Image, error) {
		image, err := finish(ctx, failure, m)
		return f(ctx, image, err, m)
	}
}

// wait waits until the operation has finished, does the remaining work, and updates
// image. Progress is reported to m, or to p.report if m is nil.
func (p *pending) wait(ctx context.Context, image *Image, m *progress.Meter) error {
	if p.before != nil {
		if err := p.before.wait(ctx, image, m); err != nil {
			return err
		}
	}
	if done, err := p.isDone(ctx, image); done || err != nil {
		return err
	}
	if m == nil {
		m = meter(PhaseServer, p.size, p.report)
		defer m.Stop()
	}
	m.Phase(PhaseServer, 0, p.size)
	failure := p.waitOperation(ctx, m)
	var failed *OperationError
	if failure != nil && !errors.As(failure, &failed) {
		if errors.Is(failure, ErrOutcomeUnknown) {
			p.release(ctx)
		}
		return failure
	}
	if err := p.lock(ctx); err != nil {
		return err
	}
	defer p.unlock()
	if p.done { // by another caller meanwhile
		p.update(image)
		return nil
	}
	result, err := (*Image)(nil), failure
	if p.finish != nil {
		result, err = p.finish(ctx, failure, m)
	}
	p.release(ctx)
	if result != nil {
		image.replace(result)
		m.Phase(PhaseServer, image.Size, image.Size)
	}
	p.done, p.image = err == nil, result
	return err
}

// waitInCall waits for the work of a call that waits for it. Beside an error it
// returns the image if the server has it, as then only an alias or an attribute is
// missing, or if ctx has ended, as the operation may still be running. With cancel it
// then asks the server to cancel the operation.
func (p *pending) waitInCall(ctx context.Context, image *Image, m *progress.Meter, cancel bool) (*Image, error) {
	err := p.wait(ctx, image, m)
	switch {
	case err == nil:
		return image, nil
	case ctx.Err() != nil:
		if cancel {
			err = p.cancel(ctx, err)
		}
		return image, err
	}
	return imageIfUploaded(image, err)
}

// imageIfUploaded returns the image beside an error only if the server has it: then an
// alias or an attribute could not be set.
func imageIfUploaded(image *Image, err error) (*Image, error) {
	if err != nil && image.UploadedAt.IsZero() {
		return nil, err
	}
	return image, err
}

// cancelTimeout is the timeout of cancelling an operation whose context has ended.
const cancelTimeout = 5 * time.Second

// cancel cancels the operation after ctx has ended, and frees what the work needed. It
// adds to err that the operation could not be cancelled.
func (p *pending) cancel(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	p.release(ctx)
	if cancelled := p.op.Cancel(ctx); cancelled != nil {
		return fmt.Errorf("%w (it could not be cancelled: %w)", err, cancelled)
	}
	return err
}

// waitOperation waits until the operation has finished, and reports its progress.
func (p *pending) waitOperation(ctx context.Context, m *progress.Meter) error {
	if p.watched {
		defer p.op.watch(ctx, m)() // deferred, so that it stops after a panic too
	}
	return p.op.Wait(ctx)
}

// completed reports whether the work has succeeded; if so, it updates image.
func (p *pending) isDone(ctx context.Context, image *Image) (bool, error) {
	if err := p.lock(ctx); err != nil {
		return false, err
	}
	defer p.unlock()
	if p.done {
		p.update(image)
	}
	return p.done, nil
}

// update completes an Image that was not the one of the wait that did the work.
func (p *pending) update(image *Image) {
	if p.image != nil && image.UploadedAt.IsZero() {
		image.replace(p.image)
	}
}

func (p *pending) lock(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return p.op.interrupted(ctx)
	}
}

func (p *pending) unlock() { <-p.turn }

// release frees what the work needed. It is called when the outcome is known, or
// when nobody will wait for it any more.
func (p *pending) release(ctx context.Context) {
	if p.onRelease != nil {
		p.onRelease(ctx)
	}
}

// Operation returns the operation that creates, refreshes or deletes this image;
// nil if there is none.
func (i *Image) Operation() *Operation {
	if i == nil || i.pending == nil {
		return nil
	}
	return i.pending.op
}

// Wait waits until the image's operation has finished, does the remaining work
// (such as the aliases of an upload), and reads all attributes; after Refresh and
// Delete it reads none. If there is no operation it does nothing. It reports to the
// Progress of the call that started the operation. It may be called again, even
// after it has failed, and from several goroutines. If ctx ends, Wait returns, but
// the operation continues.
func (i *Image) Wait(ctx context.Context) error {
	if i == nil || i.pending == nil {
		return nil
	}
	if err := checkContext(ctx); err != nil {
		return err
	}
	return i.pending.wait(ctx, i, nil)
}
