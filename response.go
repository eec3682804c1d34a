package lxd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/wire"
)

// get reads one thing. hold says whether it is the one that was asked for.
func get[T any](ctx context.Context, t *transport, req *request, hold func(*T) error) (*T, *answer, error) {
	thing := new(T)
	req.check = func() error { return hold(thing) }
	ans, err := t.call(ctx, req, thing)
	if err != nil {
		return nil, nil, err
	}
	return thing, ans, nil
}

// getAll reads a list. hold says whether an element is such a thing.
func getAll[T any](ctx context.Context, t *transport, req *request, hold func(*T) error) ([]T, error) {
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
			if err := hold(thing); err != nil {
				return unfit(err)
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
	limit   int64  // of the whole; 0 for one that is not kept
	grouped bool   // {"name": [elements]}, not [elements]
	size    int64  // in memory, of an element that is kept, beside what it holds
	begin   func() // called at the start of each attempt
	element func(*jsontext.Decoder) error
}

// over is the list as the decoder takes it, with its elements bounded.
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

// unfit makes an ErrBadResponse of an element's fault.
func unfit(err error) error { return fmt.Errorf("%w: %w", wire.ErrNotEnvelope, err) }

// readAnswer reads an envelope and makes an error of one that holds an error.
func (t *transport) readAnswer(ctx context.Context, req *request, res *http.Response, metadata any) (*answer, error) {
	body := &boundedReader{r: res.Body, total: maxMetadata, one: maxMetadata}
	switch m := metadata.(type) {
	case nil:
	case *list:
		metadata = m.over(body)
	default:
		reflect.ValueOf(m).Elem().SetZero() // of what an attempt before has left
	}
	success := res.StatusCode/100 == 2
	if !success {
		metadata = nil // only an error is expected
	}
	env, err := wire.Decode(body, metadata)
	if err != nil {
		var yield *yieldStopped
		switch {
		case errors.As(err, &yield):
			return nil, yield
		case ctx.Err() != nil:
			return nil, t.connectionError(ctx, req, err)
		case errors.Is(err, ErrTooLarge):
			return nil, t.badResponse(req, res, err)
		case unavailable(res.StatusCode):
			// A proxy, or a daemon on its way up or down, in words of its own.
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
		return nil, t.badResponse(req, res, errors.New("it is an operation, where a result was asked for"))
	case req.expect == expectOperation && env.Type == wire.TypeSync:
		return nil, t.badResponse(req, res, errors.New("it is a result, where an operation was asked for"))
	}
	if req.check != nil {
		if err := req.check(); err != nil {
			return nil, t.badResponse(req, res, err)
		}
	}
	readRest(res.Body)
	return &answer{Envelope: *env, status: res.StatusCode, etag: res.Header.Get("ETag"), location: res.Header.Get("Location"), date: res.Header.Get("Date")}, nil
}

// restTimeout is how long the end of an answer is awaited.
const restTimeout = 100 * time.Millisecond

// readRest reads the line end behind an envelope, so that the connection is
// kept. A body that does not end costs the connection, and no more time.
func readRest(body io.ReadCloser) {
	defer time.AfterFunc(restTimeout, func() { _ = body.Close() }).Stop()
	_, _ = io.Copy(io.Discard, io.LimitReader(body, 4<<10))
}

func (t *transport) serverError(req *request, res *http.Response, env *wire.Envelope) error {
	e := &Error{StatusCode: env.ErrorCode, Method: req.method, Path: req.path, Message: env.Error}
	// A failed wait of Incus 6.0.4 and LXD 5.21 has the HTTP status 200, and
	// the true one in the envelope only.
	if e.StatusCode == 0 || (res.StatusCode >= 400 && e.StatusCode < 400) {
		e.StatusCode = res.StatusCode
	}
	e.retryAfter = res.Header.Get("Retry-After")
	switch e.StatusCode {
	case http.StatusForbidden, http.StatusUnauthorized:
		e.Hint = "the server does not trust this client for this call; give Options a client certificate or token that it trusts"
		if e.OIDC = oidcProvider(res.Header); e.OIDC != nil {
			e.Hint = "the server wants a token of the OpenID Connect " + e.OIDC.String() + "; give it as Options.Token or TokenSource, or give a client certificate that it trusts"
		}
	}
	return e.without(req.hidden())
}

// badResponse says that res is not from an LXD server.
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

// redirectTarget is where a redirect leads.
func redirectTarget(res *http.Response) string {
	if u, err := url.Parse(res.Header.Get("Location")); err == nil && u.Host != "" {
		return redact.URL(u)
	}
	return "another path"
}

// unavailable says whether a status is that of a server, or of a proxy before
// it, that cannot answer for the moment.
func unavailable(status int) bool {
	transient, _ := retry.Status(status)
	return transient
}

// boundedReader errors where a limit is passed, rather than truncate.
type boundedReader struct {
	r     io.Reader
	total int64 // left for the whole
	one   int64 // left for the thing, or the element of a list, that is being read
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

// memoryOf estimates what JSON takes when it is decoded. Nearly every value is
// followed by a comma.
func memoryOf(data []byte) int64 {
	return int64(len(data)) + valueCost*int64(bytes.Count(data, []byte{','}))
}

// yieldStopped carries the end of a range loop through the decoder.
type yieldStopped struct{ err error }

func (e *yieldStopped) Error() string { return "iteration stopped" }

func (e *yieldStopped) Unwrap() error { return e.err }
