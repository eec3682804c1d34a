package simplestreams

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/redact"
)

const maxRedirects = 10

// newHTTPClient returns the client that requests go through, the caller's, copied, or one of our own, and its transport if
// that is our own.
func newHTTPClient(o *Options) (*http.Client, *http.Transport, error) {
	var client http.Client
	if o.HTTPClient != nil {
		client = *o.HTTPClient
	}

	changed := o.RootCAs != nil || o.Certificate != "" || o.Proxy != nil
	theirs, plain := client.Transport.(*http.Transport)
	var transport *http.Transport
	switch {
	case client.Transport == nil:
		// Not a clone of http.DefaultTransport: programs put wrappers there. HTTP/1.1, which is faster for large files.
		var protocols http.Protocols
		protocols.SetHTTP1(true)
		transport = &http.Transport{
			Protocols:           &protocols,
			Proxy:               http.ProxyFromEnvironment,
			TLSHandshakeTimeout: 10 * time.Second,
			IdleConnTimeout:     30 * time.Second,
			ReadBufferSize:      64 << 10,
		}
	case plain && changed:
		transport = theirs.Clone()
	case changed:
		return nil, nil, errors.New("simplestreams: RootCAs, Certificate and Proxy need an HTTPClient whose Transport is an *http.Transport")
	}

	if changed {
		if o.Proxy != nil {
			transport.Proxy = o.Proxy
		}
		if err := trust(transport, o); err != nil {
			return nil, nil, err
		}
	}
	if transport != nil {
		client.Transport = transport
	}

	next := client.CheckRedirect
	client.CheckRedirect = func(request *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("%w: %d", ErrRedirect, len(via))
		}
		if request.URL.Scheme != "https" && !o.AllowHTTP {
			return fmt.Errorf("redirected to %s: %w", redact.URL(request.URL), ErrInsecure)
		}
		if next != nil {
			return next(request, via)
		}

		return nil
	}

	return &client, transport, nil
}

// trust makes the transport check servers against the given certificates.
func trust(transport *http.Transport, o *Options) error {
	if o.RootCAs == nil && o.Certificate == "" {
		return nil
	}

	pool := x509.NewCertPool()
	if o.RootCAs != nil {
		pool = o.RootCAs.Clone()
	}
	if o.Certificate != "" && !pool.AppendCertsFromPEM([]byte(o.Certificate)) {
		return errors.New("simplestreams: Certificate holds no PEM certificate")
	}
	if transport.TLSClientConfig == nil {
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	transport.TLSClientConfig.RootCAs = pool

	return nil
}

// answer is one response whose body ends with ErrStalled if the server stops sending.
type answer struct {
	*http.Response
	body io.ReadCloser
}

// request sends one request. It returns an *Error for anything that is not a 2xx or a 304. The answer's body has to be
// closed.
func (c *Client) request(ctx context.Context, method, path string, header http.Header) (*answer, error) {
	if err := checkPath(path); err != nil {
		return nil, c.fileError(path, invalidf("%w", err))
	}

	ctx, cancel := context.WithCancelCause(ctx)
	request, err := http.NewRequestWithContext(ctx, method, c.address(path).String(), nil)
	if err != nil {
		cancel(nil)
		return nil, c.fileError(path, redact.Error(err))
	}
	for name, values := range header {
		request.Header[name] = values
	}
	request.Header.Set("User-Agent", c.options.UserAgent)

	watch := c.watch(cancel)
	watch.start()
	response, err := c.http.Do(request) //nolint:bodyclose // It is closed by way of the watchedBody around it.
	watch.stop()
	if err != nil {
		err = cause(ctx, redact.Error(err))
		cancel(nil)
		return nil, c.fileError(path, err)
	}
	c.options.Logger.DebugContext(ctx, "simplestreams request",
		"method", method, "url", redact.URL(request.URL), "status", response.StatusCode)

	body := &watchedBody{body: response.Body, watch: watch, ctx: ctx, cancel: cancel}
	if response.StatusCode/100 == 2 || response.StatusCode == http.StatusNotModified {
		return &answer{Response: response, body: body}, nil
	}
	_ = body.Close()

	return nil, &Error{URL: c.told(path), StatusCode: response.StatusCode, Err: statusError(response)}
}

// statusError returns the cause for an unwanted status.
func statusError(response *http.Response) error {
	if response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusGone {
		return ErrNotFound
	}
	err := errors.New(http.StatusText(response.StatusCode))
	if response.StatusCode == http.StatusTooManyRequests || response.StatusCode >= 500 {
		return &temporaryError{err: err, wait: retryAfter(response.Header.Get("Retry-After"))}
	}

	return err
}

// retryAfter reads the header's two forms, seconds and a date; anything else is no wait.
func retryAfter(value string) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return time.Until(date)
	}

	return 0
}

