package simplestreams

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/stall"
)

const maxRedirects = 10

// newHTTPClient returns the client for the requests, which is a copy of the caller's if there is one, and its transport
// unless that is the caller's own.
func newHTTPClient(o *Options) (*http.Client, *http.Transport, error) {
	var client http.Client
	if o.HTTPClient != nil {
		client = *o.HTTPClient
	}

	changed := o.RootCAs != nil || o.Certificate != "" || o.Proxy != nil
	supplied, plain := client.Transport.(*http.Transport)
	var transport *http.Transport
	switch {
	case client.Transport == nil:
		// Not a clone of http.DefaultTransport: programs replace that by wrappers. HTTP/1.1 is faster for large files.
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
		transport = supplied.Clone()
	case changed:
		return nil, nil, invalid("Options.HTTPClient", "has a Transport that is not an *http.Transport, which RootCAs, Certificate and Proxy need")
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
		if len(via) > maxRedirects {
			return fmt.Errorf("%w: more than %d", ErrRedirect, maxRedirects)
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

// trust sets the authorities of the options on the transport.
func trust(transport *http.Transport, o *Options) error {
	if o.RootCAs == nil && o.Certificate == "" {
		return nil
	}

	pool := x509.NewCertPool()
	if o.RootCAs != nil {
		pool = o.RootCAs.Clone()
	}
	if o.Certificate != "" && !pool.AppendCertsFromPEM([]byte(o.Certificate)) {
		return invalid("Options.Certificate", "contains no PEM certificate")
	}
	if transport.TLSClientConfig == nil {
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	transport.TLSClientConfig.RootCAs = pool

	return nil
}

// send sends one request. It returns an *Error for any status but 2xx and 304. The caller must close the body.
func (c *Client) send(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	if err := checkPath(path); err != nil {
		return nil, c.fileError(path, badDataf("%w", err))
	}

	request, err := http.NewRequestWithContext(ctx, method, c.address(path).String(), nil)
	if err != nil {
		return nil, c.fileError(path, redact.Error(err))
	}
	for name, values := range header {
		request.Header[name] = values
	}
	request.Header.Set("User-Agent", c.options.UserAgent)

	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.fileError(path, stall.Cause(ctx, redact.Error(err)))
	}
	c.options.Logger.DebugContext(ctx, "simplestreams request",
		"method", method, "url", redact.URL(request.URL), "status", response.StatusCode)
	if response.StatusCode/100 == 2 || response.StatusCode == http.StatusNotModified {
		return response, nil
	}
	_ = response.Body.Close()

	failed := &Error{URL: c.publicURL(path), StatusCode: response.StatusCode, Err: ErrNotFound}
	if failed.StatusCode != http.StatusNotFound && failed.StatusCode != http.StatusGone {
		failed.Err = errors.New(http.StatusText(response.StatusCode))
	}
	failed.retryAfter, failed.hasRetryAfter = retry.ParseAfter(response.Header.Get("Retry-After"))

	return nil, failed
}

// request is send with a stall watch until the body is closed.
func (c *Client) request(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	ctx, watch := stall.New(ctx, c.options.StallTimeout)
	watch.Start()
	response, err := c.send(ctx, method, path, header)
	watch.Stop()
	if err != nil {
		watch.Close()
		return nil, err
	}
	response.Body = stall.Body(ctx, watch, response.Body)

	return response, nil
}

// retry calls try until it succeeds, fails with an error that is not transient, or the retries end.
func (c *Client) retry(ctx context.Context, path string, try func() error) error {
	err := c.policy().Do(ctx, try, func(err error) { c.logRetry(ctx, path, err) })
	if ctx.Err() != nil && err != nil {
		return c.toFileError(path, err)
	}

	return err
}

func (c *Client) policy() retry.Policy { return retry.Policy{Timeout: c.options.RetryTimeout} }

func (c *Client) logRetry(ctx context.Context, path string, err error) {
	c.options.Logger.WarnContext(ctx, "simplestreams retry", "url", c.publicURL(path), "error", c.secrets.Error(err))
}
