package lxd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golxd/lxd/internal/retry"
)

// Secret allows access to one private image. It is a token operation of the
// server, which runs until the secret is used or revoked.
type Secret struct {
	Value string
	op    *Operation
	ended atomic.Bool // it was revoked, or revoking it has failed for long enough
}

// Secret creates a secret with which a client that has no other permission can read
// the image and export it once: see [Images.GetWithSecret]. An unused secret should
// be revoked, as servers keep it for ever. If the response with a secret is lost,
// Secret looks for it among the server's operations and revokes it.
func (i *Image) Secret(ctx context.Context) (*Secret, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := i.checkExists(); err != nil {
		return nil, err
	}
	return i.client.startToken(ctx, &request{method: http.MethodPost, path: path("images", i.Fingerprint, "secret"), query: i.client.query()}, i.Fingerprint)
}

const (
	// tokenGrace is how long, after the caller's context has ended, the client
	// waits for a response about a token; and after that, how long it tries to
	// revoke the token.
	tokenGrace = 300 * time.Millisecond
	// tokenCleanup is the timeout of revoking a token.
	tokenCleanup = 5 * time.Second
	// tokenPause is the time between two lists of operations in which a token
	// whose response was lost is looked for. In the meantime, other programs use
	// theirs.
	tokenPause = 100 * time.Millisecond
)

// outlast returns a context that ends tokenGrace after ctx, or after limit if that
// is sooner.
func outlast(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(tokenGrace):
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() { stop(); cancel() }
}

// startToken starts a token operation for an image. No token remains on the server
// that the caller does not receive: if ctx ends, startToken waits for the response
// for tokenGrace; if the response is lost, it looks for the token and revokes it.
func (c *Client) startToken(ctx context.Context, req *request, image string) (*Secret, error) {
	if err := ctx.Err(); err != nil {
		return nil, c.t.connectionError(ctx, req, err)
	}
	began := time.Now()
	awaited, cancel := outlast(ctx, math.MaxInt64)
	defer cancel()
	op, err := c.start(awaited, req, nil)
	if err != nil {
		if mayHaveToken(err) {
			c.endLostToken(ctx, req, image, began)
		}
		if cause := ctx.Err(); cause != nil {
			return nil, c.t.connectionError(ctx, req, cause)
		}
		return nil, err
	}
	c.t.tokens.add(op.id)
	secret := &Secret{op: op, Value: op.token}
	if cause := ctx.Err(); cause != nil {
		secret.end(ctx)
		return nil, c.t.connectionError(ctx, req, cause)
	}
	if secret.Value == "" {
		secret.end(ctx)
		return nil, fmt.Errorf("token operation %s: %w: it has no secret", op.ID(), ErrBadResponse)
	}
	return secret, nil
}

// mayHaveToken reports whether a failed request may have created a token.
func mayHaveToken(err error) bool {
	if maybeSeen(err) || errors.Is(err, ErrBadResponse) {
		return true
	}
	var refused *Error
	return !errors.As(err, &refused) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}

// endLostToken revokes the token of a request that began at began and whose
// response was lost. A token does not contain who created it (LXD 5.0.2, Incus
// 6.0.4), and those of other programs must not be revoked. So it revokes only a token
// for the same image and of the same kind, which was created on the server since the
// request began, which no response to this client has contained, and which was not
// used between two lists of operations. If there are more such tokens than lost
// requests, it revokes none. One case remains: if the server has not received the
// request, and another program has created a token in the same few milliseconds and
// not used it at once, that token is revoked.
func (c *Client) endLostToken(ctx context.Context, req *request, image string, began time.Time) {
	limit := tokenCleanup / 4
	if ctx.Err() != nil {
		limit = tokenGrace / 2
	}
	ctx, cancel := outlast(ctx, tokenCleanup)
	defer cancel()
	// The creation time of a second token is the current time of the server's clock.
	lost, now, received := 1, time.Time{}, time.Time{}
	second := *req
	second.noRetry = true
	short, stop := context.WithTimeout(ctx, limit)
	marker, err := c.start(short, &second, nil)
	stop()
	switch {
	case err == nil:
		c.t.tokens.add(marker.id)
		now, received = marker.Status().CreatedAt, time.Now()
		defer (&Secret{op: marker}).end(ctx)
	case mayHaveToken(err):
		lost++
	}
	left := func(problem error) {
		c.t.log.WarnContext(ctx, "lxd token whose response was lost may be left on the server", "image", image, "error", problem)
	}
	var before []*Operation
	for {
		ops, resp, err := c.operations(ctx)
		if err != nil {
			left(err)
			return
		}
		if now.IsZero() {
			// The header Date has only whole seconds.
			date, err := http.ParseTime(resp.date)
			if err != nil {
				left(err)
				return
			}
			now, received = date.Add(time.Second), time.Now().Add(time.Second)
		}
		since := now.Add(-received.Sub(began))
		found := slices.DeleteFunc(ops, func(op *Operation) bool {
			s := op.Status()
			return !s.isToken(image, req.body != nil) || s.CreatedAt.Before(since) || s.CreatedAt.After(now) || c.t.tokens.has(op.id)
		})
		switch {
		case len(found) == 0:
			return
		case before == nil:
			before = found
		default:
			before = slices.DeleteFunc(found, func(op *Operation) bool {
				return !slices.ContainsFunc(before, func(b *Operation) bool { return b.id == op.id })
			})
			if len(before) <= lost {
				for _, op := range before {
					(&Secret{op: op}).end(ctx)
				}
				return
			}
		}
		if err := retry.Sleep(ctx, tokenPause); err != nil {
			left(fmt.Errorf("%d tokens may be the lost one: %w", len(before), err))
			return
		}
	}
}

