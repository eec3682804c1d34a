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
)

// The kinds of failure, to be told apart with [errors.Is].
var (
	// ErrInvalid says that an argument or option was refused before anything
	// was sent. The error is an [*InputError] that names the field.
	ErrInvalid = errors.New("invalid input")

	// ErrNotFound says that the image, alias, operation, project, profile or
	// instance does not exist, or that this client may not see it.
	ErrNotFound = errors.New("not found")

	// ErrExists says that the image or alias is already there.
	ErrExists = errors.New("already exists")

	// ErrConflict says that the object was changed by somebody else since it
	// was read: read it again, and repeat the change.
	ErrConflict = errors.New("changed since it was read")

	// ErrAmbiguous says that a fingerprint prefix matches more than one image,
	// or is shorter than the server accepts (LXD 6.5 and up: 12 characters).
	ErrAmbiguous = errors.New("fingerprint prefix is ambiguous or too short")

	// ErrForbidden says that the server does not trust this client, or does
	// not allow it this call.
	ErrForbidden = errors.New("forbidden")

	// ErrUnauthorized says that the credentials are missing, wrong or expired.
	// It comes with ErrForbidden: every unauthorized error is a forbidden one.
	ErrUnauthorized = errors.New("unauthorized")

	// ErrUnsupported says that this server cannot do what was asked; the text
	// names the missing API extension or the refusal.
	ErrUnsupported = errors.New("not supported by the server")

	// ErrUnavailable says that the server could not be reached, broke the
	// connection, or is starting or shutting down.
	ErrUnavailable = errors.New("server unavailable")

	// ErrBadResponse says that the response was not one of the LXD API, or not
	// to this request: not JSON, cut off, of another shape or HTTP status, or
	// about another image, alias or operation than the one asked for. Most
	// often it is a proxy's page or another program's port. It is never an
	// ErrNotFound, ErrExists, ErrConflict or ErrUnsupported.
	ErrBadResponse = errors.New("unexpected response")

	// ErrTooLarge says that a response takes more memory than this package
	// gives one: 16 MiB for one thing, one element of a list or one event, and
	// 512 MiB for a list that is kept. It comes with ErrBadResponse.
	ErrTooLarge = errors.New("response too large")

	// ErrCancelled says that an operation was cancelled on the server.
	ErrCancelled = errors.New("operation cancelled")

	// ErrOutcomeUnknown says that the server forgot an operation before its
	// end was seen, and that nothing on the server tells how it ended.
	ErrOutcomeUnknown = errors.New("outcome of the operation is unknown")

	// ErrBodyChanged says that a file changed its length while it was sent, or
	// that a reader holds more than CreateOptions.Size or RootfsSize says.
	ErrBodyChanged = content.ErrChanged

	// ErrNotReplayable says that a transfer broke off after a reader that
	// cannot be rewound had been read. Call again with a new reader, or pass
	// an io.Seeker such as a file.
	ErrNotReplayable = errors.New("the reader cannot be sent again")
)

// Error is an error answer of the server.
type Error struct {
	StatusCode int    // the HTTP status, or the answer's error_code where that is the true one
	Method     string // of the request
	Path       string // of the request, escaped, without query
	Message    string // the daemon's own words
	Hint       string // what to do about it; may be empty

	// OIDC is what a server that takes OpenID Connect tokens says of their
	// provider when it refuses a caller; nil otherwise.
	OIDC *OIDCProvider

	kind       error  // a sentinel that the status code does not tell
	retryAfter string // the header Retry-After
}

// Error tells what was asked, what the daemon said and what to do.
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

// without takes secrets out of the server's words.
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
		// The status is not the daemon's: 404 of another program does not say
		// that an image is not there.
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

// Transient says whether the same call may succeed later: the status is 429,
// 502, 503 or 504. After 502 and 504 the server may have acted on the request.
func (e *Error) Transient() bool { return unavailable(e.StatusCode) }

// RetryAfter returns for how long the server asks to wait before the next try,
// by a Retry-After header; ok is false where it does not ask.
func (e *Error) RetryAfter() (wait time.Duration, ok bool) { return retry.ParseAfter(e.retryAfter) }

// InputError says which argument or option was refused, and why. Nothing was
// sent. It is an [ErrInvalid].
type InputError struct {
	Field   string // such as "fingerprint" or "CreateOptions.Size"
	Problem string // such as "is empty"
}

// Error names the field.
func (e *InputError) Error() string { return e.Field + " " + e.Problem }

// Is makes an InputError an [ErrInvalid].
func (e *InputError) Is(target error) bool { return target == ErrInvalid }

// Transient is false: the same call fails in the same way.
func (e *InputError) Transient() bool { return false }

func invalid(field, format string, args ...any) error {
	return &InputError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// ConnectionError says that no answer came back: the server could not be
// reached, or the connection broke. It is an [ErrUnavailable], and wraps the
// cause.
type ConnectionError struct {
	Endpoint string // as the client was made with
	Method   string
	Path     string
	Hint     string // what to do about it; may be empty
	Err      error
}

// Error tells the cause and what to do about it.
func (e *ConnectionError) Error() string {
	s := fmt.Sprintf("%s %s at %s: %v", e.Method, e.Path, e.Endpoint, e.Err)
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

// Unwrap gives the cause.
func (e *ConnectionError) Unwrap() error { return e.Err }

// Is makes a ConnectionError an [ErrUnavailable].
func (e *ConnectionError) Is(target error) bool { return target == ErrUnavailable }

// Transient says whether the same call may succeed later. It is false for a
// failure that stays until somebody changes something: no permission, no socket
// where there was none before, an unknown host name, a certificate that is not
// trusted, a proxy that refuses, a client that is closed.
func (e *ConnectionError) Transient() bool { return retry.Transient(e.Err) }

// OperationError says that the server's background work ended badly.
type OperationError struct {
	ID          string // of the operation
	Description string // such as "Downloading image"
	StatusCode  int    // 400 failure, 401 cancelled; or err_code where the server tells one
	Message     string // the daemon's own words

	kind error
}

// Error gives the daemon's words.
func (e *OperationError) Error() string {
	what := e.Description
	if what == "" {
		what = "operation"
	}
	return fmt.Sprintf("%s: %s (operation %s)", strings.ToLower(what[:1])+what[1:], e.Message, e.ID)
}

// Is matches [ErrCancelled], and the sentinel that the server's err_code stands
// for where it sends one.
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
	}
	return false
}

// FingerprintError says that the content of an image does not have the
// fingerprint that it should: it was cut or corrupted on the way, or is another
// image, such as one that a server has made in place of the wanted one. It never matches io.EOF.
type FingerprintError struct {
	Want string // the full fingerprint, hexadecimal SHA-256
	Got  string // what the content hashes to; empty where it ended too soon
	Err  error  // what else is known, such as why it ended too soon; may be nil
}

// Error tells both fingerprints.
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

// Unwrap gives the reason of an early end, such as io.ErrUnexpectedEOF.
func (e *FingerprintError) Unwrap() error { return e.Err }
