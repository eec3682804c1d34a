package lxd

import (
	"context"
	"fmt"
	"reflect"
	"time"
)

// errStalled is the error of a transfer between servers that one of them does not continue.
var errStalled = fmt.Errorf("the server's operation has made no progress for too long: %w", ErrUnavailable)

// stallPeriods is after how many stall timeouts without progress a transfer between
// servers is cancelled. The daemons report whole percents only, which may take long.
const stallPeriods = 10

// watchStall watches the operations of a transfer between servers until ctx ends. If there
// is no progress for the timeout, others need not wait for it any more, and it calls
// stalled. If there is none for much longer, it cancels the transfer.
func (j *distributeJob) watchStall(ctx context.Context, started <-chan *Operation, timeout time.Duration, stalled func(), cancel context.CancelCauseFunc) {
	if timeout <= 0 {
		return
	}
	w := &stallWatch{started: started, timeout: timeout}
	j.start(func() func() {
		if !w.wait(ctx, 1) {
			return func() {}
		}
		return func() {
			if ctx.Err() == nil {
				stalled()
			}
			j.start(func() func() {
				if w.wait(ctx, stallPeriods) {
					cancel(errStalled)
				}
				return func() {}
			})
		}
	})
}

// stallWatch compares the state of an operation with that of a timeout before.
type stallWatch struct {
	started <-chan *Operation
	timeout time.Duration
	op      *Operation // the last of started
	state   OperationStatus
	same    int // for how many timeouts there was no progress
}

// wait waits until there was no progress for so many timeouts. It reports whether that is
// so; if not, ctx has ended.
func (w *stallWatch) wait(ctx context.Context, timeouts int) bool {
	tick := time.NewTicker(w.timeout)
	defer tick.Stop()
	for w.same < timeouts {
		select {
		case <-ctx.Done():
			return false
		case w.op = <-w.started:
			w.state, w.same = w.op.Status(), 0
			tick.Reset(w.timeout)
		case <-tick.C:
			if w.op == nil {
				continue // a request, which has a stall watch of its own
			}
			now, err := w.op.Refresh(ctx)
			if err == nil && (now.Done() || !now.UpdatedAt.Equal(w.state.UpdatedAt) || !reflect.DeepEqual(now.Metadata, w.state.Metadata)) {
				w.state, w.same = now, 0
				continue
			}
			w.same++
		}
	}
	return true
}
