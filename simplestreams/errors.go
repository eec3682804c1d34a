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
	// ErrNotFound is matched when the server has no such file (404 or 410), or when no image goes by the name,
	// fingerprint, version, type and architecture that were asked for.
	ErrNotFound = errors.New("not found")

	// ErrAmbiguous is matched when a fingerprint prefix fits more than one image.
	ErrAmbiguous = errors.New("ambiguous")

	// ErrInvalid is matched when what the server sent is not what it should be: an index that is not JSON, a path that
	// leads out of the server, a hash that is none, a file whose length is not the index's.
	ErrInvalid = errors.New("invalid data")

	// ErrTooLarge is matched when a metadata file is larger than [Options.MaxMetadataSize].
	ErrTooLarge = errors.New("too large")

	// ErrInsecure is matched when plain http would be used without [Options.AllowHTTP].
	ErrInsecure = errors.New("plain http is not allowed")

	// ErrRedirect is matched when the server redirects more than ten times.
	ErrRedirect = errors.New("too many redirects")

	// ErrStalled is matched when the server sent nothing for [Options.StallTimeout].
	ErrStalled = stall.Err
)

// lasting are the causes that do not pass by themselves.
var lasting = []error{ErrNotFound, ErrInvalid, ErrTooLarge, ErrInsecure, ErrRedirect, context.Canceled}

// Error says which file of which server failed, and why. The cause is found with [errors.Is] and [errors.As].
type Error struct {
	// URL is the file's address, without user name, password and query.
	URL string

	// StatusCode is the HTTP status of the answer, or 0 if there was none or the status was not at fault.
	StatusCode int

	// Err is the cause.
	Err error

	retryAfter time.Duration
	asked      bool // the response has a Retry-After header
}

// Error returns the address, the status where there is one, and the cause.
func (e *Error) Error() string {
	if e.StatusCode != 0 {
		return fmt.Sprintf("simplestreams: %s: HTTP %d: %v", e.URL, e.StatusCode, e.Err)
	}

	return fmt.Sprintf("simplestreams: %s: %v", e.URL, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Transient reports whether the same call may succeed later: after the statuses 429, 502, 503 and 504, and after a
// connection that failed, was cut or stalled. It is false for all other statuses, for a host that does not exist, for a
// TLS handshake that was refused, and after [context.Canceled]. By the time that a caller sees the error, the package has
// retried it for [Options.RetryTimeout].
func (e *Error) Transient() bool {
	if e.StatusCode != 0 {
		transient, _ := retry.Status(e.StatusCode)
		return transient
	}

	return !slices.ContainsFunc(lasting, func(cause error) bool { return errors.Is(e.Err, cause) }) && retry.Transient(e.Err)
}

// RetryAfter returns how long the server asked to wait before the next request, counted from its response, and whether
// it asked. A pause of more than ten minutes is not waited for: the call returns the error at once.
func (e *Error) RetryAfter() (time.Duration, bool) {
	if !e.asked {
		return retry.After(e.Err)
	}

	return e.retryAfter, true
}

// HashError says that a file, or the image made of two files, is not the one that the index describes. It comes in the
// place of [io.EOF], so whoever reads to the end cannot miss it.
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

// Is reports that a HashError is a kind of [ErrInvalid].
func (e *HashError) Is(target error) bool { return target == ErrInvalid }

// ResolveError says why a reference does not lead to one image. It matches [ErrNotFound], [ErrAmbiguous] or
// [ErrInvalid].
type ResolveError struct {
	// Ref is the alias or fingerprint as it was given.
	Ref string

	// Matches are the fingerprints that fit an ambiguous prefix, ten at most.
	Matches []string

	// Near are names that come close to one that was not found, five at most.
	Near []string

	// Err is the cause.
	Err error
}

// Error returns the reference, the cause and what could have been meant.
func (e *ResolveError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "simplestreams: image %q: %v", e.Ref, e.Err)
	if len(e.Matches) > 0 {
		fmt.Fprintf(&b, ": it could be %s", strings.Join(e.Matches, ", "))
	}
	if len(e.Near) > 0 {
		fmt.Fprintf(&b, " (near to it: %s)", strings.Join(e.Near, ", "))
	}

	return b.String()
}

// Unwrap returns the cause.
func (e *ResolveError) Unwrap() error { return e.Err }

// invalidf makes an error that matches ErrInvalid.
func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}
