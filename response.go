package lxd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/wire"
)

// get reads one thing. check returns an error if it is not the requested one.
func get[T any](ctx context.Context, t *transport, req *request, check func(*T) error) (*T, *response, error) {
	thing := new(T)
	req.check = func() error { return check(thing) }
	resp, err := t.call(ctx, req, thing)
	if err != nil {
		return nil, nil, err
	}
	return thing, resp, nil
}

// getAll reads a list. check returns an error if an element is not such a thing.
func getAll[T any](ctx context.Context, t *transport, req *request, check func(*T) error) ([]T, error) {
	var all []T
	_, err := t.call(ctx, req, &list{
		limit: maxList, size: int64(reflect.TypeFor[T]().Size()),
		begin: func() { all = []T{} },
		element: func(dec *jsontext.Decoder) error {
			var none T
			all = append(all, none)
			thing := &all[len(all)-1]
			if err := wire.UnmarshalElement(dec, thing); err != nil {
				return err
			}
			if err := check(thing); err != nil {
				return badElement(err)
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// list is metadata that is read one element after another.
type list struct {
	limit   int64  // of the whole list, in bytes of memory; 0 if elements are not kept
	grouped bool   // {"name": [elements]}, not [elements]
	size    int64  // of an element's struct in memory, if elements are kept
	begin   func() // called at the start of each attempt
	element func(*jsontext.Decoder) error
}

// over returns the list in the form that wire.Decode takes, and sets the limits
// of body for the list and for each element.
func (l *list) over(body *boundedReader) any {
	l.begin()
	body.total = l.limit
	if l.limit == 0 {
		body.total = math.MaxInt64
	}
	each := func(dec *jsontext.Decoder) error {
		body.one = maxMetadata
		if err := l.element(dec); err != nil {
			return err
		}
		body.total -= l.size
		return nil
	}
	if l.grouped {
		return wire.GroupedFunc(each)
	}
	return wire.ElementFunc(each)
}

// badElement returns the error for an element that fails its check; it becomes an
// ErrBadResponse.
func badElement(err error) error { return fmt.Errorf("%w: %w", wire.ErrNotEnvelope, err) }

// readResponse reads an envelope. If it is an error, or not what req expects, it
// returns an error.
func (t *transport) readResponse(ctx context.Context, req *request, res *http.Response, metadata any) (*response, error) {
	body := &boundedReader{r: res.Body, total: maxMetadata, one: maxMetadata}
	switch m := metadata.(type) {
	case nil:
	case *list:
		metadata = m.over(body)
	default:
		reflect.ValueOf(m).Elem().SetZero() // an earlier attempt may have filled it
	}
	success := res.StatusCode/100 == 2
	if !success {
		metadata = nil // only an error is expected
	}
	env, err := wire.Decode(body, metadata)
	if err != nil {
		switch {
		case errors.Is(err, errIterationStopped):
			return nil, errIterationStopped
		case ctx.Err() != nil:
			return nil, t.connectionError(ctx, req, err)
		case errors.Is(err, ErrTooLarge):
			return nil, t.badResponse(req, res, err)
		case unavailable(res.StatusCode):
			// It is from a proxy, or from a daemon that is starting or stopping.
			return nil, t.serverError(req, res, &wire.Envelope{Error: http.StatusText(res.StatusCode)})
		case errors.Is(err, wire.ErrNotEnvelope):
			return nil, t.badResponse(req, res, err)
		default:
			return nil, t.connectionError(ctx, req, err)
		}
	}
	switch {
	case env.Type == wire.TypeError:
		return nil, t.serverError(req, res, env)
	case unavailable(res.StatusCode):
		return nil, t.serverError(req, res, &wire.Envelope{Error: http.StatusText(res.StatusCode)})
	case !success || env.StatusCode >= http.StatusBadRequest:
		return nil, t.badResponse(req, res, fmt.Errorf("a response of type %s with status %d", env.Type, max(res.StatusCode, env.StatusCode)))
	case req.expect == expectSync && env.Type == wire.TypeAsync:
		return nil, t.badResponse(req, res, errors.New("it is an operation, not a result"))
	case req.expect == expectOperation && env.Type == wire.TypeSync:
		return nil, t.badResponse(req, res, errors.New("it is a result, not an operation"))
	}
	if req.check != nil {
		if err := req.check(); err != nil {
			return nil, t.badResponse(req, res, err)
		}
	}
	readRest(res.Body)
	return &response{Envelope: *env, status: res.StatusCode, etag: res.Header.Get("ETag"), location: res.Header.Get("Location"), date: res.Header.Get("Date")}, nil
}

// restTimeout is how long readRest waits for the end of a response.
const restTimeout = 100 * time.Millisecond

// readRest reads the line end after an envelope, so that the connection can be
// reused. If the body does not end in restTimeout, the connection is closed.
func readRest(body io.ReadCloser) {
	defer time.AfterFunc(restTimeout, func() { _ = body.Close() }).Stop()
	_, _ = io.Copy(io.Discard, io.LimitReader(body, 4<<10))
}

func (t *transport) serverError(req *request, res *http.Response, env *wire.Envelope) error {
	e := &Error{StatusCode: env.ErrorCode, Method: req.method, Path: req.path, Message: env.Error}
	// On Incus 6.0.4 and LXD 5.21 a failed wait has the HTTP status 200; only the
	// envelope has the real one.
	if e.StatusCode == 0 || (res.StatusCode >= 400 && e.StatusCode < 400) {
		e.StatusCode = res.StatusCode
	}
	e.retryAfter = res.Header.Get("Retry-After")
	switch e.StatusCode {
	case http.StatusForbidden, http.StatusUnauthorized:
		e.Hint = "the server does not trust this client for this call; set a client certificate or token in Options that it trusts"
		if e.OIDC = oidcProvider(res.Header); e.OIDC != nil {
			e.Hint = "the server requires a token of the OpenID Connect " + e.OIDC.String() + "; set it as Options.Token or TokenSource, or set a client certificate that it trusts"
		}
	}
	return e.without(req.hidden())
}

// explainRefusal finds out whether the server has refused a request because of its
// project, and adds that to err. The responses differ between daemons, and those
// of LXD 6.9 do not say it, so it asks for the project: one request more after a
// refusal.
func (t *transport) explainRefusal(ctx context.Context, req *request, err error) error {
	var e *Error
	if !errors.As(err, &e) || e.kind != nil || !strings.HasPrefix(req.path, path("images")) {
		return err
	}
	ask := func(at string, metadata any) (status int) {
		_, err := t.attempt(ctx, &request{method: http.MethodGet, path: at, secrets: req.hidden()}, metadata)
		var refused *Error
		if errors.As(err, &refused) && refused.kind == nil {
			return refused.StatusCode
		}
		if err != nil {
			return 0 // unknown
		}
		return http.StatusOK
	}
	project, status := req.query.Get("project"), http.StatusOK
	switch e.StatusCode {
	case http.StatusForbidden:
	case http.StatusNotFound, http.StatusBadRequest: // 400: Incus 6.0.4, for a list
		if project == "" || project == "default" {
			return err // the default project exists
		}
		status = ask(path("projects", project), nil)
	default:
		return err
	}
	var server wire.Server
	switch {
	case status == http.StatusNotFound && e.StatusCode == http.StatusNotFound:
		e.kind, e.Hint = ErrProjectNotFound, fmt.Sprintf("there is no project %q", project)
	case e.StatusCode != http.StatusForbidden && status != http.StatusForbidden:
	case ask("/1.0", &server) == http.StatusOK && server.Auth == "trusted":
		// Also a daemon that responds 404 means that the client may not use it.
		e.kind = ErrForbidden
		e.Hint = fmt.Sprintf("the server trusts this client, but it may not use project %q in this way; see Client.InProject", cmp.Or(project, "default"))
		if status == http.StatusForbidden {
			e.Hint = fmt.Sprintf("the server trusts this client, but it may not use project %q, if there is one; see Client.InProject", project)
		}
	}
	return err
}

// badResponse returns the error for a response that is not what an LXD or Incus
// server sends.
func (t *transport) badResponse(req *request, res *http.Response, err error) error {
	e := &Error{StatusCode: res.StatusCode, Method: req.method, Path: req.path, kind: ErrBadResponse}
	kind := res.Header.Get("Content-Type")
	switch {
	case errors.Is(err, ErrTooLarge):
		e.Message = err.Error()
		e.kind = ErrTooLarge
	case res.StatusCode >= 300 && res.StatusCode < 400:
		e.Message = "the server redirects to " + redirectTarget(res)
		e.Hint = "redirects of the API are not followed; use the address of the daemon itself"
	default:
		e.Message = err.Error()
		e.Hint = fmt.Sprintf("the content type is %q; is %s the address of an LXD or Incus daemon?", kind, t.endpointOf(req))
	}
	return e.without(req.hidden())
}

// redirectTarget returns the URL of a redirect without secrets.
func redirectTarget(res *http.Response) string {
	if u, err := url.Parse(res.Header.Get("Location")); err == nil && u.Host != "" {
		return redact.URL(u)
	}
	return "another path"
}

// unavailable reports whether a status means that the server, or a proxy before
// it, is temporarily unavailable.
func unavailable(status int) bool {
	transient, _ := retry.Status(status)
	return transient
}

// boundedReader returns an error when a limit is exceeded; it does not truncate.
type boundedReader struct {
	r     io.Reader
	total int64 // left for the whole response
	one   int64 // left for the element of a list that is being read, or for the thing
}

func (b *boundedReader) Read(p []byte) (int, error) {
	switch {
	case b.one <= 0:
		return 0, fmt.Errorf("%w: one thing takes more than %d MiB of memory", ErrTooLarge, maxMetadata>>20)
	case b.total <= 0:
		return 0, fmt.Errorf("%w: the list takes more than %d MiB of memory; use a filter, or Each for images", ErrTooLarge, maxList>>20)
	}
	n, err := b.r.Read(p[:min(len(p), 64<<10)])
	cost := memoryOf(p[:n])
	b.total -= cost
	b.one -= cost
	return n, err
}

// memoryOf estimates the memory that JSON needs when it is decoded. Nearly every
// value is followed by a comma.
func memoryOf(data []byte) int64 {
	return int64(len(data)) + valueCost*int64(bytes.Count(data, []byte{','}))
}

// errIterationStopped is what a list's element returns when the caller's range
// loop has ended.
var errIterationStopped = errors.New("iteration stopped")

// response is the envelope of a response, with its status and headers.
type response struct {
	wire.Envelope
	status   int
	etag     string
	location string
	date     string
}
