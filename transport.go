package lxd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/stall"
)

const (
	// maxMetadata is the limit in bytes for a response that is not a list, and
	// for one element of a list.
	maxMetadata = 16 << 20
	// maxList is the limit in bytes for a list whose elements are kept.
	maxList = 512 << 20
	// valueCost is added to both counts for each value, so that they limit
	// memory: even the smallest values need that much, such as {} in an
	// operation's metadata (16 bytes for an interface, 48 for a map) or in an
	// image's aliases (64).
	valueCost = 64

	dialTimeout = 10 * time.Second
)

// transport sends requests to one server. It is shared by all clients that
// InProject returns.
type transport struct {
	endpoint string // as New received it, without secrets
	members  *members
	unix     bool
	http     http.RoundTripper
	pool     *http.Transport
	wrap     func(http.RoundTripper) http.RoundTripper // Options.Transport; may be nil
	token    func(context.Context) (string, error)
	agent    string
	retry    retry.Policy
	stall    time.Duration // Options.StallTimeout; zero or negative for none
	log      *slog.Logger
	conns    *connections
	tls      *tls.Config                      // nil for none
	peer     atomic.Pointer[x509.Certificate] // of the server, from the last handshake
	session  *session
	tokens   recentTokens
	secrets  recentSecrets
	updates  keyLocks // of the images that are being updated
	ensures  keyLocks // of the aliases that Ensure works on
}

// pinned returns a transport to the same server with its own connections. On
// each, the server must present the certificate with this fingerprint, and pass
// the usual checks. Closing t closes them too; closeIdle closes the idle ones.
func (t *transport) pinned(fingerprint string) (pinned *transport, closeIdle func()) {
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
		endpoint: t.endpoint, members: t.members, token: t.token, agent: t.agent, session: t.session, retry: t.retry, stall: t.stall, log: t.log, conns: t.conns, tls: config,
		pool: newPool(t.conns, config),
	}
	pinned.http = pinned.pool
	if t.wrap != nil {
		pinned.http = t.wrap(pinned.pool)
	}
	return pinned, pinned.pool.CloseIdleConnections
}

// call sends one request and decodes the envelope of the response. It decodes
// the metadata into metadata, which is a pointer, a *list, or nil to ignore it.
func (t *transport) call(ctx context.Context, req *request, metadata any) (*response, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	var decoded *response
	err := t.retrying(ctx, req, func() error {
		var err error
		decoded, err = t.attempt(ctx, req, metadata)
		return err
	})
	return decoded, t.explainRefusal(ctx, req, err)
}

// attempt sends one request once, and decodes the response as call does.
func (t *transport) attempt(ctx context.Context, req *request, metadata any) (*response, error) {
	res, err := t.send(ctx, req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	return t.readResponse(ctx, req, res, metadata)
}

// stream sends one request, without retries, and returns the response with its
// body unread. A status other than 200 and 206 is an error.
func (t *transport) stream(ctx context.Context, req *request) (*http.Response, error) {
	if t.conns.isClosed() {
		return nil, t.connectionError(ctx, req, errClosed)
	}
	var res *http.Response
	err := t.onMembers(req, func() (err error) {
		res, err = t.send(ctx, req) //nolint:bodyclose // The caller does, or it is done below.
		return err
	})
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK || res.StatusCode == http.StatusPartialContent {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	_, err = t.readResponse(ctx, req, res, nil)
	if err == nil {
		err = t.badResponse(req, res, fmt.Errorf("an export with the status %d", res.StatusCode))
	}
	return nil, t.explainRefusal(ctx, req, err)
}

// send makes one attempt. If the server is silent for Options.StallTimeout, the
// connection breaks.
func (t *transport) send(ctx context.Context, req *request) (*http.Response, error) {
	base, err := t.address(ctx)
	if err != nil {
		return nil, err
	}
	req.base = base
	return t.sendTo(ctx, req)
}

// sendTo makes one attempt at the member of req.base, and another one if the server
// has refused the first because it has OpenID Connect sessions.
func (t *transport) sendTo(ctx context.Context, req *request) (*http.Response, error) {
	res, err := t.sendOnce(ctx, req)
	if err != nil || (req.body != nil && !req.body.replayable()) || !t.learnsSession(ctx, req, res.StatusCode) {
		return res, err
	}
	_ = res.Body.Close()
	return t.sendOnce(ctx, req)
}

func (t *transport) sendOnce(ctx context.Context, req *request) (*http.Response, error) {
	watched, watch := stall.New(ctx, cmp.Or(req.silence, t.stall))
	hreq, err := t.httpRequest(watched, req)
	if err != nil {
		watch.Close()
		return nil, err
	}
	started := time.Now()
	exchange, hreq := newExchange(watch, hreq)
	res, err := t.roundTrip(hreq, req.body != nil && req.body.mayBlock())
	exchange.responded()
	if err != nil {
		err = stall.Cause(watched, err)
		watch.Close()
		if req.body != nil {
			// net/http may still be reading it, which must stop before it is
			// opened again.
			req.body.discard()
			if cause := req.body.cause(); cause != nil && ctx.Err() == nil {
				return nil, fmt.Errorf("read the image: %w", cause)
			}
		}
		if ctx.Err() == nil {
			t.members.leave(req.base)
		}
		err = t.connectionError(ctx, req, err)
		t.log.DebugContext(ctx, "lxd request failed", "method", req.method, "path", req.path, "error", err, "duration", time.Since(started))
		return nil, err
	}
	t.keepCookies(hreq.URL, res)
	base := req.base
	res.Body = &memberBody{ReadCloser: stall.Body(watched, watch, res.Body), leave: func() {
		if ctx.Err() == nil {
			t.members.leave(base)
		}
	}}
	t.members.leaveUnavailable(req.base, res.StatusCode)
	if req.body != nil && res.StatusCode >= http.StatusBadRequest {
		// The request was refused, perhaps before the body was read to its end.
		req.body.discard()
	}
	t.log.DebugContext(ctx, "lxd request", "method", req.method, "path", req.path, "status", res.StatusCode, "duration", time.Since(started))
	return res, nil
}

// httpRequest builds the request for one attempt, and opens the body.
func (t *transport) httpRequest(ctx context.Context, req *request) (*http.Request, error) {
	target := req.base + req.path
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
	if err := t.authorize(ctx, req, hreq.URL, hreq.Header); err != nil {
		return nil, err
	}
	if req.body == nil {
		return hreq, nil
	}
	return hreq, req.body.open(ctx, hreq)
}

// bearer returns the bearer token.
func (t *transport) bearer(ctx context.Context) (string, error) {
	token, err := t.token(ctx)
	switch {
	case err != nil:
		return "", fmt.Errorf("get the bearer token: %w", redact.Error(err))
	case token == "":
		return "", invalid("Options.TokenSource", "returned an empty token")
	}
	return token, nil
}

// roundTrip sends a request. net/http waits for a body's Read even after the
// context has ended, and the Read of a caller's pipe or network file may block
// for ever. If mayBlock is set, roundTrip does not wait for that: the exchange
// ends in the background, when the Read returns.
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
	// It usually ends at once, and nothing is left in the background.
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
