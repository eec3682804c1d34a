package lxd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/golxd/lxd/internal/progress"
)

// copyJob is the copy of an image to one server.
type copyJob struct {
	// source is the image that the content comes from. In Distribute it may be another
	// server's than that of which the copy has its attributes.
	source *Image
	target *Client
	opts   *CopyOptions
	spec   imageSpec
	// updatesFrom is the source's alias from which the target updates a copy that it
	// pulls; "" if it does not. With mustUpdate, no other copy is made.
	updatesFrom string
	mustUpdate  bool
	single      bool // there is only one mode
	// shared is the content for the first attempt of a relay; nil if it has a reading
	// of its own.
	shared *sharedReader
	// started is called with the operation of each mode; nil for nothing.
	started func(*Operation)
	meter   *progress.Meter
	report  func(Progress) // for a later Image.Wait; nil for none
	copied  *Copied
}

func newCopyJob(source *Image, target *Client, opts *CopyOptions) (*copyJob, error) {
	j := &copyJob{source: source, target: target, opts: opts, spec: opts.spec(source), copied: &Copied{}}
	if source.AutoUpdate || opts.AutoUpdate != nil {
		if err := j.checkUpdates(opts.AutoUpdate); err != nil {
			return nil, err
		}
	}
	return j, nil
}

// begin looks for the image at the target. If the target has it, begin sets what the
// options ask for, and nothing is left to do. Otherwise it checks what the target would
// refuse.
func (j *copyJob) begin(ctx context.Context) (exists bool, err error) {
	existing, err := j.find(ctx)
	if err != nil {
		return false, err
	}
	if existing == nil {
		if err := j.checkProfiles(ctx); err != nil {
			return false, err
		}
		return false, j.checkAliases(ctx)
	}
	if existing, err = j.useExisting(ctx, existing); err != nil {
		return true, err
	}
	j.copied.Image = existing
	if err := j.spec.assign(ctx, existing); err != nil {
		return true, err
	}
	j.meter.Phase(PhaseServer, existing.Size, existing.Size)
	return true, nil
}

// dryRun is begin without any change.
func (j *copyJob) dryRun(ctx context.Context) (exists bool, err error) {
	j.copied.Image, err = j.find(ctx)
	if err != nil {
		return false, err
	}
	if err := j.checkProfiles(ctx); err != nil {
		return false, err
	}
	return j.copied.Image != nil, j.checkAliases(ctx)
}

// find returns the image of the target; nil if it has none. If it must not have it, or
// cannot keep it up to date, that is an error.
func (j *copyJob) find(ctx context.Context) (*Image, error) {
	existing, err := j.target.Images.Get(ctx, j.source.Fingerprint)
	switch {
	case isMissing(err):
		return nil, nil //nolint:nilnil // There is none, as documented.
	case err != nil:
		return nil, err
	case j.opts.IfExists == ErrorIfExists:
		return nil, fmt.Errorf("image %s: %w", j.source.Fingerprint, ErrExists)
	case j.mustUpdate && !existing.updatable():
		return nil, fmt.Errorf("update image %.12s: %w: the target has the image without an alias as its source; delete it and copy it again", j.source.Fingerprint, ErrUnsupported)
	}
	return existing, nil
}

// checkAliases returns an error if an alias is another image's, and must remain so.
func (j *copyJob) checkAliases(ctx context.Context) error {
	if j.spec.reuse {
		return nil
	}
	return j.target.Aliases.checkFree(ctx, j.spec.aliases, j.source.Fingerprint, nil)
}

// result returns what is returned beside err: nil if the target has nothing of the copy.
// Otherwise only the aliases or attributes are missing, or the operation may still run.
func (j *copyJob) result(ctx context.Context, err error) (*Copied, error) {
	image := j.copied.Image
	if err != nil && (image == nil || ctx.Err() == nil && image.UploadedAt.IsZero()) {
		return nil, err
	}
	return j.copied, err
}

