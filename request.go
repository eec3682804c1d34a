package lxd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
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
	// check reports whether the metadata is what was requested; nil for no check.
	check func() error
	// noRetry makes every failure final.
	noRetry bool
	// silence is how long the server may be silent; 0 is Options.StallTimeout.
	silence time.Duration
	// repeatable allows a POST to be sent twice: the second does no harm, as the
	// same content is the same image.
	repeatable bool
	// secrets are those that the server knows from earlier requests, such as the
	// one that started the operation.
	secrets *redact.Secrets
	bearer  string // the token of the last attempt; may be empty
	base    string // of the member that the last attempt was sent to
	// anonymous leaves out the token.
	anonymous bool
	// inSession says that the last attempt was one of the server's session.
	inSession bool
}

// hidden returns the secrets that must not appear in what is reported of the
// request: all those that the server may repeat in its texts.
func (r *request) hidden() *redact.Secrets {
	all := []*redact.Secrets{r.secrets, redact.Hide(r.bearer, r.query.Get("secret"))}
	if body, ok := r.body.(*jsonBody); ok {
		all = append(all, body.secrets())
	}
	return redact.Join(all...)
}

// expected is the kind of response that a request must get.
type expected int

const (
	expectSync      expected = iota
	expectOperation          // work in the background
	expectEither             // servers differ
)

// requestBody is the body of a request. Each attempt opens it again; only one
// attempt uses it at a time.
type requestBody interface {
	// open begins an attempt: it sets the body of hreq, its length and the
	// headers that describe it.
	open(ctx context.Context, hreq *http.Request) error
	// replayable reports whether it can be opened again: always, or because
	// nothing of it has been read.
	replayable() bool
	// mayBlock reports whether a read of it may block after ctx has ended.
	mayBlock() bool
	// cause returns the error of the body's source that ended the last attempt;
	// nil if there was none.
	cause() error
	// discard ends the last attempt: no further read of the source begins.
	discard()
}

// jsonBody is a value that is sent as JSON.
type jsonBody struct{ value any }

func (b *jsonBody) open(_ context.Context, hreq *http.Request) error {
	data, err := wire.Marshal(b.value)
	if err != nil {
		return fmt.Errorf("%s %s: encode the request: %w", hreq.Method, hreq.URL.Path, err)
	}
	hreq.Body = io.NopCloser(bytes.NewReader(data))
	// net/http needs it to retry if an idle connection breaks before the first byte.
	hreq.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	hreq.ContentLength = int64(len(data))
	hreq.Header.Set("Content-Type", "application/json")
	return nil
}

func (b *jsonBody) replayable() bool { return true }

func (b *jsonBody) mayBlock() bool { return false }

func (b *jsonBody) cause() error { return nil }

func (b *jsonBody) discard() {}

// secrets returns the secrets in the value.
func (b *jsonBody) secrets() *redact.Secrets {
	if value, ok := b.value.(interface{ Secrets() *redact.Secrets }); ok {
		return value.Secrets()
	}
	return nil
}
