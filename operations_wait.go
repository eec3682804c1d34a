package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/retry"
)

const (
	// waitTimeout is the server-side timeout of one wait request.
	waitTimeout = 60 * time.Second
	// waitSlack is how much later than that a response may arrive before the
	// connection counts as dead.
	waitSlack = 15 * time.Second
	// reconnectTimeout is the retry timeout of a wait, instead of
	// Options.RetryTimeout: a daemon with many instances takes that long to
	// restart.
	reconnectTimeout = time.Minute
)

// Wait waits until the operation has finished. It returns nil if the operation
// succeeded, and an [*OperationError] if it failed or was cancelled. If ctx ends,
// Wait returns, but the operation continues; see Cancel. A lost connection is not
// an outcome: Wait retries until ctx ends or a minute has passed without a
// response, whatever Options.RetryTimeout is; a Retry-After of more than 10 minutes
// is an error. If the server has forgotten the operation by then, Wait looks for
// the operation's result on the server; if that does not determine the outcome, the
// error matches [ErrOutcomeUnknown]. Wait may be called repeatedly and concurrently.
func (o *Operation) Wait(ctx context.Context) error {
	if err := o.check(ctx); err != nil {
		return err
	}
	if finished, err := o.result(); finished {
		return err
	}
	retries := o.client.t.retriesFor(reconnectTimeout)
	refusals := o.client.t.retriesFor(endless)
	for {
		began := time.Now()
		err := o.read(ctx, strconv.Itoa(int(waitTimeout/time.Second)))
		if err == nil {
			if finished, err := o.result(); finished {
				return err
			}
			retries.Progress()
			refusals.Progress()
			continue
		}
		if ctx.Err() != nil {
			return o.interrupted(ctx)
		}
		series := retries
		var refused *Error
		switch {
		case errors.As(err, &refused):
			// On LXD 5.0.9 to 6.x and Incus 6.0.4 the response to a wait for
			// an operation that fails, or to a wait that times out, is an error of
			// any status, like that of a refused request. Only the operation
			// itself distinguishes them.
			running, rerr := o.afterRefusal(ctx, refused)
			if !running {
				return rerr
			}
			if rerr != nil {
				err = rerr
				break
			}
			// Most often the wait has timed out; if it was refused at once,
			// repeating it must not become a busy loop.
			retries.Progress()
			if _, hasPause := refused.RetryAfter(); !hasPause && time.Since(began) > retry.MaxPause {
				refusals.Progress()
				continue
			}
			series = refusals
		case errors.Is(err, ErrUnavailable) && retry.Transient(err):
			// The server is unavailable, or the connection is dead.
		case errors.Is(err, ErrUnavailable):
			return o.lost(err)
		default:
			return err
		}
		if err := series.Pause(ctx, err); err != nil {
			if ctx.Err() != nil {
				return o.interrupted(ctx)
			}
			if isServerError(err) {
				return o.withheld(ctx, err)
			}
			return o.lost(err)
		}
	}
}

// isServerError reports whether err is a response that does not determine the
// outcome: in a cluster one of status 500, while the member that works on an
// operation does not respond (LXD 5.0.2, Incus 6.0.4 and 7.0.2).
func isServerError(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.StatusCode >= http.StatusInternalServerError
}

// lost returns the error of a wait whose retries have failed.
func (o *Operation) lost(err error) error {
	return fmt.Errorf("wait for operation %s, which may still be running: %w", o.id, err)
}

// withheld determines the outcome of an operation about which the server only
// returns err.
func (o *Operation) withheld(ctx context.Context, err error) error {
	outcome := o.forgotten(ctx)
	if errors.Is(outcome, ErrOutcomeUnknown) {
		return fmt.Errorf("wait for operation %s, which may still be running: %w: %w", o.id, ErrOutcomeUnknown, err)
	}
	return outcome
}

// afterRefusal reads the operation after an error response to a wait. It returns
// true and nil if the operation is running, true and an error if the server is
// unavailable or does not know, and otherwise false and the outcome of the wait.
func (o *Operation) afterRefusal(ctx context.Context, refused *Error) (running bool, err error) {
	switch err := o.read(ctx, ""); {
	case ctx.Err() != nil:
		return false, o.interrupted(ctx)
	case errors.Is(err, ErrNotFound):
		return false, o.forgotten(ctx)
	case errors.Is(err, ErrUnavailable), isServerError(err):
		return true, err
	case err != nil:
		return false, refused
	}
	finished, err := o.result()
	if !finished {
		return true, nil
	}
	var failed *OperationError
	if errors.As(err, &failed) && failed.StatusCode == statusFailure && refused.StatusCode >= 400 && refused.StatusCode < 500 && refused.StatusCode != statusCancelled {
		// The wait's status is the kind of failure, which the operation lacks.
		o.mu.Lock()
		o.state.ErrCode = refused.StatusCode
		o.mu.Unlock()
		_, err = o.result()
	}
	return false, err
}

// forgotten determines the outcome of an operation that the server has
// forgotten.
func (o *Operation) forgotten(ctx context.Context) error {
	if o.settle != nil {
		err := o.settle(ctx)
		switch {
		case err == nil:
			o.mu.Lock()
			o.state.Status, o.state.StatusCode = "Success", statusSuccess
			o.mu.Unlock()
			return nil
		case ctx.Err() != nil:
			return o.interrupted(ctx)
		case !errors.Is(err, errUnsettled):
			return err
		}
	}
	return fmt.Errorf("the server has forgotten operation %s: %w", o.id, ErrOutcomeUnknown)
}

// errUnsettled is returned by settle functions if the server's state does not
// determine the outcome.
var errUnsettled = errors.New("cannot be determined")

// interrupted returns the error of a wait that ctx ends.
func (o *Operation) interrupted(ctx context.Context) error {
	s := o.Status()
	what := s.Description
	if what == "" {
		what = "an operation"
	}
	return fmt.Errorf("wait for operation %s (%s), which may still be running: %w", o.id, what, ctxerr.Of(ctx))
}
