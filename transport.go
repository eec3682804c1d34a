package lxd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/netconn"
	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/wire"
)

const (
	// maxMetadata bounds the answer to a call that is about one thing, and one
	// element of a list.
	maxMetadata = 16 << 20
	// maxList bounds the answer to a call that lists, if its elements are kept.
	maxList = 512 << 20
	// valueCost is what the bounds count for each value beside its bytes, so
	// that they bound memory: the smallest values take it, such as {} in an
	// operation's metadata (16 bytes for an interface, 48 for a map) or in an
	// image's aliases (64).
	valueCost = 64

	dialTimeout = 10 * time.Second
)

// transport sends requests to one server. It is shared by all clients that
// InProject derives.
type transport struct {
	endpoint string // as given, without secrets
	base     string // "http://unix" or "https://host:port"
	unix     bool
	http     http.RoundTripper
	pool     *http.Transport
	wrap     func(http.RoundTripper) http.RoundTripper // Options.Transport; may be nil
	token    func(context.Context) (string, error)
	agent    string
	retry    retry.Policy
	log      *slog.Logger
	conns    *connections
	tls      *tls.Config                      // nil for none
	peer     atomic.Pointer[x509.Certificate] // that the server showed last
	tokens   recentTokens
}

// pinned returns a transport to the same server, with connections of its own,
// that must all show the certificate of this fingerprint, beside what else is
// asked of one. Closing t closes them; release closes them before.
func (t *transport) pinned(fingerprint string) (pinned *transport, release func()) {
	config := t.tls.Clone()
	config.ClientSessionCache = nil
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := checkPin(state, fingerprint); err != nil {
			return err
		}
		return verify(state)
	}
	pinned = &transport{
		endpoint: t.endpoint, base: t.base, token: t.token, agent: t.agent, retry: t.retry, log: t.log, conns: t.conns, tls: config,
		pool: newPool(t.conns, config),
	}
	pinned.http = pinned.pool
	if t.wrap != nil {
		pinned.http = t.wrap(pinned.pool)
	}
	return pinned, pinned.pool.CloseIdleConnections
}

// request is one call of the API.
type request struct {
	method string
	path   string // escaped, from /1.0 on
	query  url.Values
	header http.Header
	json   any              // body as JSON; nil for none
	upload *content.Content // body of an upload; nil for none
	// opened receives the body of each sending of upload.
	opened func(*content.Body)
	body   content.Options
	raw    rawBody  // body that is handed on from another server; nil for none
	expect expected // what kind of answer is a success
	// check holds the metadata to what was asked for; nil for none.
	check func() error
	// noRetry makes a failure final, whatever its kind.
	noRetry bool
	// repeatable makes a POST one that may be sent twice, because the second
	// does no harm: the same content is the same image.
	repeatable bool
	// secrets are those that the server knows from before, such as of the
	// request that has begun an operation.
	secrets *redact.Secrets
	bearer  string // that was sent last; may be empty
}

// hidden are the secrets that are not to be told of what comes of a request: all
// that the server may put into its words.
func (r *request) hidden() *redact.Secrets {
	all := []*redact.Secrets{r.secrets, redact.Hide(r.bearer, r.query.Get("secret"))}
	if body, ok := r.json.(interface{ Secrets() *redact.Secrets }); ok {
		all = append(all, body.Secrets())
	}
	return redact.Join(all...)
}

// expected is the kind of answer that a request is to get.
type expected int

const (
	expectSync      expected = iota
	expectOperation          // work in the background
	expectEither             // servers differ
)

// rawBody is the body of another server's answer.
type rawBody interface {
	// open begins it (anew), and tells its media type and length (-1 where
	// unknown).
	open(ctx context.Context) (body io.ReadCloser, mediaType string, size int64, err error)
	// failed gives the error of the other server that ended the body.
	failed() error
}

// answer is what a call gave.
type answer struct {
	wire.Envelope
	status   int
	etag     string
	location string
	date     string
}

