package lxd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/wire"
)

// request is one call of the API.
type request struct {
	method string
	path   string // escaped, from /1.0 on
	query  url.Values
	header http.Header
	body   requestBody // nil for none
	expect expected    // what kind of response is a success
	// check holds the metadata to what was asked for; nil for none.
	check func() error
	// noRetry makes a failure final, whatever its kind.
	noRetry bool
	// silence is how long the server may be silent; 0 is Options.StallTimeout.
	silence time.Duration
	// repeatable makes a POST one that may be sent twice, because the second
	// does no harm: the same content is the same image.
	repeatable bool
	// secrets are those that the server knows from before, such as of the
	// request that has begun an operation.
	secrets *redact.Secrets
	bearer  string // that was sent last; may be empty
	base    string // of the member that it was sent to last
}

// hidden are the secrets that are not to be told of what comes of a request: all
// that the server may put into its words.
func (r *request) hidden() *redact.Secrets {
	all := []*redact.Secrets{r.secrets, redact.Hide(r.bearer, r.query.Get("secret"))}
	if body, ok := r.body.(*jsonBody); ok {
		all = append(all, body.secrets())
	}
	return redact.Join(all...)
}

// recentSecrets are those of the latest requests that have begun an operation:
// events tell of the operation too.
type recentSecrets struct {
	mu     sync.Mutex
	latest []*redact.Secrets
	all    *redact.Secrets
}

// maxRecentSecrets is how many requests are remembered.
const maxRecentSecrets = 64

func (r *recentSecrets) add(secrets *redact.Secrets) {
	if secrets == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.latest = append(r.latest, secrets); len(r.latest) > maxRecentSecrets {
		r.latest = slices.Delete(r.latest, 0, 1)
	}
	r.all = redact.Join(r.latest...)
}

func (r *recentSecrets) joined() *redact.Secrets {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all
}

// expected is the kind of answer that a request is to get.
type expected int

const (
	expectSync      expected = iota
	expectOperation          // work in the background
	expectEither             // servers differ
)

// requestBody is the body of a request. Each attempt opens it anew, for one
// sending at a time.
type requestBody interface {
	// open begins a sending: it sets the body of hreq, its length and the headers
	// that say what it is.
	open(ctx context.Context, hreq *http.Request) error
	// replayable reports whether it can be opened again: always, or because
	// nothing of it was read yet.
	replayable() bool
	// mayBlock reports whether reading it may block after ctx has ended.
	mayBlock() bool
	// cause returns the error of what the body is read from that ended the last
	// sending; nil for none.
	cause() error
	// discard ends the last sending: no other read of it begins.
	discard()
}

// jsonBody is a value as JSON.
type jsonBody struct{ value any }

func (b *jsonBody) open(_ context.Context, hreq *http.Request) error {
	data, err := wire.Marshal(b.value)
	if err != nil {
		return fmt.Errorf("%s %s: encode the request: %w", hreq.Method, hreq.URL.Path, err)
	}
	hreq.Body = io.NopCloser(bytes.NewReader(data))
	// For net/http, where an idle connection breaks before it took a byte.
	hreq.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	hreq.ContentLength = int64(len(data))
	hreq.Header.Set("Content-Type", "application/json")
	return nil
}

func (b *jsonBody) replayable() bool { return true }
func (b *jsonBody) mayBlock() bool   { return false }
func (b *jsonBody) cause() error     { return nil }
func (b *jsonBody) discard()         {}

// secrets are those in the value.
func (b *jsonBody) secrets() *redact.Secrets {
	if value, ok := b.value.(interface{ Secrets() *redact.Secrets }); ok {
		return value.Secrets()
	}
	return nil
}

// answer is what a call gave.
type answer struct {
	wire.Envelope
	status   int
	etag     string
	location string
	date     string
}
