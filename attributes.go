package lxd

import (
	"context"
	"hash/maphash"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/golxd/lxd/internal/wire"
)

// attributes are the changeable attributes of an image. A new one needs a field
// here, in Image and in wire.ImagePut, and a line in each function of this file. A
// test checks that none is forgotten.
type attributes struct {
	AutoUpdate bool
	ExpiresAt  time.Time // zero: never
	Profiles   []string  // nil: unchanged
	Properties map[string]string
	Public     bool
}

func (i *Image) attributes() attributes {
	return attributes{AutoUpdate: i.AutoUpdate, ExpiresAt: i.ExpiresAt, Profiles: i.Profiles, Properties: i.Properties, Public: i.Public}
}

// set copies the attributes to an image.
func (a attributes) set(i *Image) {
	i.AutoUpdate, i.ExpiresAt, i.Profiles, i.Properties, i.Public = a.AutoUpdate, a.ExpiresAt, a.Profiles, a.Properties, a.Public
}

// clone returns a copy that shares nothing with a.
func (a attributes) clone() attributes {
	a.Profiles, a.Properties = slices.Clone(a.Profiles), maps.Clone(a.Properties)
	return a
}

func (a attributes) equal(b attributes) bool {
	return a.AutoUpdate == b.AutoUpdate && a.ExpiresAt.Equal(b.ExpiresAt) && slices.Equal(a.Profiles, b.Profiles) &&
		maps.Equal(a.Properties, b.Properties) && a.Public == b.Public
}

var sumSeed = maphash.MakeSeed()

// sum returns a hash of the attributes. An image keeps it instead of a copy: in a
// list of ten thousand images every property would otherwise be there twice.
func (a attributes) sum() uint64 {
	var h maphash.Hash
	h.SetSeed(sumSeed)
	maphash.WriteComparable(&h, [2]bool{a.AutoUpdate, a.Public})
	if !a.ExpiresAt.IsZero() {
		maphash.WriteComparable(&h, a.ExpiresAt.UnixNano())
	}
	for _, p := range a.Profiles {
		maphash.WriteComparable(&h, p)
	}
	sum := h.Sum64()
	// The order of a map must not matter.
	for name, value := range a.Properties {
		sum += maphash.Comparable(sumSeed, [2]string{name, value})
	}
	return sum
}

// fixed are the sums of the fields of an image that Update does not send.
type fixed struct{ aliases, filename, rest uint64 }

func (i *Image) fixedFields() fixed {
	var aliases, rest maphash.Hash
	aliases.SetSeed(sumSeed)
	for _, a := range i.Aliases {
		maphash.WriteComparable(&aliases, a)
	}
	rest.SetSeed(sumSeed)
	maphash.WriteComparable(&rest, [6]string{i.Architecture, i.Fingerprint, i.Project, string(i.Type), i.ReleaseCodename, i.ReleaseTitle})
	maphash.WriteComparable(&rest, [3]time.Time{i.CreatedAt.UTC(), i.LastUsedAt.UTC(), i.UploadedAt.UTC()})
	maphash.WriteComparable(&rest, i.Cached)
	maphash.WriteComparable(&rest, i.Size)
	if i.UpdateSource != nil {
		maphash.WriteComparable(&rest, *i.UpdateSource)
	}
	for _, text := range slices.Concat(i.Locations, i.AccessEntitlements) {
		maphash.WriteComparable(&rest, text)
	}
	return fixed{aliases: aliases.Sum64(), filename: maphash.String(sumSeed, i.Filename), rest: rest.Sum64()}
}

// over returns the current attributes with a applied to them, and whether that is a
// change. A zero field leaves the current value. With exact, a zero ExpiresAt means
// never, empty Profiles none, and Properties replace the current ones.
func (a attributes) over(current attributes, exact bool) (to attributes, changed bool) {
	to = current
	if a.AutoUpdate {
		to.AutoUpdate = true
	}
	if (exact || !a.ExpiresAt.IsZero()) && !sameTime(a.ExpiresAt, current.ExpiresAt) {
		to.ExpiresAt = a.ExpiresAt
	}
	if (len(a.Profiles) > 0 || (exact && a.Profiles != nil)) && !sameNames(a.Profiles, current.Profiles) {
		to.Profiles = a.Profiles
	}
	switch {
	case exact:
		to.Properties = a.Properties
	case len(a.Properties) > 0:
		to.Properties = maps.Clone(current.Properties)
		if to.Properties == nil {
			to.Properties = map[string]string{}
		}
		maps.Copy(to.Properties, a.Properties)
	}
	if a.Public {
		to.Public = true
	}
	return to, !to.equal(current)
}

