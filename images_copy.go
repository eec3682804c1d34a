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

// CopyMode is the way that a copy takes between two servers.
type CopyMode string

// The ways of a copy.
const (
	// CopyAuto tries pull, then push, then relay. It is the default.
	CopyAuto CopyMode = ""
	// CopyPull has the target fetch the image; it must reach the source.
	CopyPull CopyMode = "pull"
	// CopyPush has the source send the image; it must reach the target. Both
	// must be of one family, and the image a container's. The copy's filename is
	// the one that the source gives it: servers have no way to ask for another.
	CopyPush CopyMode = "push"
	// CopyRelay streams the image through this client.
	CopyRelay CopyMode = "relay"
)

// CopyOptions say what the copy is like. Zero fields keep what the source image
// has.
type CopyOptions struct {
	// Mode is the way the content takes. Default: CopyAuto.
	Mode CopyMode

	Public     *bool
	AutoUpdate *bool
	Filename   string
	// Properties replace all of the source's. An empty map means none.
	Properties map[string]string
	// Profiles of the target's project. An empty slice means none.
	Profiles []string
	// Aliases replace those of the source. An empty slice means none.
	Aliases []Alias
	// ReuseAliases moves aliases to the copy that stand for other images of
	// the target. Default: they are an ErrExists.
	ReuseAliases bool
	// ExpiresAt is when the copy expires.
	ExpiresAt *time.Time

	IfExists IfExists

	// Wait returns when the copy is there. Default: when the target has
	// accepted the work (of a relay: has the content). Image.Wait must then be
	// called: it takes the next way if one fails, and ends the tokens, once the
	// operation has ended. A Wait that ctx ends does neither; the next does.
	// Without any, a token that is not used stays on its server.
	Wait bool

	// Progress is told of the phases send (of a relay) and server, until Copy
	// returns.
	Progress func(Progress)
}

// Copied is an image that was copied.
type Copied struct {
	*Image
	// Mode is the way that was taken. It is empty if the target had the image.
	// Without Wait it is final only after Image.Wait.
	Mode CopyMode
	// Failed lists the modes that CopyAuto tried or ruled out, and why.
	Failed []CopyAttempt
}

// CopyAttempt is a way of a copy that failed, or could not be tried.
type CopyAttempt struct {
	Mode CopyMode
	Err  error
}

// Copy brings the image to another server, or to another project, with its
// aliases, properties, profiles, expiry, filename, auto-update and publicity
// unless the options say otherwise. If the target has the image nothing is
// moved.
func (i *Image) Copy(ctx context.Context, target *Client, opts *CopyOptions) (*Copied, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	var o CopyOptions
	if opts != nil {
		o = *opts
	}
	if err := o.check(target); err != nil {
		return nil, err
	}
	j := &copyJob{source: i, target: target, ifExists: o.IfExists, spec: o.spec(i), copied: &Copied{}}
	j.meter, j.report = meter(PhaseServer, max(i.Size, -1), o.Progress), o.Progress
	defer j.meter.Stop()
	existing, err := target.Images.Get(ctx, i.Fingerprint)
	switch {
	case err == nil && o.IfExists == ErrorIfExists:
		return nil, fmt.Errorf("image %s: %w", i.Fingerprint, ErrExists)
	case err == nil:
		if err := existing.assign(ctx, j.spec.aliases, j.spec.reuse); err != nil {
			return nil, err
		}
		j.meter.Phase(PhaseServer, existing.Size, existing.Size)
		j.copied.Image = existing
		return j.copied, nil
	case !errors.Is(err, ErrNotFound):
		return nil, err
	}
	if !o.ReuseAliases {
		if err := target.Aliases.checkFree(ctx, j.spec.aliases, i.Fingerprint); err != nil {
			return nil, err
		}
	}
	modes := []CopyMode{o.Mode}
	if o.Mode == CopyAuto {
		modes = []CopyMode{CopyPull, CopyPush, CopyRelay}
	}
	if err := j.run(ctx, modes, o.Wait); err != nil {
		return nil, err
	}
	return j.copied, nil
}

func (o *CopyOptions) check(target *Client) error {
	if target == nil {
		return invalid("target", "is nil")
	}
	switch o.Mode {
	case CopyAuto, CopyPull, CopyPush, CopyRelay:
	default:
		return invalid("CopyOptions.Mode", "is %q", o.Mode)
	}
	if o.IfExists != UseExisting && o.IfExists != ErrorIfExists {
		return invalid("CopyOptions.IfExists", "is %q", o.IfExists)
	}
	if err := checkFilename("CopyOptions.Filename", o.Filename); err != nil {
		return err
	}
	if err := checkNames("CopyOptions.Profiles", o.Profiles); err != nil {
		return err
	}
	if _, ok := o.Properties[""]; ok {
		return invalid("CopyOptions.Properties", "has an empty name")
	}
	return checkAliases("CopyOptions.Aliases", o.Aliases)
}

// wanted is what the copy is to be like.
func (o *CopyOptions) spec(source *Image) imageSpec {
	w := imageSpec{
		attributes: source.attributes().clone(), filename: source.Filename, aliases: slices.Clone(source.Aliases),
		reuse: o.ReuseAliases, exact: true,
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

// copying is one call of Copy.
type copyJob struct {
	source   *Image
	target   *Client
	ifExists IfExists
	spec     imageSpec
	meter    *progress.Meter
	report   func(Progress) // for a later Image.Wait; nil for none
	copied   *Copied
}

// run takes the first of the ways that succeeds. Without wait it begins the
// first that can be begun, and waiting for the image takes the others.
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
			if err = image.pending.wait(ctx, image, j.meter); err != nil {
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

// failed notes a way that was not taken. Of an only way the error is given as
// it is.
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

// copyError is the error of the one way that was asked for.
type copyError struct{ err error }

func (e *copyError) Error() string { return e.err.Error() }

func (e *copyError) Unwrap() error { return e.err }

// goOn says whether another way may do better. Where the caller has ended it,
// or the target has refused, none will.
func (j *copyJob) shouldTryNext(ctx context.Context, err error) bool {
	var only *copyError
	return ctx.Err() == nil && !errors.As(err, &only) && !errors.Is(err, ErrForbidden) && !errors.Is(err, ErrExists) && !errors.Is(err, ErrInvalid)
}

// resume goes on after a way that was begun without waiting.
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

// settle looks for the copy whose operation the target has forgotten.
func (j *copyJob) settle(ctx context.Context) error {
	_, err := j.target.Images.Get(ctx, j.source.Fingerprint)
	if errors.Is(err, ErrNotFound) {
		return errUnsettled
	}
	return err
}

// expected is the copy as it will be.
func (j *copyJob) expectedImage() *Image {
	s, image := j.source, j.spec.image(j.target, j.source.Fingerprint)
	image.Size, image.Type, image.Architecture, image.CreatedAt = s.Size, s.Type, s.Architecture, s.CreatedAt
	return image
}
