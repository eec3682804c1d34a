package lxd

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/wire"
)

// push makes the source send the image to the target.
func (j *copyJob) push(ctx context.Context) (*Image, error) {
	_, to, addresses, err := j.checkPush(ctx)
	if err != nil {
		return nil, err
	}
	// The token describes the copy. Its properties are never null, which would
	// crash the daemon (LXD 5.0.2, Incus 6.0.4).
	post := &wire.ImagePost{
		Source:  &wire.ImageSource{Type: "image", Mode: "push", Fingerprint: j.source.Fingerprint},
		Aliases: []wire.Alias{}, Properties: j.spec.Properties, Public: j.spec.Public, ExpiresAt: j.spec.ExpiresAt,
	}
	c := j.target
	secret, err := c.startToken(ctx, &request{method: http.MethodPost, path: path("images"), query: c.query(), body: &jsonBody{post}}, j.source.Fingerprint)
	if err != nil {
		return nil, err
	}
	var op *Operation
	export := &wire.ImageExport{Secret: secret.Value, Certificate: c.certificate(to), Project: c.project, Profiles: j.spec.Profiles, Aliases: []wire.Alias{}}
	for _, address := range addresses {
		export.Target = address
		src := j.source.client
		op, err = src.start(ctx, &request{method: http.MethodPost, path: path("images", j.source.Fingerprint, "export"), query: src.query(), body: &jsonBody{export}}, j.settle)
		if err == nil {
			break
		}
	}
	if err != nil {
		secret.end(ctx)
		return nil, &sourceError{err}
	}
	image := j.expectedImage()
	image.pending = newPending(op, j.source.Size, func(ctx context.Context, failure error, _ *progress.Meter) (*Image, error) {
		if failure != nil {
			failure = withHint(failure, "the source must be able to connect to %s; a relay needs only this client", export.Target)
			j.awaitTarget(ctx, secret.op)
			return j.afterFailure(ctx, secret.op, failure, func(existing *Image) bool { return existing.isNewOf(secret.op) && secret.used(ctx) })
		}
		return j.spec.complete(ctx, j.target.Images, op, j.source.Fingerprint)
	})
	image.pending.onRelease, image.pending.watched = secret.end, true
	return image, nil
}

// checkPush returns the servers, and the addresses of the target. The error is what the
// servers' descriptions of themselves tell against a push.
func (j *copyJob) checkPush(ctx context.Context) (from, to *Server, addresses []string, err error) {
	from, to, err = j.servers(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	if !from.Trusted {
		// Not an ErrForbidden, after which no other mode is tried: a relay only
		// reads the image.
		return nil, nil, nil, fmt.Errorf("the source does not push for a client that it does not trust: %w", ErrUnsupported)
	}
	for _, s := range []*Server{from, to} {
		if err := s.need("push an image", "images_push_relay"); err != nil {
			return nil, nil, nil, err
		}
	}
	if from.Family != to.Family {
		// The source sends the secret in a header that the other family ignores.
		return nil, nil, nil, fmt.Errorf("%s cannot push to %s: %w", from.Family, to.Family, ErrUnsupported)
	}
	if j.source.Type == VirtualMachine {
		// The source sends the disk as a container's rootfs, and the target
		// accepts it as one (LXD 5.0.2, Incus 6.0.4).
		return nil, nil, nil, fmt.Errorf("the servers cannot push images of virtual machines: %w", ErrUnsupported)
	}
	if j.target.project != "" {
		if err := from.need("push an image into a project", "images_target_project"); err != nil {
			return nil, nil, nil, err
		}
	}
	addresses = j.target.addresses(to)
	if len(addresses) == 0 {
		return nil, nil, nil, fmt.Errorf("the target does not listen on the network (core.https_address): %w", ErrUnsupported)
	}
	return from, to, addresses, nil
}

// awaitTarget waits, for at most the retry timeout, until the target has finished what
// it works on since the token was created: if the connection between the servers has
// broken after the content, the target still creates the image.
func (j *copyJob) awaitTarget(ctx context.Context, token *Operation) {
	began := token.Status().CreatedAt
	for retries := j.target.t.retry.Begin(); ; {
		ops, _, err := j.target.operations(ctx)
		running := slices.ContainsFunc(ops, func(op *Operation) bool {
			s := op.Status()
			return s.Class == "task" && !s.Done() && !s.CreatedAt.Before(began)
		})
		if err != nil || !running || retries.Pause(ctx, errUnsettled) != nil {
			return
		}
	}
}