// post copies the attributes to the request that creates an image.
func (a attributes) post(post *wire.ImagePost) {
	post.AutoUpdate, post.ExpiresAt, post.Profiles, post.Properties, post.Public = a.AutoUpdate, a.ExpiresAt, a.Profiles, a.Properties, a.Public
}

// put returns the request that changes an image's attributes from from to a.
func (a attributes) put(from attributes) wire.ImagePut {
	put := wire.ImagePut{AutoUpdate: a.AutoUpdate, ExpiresAt: a.ExpiresAt, Profiles: a.Profiles, Properties: a.Properties, Public: a.Public}
	if put.Profiles == nil {
		put.Profiles = from.Profiles
	}
	if a.ExpiresAt.IsZero() && !from.ExpiresAt.IsZero() {
		put.ExpiresAt = time.Unix(0, 0).UTC() // the zero time means unchanged
	}
	return put
}

// sameTime compares whole seconds, which is what daemons keep.
func sameTime(a, b time.Time) bool {
	return a.Truncate(time.Second).Equal(b.Truncate(time.Second))
}

// sameNames compares names in any order.
func sameNames(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// matches reports whether current has these attributes, as a daemon keeps them. Nil
// Profiles match any.
func (a attributes) matches(current attributes) bool {
	return a.AutoUpdate == current.AutoUpdate && a.Public == current.Public && sameTime(a.ExpiresAt, current.ExpiresAt) &&
		(a.Profiles == nil || sameNames(a.Profiles, current.Profiles)) && maps.Equal(withValues(a.Properties), withValues(current.Properties))
}

// withValues returns the properties that have a value: daemons drop the others.
func withValues(properties map[string]string) map[string]string {
	properties = maps.Clone(properties)
	maps.DeleteFunc(properties, func(_, value string) bool { return value == "" })
	return properties
}

// hasChanges reports whether these attributes have what differs between from and to,
// whatever else has changed.
func (a attributes) hasChanges(from, to attributes) bool {
	if (to.AutoUpdate != from.AutoUpdate && to.AutoUpdate != a.AutoUpdate) || (to.Public != from.Public && to.Public != a.Public) ||
		(!sameTime(to.ExpiresAt, from.ExpiresAt) && !sameTime(to.ExpiresAt, a.ExpiresAt)) ||
		(to.Profiles != nil && !sameNames(to.Profiles, from.Profiles) && !sameNames(to.Profiles, a.Profiles)) {
		return false
	}
	before, wanted, is := withValues(from.Properties), withValues(to.Properties), withValues(a.Properties)
	for name, value := range wanted {
		if value != before[name] && value != is[name] {
			return false
		}
	}
	for name := range before {
		if wanted[name] == "" && is[name] != "" {
			return false
		}
	}
	return true
}

// patch returns the request that changes only what differs between from and a. ok is
// false if the daemons' PATCH cannot do that: it ignores expiry and profiles, and
// removes no property.
func (a attributes) patch(from attributes) (patch wire.ImagePatch, ok bool) {
	if a.AutoUpdate != from.AutoUpdate {
		patch.AutoUpdate = &a.AutoUpdate
	}
	if a.Public != from.Public {
		patch.Public = &a.Public
	}
	for name, value := range a.Properties {
		if is, exists := from.Properties[name]; !exists || is != value {
			if patch.Properties == nil {
				patch.Properties = map[string]string{}
			}
			patch.Properties[name] = value
		}
	}
	rest := from.clone()
	rest.AutoUpdate, rest.Public = a.AutoUpdate, a.Public
	if rest.Properties == nil {
		rest.Properties = map[string]string{}
	}
	maps.Copy(rest.Properties, patch.Properties)
	return patch, a.matches(rest)
}

// changeAttributes changes what differs between from and to, if the image has not
// changed since the etag was read.
func (c *Client) changeAttributes(ctx context.Context, fingerprint string, to, from attributes, etag string) error {
	patch, ok := to.patch(from)
	if !ok {
		return c.putAttributes(ctx, fingerprint, to, from, etag)
	}
	req := &request{method: http.MethodPatch, path: path("images", fingerprint), query: c.query(), body: &jsonBody{patch}}
	if etag != "" {
		req.header = http.Header{"If-Match": {etag}}
	}
	_, err := c.t.call(ctx, req, nil)
	return err
}

// putAttributes changes an image's attributes. With an etag, it fails with
// ErrConflict if the image has changed since the etag was read.
func (c *Client) putAttributes(ctx context.Context, fingerprint string, to, from attributes, etag string) error {
	req := &request{method: http.MethodPut, path: path("images", fingerprint), query: c.query(), body: &jsonBody{to.put(from)}}
	if etag != "" {
		req.header = http.Header{"If-Match": {etag}}
	}
	_, err := c.t.call(ctx, req, nil)
	return err
}
