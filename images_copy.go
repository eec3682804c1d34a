package lxd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/golxd/lxd/internal/progress"
)

// CopyMode is how the content gets from one server to the other.
type CopyMode string

// The modes of a copy.
const (
	// CopyAuto tries pull, then push, then relay. It is the default.
	CopyAuto CopyMode = ""
	// CopyPull makes the target fetch the image; it must be able to connect to the
	// source.
	CopyPull CopyMode = "pull"
	// CopyPush makes the source send the image; it must be able to connect to the
	// target. Both servers must be of one family, and the image must be a
	// container's. The source chooses the copy's filename: the API cannot set
	// another.
	CopyPush CopyMode = "push"
	// CopyRelay streams the image through this client.
	CopyRelay CopyMode = "relay"
)

// CopyOptions describe the copy. The default of an attribute is its value in the
// source image.
type CopyOptions struct {
	// Mode is how the content is copied. The default is CopyAuto.
	Mode CopyMode

	Public     *bool
	AutoUpdate *bool
	Filename   string
	// Properties replace all those of the source. An empty map means none.
	Properties map[string]string
	// Profiles are profiles of the target's project. An empty slice means none.
	Profiles []string
	// Aliases replace those of the source. An empty slice means none.
	Aliases []Alias
	// ReuseAliases moves aliases that point to other images of the target to the
	// copy. Those images remain, without the alias. By default such an alias is an
	// error that matches ErrExists.
	ReuseAliases bool
	// DeleteReplaced deletes the images that have lost their last alias to
	// ReuseAliases, which must be set.
	DeleteReplaced bool
	// ExpiresAt is when the copy expires; a zero time means never.
	ExpiresAt *time.Time

	IfExists IfExists

	// Wait makes Copy return when the copy is complete. The default is to return
	// when the target has accepted the work (in a relay: has the content).
	// Image.Wait must then be called: when the operation has finished, it tries the
	// next mode if one has failed, and revokes the tokens. If ctx ends Image.Wait,
	// the next Image.Wait does that. Without it, an unused token remains on its
	// server.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while Copy waits for it (with Wait). By default it continues; Copy returns the
	// Image beside the error, with the operation.
	CancelOnDone bool

	// Progress receives the phases send (of a relay) and server.
	Progress func(Progress)
}

// Copied is an image that was copied.
type Copied struct {
	*Image
	// Mode is the mode that succeeded. It is empty if the target had the image.
	// Without CopyOptions.Wait it is final only after Image.Wait.
	Mode CopyMode
	// Failed lists the modes that CopyAuto tried or ruled out, and why.
	Failed []CopyAttempt
}

// CopyAttempt is a mode of a copy that failed, or could not be tried.
type CopyAttempt struct {
	Mode CopyMode
	Err  error
}

// Copy copies the image to another server, or to another project. The copy has the
// image's aliases, properties, profiles, expiry, filename, AutoUpdate and Public,
// unless the options set others. If the target has the image, no content is sent.
func (i *Image) Copy(ctx context.Context, target *Client, opts *CopyOptions) (*Copied, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := i.checkExists(); err != nil {
		return nil, err
	}
	var o CopyOptions
	if opts != nil {
		o = *opts
	}
	if err := o.check(target); err != nil {
		return nil, err
	}
	j := &copyJob{source: i, target: target, ifExists: o.IfExists, cancel: o.CancelOnDone, spec: o.spec(i), copied: &Copied{}}
	j.meter, j.report = meter(PhaseServer, max(i.Size, -1), o.Progress), o.Progress
	defer j.meter.Stop()
	existing, err := target.Images.Get(ctx, i.Fingerprint)
	switch {
	case err == nil && o.IfExists == ErrorIfExists:
		return nil, fmt.Errorf("image %s: %w", i.Fingerprint, ErrExists)
	case err == nil:
		if err := j.spec.assign(ctx, existing); err != nil {
			return nil, err
		}
		j.meter.Phase(PhaseServer, existing.Size, existing.Size)
		j.copied.Image = existing
		return j.copied, nil
	case !isMissing(err):
		return nil, err
	}
	if !o.ReuseAliases {
		if err := target.Aliases.checkFree(ctx, j.spec.aliases, i.Fingerprint, nil); err != nil {
			return nil, err
		}
	}
	modes := []CopyMode{o.Mode}
	if o.Mode == CopyAuto {
		modes = []CopyMode{CopyPull, CopyPush, CopyRelay}
	}
	if err := j.run(ctx, modes, o.Wait); err != nil {
		if ctx.Err() != nil && j.copied.Image != nil {
			return j.copied, err // the operation may still be running
		}
		return nil, err
	}
	return j.copied, nil
}

func (o *CopyOptions) check(target *Client) error {
	if target == nil {
		return invalid("target", "is nil")
	}
	if err := target.checkMade(); err != nil {
		return err
	}
	if err := checkOneOf("CopyOptions.Mode", o.Mode, CopyAuto, CopyPull, CopyPush, CopyRelay); err != nil {
		return err
	}
	spec := imageSpec{
		attributes: attributes{Profiles: o.Profiles, Properties: o.Properties}, filename: o.Filename, aliases: o.Aliases,
		reuse: o.ReuseAliases, replaced: o.DeleteReplaced, ifExists: o.IfExists,
	}
	if o.ExpiresAt != nil {
		spec.ExpiresAt = *o.ExpiresAt
	}
	return spec.check("CopyOptions")
}

