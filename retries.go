package lxd

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/golxd/lxd/internal/retry"
)

// retrying calls attempt until it succeeds, its error is not retryable, or the
// retry timeout has passed. It returns when ctx ends, even in a pause.
func (t *transport) retrying(ctx context.Context, req *request, attempt func() error) error {
	retries := t.retry.Begin()
	lost := false // the server may have acted on an attempt whose response was lost
	for {
		switch {
		case ctx.Err() != nil:
			return t.connectionError(ctx, req, ctx.Err())
		case t.conns.isClosed():
			return t.connectionError(ctx, req, errClosed)
		}
		err := t.onMembers(req, attempt)
		if lost && req.method == http.MethodDelete && errors.Is(err, ErrNotFound) {
			return errDeletedBefore
		}
		if err == nil || !req.retryable(err) {
			return err
		}
		lost = lost || maybeSeen(err)
		if err := retries.Pause(ctx, err); err != nil {
			if lost && req.method == http.MethodDelete && t.isDeleted(ctx, req) {
				return errDeletedBefore
			}
			return err
		}
		t.log.DebugContext(ctx, "lxd request is retried", "method", req.method, "path", req.path, "error", err)
	}
}

// retriesFor returns the retries of a call that has its own retry timeout.
func (t *transport) retriesFor(timeout time.Duration) *retry.Retries {
	policy := t.retry
	policy.Timeout = timeout
	return policy.Begin()
}

// untilClosed calls work, which is with another server, with a context that also ends
// when the client is closed: that closes only the connections to its own server.
func (t *transport) untilClosed(ctx context.Context, work func(context.Context) error) error {
	working, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-t.conns.done:
			cancel(errClosed)
		case <-working.Done():
		}
	}()
	err := work(working)
	if err != nil && t.conns.isClosed() {
		return t.connectionError(ctx, &request{method: http.MethodPost, path: path("images")}, errClosed)
	}
	return err
}

// deletedTimeout is how long isDeleted looks: the daemons delete an image after
// their response.
const deletedTimeout = 2 * time.Second

// isDeleted reports whether what a DELETE with a lost response should delete does not
// exist.
func (t *transport) isDeleted(ctx context.Context, req *request) bool {
	ctx, cancel := context.WithTimeout(ctx, deletedTimeout)
	defer cancel()
	look := &request{method: http.MethodGet, path: req.path, query: req.query, secrets: req.secrets}
	for retries := t.retriesFor(deletedTimeout); ; {
		err := t.onMembers(look, func() error {
			_, err := t.attempt(ctx, look, nil)
			return err
		})
		if err != nil || retries.Pause(ctx, errUnsettled) != nil {
			return errors.Is(err, ErrNotFound)
		}
	}
}

// errDeletedBefore means that the response to a DELETE was lost, and that the thing
// does not exist any more.
var errDeletedBefore = errors.New("deleted by an earlier attempt")

// retryable reports whether a request that failed with err may be sent again: the
// body allows it, the failure is transient, and either the server has not acted on
// the request or acting twice does no harm.
func (r *request) retryable(err error) bool {
	if r.noRetry || (r.body != nil && !r.body.replayable()) {
		return false
	}
	var refused *Error
	var broken *ConnectionError
	if !errors.As(err, &refused) && !errors.As(err, &broken) || !retry.Transient(err) {
		return false
	}
	if !maybeSeen(err) {
		return true
	}
	switch r.method {
	case http.MethodGet, http.MethodHead, http.MethodDelete:
		return true
	case http.MethodPost:
		return r.repeatable
	case http.MethodPut:
		// With If-Match the second attempt would fail if the first succeeded.
		return r.header.Get("If-Match") == ""
	}
	return false
}

// neverSent reports whether the server cannot have received the request.
func neverSent(err error) bool {
	var dial *dialError
	return errors.As(err, &dial)
}

// maybeSeen reports whether the server may have acted on a request that failed
// with err: the error is transient, and the response was lost.
func maybeSeen(err error) bool {
	var unchecked *checkError
	if errors.As(err, &unchecked) || !retry.Transient(err) {
		return false
	}
	var refused *Error
	if errors.As(err, &refused) {
		_, acted := retry.Status(refused.StatusCode)
		return acted
	}
	var broken *ConnectionError
	return errors.As(err, &broken) && !neverSent(broken.Err)
}
