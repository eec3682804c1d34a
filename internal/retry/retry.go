// Package retry is the one policy by which what failed for a while is tried
// again: requests, transfers that resume, waits, event connections, URL sources
// and simplestreams downloads.
//
// A failure is retried while it is transient (see [Transient] and [Status]),
// for as long as the policy's Timeout lets, counted from the first failure since
// there was progress. The pauses double from 100 ms to 5 s, with jitter. A
// server that asks for a longer pause with Retry-After gets it, up to 10 minutes;
// it may outlast the Timeout once. Beyond 10 minutes it is the error at once.
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

// The numbers of the policy.
const (
	DefaultTimeout = 30 * time.Second
	FirstPause     = 100 * time.Millisecond
	MaxPause       = 5 * time.Second
	MaxAfter       = 10 * time.Minute
)

// Policy says for how long failures are retried. The zero value is the default.
type Policy struct {
	// Timeout is how long retrying goes on without progress. The default is
	// DefaultTimeout. Negative: nothing is retried.
	Timeout time.Duration
}

// Retries are the retries of one call. It is for one goroutine at a time.
type Retries struct {
	timeout  time.Duration
	began    time.Time // of the current series of failures; zero without one
	failures int       // in the series
	extended bool      // a Retry-After has outlasted the timeout
}

// Begin returns the retries of a new call.
func (p Policy) Begin() *Retries {
	timeout := p.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	return &Retries{timeout: timeout}
}

// Progress ends a series of failures: the next one begins anew.
func (r *Retries) Progress() { r.began, r.failures, r.extended = time.Time{}, 0, false }

// Pause waits until what failed with err, which must be transient, may be tried
// again, and returns nil then. It returns err where it may not, and an error
// that tells both where ctx ends before.
func (r *Retries) Pause(ctx context.Context, err error) error {
	wait, again := r.next(err)
	if !again {
		return err
	}
	return Pause(ctx, wait, err)
}

// Do calls attempt until it succeeds, fails with an error that is not transient,
// or the policy or ctx ends.
func (p Policy) Do(ctx context.Context, attempt func() error) error {
	retries := p.Begin()
	for {
		err := attempt()
		if err == nil || !Transient(err) {
			return err
		}
		if err := retries.Pause(ctx, err); err != nil {
			return err
		}
	}
}

// next decides how long to wait after a failure.
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
		// The last attempt is at the end of the time, not before it. A server
		// that asks for no pause, or a short one, is not pressed either.
		wait = max(min(backoff(r.failures), left), after)
	}
	r.failures++
	return wait, left > 0 && wait <= left
}

func backoff(failures int) time.Duration {
	d := min(FirstPause<<min(failures, 10), MaxPause)
	return d/2 + rand.N(d/2+1)
}

// Pause waits before what failed with err is tried again. If ctx ends before,
// or has ended, the error tells both.
func Pause(ctx context.Context, d time.Duration, err error) error {
	ended := Sleep(ctx, d)
	switch {
	case ended == nil:
		return nil
	case errors.Is(err, ctx.Err()):
		return err
	}
	return fmt.Errorf("%w while waiting to try again after: %w", ended, err)
}

// Sleep waits for d and returns nil, or the error of ctx, with its cause, if ctx
// ends before.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctxerr.Of(ctx)
	}
}

// Status says whether a response of that status may be another one soon. acted
// says that the request may have been acted on all the same: a proxy answers so
// for a server whose response it did not get.
func Status(code int) (transient, acted bool) {
	switch code {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true, false
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return true, true
	}
	return false, false
}

// Transient says whether what failed with err may succeed next time. The first
// error in the chain that has a method Transient decides. Without one, err is
// the failure of a connection: that is transient, unless it is about permission,
// a missing file, a host name that does not exist, or a TLS handshake that was
// refused or cannot succeed.
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

// Permanent returns err as one that is not transient, whatever it is.
func Permanent(err error) error { return permanentError{err} }

type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

func (permanentError) Transient() bool { return false }

// After returns the pause that a server has asked for: that of the first error in
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

// ParseAfter reads a Retry-After header: seconds, or a date.
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