// checkUpdates determines whether a pull can be updated. It returns an error if it
// must be and cannot.
func (j *copyJob) checkUpdates(want *bool) error {
	if want != nil && !*want {
		return nil
	}
	j.mustUpdate = want != nil
	problem := ""
	switch i := j.source; {
	case !i.Public:
		problem = "the source image is not public"
	case i.client.Project() != "default":
		// A daemon keeps the alias of a source, not its project.
		problem = "the source image is not in the default project"
	case len(i.Aliases) == 0:
		problem = "the source image has no alias"
	default:
		j.updatesFrom = i.Aliases[0].Name
	}
	if problem != "" && j.mustUpdate {
		return fmt.Errorf("AutoUpdate of a copy: %w: %s", ErrUnsupported, problem)
	}
	return nil
}

// updatable reports whether the server can find a newer version of the image: its
// source is an alias and not a fingerprint.
func (i *Image) updatable() bool {
	return i.UpdateSource != nil && i.UpdateSource.Alias != "" && i.UpdateSource.Alias != i.Fingerprint
}

// checkProfiles returns an error if the target does not have the profiles, or would
// ignore them.
func (j *copyJob) checkProfiles(ctx context.Context) error {
	if len(j.spec.Profiles) == 0 {
		return nil
	}
	to, err := j.target.serverInfo(ctx, false)
	if err != nil {
		return err
	}
	if err := j.spec.checkSupported(to); err != nil {
		return err
	}
	return j.target.checkProfiles(ctx, j.spec.Profiles)
}

// useExisting sets what the options ask for on an image that the target already has.
// What they leave to the source is not changed.
func (j *copyJob) useExisting(ctx context.Context, existing *Image) (*Image, error) {
	o := j.opts
	if len(o.Profiles) > 0 || o.CopyProfiles {
		if err := j.checkProfiles(ctx); err != nil {
			return nil, err
		}
	}
	return j.target.Images.update(ctx, existing, func(i *Image) error {
		if o.Public != nil {
			i.Public = *o.Public
		}
		if o.ExpiresAt != nil {
			i.ExpiresAt = *o.ExpiresAt
		}
		if o.Properties != nil {
			i.Properties = maps.Clone(o.Properties)
		}
		if len(o.Profiles) > 0 || o.CopyProfiles {
			i.Profiles = slices.Clone(j.spec.Profiles)
		}
		return nil
	}, nil)
}

// run tries the modes until one succeeds. Without wait it returns when one has
// started, and tryRest, called by Image.Wait, tries the others if that one fails.
func (j *copyJob) run(ctx context.Context, modes []CopyMode, wait bool) error {
	for n, mode := range modes {
		image, err := j.start(ctx, mode)
		if err == nil {
			j.copied.Image, j.copied.Mode = image, mode
			image.transfer = j.copied
			image.pending.report = j.report
			if j.started != nil {
				j.started(image.pending.op)
			}
			if !wait {
				rest, failed := modes[n+1:], slices.Clone(j.copied.Failed)
				image.pending.then(func(ctx context.Context, image *Image, err error, m *progress.Meter) (*Image, error) {
					j.copied.Failed = slices.Clone(failed) // an earlier Image.Wait may have failed
					return j.tryRest(ctx, mode, image, err, rest, m)
				})
				return nil
			}
			if _, err = image.pending.waitInCall(ctx, image, j.meter, j.opts.CancelOnDone); err != nil {
				image.pending.release(ctx) // nobody can wait for it any more
			}
		}
		j.noteFailure(mode, err)
		if err == nil || !j.shouldTryNext(ctx, err) {
			return err
		}
	}
	return &copyError{what: fmt.Sprintf("copy image %.12s to %s", j.source.Fingerprint, j.target.Endpoint()), failed: j.copied.transferred().Failed}
}

// noteFailure adds the error of a mode to Copied.Failed, unless it was the only mode.
func (j *copyJob) noteFailure(mode CopyMode, err error) {
	if err != nil && !j.single {
		j.copied.Failed = append(j.copied.Failed, CopyAttempt{mode, err})
	}
}

// copyError is the error of a copy of which all modes have failed. Its text has the
// error of each; it wraps only the one that decided.
type copyError struct {
	what   string
	failed []TransferAttempt
}

func (e *copyError) Error() string {
	lines := make([]string, len(e.failed))
	for n, a := range e.failed {
		lines[n] = fmt.Sprintf("%s: %v", a.Way, a.Err)
	}
	return e.what + ": " + strings.Join(lines, "\n")
}