// spec describes the copy.
func (o *CopyOptions) spec(source *Image) imageSpec {
	w := imageSpec{
		attributes: source.attributes().clone(), filename: source.Filename, aliases: slices.Clone(source.Aliases),
		reuse: o.ReuseAliases, replaced: o.DeleteReplaced, exact: true,
	}
	if o.Public != nil {
		w.Public = *o.Public
	}
	if o.AutoUpdate != nil {
		w.AutoUpdate = *o.AutoUpdate
	}
	if o.Filename != "" {
		w.filename = o.Filename
	}
	if o.Properties != nil {
		w.Properties = maps.Clone(o.Properties)
	}
	if w.Properties == nil {
		w.Properties = map[string]string{}
	}
	if o.Profiles != nil {
		w.Profiles = slices.Clone(o.Profiles)
	}
	if o.Aliases != nil {
		w.aliases = slices.Clone(o.Aliases)
	}
	if o.ExpiresAt != nil {
		w.ExpiresAt = *o.ExpiresAt
	}
	return w
}

// copyJob is one call of Copy.
type copyJob struct {
	source   *Image
	target   *Client
	ifExists IfExists
	cancel   bool // the operation, when the context ends
	spec     imageSpec
	meter    *progress.Meter
	report   func(Progress) // for a later Image.Wait; nil for none
	copied   *Copied
}

// run tries the modes until one succeeds. Without wait it returns when one has
// started, and tryRest, called by Image.Wait, tries the others if that one fails.
func (j *copyJob) run(ctx context.Context, modes []CopyMode, wait bool) error {
	for n, mode := range modes {
		image, err := j.start(ctx, mode)
		if err == nil {
			j.copied.Image, j.copied.Mode = image, mode
			image.pending.report = j.report
			if !wait {
				rest := modes[n+1:]
				image.pending.then(func(ctx context.Context, image *Image, err error, m *progress.Meter) (*Image, error) {
					return j.tryRest(ctx, mode, image, err, rest, m)
				})
				return nil
			}
			if _, err = image.pending.waitInCall(ctx, image, j.meter, j.cancel); err != nil {
				image.pending.release(ctx) // nobody can wait for it any more
			}
		}
		if err = j.noteFailure(mode, err, len(modes) == 1 && len(j.copied.Failed) == 0); err == nil || !j.shouldTryNext(ctx, err) {
			return err
		}
	}
	errs := make([]error, len(j.copied.Failed))
	for n, a := range j.copied.Failed {
		errs[n] = fmt.Errorf("%s: %w", a.Mode, a.Err)
	}
	return fmt.Errorf("copy image %.12s to %s: %w", j.source.Fingerprint, j.target.Endpoint(), errors.Join(errs...))
}

// noteFailure adds the error of a mode to Copied.Failed. If it was the only mode,
// it returns a copyError instead, whose text is that of the error.
func (j *copyJob) noteFailure(mode CopyMode, err error, only bool) error {
	if err == nil {
		return nil
	}
	if only {
		return &copyError{err}
	}
	j.copied.Failed = append(j.copied.Failed, CopyAttempt{mode, err})
	return err
}

// copyError is the error of the only mode of a copy.
type copyError struct{ err error }

func (e *copyError) Error() string { return e.err.Error() }

func (e *copyError) Unwrap() error { return e.err }

// shouldTryNext reports whether another mode may succeed after err. None will if
// ctx has ended or the target has refused the image.
func (j *copyJob) shouldTryNext(ctx context.Context, err error) bool {
	var only *copyError
	return ctx.Err() == nil && !errors.As(err, &only) && !errors.Is(err, ErrForbidden) && !errors.Is(err, ErrExists) && !errors.Is(err, ErrInvalid)
}

// tryRest tries the remaining modes if the one that was started without waiting
// has failed.
func (j *copyJob) tryRest(ctx context.Context, mode CopyMode, image *Image, err error, rest []CopyMode, m *progress.Meter) (*Image, error) {
	if err = j.noteFailure(mode, err, len(rest) == 0 && len(j.copied.Failed) == 0); err == nil || !j.shouldTryNext(ctx, err) {
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
	switch mode {
	case CopyPull:
		return j.pull(ctx)
	case CopyPush:
		return j.push(ctx)
	default:
		return j.relay(ctx)
	}
}

// settle determines the outcome of an operation that a server has forgotten: it
// looks for the copy.
func (j *copyJob) settle(ctx context.Context) error {
	_, err := j.target.Images.Get(ctx, j.source.Fingerprint)
	if errors.Is(err, ErrNotFound) {
		return errUnsettled
	}
	return err
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
		return nil, nil, err
	}
	to, err = j.target.serverInfo(ctx, false)
	return from, to, err
}
