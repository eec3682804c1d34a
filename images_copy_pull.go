package lxd

import (
	"context"
	"errors"
	"fmt"

	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/wire"
)

// pull makes the target fetch the image, from the first address that works.
func (j *copyJob) pull(ctx context.Context) (*Image, error) {
	from, to, addresses, err := j.checkPull(ctx)
	if err != nil {
		return nil, err
	}
	return j.pullFrom(ctx, addresses, from, to)
}

// checkPull returns the servers, and the addresses of the source. The error is what the
// servers' descriptions of themselves tell against a pull.
func (j *copyJob) checkPull(ctx context.Context) (from, to *Server, addresses []string, err error) {
	from, to, err = j.servers(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	addresses = j.source.client.addresses(from)
	if len(addresses) == 0 {
		return nil, nil, nil, fmt.Errorf("the source does not listen on the network (core.https_address): %w", ErrUnsupported)
	}
	if j.source.client.Project() != "default" {
		if err := to.need("pull an image from a project", "image_source_project"); err != nil {
			return nil, nil, nil, err
		}
	}
	return from, to, addresses, nil
}

// pullFrom tries the first address, and the next one if the target cannot fetch the
// image from it.
func (j *copyJob) pullFrom(ctx context.Context, addresses []string, from, to *Server) (*Image, error) {
	source, secret, err := j.source.pullSource(ctx, addresses[0], from, to)
	if err != nil {
		return nil, err
	}
	spec := j.spec
	if j.updatesFrom != "" {
		// The target keeps what it was asked for as the source of updates.
		source.Fingerprint, source.Alias, spec.AutoUpdate = "", j.updatesFrom, true
	}
	image, err := j.target.Images.post(ctx, &wire.ImagePost{Source: source, Aliases: []wire.Alias{}}, &spec, j.settle, func(ctx context.Context, op *Operation, failure error, _ *progress.Meter) (*Image, error) {
		if failure != nil {
			failure = withHint(failure, "the target must be able to connect to %s; a relay needs only this client", source.Server)
			return j.afterFailure(ctx, op, failure, func(*Image) bool { return false })
		}
		if _, err := j.target.Images.createdFingerprint(ctx, op, op.fingerprint(), j.source.Fingerprint); err != nil {
			return nil, err
		}
		return spec.complete(ctx, j.target.Images, op, j.source.Fingerprint)
	})
	if err != nil {
		secret.end(ctx)
		if len(addresses) > 1 && ctx.Err() == nil && errors.Is(err, ErrUnavailable) {
			return j.pullFrom(ctx, addresses[1:], from, to)
		}
		return nil, err
	}
	image.Fingerprint = j.source.Fingerprint
	image.pending.onRelease = secret.end
	image.pending.then(func(ctx context.Context, image *Image, err error, m *progress.Meter) (*Image, error) {
		secret.end(ctx)
		var failed *OperationError
		if err == nil || len(addresses) == 1 || ctx.Err() != nil || !errors.As(err, &failed) {
			return image, err
		}
		next, nerr := j.pullFrom(ctx, addresses[1:], from, to)
		if nerr == nil {
			if nerr = next.pending.wait(ctx, next, m); nerr != nil {
				next.pending.release(ctx)
			}
		}
		if nerr != nil {
			return nil, errors.Join(fmt.Errorf("from %s: %w", addresses[0], err), nerr)
		}
		return next, nil
	})
	return image, nil
}

// pullSource returns the image as a source from which the server to can fetch it, at
// this address of its own server from. If the image is private, the source contains a
// new secret, which the caller must end.
func (i *Image) pullSource(ctx context.Context, address string, from, to *Server) (*wire.ImageSource, *Secret, error) {
	source := &wire.ImageSource{
		Type: "image", Mode: "pull", Server: address, Protocol: to.daemon().Name, Fingerprint: i.Fingerprint,
		Certificate: i.client.certificate(from), ImageType: string(i.Type),
	}
	// Not Image.Project: a project may share the images of the default one.
	if project := i.client.Project(); project != "default" {
		if err := to.need("pull an image from a project", "image_source_project"); err != nil {
			return nil, nil, err
		}
		source.Project = project
	}
	if i.Public {
		return source, nil, nil
	}
	secret, err := i.Secret(ctx)
	if err != nil {
		return nil, nil, &sourceError{err}
	}
	source.Secret = secret.Value
	return source, secret, nil
}