// call sends one request and decodes the one envelope that comes back, the
// metadata straight into metadata: a pointer, a list, or nil to ignore it.
func (t *transport) call(ctx context.Context, req *request, metadata any) (*answer, error) {
	var ans *answer
	err := t.retrying(ctx, req, func() error {
		res, err := t.send(ctx, req)
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		ans, err = t.readAnswer(ctx, req, res, metadata)
		return err
	})
	return ans, err
}

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

// stream sends one request and gives the answer's body unread. Only the
// statuses 200 and 206 are a success.
func (t *transport) stream(ctx context.Context, req *request) (*http.Response, error) {
	var res *http.Response
	err := t.retrying(ctx, req, func() error {
		var err error
		res, err = t.send(ctx, req)
		if err != nil {
			return err
		}
		if res.StatusCode == http.StatusOK || res.StatusCode == http.StatusPartialContent {
			return nil
		}
		defer func() { _ = res.Body.Close() }()
		_, err = t.readAnswer(ctx, req, res, nil)
		if err == nil {
			err = t.badResponse(req, res, fmt.Errorf("an export answered with status %d", res.StatusCode))
		}
		return err
	})
	return res, err
}

// send makes one attempt.
func (t *transport) send(ctx context.Context, req *request) (*http.Response, error) {
	target := t.base + req.path
	if len(req.query) > 0 {
		target += "?" + req.query.Encode()
	}
	hreq, err := http.NewRequestWithContext(ctx, req.method, target, nil)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", req.method, req.path, redact.Error(err))
	}
	for name, values := range req.header {
		hreq.Header[name] = values
	}
	hreq.Header.Set("User-Agent", t.agent)
	if t.token != nil {
		if req.bearer, err = t.bearer(ctx); err != nil {
			return nil, err
		}
		hreq.Header.Set("Authorization", "Bearer "+req.bearer)
	}
	var sent *content.Body
	switch {
	case req.json != nil:
		data, err := wire.Marshal(req.json)
		if err != nil {
			return nil, fmt.Errorf("%s %s: encode the request: %w", req.method, req.path, err)
		}
		hreq.Body = io.NopCloser(bytes.NewReader(data))
		// For net/http, where an idle connection breaks before it took a byte.
		hreq.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		hreq.ContentLength = int64(len(data))
		hreq.Header.Set("Content-Type", "application/json")
	case req.upload != nil:
		sent, err = req.upload.Open(ctx, req.body)
		if err != nil {
			return nil, err
		}
		if req.opened != nil {
			req.opened(sent)
		}
		hreq.Body = sent
		hreq.ContentLength = req.upload.Size()
		hreq.Header.Set("Content-Type", req.upload.Type)
		if hreq.ContentLength == 0 {
			hreq.Body = http.NoBody
		}
	case req.raw != nil:
		body, mediaType, size, err := req.raw.open(ctx)
		if err != nil {
			return nil, err
		}
		hreq.Body, hreq.ContentLength = body, size
		hreq.Header.Set("Content-Type", mediaType)
	}
	started := time.Now()
	res, err := t.roundTrip(hreq, sent != nil)
	if err != nil {
		if sent != nil {
			// It may still be read from, which must not go on once the
			// content is opened again.
			_ = sent.Close()
		}
		switch {
		case sent != nil && sent.Err() != nil:
			err = fmt.Errorf("read the image: %w", sent.Err())
		case req.raw != nil && req.raw.failed() != nil && ctx.Err() == nil:
			err = fmt.Errorf("read the image: %w", req.raw.failed())
		default:
			err = t.connectionError(ctx, req, err)
		}
		t.log.DebugContext(ctx, "lxd request failed", "method", req.method, "path", req.path, "error", err, "duration", time.Since(started))
		return nil, err
	}
	if sent != nil && res.StatusCode >= http.StatusBadRequest {
		// Refused, perhaps before it was read: it must not be read any more
		// when the content is opened again.
		_ = sent.Close()
	}
	t.log.DebugContext(ctx, "lxd request", "method", req.method, "path", req.path, "status", res.StatusCode, "duration", time.Since(started))
	return res, nil
}

