package lxd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
)

// SourceError says what is wrong with the file that an image was to be fetched
// from.
type SourceError struct {
	URL        string // without user name, password and query
	StatusCode int    // of the HTTP answer; 0 if it is not what is wrong
	Problem    string
	Err        error // may be nil

	retryAfter string // the header Retry-After
}

// Error names the file.
func (e *SourceError) Error() string {
	s := e.URL + ": " + e.Problem
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the cause.
func (e *SourceError) Unwrap() error { return e.Err }

// Transient says whether the same call may succeed later: the status is 429,
// 502, 503 or 504, or the connection failed in a way that may pass.
func (e *SourceError) Transient() bool {
	switch {
	case e.StatusCode != 0:
		return unavailable(e.StatusCode)
	case e.Err == nil, errors.Is(e.Err, errRedirect):
		return false
	}
	return retry.Transient(e.Err)
}

// RetryAfter returns for how long the server asks to wait before the next try,
// by a Retry-After header; ok is false where it does not ask.
func (e *SourceError) RetryAfter() (wait time.Duration, ok bool) {
	return retry.ParseAfter(e.retryAfter)
}

// Is matches [ErrNotFound] for a 404 and a 410.
func (e *SourceError) Is(target error) bool {
	return target == ErrNotFound && (e.StatusCode == http.StatusNotFound || e.StatusCode == http.StatusGone)
}

var (
	// errStalled is the cause of a request that its source has let wait too
	// long.
	errStalled = errors.New("nothing came for too long")
	// errRedirect says that a redirect was not followed.
	errRedirect = errors.New("redirect not followed")
)

const (
	defaultStallTimeout = 30 * time.Second
	maxRedirects        = 10
)

// source is a file at a URL. It is read once, from its beginning to its end; a
// transfer that breaks off goes on where it was.
type source struct {
	client   *http.Client
	own      bool
	url      *url.URL
	secrets  *redact.Secrets // of its URLs
	verified bool            // its content will be compared with a fingerprint from elsewhere
	stall    time.Duration
	retries  *retry.Retries

	size int64  // -1 where unknown
	name string // that the server gives it

	ctx  context.Context //nolint:containedctx // of the transfer
	stop context.CancelFunc

	mu     sync.Mutex // guards res and closed: close comes from another goroutine than Read
	closed bool
	res    *sourceAnswer

	offset    int64
	validator http.Header
	err       error
}

func newSource(o *CreateFromURLOptions, u *url.URL, policy retry.Policy) *source {
	s := &source{url: u, secrets: redact.HideURL(u), stall: o.StallTimeout, retries: policy.Begin(), verified: o.Fingerprint != ""}
	if s.stall == 0 {
		s.stall = defaultStallTimeout
	}
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
		// It holds the query of the last address, which may be a secret.
		req.Header.Del("Referer")
		switch first := via[0].URL; {
		case len(via) > maxRedirects:
			return fmt.Errorf("%w: it is the %dth", errRedirect, len(via))
		case req.URL.Scheme != "https" && first.Scheme == "https" && !s.verified:
			return fmt.Errorf("%w: from https to %s; give Fingerprint to allow that", errRedirect, redact.URL(req.URL))
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

// close ends the transfer. A Read that goes on elsewhere fails, and does not ask
// for the rest.
func (s *source) close() {
	if s.stop != nil {
		s.stop()
	}
	s.mu.Lock()
	s.closed = true
	res := s.res
	s.mu.Unlock()
	if res != nil {
		_ = res.Close()
	}
	if s.own {
		s.client.CloseIdleConnections()
	}
}

func (s *source) bad(problem string) error {
	return &SourceError{URL: redact.URL(s.url), Problem: s.secrets.Text(problem)}
}

// probe asks the URL as the daemons do. Where the answer says that the image is
// elsewhere, the source is that file from then on; the fingerprint is what the
// answer announces. A URL that announces nothing is taken for the image itself.
func (s *source) probe(ctx context.Context, target *Server) (fingerprint string, err error) {
	families := target.daemon().Preferred()
	header := http.Header{}
	for _, family := range families {
		header.Set(family.Prefix+"-Server-Version", target.Version)
		header.Set(family.Prefix+"-Server-Architectures", strings.Join(target.Architectures, ", "))
	}
	res, err := s.ask(ctx, http.MethodHead, header)
	if err != nil {
		return "", err
	}
	_ = res.Close()
	for _, family := range families {
		hash, location := res.Header.Get(family.Prefix+"-Image-Hash"), res.Header.Get(family.Prefix+"-Image-URL")
		if hash == "" && location == "" {
			continue
		}
		if checkFullFingerprint("", hash) != nil {
			return "", s.bad(fmt.Sprintf("%s-Image-Hash is %q, not a whole SHA-256", family.Prefix, hash))
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

// open asks for the file.
func (s *source) open(ctx context.Context) error {
	ctx, s.stop = context.WithCancel(ctx)
	s.ctx = ctx
	res, err := s.ask(ctx, http.MethodGet, nil)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Close()
		return s.refused(res)
	}
	s.res, s.size = res, res.ContentLength
	s.name = dispositionName(res.Header.Get("Content-Disposition"))
	s.validator = http.Header{"Etag": res.Header["Etag"], "Last-Modified": res.Header["Last-Modified"]}
	return nil
}

func (s *source) refused(res *sourceAnswer) error {
	at := res.Request.URL // another one after a redirect
	return &SourceError{
		URL: redact.URL(at), StatusCode: res.StatusCode, Problem: redact.Join(s.secrets, redact.HideURL(at)).Text("its server answers " + res.Status),
		retryAfter: res.Header.Get("Retry-After"),
	}
}

// ask sends a request, again where that may help.
func (s *source) ask(ctx context.Context, method string, header http.Header) (*sourceAnswer, error) {
	for {
		res, err := s.askOnce(ctx, method, header)
		if err == nil && !unavailable(res.StatusCode) {
			return res, nil
		}
		if err == nil {
			_ = res.Close()
			err = s.refused(res)
		}
		if err := s.pause(ctx, err); err != nil {
			return nil, err
		}
	}
}

// pause waits before the next attempt, or returns err where there is none.
func (s *source) pause(ctx context.Context, err error) error {
	if !retry.Transient(err) {
		return err
	}
	return s.retries.Pause(ctx, err)
}

func (s *source) askOnce(ctx context.Context, method string, header http.Header) (*sourceAnswer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, method, s.url.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, s.bad("it cannot be asked for")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "golxd/"+Version)
	// The bytes that the fingerprint is of, not what they unpack to.
	req.Header.Set("Accept-Encoding", "identity")
	a := &sourceAnswer{ctx: ctx, cancel: cancel, stall: s.stall}
	stop := a.watch()
	a.Response, err = s.client.Do(req) //nolint:bodyclose // Close does.
	stop()
	if err != nil {
		err = s.broken(ctx, "it cannot be fetched", err)
		cancel(nil)
		return nil, err
	}
	return a, nil
}

// broken is the error of a transfer that did not go well.
func (s *source) broken(ctx context.Context, problem string, err error) error {
	err = s.secrets.Error(redact.Error(err))
	if ended := ctxerr.Of(ctx, errStalled); ended != nil {
		err = ended
	}
	return &SourceError{URL: redact.URL(s.url), Problem: problem, Err: err}
}

// Read gives the file's bytes.
func (s *source) Read(p []byte) (int, error) {
	for s.err == nil {
		n, err := s.res.Read(p)
		s.offset += int64(n)
		if n > 0 {
			s.retries.Progress()
		}
		switch {
		case err == io.EOF && (s.size < 0 || s.offset == s.size):
			s.err = io.EOF
		case err != nil:
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			s.err = s.resume(s.broken(s.res.ctx, fmt.Sprintf("the transfer broke off after %d bytes", s.offset), err))
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, s.err
}

// resume goes on with a transfer that was cut, or gives the reason if it
// cannot.
func (s *source) resume(cut error) error {
	_ = s.res.Close()
	if s.size < 0 || (!s.verified && len(s.validator["Etag"]) == 0 && len(s.validator["Last-Modified"]) == 0) {
		return cut // nothing would tell the end, or that it is still the same file
	}
	for {
		if err := s.pause(s.ctx, cut); err != nil {
			return err
		}
		res, err := s.askOnce(s.ctx, http.MethodGet, http.Header{"Range": {fmt.Sprintf("bytes=%d-", s.offset)}})
		if err != nil {
			cut = err
			continue
		}
		if unavailable(res.StatusCode) {
			_ = res.Close()
			cut = s.refused(res)
			continue
		}
		if err := s.accept(res); err != nil {
			_ = res.Close()
			return fmt.Errorf("%w; and it cannot go on: %w", cut, err)
		}
		if !s.adopt(res) {
			return cut
		}
		return nil
	}
}

// adopt makes an answer the one that is read, unless the source was closed.
func (s *source) adopt(res *sourceAnswer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = res.Close()
		return false
	}
	s.res = res
	return true
}

// accept checks that an answer is the rest of the same file.
func (s *source) accept(res *sourceAnswer) error {
	for name, is := range s.validator {
		if len(is) > 0 && res.Header.Get(name) != is[0] {
			return s.bad("the file was replaced meanwhile")
		}
	}
	switch res.StatusCode {
	case http.StatusPartialContent:
		var from, to, size int64
		got := res.Header.Get("Content-Range")
		if n, _ := fmt.Sscanf(got, "bytes %d-%d/%d", &from, &to, &size); n != 3 || from != s.offset || size != s.size {
			return s.bad(fmt.Sprintf("asked for the bytes from %d on, its server gives %q", s.offset, got))
		}
		return nil
	case http.StatusOK:
		// It does not know ranges.
		if res.ContentLength != s.size {
			return s.bad("the file was replaced meanwhile")
		}
		if _, err := io.CopyN(io.Discard, res, s.offset); err != nil {
			return s.broken(res.ctx, "the transfer broke off again", err)
		}
		return nil
	}
	return s.refused(res)
}

// sourceAnswer is an answer whose source may not stop sending.
type sourceAnswer struct {
	*http.Response
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
}

// watch ends the request if nothing comes until stop is called.
func (a *sourceAnswer) watch() (stop func()) {
	if a.stall < 0 {
		return func() {}
	}
	if a.timer == nil {
		a.timer = time.AfterFunc(a.stall, func() { a.cancel(fmt.Errorf("%w: %v", errStalled, a.stall)) })
	} else {
		a.timer.Reset(a.stall)
	}
	return func() { a.timer.Stop() }
}

// Read waits for bytes, for as long as the source may take.
func (a *sourceAnswer) Read(p []byte) (int, error) {
	stop := a.watch()
	n, err := a.Body.Read(p)
	stop()
	return n, err
}

// Close ends the answer.
func (a *sourceAnswer) Close() error {
	a.cancel(nil)
	return a.Body.Close()
}
