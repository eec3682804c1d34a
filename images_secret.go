package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Secret gives access to one private image. It is a token operation of the
// server, which runs until the secret is used or revoked.
type Secret struct {
	Value string
	op    *Operation
}

// Secret makes a secret with which somebody without any other right can read
// the image and export it once: see [Images.GetWithSecret]. It should be
// revoked when it was not used: servers keep it for ever otherwise.
func (i *Image) Secret(ctx context.Context) (*Secret, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	return i.client.startToken(ctx, &request{method: http.MethodPost, path: path("images", i.Fingerprint, "secret"), query: i.client.query()})
}

// tokenGrace is how long a server's answer about a token is awaited after the
// caller's context has ended.
const tokenGrace = 500 * time.Millisecond

// startToken begins a token operation. A token whose answer is on its way when
// ctx ends must not be left on the server, so the answer is awaited for a moment
// longer, and the token is ended.
func (c *Client) startToken(ctx context.Context, req *request) (*Secret, error) {
	if err := ctx.Err(); err != nil {
		return nil, c.t.connectionError(ctx, req, err)
	}
	awaited, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(tokenGrace):
			cancel()
		case <-awaited.Done():
		}
	})()
	op, err := c.start(awaited, req, nil)
	secret := &Secret{op: op}
	if cause := ctx.Err(); cause != nil {
		if err == nil {
			secret.end(ctx)
		}
		return nil, c.t.connectionError(ctx, req, cause)
	}
	if err != nil {
		return nil, err
	}
	if secret.Value, _ = op.Status().Metadata["secret"].(string); secret.Value == "" {
		secret.end(ctx)
		return nil, fmt.Errorf("token operation %s: %w: it holds no secret", op.ID(), ErrBadResponse)
	}
	return secret, nil
}

// Operation is the token's own.
func (s *Secret) Operation() *Operation { return s.op }

// Revoke makes the secret useless, within the 5 seconds for which servers
// remember its operation (LXD 5.0.2, Incus 6.0.4). Revoking one that was used,
// and so is gone, is not an error.
func (s *Secret) Revoke(ctx context.Context) error {
	err := s.op.Cancel(ctx)
	if err == nil || errors.Is(err, ErrNotFound) {
		return nil
	}
	var refused *Error
	if errors.As(err, &refused) && refused.StatusCode == http.StatusBadRequest {
		return nil // it is not running any more
	}
	return err
}

// tokenCleanup bounds the ending of a token.
const tokenCleanup = 5 * time.Second

// end revokes a secret whatever became of ctx.
func (s *Secret) end(ctx context.Context) {
	if s == nil {
		return
	}
	limit := tokenCleanup
	if ctx.Err() != nil {
		limit = tokenGrace
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if err := s.Revoke(ctx); err != nil {
		s.op.client.t.log.WarnContext(ctx, "lxd token is left on the server", "operation", s.op.ID(), "error", err)
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
