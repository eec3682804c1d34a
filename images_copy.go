package lxd

import (
	"context"
	"maps"
	"slices"
	"time"
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

// CopyOptions describe the copy. An attribute that is nil, and an empty Filename, is
// the source's; Aliases and Profiles are the source's only if CopyAliases and
// CopyProfiles are set.
type CopyOptions struct {
	// Mode is how the content is copied. The default is CopyAuto.
	Mode CopyMode

	Public *bool
	// AutoUpdate makes the target update the copy from the source image's first
	// alias. Only a pull of a public image of the default project, which has an
	// alias, can be updated: with true, another copy is an error that matches
	// ErrUnsupported. The default is the source's AutoUpdate where that is possible,
	// and otherwise false.
	AutoUpdate *bool
	Filename   string
	// Properties replace all those of the source. An empty map means none.
	Properties map[string]string
	// Profiles are profiles of the target's project (extension image_profiles). One
	// that does not exist is an error that matches ErrNotFound, before anything is
	// copied. The default is the target's: "default".
	Profiles []string
	// CopyProfiles uses the names of the source's profiles; Profiles must be empty.
	CopyProfiles bool
	// Aliases are names for the copy. They are checked before anything is copied.
	Aliases []Alias
	// CopyAliases adds the source's aliases, except those whose name is in Aliases.
	CopyAliases bool
	// ReuseAliases moves aliases that point to other images of the target to the
	// copy. Those images remain, without the alias. By default such an alias is an
	// error that matches ErrExists.
	ReuseAliases bool
	// DeleteReplaced deletes the images that have lost their last alias to
	// ReuseAliases, which must be set.
	DeleteReplaced bool
	// ExpiresAt is when the copy expires; a zero time means never.
	ExpiresAt *time.Time

	// IfExists is what happens if the target already has the image. The default is to
	// apply Public, ExpiresAt, Properties, profiles and aliases to it, where they are
	// set; what the options leave to the source is not changed.
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
	// Failed lists the modes that CopyAuto tried or ruled out before that, and why.
	Failed []CopyAttempt
}

// transferred returns the result for Image.Transfer.
func (c *Copied) transferred() Transfer {
	t := Transfer{Way: string(c.Mode)}
	for _, attempt := range c.Failed {
		t.Failed = append(t.Failed, TransferAttempt{string(attempt.Mode), attempt.Err})
	}
	return t
}

// CopyAttempt is a mode of a copy that failed, or could not be tried.
type CopyAttempt struct {
	Mode CopyMode
	Err  error
}

// Copy copies the image to another server, or to another project. The copy has the
// image's properties, expiry, filename and Public, unless the options set others. If
// the target has the image, no content is sent. If the target has the copy but an
// alias could not be set, Copy returns both the copy and the error. If all modes of
// CopyAuto fail, the error contains the error of each, and matches the one that
// decided: the last that is not merely unsupported. To keep an alias of the target up to
// date from this server, see [Images.Ensure] and [FromImage].
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
	if err := checkTarget(target); err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	j, err := newCopyJob(i, target, &o)
	if err != nil {
		return nil, err
	}
	j.meter, j.report = meter(PhaseServer, max(i.Size, -1), o.Progress), o.Progress
	defer j.meter.Stop()
	if exists, err := j.begin(ctx); exists || err != nil {
		return j.result(ctx, err)
	}
	modes := []CopyMode{o.Mode}
	j.single = o.Mode != CopyAuto
	if o.Mode == CopyAuto {
		modes = []CopyMode{CopyPull, CopyPush, CopyRelay}
	}
	return j.result(ctx, j.run(ctx, modes, o.Wait))
}

// checkTarget returns an error if target is not a client that was made.
func checkTarget(target *Client) error {
	if target == nil {
		return invalid("target", "is nil")
	}
	return target.checkMade()
}

// clone returns a copy that shares nothing with the caller's options.
func (o *CopyOptions) clone() CopyOptions {
	c := *o
	c.Properties, c.Profiles, c.Aliases = maps.Clone(o.Properties), slices.Clone(o.Profiles), slices.Clone(o.Aliases)
	return c
}

func (o *CopyOptions) check() error {
	if err := checkOneOf("CopyOptions.Mode", o.Mode, CopyAuto, CopyPull, CopyPush, CopyRelay); err != nil {
		return err
	}
	if o.CopyProfiles && len(o.Profiles) > 0 {
		return invalid("CopyOptions.Profiles", "is set together with CopyProfiles")
	}
	if err := checkFilename("CopyOptions.Filename", o.Filename); err != nil {
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
		attributes: source.attributes().clone(), filename: source.Filename, aliases: slices.Clone(o.Aliases),
		reuse: o.ReuseAliases, replaced: o.DeleteReplaced, exact: true,
	}
	if o.Public != nil {
		w.Public = *o.Public
	}
	w.AutoUpdate = false // see checkUpdates
	if o.Filename != "" {
		w.filename = o.Filename
	}
	if o.Properties != nil {
		w.Properties = maps.Clone(o.Properties)
	}
	if w.Properties == nil {
		w.Properties = map[string]string{}
	}
	if !o.CopyProfiles {
		w.Profiles = nil
		if len(o.Profiles) > 0 {
			w.Profiles = slices.Clone(o.Profiles)
		}
	}
	if o.CopyAliases {
		for _, a := range source.Aliases {
			if !slices.ContainsFunc(o.Aliases, func(b Alias) bool { return a.Name == b.Name }) {
				w.aliases = append(w.aliases, a)
			}
		}
	}
	if o.ExpiresAt != nil {
		w.ExpiresAt = *o.ExpiresAt
	}
	return w
}
