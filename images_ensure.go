package lxd

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// EnsurePolicy is when Ensure asks the source.
type EnsurePolicy string

// The values of EnsurePolicy.
const (
	// EnsureNewest asks the source each time, and brings its image if that is another
	// one. It is the default.
	EnsureNewest EnsurePolicy = ""
	// EnsureMissing asks the source only if the alias does not exist.
	EnsureMissing EnsurePolicy = "missing"
	// EnsureNever asks no source: the alias must exist.
	EnsureNever EnsurePolicy = "never"
)

// EnsureOptions describe the image that an alias is to have. A field that is not set
// leaves the image as it is.
type EnsureOptions struct {
	// Aliases are the names of the image; at least one. The first one decides which
	// image is there now.
	Aliases []Alias
	Policy  EnsurePolicy

	// Type and Architecture are what the image must be. If it is not, the error matches
	// ErrNotFound, and no alias is changed. What the source does not say is checked
	// when the image is created. Which of several images a source has is selected by
	// the options of the source.
	Type         ImageType
	Architecture string // in any spelling, such as "aarch64" or "arm64"

	Public     *bool
	AutoUpdate *bool             // true is an error that matches ErrUnsupported if the server cannot update the image
	ExpiresAt  *time.Time        // a zero time means never
	Profiles   []string          // see CreateFromOptions
	Properties map[string]string // added to those of the image, and override them

	// Previous is an alias for the image that the first alias had before. The image that
	// had Previous itself remains, without it, unless DeleteReplaced deletes it.
	Previous string
	// DeleteReplaced deletes images that have no alias any more because Ensure has
	// moved the first one. To find them even after a crash, Ensure sets
	// [ReplacedProperty] on an image before it moves the alias.
	DeleteReplaced bool
	// Keep is how many of these images remain, those that were uploaded last; an image
	// with an alias, such as Previous, does not count. It needs DeleteReplaced.
	Keep int

	// DryRun changes nothing: Ensured.Changes is what would be done. What the source
	// does not say before it is read remains unknown.
	DryRun bool

	// CancelOnDone cancels the operation that creates the image, if the server can
	// cancel it, when ctx ends. By default it continues, and the next call finds the
	// image.
	CancelOnDone bool

	// Progress receives the phases of the source.
	Progress func(Progress)
}

// ReplacedProperty is the property of images that EnsureOptions.DeleteReplaced may
// delete. Its value is the alias that the image has lost.
const ReplacedProperty = "user.replaced"

// Ensured is the result of Ensure.
type Ensured struct {
	// Image is the image that the aliases have; nil if DryRun would create it. Beside
	// an error it is the image that the first alias still has, if it is known.
	Image *Image
	// Changes are what was done, in this order; empty if nothing was to do. Beside an
	// error they are what was done before it.
	Changes []EnsureChange
}

// EnsureAction is the kind of an EnsureChange.
type EnsureAction string

// The values of EnsureAction.
const (
	EnsureCreated EnsureAction = "create" // the image, from its source, with its attributes
	EnsureUpdated EnsureAction = "update" // the attributes of an image that was there
	EnsureNamed   EnsureAction = "alias"  // an alias was created or moved
	EnsureDeleted EnsureAction = "delete" // a replaced image
)

// EnsureChange is a change that Ensure has made, or would make.
type EnsureChange struct {
	Action      EnsureAction
	Fingerprint string // of the image; "" if it is not known yet
	Alias       string // of EnsureNamed
	From        string // the fingerprint of the alias before; "" for a new alias
	Source      string // of EnsureCreated
}

// String returns the change as a line of a plan.
func (c EnsureChange) String() string {
	image := "an image"
	if c.Fingerprint != "" {
		image = fmt.Sprintf("image %.12s", c.Fingerprint)
	}
	switch c.Action {
	case EnsureCreated:
		return fmt.Sprintf("create %s from %s", image, c.Source)
	case EnsureNamed:
		if c.From == "" {
			return fmt.Sprintf("create alias %q for %s", c.Alias, image)
		}
		return fmt.Sprintf("move alias %q from image %.12s to %s", c.Alias, c.From, image)
	}
	return fmt.Sprintf("%s %s", c.Action, image)
}

// Ensure makes the aliases stand for the image that the source has now, with the
// attributes that are set. If that is so already, it sends at most two requests to the
// server and no content. It creates the image first, then sets its attributes, then
// moves each alias with one request, and deletes replaced images last: an alias is at no
// moment missing, nor that of an incomplete image, and if the program or the server dies,
// the next call completes the work.
//
// Any number of programs may ensure the same image at the same moment: all succeed. What
// the server fetches from a simplestreams server, or from another server with CopyPull,
// is transferred once for all of them (LXD 5.0.2, Incus 6.0.4 and 7.0.2). What the client
// sends is sent at most once by each client: its calls for the same alias are made one
// after another.
//
// A source that does not tell the fingerprint beforehand, such as an instance, a URL
// without headers or a reader that is not seekable, is read each time; with EnsureMissing
// only once.
//
// If the source cannot be read, the error says which image the alias still has, and
// Ensured.Image is that image. If somebody else changes an alias in the meantime, the
// error matches [ErrConflict], and no image is deleted.
func (m *Images) Ensure(ctx context.Context, source Source, opts *EnsureOptions) (*Ensured, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	e := &ensureJob{images: m, source: source, done: &Ensured{}}
	if opts != nil {
		e.EnsureOptions = *opts
		e.Aliases = slices.Clone(e.Aliases)
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	unlock, err := m.client.t.ensures.lock(ctx, m.client.Project()+"/"+e.Aliases[0].Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return e.done, e.run(ctx)
}
