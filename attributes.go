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

// equalOf reports whether an update of the image to a would change nothing.
func (a attributes) equalOf(now *Image) bool {
	_, changed := a.over(now.attributes(), true)
	return !changed && a.AutoUpdate == now.AutoUpdate && a.Public == now.Public
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

// over returns the current attributes with a applied to them, and whether that is a
// change. A zero field leaves the current value. With exact, a zero ExpiresAt means
// never, empty Profiles none, and Properties replace the current ones.
func (a attributes) over(current attributes, exact bool) (to attributes, changed bool) {
	to = current
	if a.AutoUpdate {
		to.AutoUpdate = true
	}
	// Daemons keep whole seconds.
	if (exact || !a.ExpiresAt.IsZero()) && !a.ExpiresAt.Truncate(time.Second).Equal(current.ExpiresAt.Truncate(time.Second)) {
		to.ExpiresAt = a.ExpiresAt
	}
	sorted := func(names []string) []string { return slices.Sorted(slices.Values(names)) }
	if (len(a.Profiles) > 0 || (exact && a.Profiles != nil)) && !slices.Equal(sorted(a.Profiles), sorted(current.Profiles)) {
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
