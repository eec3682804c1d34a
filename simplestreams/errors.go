package simplestreams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/stall"
)

var (
	// ErrInvalid says that an argument or option was refused before anything was sent. The error is an [*InputError] that
	// names the field.
	ErrInvalid = errors.New("invalid input")

	// ErrNotFound says that the server has no such file (404 or 410), or no image of the requested name, fingerprint,
	// version, type and architecture.
	ErrNotFound = errors.New("not found")

	// ErrAmbiguous says that a fingerprint prefix matches more than one image.
	ErrAmbiguous = errors.New("fingerprint prefix is ambiguous or too short")

	// ErrBadData says that the server sent invalid data: an index that is not JSON, a path not below the server's
	// address, a malformed hash, a file whose length or hash differs from the index.
	ErrBadData = errors.New("invalid data")

	// ErrSignature says that a metadata file has no valid signature of a key that [Options.Verifier] trusts. The error is
	// an [*Error] that names the file.
	ErrSignature = errors.New("invalid signature")

	// ErrTooLarge says that a metadata file is larger than [Options.MaxMetadataSize].
	ErrTooLarge = errors.New("too large")

	// ErrInsecure says that plain http would be used without [Options.AllowHTTP].
	ErrInsecure = errors.New("plain http is not allowed")

	// ErrRedirect says that the server redirects more than ten times.
	ErrRedirect = errors.New("too many redirects")

	// ErrExists says that a tree has another image of the version that was to be published.
	ErrExists = errors.New("already exists")

	// ErrConflict says that a file has been changed since it was read, see [Store].
	ErrConflict = errors.New("changed since it was read")

	// ErrStalled says that the server sent nothing for [Options.StallTimeout].
	ErrStalled = stall.Err
)

// InputError names the argument or option that was refused, and says why. Nothing was sent. It matches [ErrInvalid].
type InputError struct {
	Field   string // such as "server" or "Options.Family"
	Problem string // such as "is empty"
}

// Error returns the field and the problem.
func (e *InputError) Error() string { return e.Field + " " + e.Problem }

// Is matches [ErrInvalid].
func (e *InputError) Is(target error) bool { return target == ErrInvalid }

// Transient is false: the same call fails in the same way.
func (e *InputError) Transient() bool { return false }

func invalid(field, format string, args ...any) error {
	return &InputError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// permanent are the causes for which a retry is useless.
var permanent = []error{ErrNotFound, ErrBadData, ErrSignature, ErrTooLarge, ErrInsecure, ErrRedirect, context.Canceled}

// Error is the failure of a request for a file, or of a file of a [Tree]. The cause is matched with [errors.Is] and [errors.As].
type Error struct {
	// URL is the file's address, without user name, password and query. Of a file of a [Tree], it is the path in the store.
	URL string

	// StatusCode is the HTTP status of the response, or 0 if there was none or the status is not the cause.
	StatusCode int

	// Err is the cause.
	Err error

	retryAfter    time.Duration
	hasRetryAfter bool
}

// Error returns the address, the status if there is one, and the cause.
func (e *Error) Error() string {
	if e.StatusCode != 0 {
		return fmt.Sprintf("simplestreams: %s: HTTP %d: %v", e.URL, e.StatusCode, e.Err)
	}

	return fmt.Sprintf("simplestreams: %s: %v", e.URL, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Transient reports whether the same call may succeed later: after the statuses 429, 502, 503 and 504, and after a
// connection that failed, broke or stalled. It is false for all other statuses, for a host that does not exist, for a TLS
// handshake that was refused, and after [context.Canceled]. A transient error is only returned after retries for
// [Options.RetryTimeout].
func (e *Error) Transient() bool {
	if e.StatusCode != 0 {
		transient, _ := retry.Status(e.StatusCode)
		return transient
	}

	return !slices.ContainsFunc(permanent, func(cause error) bool { return errors.Is(e.Err, cause) }) && retry.Transient(e.Err)
}

// RetryAfter returns the pause that the response's Retry-After header asks for, counted from the response, and whether
// there is such a header. If it asks for more than ten minutes, nothing is retried: the call returns the error at once.
func (e *Error) RetryAfter() (time.Duration, bool) {
	if !e.hasRetryAfter {
		return retry.After(e.Err)
	}

	return e.retryAfter, true
}

// HashError says that a file, or the image made of two files, does not have the hash in the index. It is returned
// instead of [io.EOF], so a caller that reads to the end cannot miss it.
type HashError struct {
	// File is the address of the file. For the combined hash of a split image it names both files.
	File string

	// Expected and Actual are SHA-256 hashes in lower-case hexadecimal.
	Expected, Actual string
}

// Error returns the file and the two hashes.
func (e *HashError) Error() string {
	return fmt.Sprintf("simplestreams: %s: SHA-256 is %s, the index says %s", e.File, e.Actual, e.Expected)
}

// Is matches [ErrBadData].
func (e *HashError) Is(target error) bool { return target == ErrBadData }

// ResolveError says why a reference does not resolve to one image. It matches [ErrInvalid], [ErrNotFound],
// [ErrAmbiguous] or [ErrBadData].
type ResolveError struct {
	// Ref is the alias or fingerprint as it was passed to Resolve.
	Ref string

	// Matches are the fingerprints that match an ambiguous prefix, at most ten.
	Matches []string

	// Near are aliases similar to one that was not found, at most five.
	Near []string

	// Err is the cause.
	Err error
}

// Error returns the reference, the cause, the matches and the similar aliases.
func (e *ResolveError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "simplestreams: image %q: %v", e.Ref, e.Err)
	if len(e.Matches) > 0 {
		fmt.Fprintf(&b, ": it could be %s", strings.Join(e.Matches, ", "))
	}
	if len(e.Near) > 0 {
		fmt.Fprintf(&b, " (similar: %s)", strings.Join(e.Near, ", "))
	}

	return b.String()
}

// Unwrap returns the cause.
func (e *ResolveError) Unwrap() error { return e.Err }

// badDataf returns an error that matches ErrBadData.
func badDataf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrBadData, fmt.Errorf(format, args...))
}
