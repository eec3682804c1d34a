package lxd

import (
	"context"
	"errors"

	"github.com/golxd/lxd/internal/progress"
)

// pending is work that a server does for an image, and what this package has to
// do when the server has ended it. An Image has one at most; copies of the Image
// share it. It is safe for concurrent use.
type pending struct {
	op *Operation
	// finish is called when the operation has ended, with how it failed or nil.
	// It returns the image as it is then, also beside an error where the image is
	// there; nil where there is none. It is called again where it has failed. nil:
	// there is nothing to do, and the operation's outcome is the work's.
	finish finishFunc
	// release ends what the work needed, such as a token, once the outcome is
	// known. It may be called several times. nil: there is nothing.
	release func(context.Context)
	// before is work that this one must not overtake.
	before *pending

	report  func(Progress) // for a later Image.Wait; nil for none
	size    int64          // of the image in bytes, -1 where unknown
	watched bool           // the server tells how far the operation is

	turn  chan struct{} // held while the work is finished
	done  bool          // it is finished, and was a success; guarded by turn
	image *Image        // as it was then; guarded by turn
}

type finishFunc = func(ctx context.Context, failure error, m *progress.Meter) (*Image, error)

func newPending(op *Operation, size int64, finish finishFunc) *pending {
	return &pending{op: op, size: size, finish: finish, turn: make(chan struct{}, 1)}
}

// then has f decide what the outcome of finish leads to.
func (p *pending) then(f func(ctx context.Context, image *Image, err error, m *progress.Meter) (*Image, error)) {
	finish := p.finish
	p.finish = func(ctx context.Context, failure error, m *progress.Meter) (*Image, error) {
		image, err := finish(ctx, failure, m)
		return f(ctx, image, err, m)
	}
}

// wait waits for the operation's end, finishes the work, and has image take over
// what has become of it. Progress is told to m, or where that is nil to report.
func (p *pending) wait(ctx context.Context, image *Image, m *progress.Meter) error {
	if p.before != nil {
		if err := p.before.wait(ctx, image, m); err != nil {
			return err
		}
	}
	if done, err := p.taken(ctx, image); done || err != nil {
		return err
	}
	if m == nil {
		m = meter(PhaseServer, p.size, p.report)
		defer m.Stop()
	}
	m.Phase(PhaseServer, 0, p.size)
	failure := p.waitWatched(ctx, m)
	var failed *OperationError
	if failure != nil && !errors.As(failure, &failed) {
		if errors.Is(failure, ErrOutcomeUnknown) {
			p.giveUp(ctx)
		}
		return failure
	}
	if err := p.begin(ctx); err != nil {
		return err
	}
	defer p.end()
	if p.done { // by another caller meanwhile
		p.hand(image)
		return nil
	}
	is, err := (*Image)(nil), failure
	if p.finish != nil {
		is, err = p.finish(ctx, failure, m)
	}
	p.giveUp(ctx)
	if is != nil {
		image.replace(is)
		m.Phase(PhaseServer, image.Size, image.Size)
	}
	p.done, p.image = err == nil, is
	return err
}

// waitWatched waits for the operation's end, and tells how far it is.
func (p *pending) waitWatched(ctx context.Context, m *progress.Meter) error {
	if p.watched {
		defer p.op.watch(ctx, m)() // after a panic too
	}
	return p.op.Wait(ctx)
}

// taken says whether the work is finished; image then has what has become of it.
func (p *pending) taken(ctx context.Context, image *Image) (bool, error) {
	if err := p.begin(ctx); err != nil {
		return false, err
	}
	defer p.end()
	if p.done {
		p.hand(image)
	}
	return p.done, nil
}

// hand completes another value of the image than the one that was waited for.
func (p *pending) hand(image *Image) {
	if p.image != nil && image.UploadedAt.IsZero() {
		image.replace(p.image)
	}
}

func (p *pending) begin(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return p.op.interrupted(ctx)
	}
}

func (p *pending) end() { <-p.turn }

// giveUp ends what the work needed, where nobody will wait for it any more, or
// its outcome is known.
func (p *pending) giveUp(ctx context.Context) {
	if p.release != nil {
		p.release(ctx)
	}
}

// Operation is the server's work that makes, refreshes or deletes this image;
// nil if there is none.
func (i *Image) Operation() *Operation {
	if i == nil || i.pending == nil {
		return nil
	}
	return i.pending.op
}

// Wait waits for the image's operation, does what is then left to do (such as
// the aliases of an upload), and reads all attributes; after Refresh and Delete
// it reads none. Where there is no operation it does nothing. The Progress of the call that has begun the work is
// told of it. It may be called again, where it has failed too, and from several
// goroutines. The end of ctx ends the waiting, not the work.
func (i *Image) Wait(ctx context.Context) error {
	if i == nil || i.pending == nil {
		return nil
	}
	return i.pending.wait(ctx, i, nil)
}
