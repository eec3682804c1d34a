// Package stall ends an exchange in which the other side neither sends nor takes
// a byte for too long: a half-open connection would otherwise last for ever.
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

// Err is the cause of a context that a Watch has ended.
var Err = errors.New("no byte was sent or taken for too long")

// DefaultTimeout is the default of the options that set one.
const DefaultTimeout = time.Minute

// Watch ends a context when nothing happens between Start and Stop for the
// timeout. The time between Stop and Start is the caller's own and is not
// counted. It is safe for concurrent use.
type Watch struct {
	timeout time.Duration
	cancel  context.CancelCauseFunc

	mu      sync.Mutex
	timer   *time.Timer
	waiting int // how many waits are between Start and Stop
}

// New returns a context that the watch ends with Err as its cause. The caller
// must end it with Close. A timeout that is not positive watches nothing.
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

// Progress tells that something happened during a wait.
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

// reset begins the time anew; the caller holds the lock.
func (w *Watch) reset() {
	if w.timer == nil {
		w.timer = time.AfterFunc(w.timeout, func() { w.cancel(fmt.Errorf("%w (%v)", Err, w.timeout)) })
		return
	}
	w.timer.Reset(w.timeout)
}

// Close ends the context, and the watch.
func (w *Watch) Close() {
	w.cancel(nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

// Cause returns why ctx, which New has returned, has ended, and err if it has
// not: net/http says "context canceled" for a stall.
func Cause(ctx context.Context, err error) error {
	if ended := ctxerr.Of(ctx, Err); ended != nil {
		return ended
	}
	return err
}

// Body is a response's body under a watch. Its Close ends the watch.
func Body(ctx context.Context, w *Watch, body io.ReadCloser) io.ReadCloser {
	return &watched{ctx: ctx, watch: w, body: body}
}

type watched struct {
	ctx   context.Context //nolint:containedctx // of the exchange
	watch *Watch
	body  io.ReadCloser
}

func (b *watched) Read(p []byte) (int, error) {
	b.watch.Start()
	n, err := b.body.Read(p)
	b.watch.Stop()
	if err != nil && err != io.EOF {
		err = Cause(b.ctx, err)
	}
	return n, err
}

func (b *watched) Close() error {
	b.watch.Close()
	return b.body.Close()
}