// Unwrap returns the last error that says more than that a mode is not supported.
func (e *copyError) Unwrap() error {
	for _, a := range slices.Backward(e.failed) {
		if !errors.Is(a.Err, ErrUnsupported) {
			return a.Err
		}
	}
	return e.failed[len(e.failed)-1].Err
}

// shouldTryNext reports whether another mode may succeed after err. None will if
// ctx has ended, the operation was cancelled, or the target has refused the image.
func (j *copyJob) shouldTryNext(ctx context.Context, err error) bool {
	var source *sourceError
	var failed *OperationError
	switch {
	case j.single, ctx.Err() != nil, errors.Is(err, ErrCancelled), errors.Is(err, ErrExists), errors.Is(err, ErrInvalid):
		return false
	case errors.As(err, &source), errors.As(err, &failed):
		// Of an operation it is not known which server has refused.
		return true
	}
	return !errors.Is(err, ErrForbidden)
}

// sourceError is an error of a request to the source.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }

func (e *sourceError) Unwrap() error { return e.err }

// afterFailure determines the outcome of a copy whose operation has failed: if the
// target has the image, as another copy or an earlier attempt has created it, or as
// only a response was lost, the copy can be completed. created reports whether this
// call has created the existing image.
func (j *copyJob) afterFailure(ctx context.Context, op *Operation, failure error, created func(existing *Image) bool) (*Image, error) {
	if errors.Is(failure, ErrCancelled) {
		return nil, failure
	}
	existing, err := j.target.Images.Get(ctx, j.source.Fingerprint)
	switch {
	case err != nil:
		return nil, failure
	case j.opts.IfExists == ErrorIfExists && !created(existing):
		return nil, fmt.Errorf("image %s: %w", j.source.Fingerprint, ErrExists)
	}
	return j.spec.complete(ctx, j.target.Images, op, j.source.Fingerprint)
}

// tryRest tries the remaining modes if the one that was started without waiting
// has failed.
func (j *copyJob) tryRest(ctx context.Context, mode CopyMode, image *Image, err error, rest []CopyMode, m *progress.Meter) (*Image, error) {
	j.noteFailure(mode, err)
	if err == nil || !j.shouldTryNext(ctx, err) {
		return image, err
	}
	callers := j.copied.Image
	defer func() { j.copied.Image = callers }()
	j.meter = m
	if err := j.run(ctx, rest, true); err != nil {
		return nil, err
	}
	return j.copied.Image, nil
}

// start starts a copy in one mode. The image that it returns has pending work.
func (j *copyJob) start(ctx context.Context, mode CopyMode) (*Image, error) {
	if j.mustUpdate && mode != CopyPull {
		return nil, fmt.Errorf("AutoUpdate of a copy: %w: the target can update only what it pulls", ErrUnsupported)
	}
	switch mode {
	case CopyPull:
		return j.pull(ctx)
	case CopyPush:
		return j.push(ctx)
	default:
		return j.relay(ctx)
	}
}

// possible returns the first of the modes that the servers do not rule out themselves.
func (j *copyJob) possible(ctx context.Context, modes []CopyMode) (CopyMode, error) {
	var err error
	for _, mode := range modes {
		switch mode {
		case CopyPull:
			_, _, _, err = j.checkPull(ctx)
		case CopyPush:
			_, _, _, err = j.checkPush(ctx)
		default:
			err = nil
		}
		if err == nil {
			return mode, nil
		}
		j.noteFailure(mode, err)
	}
	return "", err
}

// settle determines the outcome of an operation that a server has forgotten: it
// looks for the copy.
func (j *copyJob) settle(ctx context.Context) error {
	return j.target.Images.settleImage(ctx, j.source.Fingerprint)
}

// expectedImage returns what is known of the copy before the target has it.
func (j *copyJob) expectedImage() *Image {
	s, image := j.source, j.spec.image(j.target, j.source.Fingerprint)
	image.Size, image.Type, image.Architecture, image.CreatedAt = s.Size, s.Type, s.Architecture, s.CreatedAt
	return image
}

// servers returns what the source and the target say of themselves.
func (j *copyJob) servers(ctx context.Context) (from, to *Server, err error) {
	if from, err = j.source.client.serverInfo(ctx, false); err != nil {
		return nil, nil, &sourceError{err}
	}
	to, err = j.target.serverInfo(ctx, false)
	return from, to, err
}
