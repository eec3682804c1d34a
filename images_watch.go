package lxd

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// WatchOptions select the images that [Images.Watch] reports. A zero field is no
// condition. An image that ceases to meet the conditions is removed, one that begins to
// is added.
type WatchOptions struct {
	// AllProjects watches the images of all projects (extension images_all_projects).
	AllProjects  bool
	Type         ImageType
	Architecture string            // in any spelling, such as "aarch64" or "arm64"
	Properties   map[string]string // must all exist with these values

	// Interval is how often all images are read again, for changes of which the server
	// sends no event, such as those in the database. The default is ten minutes, and 30
	// seconds for a cluster, in which events of other members are lost for a while after
	// one has died (LXD 5.0.2); negative means never.
	Interval time.Duration
}

// ImageChangeKind is the kind of an ImageChange.
type ImageChangeKind string

// The values of ImageChangeKind.
const (
	ImagePresent ImageChangeKind = "present" // the image was there when Watch began
	ImagesSynced ImageChangeKind = "synced"  // all images that were there have been yielded; it has no image
	ImageAdded   ImageChangeKind = "added"   // it may not have its aliases yet, which are a change then
	ImageChanged ImageChangeKind = "changed"
	ImageRemoved ImageChangeKind = "removed"
)

// ImageChange is a change of the images of a server.
type ImageChange struct {
	Kind   ImageChangeKind
	Image  *Image // as it is now; nil if it was removed
	Former *Image // as it was yielded before; nil if it was not
	// Fields are the names of the fields of Image that have changed, such as
	// "Properties".
	Fields []string
	// Aliases are the aliases that the image has got, lost or renamed.
	Aliases []AliasChange
}

// AliasChange is a change of an alias of an image.
type AliasChange struct {
	Name string
	// OldName is the name that the alias had before; "" if it was not renamed, or if
	// that is not known: it is then removed and created.
	OldName string
	// From and To are the fingerprints of the images that had the alias, and have it
	// now; "" for none. Both are set if the alias was moved. That is yielded twice: as a
	// change of the image that has lost it, and then of the one that has got it.
	From, To string
}

// String returns the change as a line of a log.
func (c ImageChange) String() string {
	if c.any() == nil {
		return string(c.Kind)
	}
	s := fmt.Sprintf("%s image %.12s", c.Kind, c.any().Fingerprint)
	if len(c.Fields) > 0 {
		s += ": " + strings.Join(c.Fields, ", ")
	}
	for _, alias := range c.Aliases {
		s += "; " + alias.String()
	}
	return s
}

// String returns the change in words.
func (c AliasChange) String() string {
	switch {
	case c.OldName != "":
		return fmt.Sprintf("alias %q renamed to %q", c.OldName, c.Name)
	case c.From == "":
		return fmt.Sprintf("alias %q created", c.Name)
	case c.To == "":
		return fmt.Sprintf("alias %q deleted", c.Name)
	}
	return fmt.Sprintf("alias %q moved from %.12s to %.12s", c.Name, c.From, c.To)
}

// Watch iterates over the images, then yields [ImagesSynced], and from then on every
// change until ctx ends. It reads an image again when the server sends an event about
// it, so several changes in short succession may be yielded as one. When the connection
// breaks, or the server restarts, it connects again without a timeout (before
// ImagesSynced, with Options.RetryTimeout), reads all images, and yields the difference:
// what was yielded adds up to what is there, whatever events were lost. It needs an event
// of the server, or Interval, to notice a change; a client that may use some projects only
// has no event of a change that is made in another project with which it shares images.
// That LastUsedAt alone has changed is not yielded.
//
// Each image that meets the conditions is kept in memory (about 1.2 kB); an [ImageSet]
// makes them searchable. The loop ends with an error,
// which is the last thing yielded, beside a zero ImageChange: that of ctx, or one that is
// not transient, as in [Client.Events]. A status of 500, with which the members of a
// cluster respond while they elect a leader, ends it after Options.RetryTimeout. The images
// that are yielded are the caller's.
func (m *Images) Watch(ctx context.Context, opts *WatchOptions) iter.Seq2[ImageChange, error] {
	var o WatchOptions
	if opts != nil {
		o = *opts
		o.Properties = maps.Clone(o.Properties)
	}
	return func(yield func(ImageChange, error) bool) {
		w := &watchJob{images: m, WatchOptions: o, wake: make(chan struct{}, 1)}
		if err := w.check(ctx); err != nil {
			yield(ImageChange{}, err)
			return
		}
		w.run(ctx, yield)
	}
}

// own returns a copy of the image that shares nothing with it; nil for none.
func (i *Image) own() *Image {
	if i == nil {
		return nil
	}
	image := *i
	image.Aliases, image.Profiles, image.Properties = slices.Clone(i.Aliases), slices.Clone(i.Profiles), maps.Clone(i.Properties)
	image.Locations, image.AccessEntitlements = slices.Clone(i.Locations), slices.Clone(i.AccessEntitlements)
	if i.UpdateSource != nil {
		source := *i.UpdateSource
		image.UpdateSource = &source
	}
	return &image
}

// changedFields returns the names of the fields in which two images differ.
func changedFields(a, b *Image) []string {
	var names []string
	v, w := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for _, field := range reflect.VisibleFields(v.Type()) {
		if !field.IsExported() || field.Name == "LastUsedAt" {
			continue
		}
		if !reflect.DeepEqual(v.FieldByIndex(field.Index).Interface(), w.FieldByIndex(field.Index).Interface()) {
			names = append(names, field.Name)
		}
	}
	return names
}
