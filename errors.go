package lxd

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/simplestreams"
)

// The kinds of failure, to be matched with [errors.Is].
var (
	// ErrInvalid says that an argument or option was refused before anything
	// was sent. The error is an [*InputError] that names the field.
	ErrInvalid = simplestreams.ErrInvalid

	// ErrNotFound says that the image, alias, operation, project, profile or
	// instance does not exist, or that this client may not see it.
	ErrNotFound = simplestreams.ErrNotFound

	// ErrProjectNotFound says that the client's project does not exist. Every error
	// that matches it also matches ErrNotFound. LXD 6.5 responds to a list in such a
	// project with 200 and no images, which is returned as it is.
	ErrProjectNotFound = errors.New("project not found")

	// ErrExists says that the image or alias already exists.
	ErrExists = simplestreams.ErrExists

	// ErrConflict says that the object has been changed since it was read: read
	// it again, and repeat the change.
	ErrConflict = simplestreams.ErrConflict

	// ErrAmbiguous says that a fingerprint prefix matches more than one image, or
	// is shorter than the server accepts (LXD 6.5 and up: 12 characters) and the
	// images cannot be listed.
	ErrAmbiguous = simplestreams.ErrAmbiguous

	// ErrForbidden says that the server does not trust this client, or does
	// not allow it to make this call, or that this user may not use the server's
	// unix socket.
	ErrForbidden = errors.New("forbidden")

	// ErrUnauthorized says that the credentials are missing, wrong or expired.
	// Every error that matches it also matches ErrForbidden.
	ErrUnauthorized = errors.New("unauthorized")

	// ErrUnsupported says that this server does not support the call; the text
	// names the missing API extension or contains the server's refusal.
	ErrUnsupported = errors.New("not supported by the server")

	// ErrUnavailable says that the server could not be reached, broke the
	// connection, or is starting or shutting down. [IsTransient] distinguishes
	// what may pass from what lasts.
	ErrUnavailable = errors.New("server unavailable")

	// ErrBadResponse says that the response was not one of the LXD API, or not
	// to this request: not JSON, truncated, of an unexpected shape or HTTP
	// status, or about another image, alias or operation than the requested one.
	// Most often it is a proxy's page or another program's port. The error never
	// matches ErrNotFound, ErrExists, ErrConflict or ErrUnsupported.
	ErrBadResponse = errors.New("unexpected response")

	// ErrTooLarge says that a response takes more memory than this package
	// allows: 16 MiB for one object, one element of a list or one event, and 512
	// MiB for a list that is kept. Every error that matches it also matches
	// ErrBadResponse.
	ErrTooLarge = errors.New("response too large")

	// ErrCancelled says that an operation was cancelled on the server.
	ErrCancelled = errors.New("operation cancelled")

	// ErrOutcomeUnknown says that the server forgot an operation before the
	// client saw it finish, and that the state of the server does not determine
	// how it ended: what the operation should have created does not exist, or
	// exists without the content that an image must have.
	ErrOutcomeUnknown = errors.New("outcome of the operation is unknown")

	// ErrBodyChanged says that a file changed its length while it was sent, or
	// that a reader has more bytes than CreateOptions.Size or RootfsSize says.
	ErrBodyChanged = content.ErrChanged

	// ErrNotReplayable says that a transfer failed after it had read from a
	// reader that cannot be rewound. Call again with a new reader, or pass
	// an io.Seeker such as a file.
	ErrNotReplayable = errors.New("the reader cannot be sent again")
)

// IsTransient reports whether the call that failed with err may succeed when it is
// made again later, with nothing changed: the server could not be reached, the
// connection broke, or the status is 429, 502, 503 or 504. It is false for a
// failure that lasts until somebody changes something, such as a closed client,
// an untrusted certificate, a [*PinError], no permission or bad input, for any other
// refusal of the server, for the end of a context, and for nil. The first error in
// err's chain that has a method Transient decides.
//
// This package has then already retried for Options.RetryTimeout, unless the call
// may have taken effect: see the section Retries.
func IsTransient(err error) bool {
	var marked interface{ Transient() bool }
	return errors.As(err, &marked) && marked.Transient()
}

