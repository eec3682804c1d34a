package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/rangeread"
	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/stall"
)

// SourceError is an error of the URL from which an image is imported.
type SourceError struct {
	URL        string // without user name, password and query
	StatusCode int    // the status of the response, if that is the error; otherwise 0
	Problem    string
	Err        error // may be nil

	retryAfter string // the header Retry-After
}

// Error returns the URL, the problem and the cause.
func (e *SourceError) Error() string {
	s := e.URL + ": " + e.Problem
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause; it may be nil.
func (e *SourceError) Unwrap() error { return e.Err }

// Transient reports whether the same call may succeed later: the status is 429,
// 502, 503 or 504, or the connection failed temporarily.
func (e *SourceError) Transient() bool {
	switch {
	case e.StatusCode != 0:
		return unavailable(e.StatusCode)
	case e.Err == nil, errors.Is(e.Err, errRedirect):
		return false
	}
	return retry.Transient(e.Err)
}

// RetryAfter returns the pause before a retry that a Retry-After header requests;
// ok is false if there is none.
func (e *SourceError) RetryAfter() (wait time.Duration, ok bool) {
	return retry.ParseAfter(e.retryAfter)
}

// Is matches [ErrNotFound] for a 404 and a 410.
func (e *SourceError) Is(target error) bool {
	return target == ErrNotFound && (e.StatusCode == http.StatusNotFound || e.StatusCode == http.StatusGone)
}

// errRedirect is the cause if a redirect was not followed.
var errRedirect = errors.New("redirect not followed")

const maxRedirects = 10

// source is a file at a URL. It is read once, from beginning to end. If the
// connection breaks, the download resumes.
type source struct {
	client   *http.Client
	own      bool // the client is not the caller's, and is closed with the source
	url      *url.URL
	secrets  *redact.Secrets // of its URLs
	verified bool            // the content will be compared with a fingerprint
	stall    time.Duration
	policy   retry.Policy // its context ends when the client is closed

	size int64  // -1 if unknown
	name string // the filename in the response; may be empty

	content *rangeread.Reader // nil until it is opened
}

func newSource(o *CreateFromURLOptions, u *url.URL, t *transport) *source {
	s := &source{url: u, secrets: redact.HideURL(u), stall: cmp.Or(o.StallTimeout, t.stall), policy: retry.Policy{Timeout: t.retry.Timeout}, verified: o.Fingerprint != ""}
	s.client = &http.Client{}
	if o.HTTPClient != nil {
		*s.client = *o.HTTPClient
	} else {
		s.own = true
		pool := newPool(&connections{dial: defaultDialer().DialContext}, nil)
		pool.Proxy = http.ProxyFromEnvironment
		s.client.Transport = pool
	}
	next := s.client.CheckRedirect
	s.client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		// It contains the query of the last URL, which may be a secret.
		req.Header.Del("Referer")
		switch first := via[0].URL; {
		case len(via) > maxRedirects:
			return fmt.Errorf("%w: it is the %dth", errRedirect, len(via))
		case req.URL.Scheme != "https" && first.Scheme == "https" && !s.verified:
			return fmt.Errorf("%w: from https to %s; set Fingerprint to allow that", errRedirect, redact.URL(req.URL))
		case req.URL.User == nil && sameOrigin(req.URL, first):
			req.URL.User = first.User
		}
		if next != nil {
			return next(req, via)
		}
		return nil
	}
	return s
}

func sameOrigin(a, b *url.URL) bool { return a.Scheme == b.Scheme && a.Host == b.Host }

// close ends the download, even a Read in another goroutine.
func (s *source) close() {
	if s.content != nil {
		_ = s.content.Close()
	}
	if s.own {
		s.client.CloseIdleConnections()
	}
}

// bad returns the error for a source that is not usable.
func (s *source) bad(problem string) error {
	return &SourceError{URL: redact.URL(s.url), Problem: s.secrets.Text(problem)}
}

