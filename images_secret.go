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

// Secret gives access to one private image. It is a token operation of the
// server, which runs until the secret is used or revoked.
type Secret struct {
	Value string
	op    *Operation
	ended atomic.Bool // or given up
}

// Secret makes a secret with which somebody without any other right can read
// the image and export it once: see [Images.GetWithSecret]. It should be
// revoked when it was not used: servers keep it for ever otherwise. One whose
// response is lost is looked for among the server's operations and revoked.
func (i *Image) Secret(ctx context.Context) (*Secret, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	return i.client.startToken(ctx, &request{method: http.MethodPost, path: path("images", i.Fingerprint, "secret"), query: i.client.query()}, i.Fingerprint)
}

const (
	// tokenGrace is how long after the caller's context has ended a server's
	// response about a token is awaited, and then again how long a token is
	// being ended.
	tokenGrace = 300 * time.Millisecond
	// tokenCleanup bounds the ending of a token.
	tokenCleanup = 5 * time.Second
	// tokenPause is the time between two looks for a token whose response was
	// lost. Those of others are used in the meantime.
	tokenPause = 100 * time.Millisecond
)

// outlast derives a context that ends tokenGrace after ctx, or limit from now if
// that is sooner.
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

// startToken begins a token operation for an image. No token is left on the
// server that the caller does not get: where the context ends, the response is
// awaited for a moment longer, and where it is lost, the token is looked for.
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
		return nil, fmt.Errorf("token operation %s: %w: it holds no secret", op.ID(), ErrBadResponse)
	}
	return secret, nil
}

// mayHaveToken says whether a failed request may have made a token all the same.
func mayHaveToken(err error) bool {
	if maybeSeen(err) || errors.Is(err, ErrBadResponse) {
		return true
	}
	var refused *Error
	return !errors.As(err, &refused) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}

// endLostToken ends the token of a request that began then and whose response
// was lost. Nothing in a token tells who made it (LXD 5.0.2, Incus 6.0.4), and
// one of another program must not be ended. So it has to be a token for the same
// image and of the same kind, made on the server since the request began, which
// no response has told of and nobody has used between two looks. If there are
// more such tokens than lost requests, all are left alone. What remains is a
// request that the server has not seen, and another program's token of the same
// few milliseconds that is not used at once: that token is ended.
func (c *Client) endLostToken(ctx context.Context, req *request, image string, began time.Time) {
	limit := tokenCleanup / 4
	if ctx.Err() != nil {
		limit = tokenGrace / 2
	}
	ctx, cancel := outlast(ctx, tokenCleanup)
	defer cancel()
	// A second token tells the time by the server's clock.
	lost, now, received := 1, time.Time{}, time.Time{}
	again := *req
	again.noRetry = true
	short, stop := context.WithTimeout(ctx, limit)
	marker, err := c.start(short, &again, nil)
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
			// Its Date has whole seconds only.
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
			left(fmt.Errorf("%d tokens may be it: %w", len(before), err))
			return
		}
	}
}

// isToken says whether an operation is a token that waits to be used, for an
// image of that fingerprint: to upload it, or to read it.
func (s *OperationStatus) isToken(image string, upload bool) bool {
	_, forUpload := s.Metadata["properties"]
	return s.Class == "token" && !s.Done() && forUpload == upload &&
		slices.ContainsFunc(s.Resources["images"], func(resource string) bool {
			name, _, _ := strings.Cut(resource, "?")
			return strings.HasSuffix(name, "/"+image)
		})
}

// Operation is the token's own.
func (s *Secret) Operation() *Operation { return s.op }

// Revoke makes the secret useless, within the 5 seconds for which servers
// remember its operation (LXD 5.0.2, Incus 6.0.4). Revoking one that was used,
// and so is gone, is not an error.
func (s *Secret) Revoke(ctx context.Context) error {
	err := s.op.Cancel(ctx)
	var refused *Error
	switch {
	case err == nil, errors.Is(err, ErrNotFound):
	case errors.As(err, &refused) && refused.StatusCode == http.StatusBadRequest:
		// It is not running any more.
	default:
		return err
	}
	s.ended.Store(true)
	return nil
}

// end revokes a secret whatever became of ctx, and tries again where that fails.
// Where it has had its time, the next call does nothing: who ends a secret, for
// certain, more than once must not wait for each.
func (s *Secret) end(caller context.Context) {
	if s == nil || s.ended.Load() {
		return
	}
	t := s.op.client.t
	ctx, cancel := outlast(caller, tokenCleanup)
	defer cancel()
	retries := retry.Policy{Timeout: tokenCleanup}.Begin()
	for {
		err := s.Revoke(ctx)
		if err == nil {
			return
		}
		var refused *Error
		again := errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBadResponse) || errors.As(err, &refused) && refused.StatusCode >= http.StatusInternalServerError
		if !again || t.conns.isClosed() || retries.Pause(ctx, err) != nil {
			t.log.WarnContext(ctx, "lxd token is left on the server", "operation", s.op.ID(), "error", err)
			if caller.Err() == nil {
				s.ended.Store(true)
			}
			return
		}
	}
}

// GetWithSecret reads a private image with a secret that [Image.Secret] made.
// Export of the image that it gives uses the secret too. Servers end a secret
// when the image is exported with it.
func (m *Images) GetWithSecret(ctx context.Context, fingerprint, secret string) (*Image, error) {
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