// Error is an error response of the server.
type Error struct {
	StatusCode int    // the HTTP status, or the response's error_code if that is the right one
	Method     string // of the request
	Path       string // of the request, escaped, without query
	Message    string // the daemon's own words
	Hint       string // what to do about it; may be empty

	// OIDC is the OpenID Connect provider that the server names when it refuses
	// a caller; nil if it names none.
	OIDC *OIDCProvider

	kind       error  // a sentinel that the status code does not imply; may be nil
	retryAfter string // the header Retry-After
}

// Error returns the request, the daemon's words, the status code and the hint.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: ", e.Method, e.Path)
	if e.Message != "" {
		b.WriteString(e.Message)
	} else {
		b.WriteString(strings.ToLower(http.StatusText(e.StatusCode)))
	}
	fmt.Fprintf(&b, " (%d)", e.StatusCode)
	if e.Hint != "" {
		b.WriteString(": ")
		b.WriteString(e.Hint)
	}
	return b.String()
}

// without removes secrets from the server's words.
func (e *Error) without(secrets *redact.Secrets) *Error {
	e.Message, e.Hint = secrets.Text(e.Message), secrets.Text(e.Hint)
	return e
}

// Is matches the sentinel errors of this package.
func (e *Error) Is(target error) bool {
	if e.kind != nil && target == e.kind {
		return true
	}
	if e.kind == ErrBadResponse || e.kind == ErrTooLarge {
		// The status may not be the daemon's: 404 of another program does not
		// mean that an image does not exist.
		switch target {
		case ErrNotFound, ErrExists, ErrConflict, ErrUnsupported:
			return false
		}
	}
	switch target {
	case ErrBadResponse:
		return e.kind == ErrTooLarge
	case ErrNotFound:
		return e.StatusCode == http.StatusNotFound
	case ErrExists:
		return e.StatusCode == http.StatusConflict
	case ErrConflict:
		return e.StatusCode == http.StatusPreconditionFailed
	case ErrForbidden:
		return e.StatusCode == http.StatusForbidden || e.StatusCode == http.StatusUnauthorized
	case ErrUnauthorized:
		return e.StatusCode == http.StatusUnauthorized
	case ErrUnsupported:
		return e.StatusCode == http.StatusNotImplemented
	case ErrUnavailable:
		return unavailable(e.StatusCode)
	}
	return false
}

// Transient reports whether the same call may succeed later: the status is 429,
// 502, 503 or 504. After 502 and 504 the server may have acted on the request.
func (e *Error) Transient() bool { return unavailable(e.StatusCode) }

// RetryAfter returns the pause that the server's Retry-After header asks for;
// ok is false if there is no such header.
func (e *Error) RetryAfter() (wait time.Duration, ok bool) { return retry.ParseAfter(e.retryAfter) }

// InputError names the argument or option that was refused, and says why.
// Nothing was sent. It matches [ErrInvalid].
type InputError = simplestreams.InputError