// bearer asks for the bearer token.
func (t *transport) bearer(ctx context.Context) (string, error) {
	token, err := t.token(ctx)
	switch {
	case err != nil:
		return "", fmt.Errorf("get the bearer token: %w", redact.Error(err))
	case token == "":
		return "", invalid("Options.TokenSource", "gave an empty token")
	}
	return token, nil
}

// roundTrip sends a request. net/http waits for a body's Read even when ctx has
// ended, and the Read of a caller's pipe or network file may block for ever:
// where that may be, it is left alone, and comes to its end with the reader.
func (t *transport) roundTrip(req *http.Request, mayBlock bool) (*http.Response, error) {
	if !mayBlock {
		return t.http.RoundTrip(req)
	}
	type result struct {
		res *http.Response
		err error
	}
	done := make(chan result, 1)
	go func() {
		res, err := t.http.RoundTrip(req) //nolint:bodyclose // whoever receives it closes it
		done <- result{res, err}
	}()
	select {
	case r := <-done:
		return r.res, r.err
	case <-req.Context().Done():
	}
	// Most often it ends by itself, and leaves nothing to tidy up.
	grace := time.NewTimer(blockedGrace)
	defer grace.Stop()
	select {
	case r := <-done:
		return r.res, r.err
	case <-grace.C:
	}
	go func() {
		if r := <-done; r.res != nil {
			_ = r.res.Body.Close()
		}
	}()
	return nil, req.Context().Err()
}

// blockedGrace is how long a request whose context has ended may take to end.
const blockedGrace = 100 * time.Millisecond

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
		e.Hint = fmt.Sprintf("the content type is %q; is %s the address of an LXD or Incus daemon?", kind, t.endpoint)
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

// connectionError tells why no answer came.
func (t *transport) connectionError(ctx context.Context, req *request, err error) error {
	if cause := ctxerr.Of(ctx); cause != nil {
		return fmt.Errorf("%s %s: %w", req.method, req.path, cause)
	}
	cause := err
	if errors.Is(err, io.EOF) {
		// Nobody must take a broken connection for the end of something.
		err = fmt.Errorf("the connection was closed: %w", io.ErrUnexpectedEOF)
	}
	// A round tripper of the caller's may tell the URL, and a server anything.
	err = req.hidden().Error(redact.Error(err))
	var dial *dialError
	if errors.As(cause, &dial) && !neverSent(err) {
		err = &dialError{err, dial.reached}
	}
	return &ConnectionError{Endpoint: t.endpoint, Method: req.method, Path: req.path, Hint: t.hint(err), Err: err}
}

