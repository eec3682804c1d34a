package lxd

import (
	"context"
	"errors"
	"net/http"

	"github.com/golxd/lxd/internal/retry"
)

// retrying runs attempt until it succeeds, fails for good, or the retry policy
// ends. The pauses obey ctx.
func (t *transport) retrying(ctx context.Context, req *request, attempt func() error) error {
	retries := t.retry.Begin()
	lost := false // the response of an attempt that the server may have seen
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
			return err
		}
		t.log.DebugContext(ctx, "lxd request is retried", "method", req.method, "path", req.path, "error", err)
	}
}

// errDeletedBefore says that a repeated DELETE found nothing any more.
var errDeletedBefore = errors.New("deleted by an earlier attempt")

// retryable says whether a request that failed with err may be sent again: it
// can be, the failure is transient, and either the server has not acted on it or
// acting twice does no harm.
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
		// With If-Match the second would fail because the first succeeded.
		return r.header.Get("If-Match") == ""
	}
	return false
}

// neverSent says whether the server cannot have seen the request.
func neverSent(err error) bool {
	var dial *dialError
	return errors.As(err, &dial)
}

// maybeSeen says whether the server may have done what a request asked for
// although it failed with err, which is transient: the response was lost.
func maybeSeen(err error) bool {
	if !retry.Transient(err) {
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