func invalid(field, format string, args ...any) error {
	return &InputError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// ConnectionError says that no response arrived: the server could not be
// reached, or the connection broke. It matches [ErrUnavailable], also
// [ErrForbidden] if this user may not use the unix socket, and wraps the cause:
// net.ErrClosed if the client is closed, [*PinError], or that of the network.
type ConnectionError struct {
	Endpoint string // as in Client.Endpoint
	Method   string
	Path     string
	Hint     string // what to do about it; may be empty
	Err      error

	kind error // another sentinel; may be nil
}

// Error returns the request, the endpoint, the cause and the hint.
func (e *ConnectionError) Error() string {
	s := fmt.Sprintf("%s %s at %s: %v", e.Method, e.Path, e.Endpoint, e.Err)
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

// Unwrap returns the cause.
func (e *ConnectionError) Unwrap() error { return e.Err }

// Is matches [ErrUnavailable], and ErrForbidden for a unix socket that this user
// may not use.
func (e *ConnectionError) Is(target error) bool {
	return target == ErrUnavailable || (e.kind != nil && target == e.kind)
}

// Transient reports whether the same call may succeed later. It is false for a
// failure that lasts until somebody changes something: no permission, no socket
// where the client has never seen one, an unknown host name, an untrusted
// certificate, a refusal by a proxy, a closed client.
func (e *ConnectionError) Transient() bool { return retry.Transient(e.Err) }

// OperationError says that an operation of the server failed or was cancelled.
type OperationError struct {
	ID          string // of the operation
	Description string // such as "Downloading image"
	StatusCode  int    // 400 failure, 401 cancelled; or err_code if the server sends one
	Message     string // the daemon's own words
	Hint        string // what to do about it; may be empty

	kind error
}

// Error returns the description, the daemon's words, the operation's ID and the hint.
func (e *OperationError) Error() string {
	what := e.Description
	if what == "" {
		what = "operation"
	}
	text := fmt.Sprintf("%s: %s (operation %s)", strings.ToLower(what[:1])+what[1:], e.Message, e.ID)
	if e.Hint != "" {
		text += ": " + e.Hint
	}
	return text
}

// missing returns the error with ErrNotFound and a hint, after the server's state has
// shown that what the operation needs does not exist. Only some daemons send a code.
func (e *OperationError) missing(hint string) *OperationError {
	found := *e
	found.kind, found.Hint = ErrNotFound, hint
	return &found
}

// withHint returns a failure with a hint, if it is that of an operation, is no
// cancellation, and has no hint that says more.
func withHint(failure error, format string, args ...any) error {
	var failed *OperationError
	//nolint:errorlint // what wraps the error of an operation says more, and is kept
	if !errors.As(failure, &failed) || error(failed) != failure || (failed.Hint != "" && failed.Hint != reachabilityHint) || failed.StatusCode == statusCancelled {
		return failure
	}
	hinted := *failed
	hinted.Hint = fmt.Sprintf(format, args...)
	return &hinted
}

// Is matches [ErrCancelled], and the sentinel of the server's err_code if it
// sends one.
func (e *OperationError) Is(target error) bool {
	if e.kind != nil && target == e.kind {
		return true
	}
	switch target {
	case ErrCancelled:
		return e.StatusCode == statusCancelled
	case ErrNotFound:
		return e.StatusCode == http.StatusNotFound
	case ErrExists:
		return e.StatusCode == http.StatusConflict
	case ErrForbidden:
		return e.StatusCode == http.StatusForbidden
	case ErrUnavailable:
		return unavailable(e.StatusCode)
	}
	return false
}

// Transient reports whether the same call may succeed later: the server sent the code
// 429, 502, 503 or 504. What only the daemon's words say is not taken for transient.
func (e *OperationError) Transient() bool { return unavailable(e.StatusCode) }

// FingerprintError says that the content of an image does not have the
// expected fingerprint: it was truncated or corrupted in transit, or is another
// image, such as one that a server created instead of the requested one. It never
// matches io.EOF.
type FingerprintError struct {
	Want string // the full fingerprint, hexadecimal SHA-256
	Got  string // the fingerprint of the content; empty if it ended too soon
	Err  error  // further causes, such as why it ended too soon; may be nil
}

// Error returns both fingerprints.
func (e *FingerprintError) Error() string {
	if e.Got == "" {
		return fmt.Sprintf("image %s is incomplete: %v", e.Want, e.Err)
	}
	s := fmt.Sprintf("image content has fingerprint %s, not %s", e.Got, e.Want)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns Err, such as io.ErrUnexpectedEOF for content that ended too
// soon.
func (e *FingerprintError) Unwrap() error { return e.Err }
