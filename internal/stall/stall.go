// Package stall ends an exchange in which the other side neither sends nor
// accepts data for too long: a half-open connection would otherwise block
// forever.
package stall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// Err is the cause of a context that a Watch has canceled.
var Err = errors.New("no data was sent or received for too long")

// DefaultTimeout is the default of the StallTimeout options.
const DefaultTimeout = time.Minute

// Watch cancels a context if there is no progress for the timeout between Start
// and Stop. The time between Stop and Start, in which the caller is not waiting,
// does not count. It is safe for concurrent use.
type Watch struct {
	timeout time.Duration
	cancel  context.CancelCauseFunc

	mu      sync.Mutex
	timer   *time.Timer
	waiting int // the number of waits between Start and Stop
}

// New returns a context that the watch cancels with Err as its cause. The caller
// must call Close. A timeout that is not positive disables the watch.
func New(ctx context.Context, timeout time.Duration) (context.Context, *Watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &Watch{timeout: timeout, cancel: cancel}
}

// Start begins a wait.
func (w *Watch) Start() {
	if w.timeout <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting++
	w.reset()
}

// Progress restarts the timeout during a wait.
func (w *Watch) Progress() {
	if w.timeout <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting > 0 {
		w.reset()
	}
}

// Stop ends a wait.
func (w *Watch) Stop() {
	if w.timeout <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting--; w.waiting > 0 {
		w.reset()
	} else {
		w.timer.Stop()
	}
}

// reset restarts the timeout; the caller holds the lock.
func (w *Watch) reset() {
	if w.timer == nil {
		w.timer = time.AfterFunc(w.timeout, func() { w.cancel(fmt.Errorf("%w (%v)", Err, w.timeout)) })
		return
	}
	w.timer.Reset(w.timeout)
}

// Close ends the watch and cancels the context.
func (w *Watch) Close() {
	w.cancel(nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

// Cause returns the reason why ctx, a context from New, has ended, or err if it
// has not. net/http reports a stall as "context canceled".
func Cause(ctx context.Context, err error) error {
	if ended := ctxerr.Of(ctx, Err); ended != nil {
		return ended
	}
	return err
}

// Body returns a response body whose reads w watches. Its Close closes w.
func Body(ctx context.Context, w *Watch, body io.ReadCloser) io.ReadCloser {
	return &watchedBody{ctx: ctx, watch: w, body: body}
}

type watchedBody struct {
	ctx   context.Context //nolint:containedctx // of the exchange
	watch *Watch
	body  io.ReadCloser
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.Start()
	n, err := b.body.Read(p)
	b.watch.Stop()
	if err != nil && err != io.EOF {
		err = Cause(b.ctx, err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.watch.Close()
	return b.body.Close()
}
