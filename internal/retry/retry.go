// Package retry is the retry policy of requests, resumed transfers, waits, event
// connections, URL sources and simplestreams downloads.
//
// Transient failures (see [Transient] and [Status]) are retried until the
// policy's Timeout has passed since the first failure after the last progress.
// The pauses double from 100 ms to 5 s, with jitter. If a server requests a
// longer pause with Retry-After, it is observed up to 10 minutes, and may exceed
// the Timeout once; a pause of more than 10 minutes is not observed: the failure
// is returned at once.
package retry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// The constants of the policy.
const (
	DefaultTimeout = 30 * time.Second
	FirstPause     = 100 * time.Millisecond
	MaxPause       = 5 * time.Second
	MaxAfter       = 10 * time.Minute
)

// Policy is how long failures are retried. The zero value is the default.
type Policy struct {
	// Timeout is how long failures are retried without progress. The default is
	// DefaultTimeout; if negative, nothing is retried.
	Timeout time.Duration
	// Closed ends every pause at once when it is closed. The retries then begin, and
	// must fail.
	Closed <-chan struct{}
}

// Retries is the state of the retries of one call. It is not safe for concurrent
// use.
type Retries struct {
	timeout  time.Duration
	closed   <-chan struct{}
	began    time.Time // the first failure of the current series, or zero
	failures int       // their number in the series
	extended bool      // a Retry-After has exceeded the timeout
}

// Begin returns the Retries of a new call.
func (p Policy) Begin() *Retries {
	timeout := p.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	return &Retries{timeout: timeout, closed: p.Closed}
}

// Progress ends the current series of failures; the next failure starts a new
// one.
func (r *Retries) Progress() { r.began, r.failures, r.extended = time.Time{}, 0, false }

// Pause waits before a retry of what failed with err, which must be transient,
// and returns nil. It returns err if there must be no retry, and an error that
// wraps both err and that of ctx if ctx ends first.
func (r *Retries) Pause(ctx context.Context, err error) error {
	wait, again := r.next(err)
	if !again {
		return err
	}
	return pause(ctx, wait, r.closed, err)
}

// Do calls attempt until it succeeds or fails with an error that is not
// transient, until the timeout, or until ctx ends. Its errors are those of attempt
// and of [Retries.Pause]. retrying receives the error before each retry; nil for
// nobody.
func (p Policy) Do(ctx context.Context, attempt func() error, retrying func(error)) error {
	retries := p.Begin()
	for {
		err := attempt()
		if err == nil || !Transient(err) {
			return err
		}
		if perr := retries.Pause(ctx, err); perr != nil {
			return perr
		}
		if retrying != nil {
			retrying(err)
		}
	}
}

// next returns the pause after a failure, and whether to retry.
func (r *Retries) next(err error) (wait time.Duration, again bool) {
	if r.timeout < 0 {
		return 0, false
	}
	now := time.Now()
	if r.began.IsZero() {
		r.began = now
	}
	left := r.timeout - now.Sub(r.began)
	after, asked := After(err)
	switch {
	case asked && after > MaxAfter:
		return 0, false
	case asked && after > left && !r.extended:
		r.extended = true
		return after, true
	default:
		// The last attempt is at the end of the timeout, not earlier. A shorter
		// Retry-After does not shorten the pause.
		wait = max(min(backoff(r.failures), left), after)
	}
	r.failures++
	return wait, left > 0 && wait <= left
}

func backoff(failures int) time.Duration {
	d := min(FirstPause<<min(failures, 10), MaxPause)
	return d/2 + rand.N(d/2+1)
}

// Pause waits for d before a retry of what failed with err. If ctx ends first, or
// has ended, the error wraps both.
func Pause(ctx context.Context, d time.Duration, err error) error {
	return pause(ctx, d, nil, err)
}

func pause(ctx context.Context, d time.Duration, closed <-chan struct{}, err error) error {
	ended := sleep(ctx, d, closed)
	switch {
	case ended == nil:
		return nil
	case errors.Is(err, ctx.Err()):
		return err
	}
	return fmt.Errorf("%w while waiting to retry after: %w", ended, err)
}

// Sleep waits for d and returns nil. If ctx ends first, it returns ctx's error
// with its cause.
func Sleep(ctx context.Context, d time.Duration) error { return sleep(ctx, d, nil) }

// sleep also ends, with nil, when closed is closed.
func sleep(ctx context.Context, d time.Duration, closed <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-closed:
		return nil
	case <-ctx.Done():
		return ctxerr.Of(ctx)
	}
}

// Status reports whether a response status is transient. acted reports whether
// the server may have processed the request nevertheless: a proxy sends such a
// status if it got no response from the server.
func Status(code int) (transient, acted bool) {
	switch code {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true, false
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return true, true
	}
	return false, false
}

// Transient reports whether what failed with err may succeed when retried. The
// first error in the chain that has a method Transient decides. Without one, err
// is taken for a failed connection: that is transient, unless the cause is
// missing permission, a missing file, a host name that does not exist, or a TLS
// handshake that was refused or cannot succeed.
func Transient(err error) bool {
	var marked interface{ Transient() bool }
	if errors.As(err, &marked) {
		return marked.Transient()
	}
	var record tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	var alert tls.AlertError
	var dns *net.DNSError
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist), errors.Is(err, http.ErrSchemeMismatch),
		errors.As(err, &record), errors.As(err, &verification), errors.As(err, &alert):
		return false
	case errors.As(err, &dns):
		return dns.IsTemporary || dns.IsTimeout
	}
	return true
}

// Permanent wraps err so that it is not transient.
func Permanent(err error) error { return permanentError{err} }

type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

func (permanentError) Transient() bool { return false }

// After returns the pause that a server has requested: that of the first error in
// the chain that has a method RetryAfter.
func After(err error) (time.Duration, bool) {
	var asked interface {
		RetryAfter() (time.Duration, bool)
	}
	if !errors.As(err, &asked) {
		return 0, false
	}
	return asked.RetryAfter()
}

// ParseAfter parses a Retry-After header: seconds or a date.
func ParseAfter(text string) (time.Duration, bool) {
	text = strings.TrimSpace(text)
	if text == "" {
		return 0, false
	}
	if seconds, err := strconv.ParseUint(text, 10, 64); err == nil {
		return time.Duration(min(seconds, 1<<30)) * time.Second, true
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), 0), true
	}
	return 0, false
}