// temporaryError is a status that may be another one soon.
type temporaryError struct {
	err  error
	wait time.Duration
}

func (e *temporaryError) Error() string { return e.err.Error() }
func (e *temporaryError) Unwrap() error { return e.err }

// requestRetrying is request, made again as Options.Retries says.
func (c *Client) requestRetrying(ctx context.Context, method, path string, header http.Header) (*answer, error) {
	for attempt := 0; ; attempt++ {
		got, err := c.request(ctx, method, path, header)
		if err == nil || !mayRetry(err) || attempt >= c.options.Retries {
			return got, err
		}
		if pause := c.pause(ctx, attempt, err); pause != nil {
			return nil, c.fileError(path, pause)
		}
	}
}

// mayRetry reports whether the same request could succeed later. Every request here is a GET or HEAD, so it may always
// be sent again.
func mayRetry(err error) bool {
	var temporary *temporaryError
	if errors.As(err, &temporary) {
		return true
	}
	var status *Error
	if errors.As(err, &status) && status.StatusCode != 0 {
		return false
	}
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	for _, lasting := range []error{ErrInvalid, ErrInsecure, ErrRedirect, ErrNotFound, ErrTooLarge, http.ErrSchemeMismatch} {
		if errors.Is(err, lasting) {
			return false
		}
	}

	return !errors.As(err, &certificate) && !errors.As(err, &record)
}

// pause waits before the next attempt: what the server asks for, else a time that doubles from 200 ms to 5 s, with
// jitter. It returns the context's error if that ends first, or has ended already: then that ended the call, and not err.
func (c *Client) pause(ctx context.Context, attempt int, err error) error {
	if ended := ctxerr.Of(ctx); ended != nil {
		return ended
	}
	wait := min(200*time.Millisecond<<min(attempt, 10), 5*time.Second)
	wait = wait/2 + rand.N(wait/2)
	var temporary *temporaryError
	if errors.As(err, &temporary) && temporary.wait > wait {
		wait = temporary.wait
	}
	c.options.Logger.WarnContext(ctx, "simplestreams retry", "error", err, "wait", wait)

	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctxerr.Of(ctx)
	case <-timer.C:
		return nil
	}
}

// watch cancels a request when the time between start and stop is too long.
type watch struct {
	timeout time.Duration
	cancel  context.CancelCauseFunc
	timer   *time.Timer
}

func (c *Client) watch(cancel context.CancelCauseFunc) *watch {
	return &watch{timeout: c.options.StallTimeout, cancel: cancel}
}

func (w *watch) start() {
	switch {
	case w.timeout < 0:
	case w.timer == nil:
		w.timer = time.AfterFunc(w.timeout, func() { w.cancel(fmt.Errorf("%w for %v", ErrStalled, w.timeout)) })
	default:
		w.timer.Reset(w.timeout)
	}
}

func (w *watch) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// watchedBody is a response body under a watch. The time between two reads is the caller's own and not counted.
type watchedBody struct {
	body   io.ReadCloser
	watch  *watch
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.start()
	n, err := b.body.Read(p)
	b.watch.stop()
	if err != nil && !errors.Is(err, io.EOF) {
		err = cause(b.ctx, err)
	}

	return n, err
}

func (b *watchedBody) Close() error {
	b.watch.stop()
	b.cancel(nil)

	return b.body.Close()
}

// cause returns why the context ended, if it did: "context canceled" does not tell a stall from the caller's wish.
func cause(ctx context.Context, err error) error {
	if ended := ctxerr.Of(ctx, ErrStalled); ended != nil {
		return ended
	}

	return err
}