// hint tells what to do about a failed connection.
func (t *transport) hint(err error) string {
	var record tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	var pin *PinError
	var alert tls.AlertError
	var dns *net.DNSError
	var proxy *ProxyError
	switch {
	case errors.As(err, &pin):
		return ""
	case errors.As(err, &proxy) && proxy.StatusCode == http.StatusProxyAuthRequired:
		return "the proxy wants a user and password; put them into its URL"
	case errors.As(err, &proxy):
		return "is the proxy (Options.Proxy, HTTPS_PROXY) right, or does NO_PROXY lack this server?"
	case t.unix && errors.Is(err, os.ErrPermission):
		return "this user may not use the socket; add it to the group that may (lxd, incus or incus-admin), log in anew, or run as root"
	case t.unix && errors.Is(err, os.ErrNotExist):
		return "there is no socket; is the daemon installed and running, and is this its path (LXD_DIR, LXD_SOCKET, INCUS_DIR, INCUS_SOCKET)?"
	case t.unix && errors.Is(err, syscall.ECONNREFUSED):
		return "no daemon listens on the socket; start it (systemctl start lxd or incus, or snap start lxd)"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there; is core.https_address set on the server, and the port right?"
	case errors.As(err, &record):
		return "the server does not speak TLS there; is it a plain http port?"
	case errors.As(err, &verification):
		return "the server's certificate is not trusted; give it as Options.ServerCertificate, its SHA-256 as Options.ServerFingerprint, or its authority as Options.RootCAs"
	case errors.As(err, &alert):
		return "the server ended the TLS handshake"
	case errors.As(err, &dns):
		return "the host name does not resolve"
	}
	return ""
}

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
		err := attempt()
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
	if r.noRetry || (r.upload != nil && !r.upload.Replayable() && r.upload.Used()) {
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

// dialError marks the errors of making a connection.
type dialError struct {
	err     error
	reached bool // the server was connected to before
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// Transient has a socket that is missing come back where there was one: a
// daemon that restarts makes its socket anew.
func (e *dialError) Transient() bool {
	return e.reached && errors.Is(e.err, os.ErrNotExist) || retry.Transient(e.err)
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

// connections makes the connections of a client, and keeps the open ones, so
// that Close can end them.
type connections struct {
	dial dialFunc
	// lazy has a connection made when it is first written to. Every unix
	// connection must be: see netconn.Lazy.
	lazy bool
	// reached says that the server was connected to before.
	reached atomic.Bool

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

// errClosed is what a request of a closed client returns.
var errClosed error = closedError{}

type closedError struct{}

func (closedError) Error() string   { return "the client is closed" }
func (closedError) Transient() bool { return false }

// plain returns a connection without TLS.
func (s *connections) plain(ctx context.Context, network, addr string) (*netconn.Conn, error) {
	c, closed, err := s.connect(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return netconn.Plain(c, closed), nil
}

// secure returns a connection after its TLS handshake.
func (s *connections) secure(ctx context.Context, network, addr string, config *tls.Config) (*netconn.TLSConn, error) {
	c, closed, err := s.connect(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn := netconn.TLS(c, config, closed)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, &dialError{err, true}
	}
	return conn, nil
}

// connect dials, now or at the first write. closed must be called when the
// connection is closed.
func (s *connections) connect(ctx context.Context, network, addr string) (c net.Conn, closed func(), err error) {
	dial := func(ctx context.Context) (net.Conn, error) {
		c, err := s.dial(ctx, network, addr)
		if err == nil && c == nil {
			err = invalid("Options.Dial", "gave no connection and no error")
		}
		if err != nil {
			return nil, &dialError{err, s.reached.Load()}
		}
		s.reached.Store(true)
		return c, nil
	}
	if s.lazy {
		c = netconn.Lazy(ctx, &net.UnixAddr{Name: addr, Net: "unix"}, dial)
	} else if c, err = dial(ctx); err != nil {
		return nil, nil, err
	}
	if closed, err = s.add(c); err != nil {
		return nil, nil, err
	}
	return c, closed, nil
}

// add takes note of c and returns what to call when it is closed.
func (s *connections) add(c net.Conn) (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(errClosed, c.Close())
	}
	if s.open == nil {
		s.open = make(map[net.Conn]struct{})
	}
	s.open[c] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, c)
	}, nil
}

func (s *connections) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// closeAll closes the connections, also those in use, and refuses new ones.
func (s *connections) closeAll() {
	s.mu.Lock()
	open := s.open
	s.open, s.closed = nil, true
	s.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
}

// newPool makes the one connection pool of a client.
func newPool(conns *connections, tlsConfig *tls.Config) *http.Transport {
	pool := &http.Transport{
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   dialTimeout,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       16 << 10,
		TLSClientConfig:       tlsConfig,
		Protocols:             http1Only(),
	}
	pool.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := conns.plain(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	if tlsConfig != nil {
		pool.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := conns.secure(ctx, network, addr, tlsConfig)
			if err != nil {
				return nil, err
			}
			return c, nil
		}
	}
	return pool
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// http1Only is faster for bulk than HTTP/2, which the daemons speak too.
func http1Only() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}