// isToken reports whether an operation is an unused token for the image with that
// fingerprint: to upload it, or to read it.
func (s *OperationStatus) isToken(image string, upload bool) bool {
	_, forUpload := s.Metadata["properties"]
	if s.Class != "token" || s.Done() || forUpload != upload {
		return false
	}
	// LXD 6.9 names no resources.
	return s.Metadata["fingerprint"] == image || slices.ContainsFunc(s.Resources["images"], func(resource string) bool {
		name, _, _ := strings.Cut(resource, "?")
		return strings.HasSuffix(name, "/"+image)
	})
}

// Operation returns the token operation.
func (s *Secret) Operation() *Operation {
	if s == nil {
		return nil
	}
	return s.op
}

// Revoke invalidates the secret. It takes effect when the server forgets the
// operation, at most 5 seconds later (LXD 5.0.2, Incus 6.0.4). Revoking a used
// secret is not an error.
func (s *Secret) Revoke(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	err := s.op.Cancel(ctx)
	var refused *Error
	switch {
	case err == nil, errors.Is(err, ErrNotFound):
	case errors.As(err, &refused) && refused.StatusCode == http.StatusBadRequest:
		// The operation has finished.
	default:
		return err
	}
	s.ended.Store(true)
	return nil
}

// used reports whether the server has accepted the secret: its operation has finished
// or is forgotten, and this client has not revoked it.
func (s *Secret) used(ctx context.Context) bool {
	if s.ended.Load() {
		return false
	}
	status, err := s.op.Refresh(ctx)
	return errors.Is(err, ErrNotFound) || (err == nil && status.Done())
}

// end revokes a secret, even if ctx has ended, and retries for tokenCleanup. If that
// has failed, later calls do nothing: a caller that calls it more than once must not
// wait each time.
func (s *Secret) end(caller context.Context) {
	if s == nil || s.ended.Load() {
		return
	}
	t := s.op.client.t
	ctx, cancel := outlast(caller, tokenCleanup)
	defer cancel()
	retries := t.retriesFor(tokenCleanup)
	for {
		err := s.Revoke(ctx)
		if err == nil {
			return
		}
		var refused *Error
		transient := errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBadResponse) || errors.As(err, &refused) && refused.StatusCode >= http.StatusInternalServerError
		if !transient || t.conns.isClosed() || retries.Pause(ctx, err) != nil {
			t.log.WarnContext(ctx, "lxd token is left on the server", "operation", s.op.ID(), "error", err)
			if caller.Err() == nil {
				s.ended.Store(true)
			}
			return
		}
	}
}

// GetWithSecret reads a private image with a secret that [Image.Secret] created.
// Export of the returned image uses the secret too. Servers invalidate a secret when
// the image is exported with it.
func (m *Images) GetWithSecret(ctx context.Context, fingerprint, secret string) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	if err := checkFullFingerprint("fingerprint", fingerprint); err != nil {
		return nil, err
	}
	if secret == "" {
		return nil, invalid("secret", "is empty")
	}
	image, _, err := m.get(ctx, fingerprint, url.Values{"secret": {secret}})
	if err != nil {
		return nil, err
	}
	image.secret = secret
	return image, nil
}