// probe sends a HEAD request as the daemons do, and returns the fingerprint in the
// response's headers. If they contain the image's URL, that becomes the source's
// URL. Without such headers the URL is that of the image itself.
func (s *source) probe(ctx context.Context, target *Server) (fingerprint string, err error) {
	families := target.daemon().Preferred()
	header := http.Header{}
	for _, family := range families {
		header.Set(family.Prefix+"-Server-Version", target.Version)
		header.Set(family.Prefix+"-Server-Architectures", strings.Join(target.Architectures, ", "))
	}
	var res *http.Response
	err = s.policy.Do(ctx, func() error {
		ctx, watch := stall.New(ctx, s.stall)
		defer watch.Close()
		watch.Start()
		res, err = s.send(ctx, http.MethodHead, header) //nolint:bodyclose // It is closed below.
		watch.Stop()
		if err == nil {
			_ = res.Body.Close()
			if unavailable(res.StatusCode) {
				err = s.statusError(res)
			}
		}
		return err
	}, nil)
	if err != nil {
		return "", err
	}
	for _, family := range families {
		hash, location := res.Header.Get(family.Prefix+"-Image-Hash"), res.Header.Get(family.Prefix+"-Image-URL")
		if hash == "" && location == "" {
			continue
		}
		if checkFullFingerprint("", hash) != nil {
			return "", s.bad(fmt.Sprintf("%s-Image-Hash is %q, not a full SHA-256", family.Prefix, hash))
		}
		at, err := url.Parse(location)
		if err != nil || (at.Scheme != "http" && at.Scheme != "https") || at.Hostname() == "" {
			return "", s.bad(family.Prefix + "-Image-URL is not an absolute http or https URL")
		}
		if at.User == nil && sameOrigin(at, s.url) {
			at.User = s.url.User
		}
		s.url, s.secrets = at, redact.Join(s.secrets, redact.HideURL(at))
		return strings.ToLower(hash), nil
	}
	return "", nil
}

// open starts the download.
func (s *source) open(ctx context.Context) (err error) {
	s.content, err = rangeread.Start(ctx, rangeread.Options{
		Open: func(ctx context.Context, header http.Header) (*http.Response, error) {
			res, err := s.send(ctx, http.MethodGet, header)
			if err == nil && res.StatusCode != http.StatusOK && res.StatusCode != http.StatusPartialContent {
				_ = res.Body.Close()
				err = s.statusError(res)
			}
			return res, err
		},
		Size: -1, Verified: s.verified, ReadOver: true,
		Retry: s.policy, StallTimeout: s.stall,
		Broken: func(offset int64, err error) error {
			return s.broken(fmt.Sprintf("the transfer broke off after %d bytes", offset), err)
		},
	})
	if err != nil {
		return s.sourceError(err)
	}
	s.size = s.content.Size()
	s.name = dispositionName(s.content.Header().Get("Content-Disposition"))
	return nil
}

// Read reads the next bytes of the file.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.content.Read(p)
	if err != nil && err != io.EOF {
		err = s.sourceError(err)
	}
	return n, err
}

// send sends one request.
func (s *source) send(ctx context.Context, method string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url.String(), nil)
	if err != nil {
		return nil, s.bad("it cannot be requested")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "golxd/"+Version)
	// The fingerprint is of the file as it is, not decompressed.
	req.Header.Set("Accept-Encoding", "identity")
	res, err := s.client.Do(req)
	if err != nil {
		return nil, s.broken("it cannot be fetched", stall.Cause(ctx, err))
	}
	return res, nil
}

// statusError returns the error for a response whose status is not a success.
func (s *source) statusError(res *http.Response) error {
	at := res.Request.URL // differs from s.url after a redirect
	return &SourceError{
		URL: redact.URL(at), StatusCode: res.StatusCode, Problem: redact.Join(s.secrets, redact.HideURL(at)).Text("its server responds " + res.Status),
		retryAfter: res.Header.Get("Retry-After"),
	}
}

// broken returns the error for a transfer that failed.
func (s *source) broken(problem string, err error) error {
	return &SourceError{URL: redact.URL(s.url), Problem: problem, Err: s.secrets.Error(redact.Error(err))}
}

// sourceError makes a SourceError of an error of rangeread itself.
func (s *source) sourceError(err error) error {
	for _, bad := range []error{rangeread.ErrNoRange, rangeread.ErrChanged, rangeread.ErrRange, rangeread.ErrClosed} {
		if errors.Is(err, bad) {
			return s.broken("it cannot be fetched", err)
		}
	}
	return err
}
