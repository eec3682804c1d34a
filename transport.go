package lxd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/golxd/lxd/internal/content"
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

// stream sends one request, without a retry, and returns the response with its
// body unread. Only the statuses 200 and 206 are a success.
func (t *transport) stream(ctx context.Context, req *request) (*http.Response, error) {
	if t.conns.isClosed() {
		return nil, t.connectionError(ctx, req, errClosed)
	}
	res, err := t.send(ctx, req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK || res.StatusCode == http.StatusPartialContent {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	_, err = t.readAnswer(ctx, req, res, nil)
	if err == nil {
		err = t.badResponse(req, res, fmt.Errorf("an export with the status %d", res.StatusCode))
	}
	return nil, err
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
