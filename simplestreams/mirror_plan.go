package simplestreams

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// mirrorPlan is what a mirror makes of a listing.
type mirrorPlan struct {
	next    *listing
	added   []MirrorChange
	removed []MirrorChange
	kept    int
	failed  []*MirrorError
	missing []*missingVersion
}

// missingVersion is an offered version that cannot be listed yet, as the store does not have all of its files.
type missingVersion struct {
	upstream *upstreamReader
	product  string
	serial   string
	offered  *offeredVersion
}

// fail says that the version cannot be mirrored, as a file failed.
func (v *missingVersion) fail(file string, err error) {
	if v.offered.failed == nil {
		v.offered.failed = &MirrorError{Upstream: v.upstream.url(), Product: v.product, Version: v.serial, File: file, Err: err}
	}
}

// planMirror returns what the current listing becomes, if have returns the files that are in the store. It does not
// change the listing. Of offers of one product, the first counts.
func planMirror(current *listing, offers []*offer, have func(digest) (part, bool)) (*mirrorPlan, error) {
	p := &mirrorPlan{next: &listing{products: maps.Clone(current.products)}}
	owners := map[string]string{} // by product: the upstream that the listing has it from; only those that are mirrored
	for name, product := range current.products {
		text, err := product.text(mirrorAttribute)
		if err != nil {
			return nil, err
		}
		if owner := text[mirrorAttribute]; owner != "" {
			owners[name] = owner
		}
	}
	read := map[string]bool{}
	for _, o := range offers {
		read[o.upstream.url()] = true
	}

	offered := map[string]bool{}
	for _, o := range offers {
		p.failed = append(p.failed, o.failed...)
		for _, name := range slices.Sorted(maps.Keys(o.products)) {
			if offered[name] {
				continue
			}
			offered[name] = true
			listed := current.products[name]
			switch owner := owners[name]; {
			case listed != nil && owner == "":
				p.failed = append(p.failed, &MirrorError{Upstream: o.upstream.url(), Product: name,
					Err: fmt.Errorf("%w: the tree has a product of this name that is not mirrored; remove it, or do not select it", ErrExists)})
			case listed != nil && !read[owner]:
				p.failed = append(p.failed, &MirrorError{Upstream: o.upstream.url(), Product: name,
					Err: fmt.Errorf("%w: the tree has a product of this name, mirrored from %s; remove it, or do not select it", ErrExists, owner)})
			default:
				p.product(o, name, listed, have)
			}
		}
	}
	for name, owner := range owners {
		if read[owner] && !offered[name] {
			p.retire(owner, name, current.products[name])
			delete(p.next.products, name)
		}
	}
	order := func(a, b MirrorChange) int {
		return cmp.Or(strings.Compare(a.Product, b.Product), strings.Compare(a.Version, b.Version))
	}
	slices.SortFunc(p.added, order)
	slices.SortFunc(p.removed, order)

	return p, nil
}

// product plans an offered product. listed is that of the current listing, or nil.
func (p *mirrorPlan) product(o *offer, name string, listed *treeProduct, have func(digest) (part, bool)) {
	if listed == nil {
		listed = &treeProduct{}
	}
	offered := o.products[name]
	next := &treeProduct{attributes: offered.attributes, versions: map[string]*treeVersion{}}
	complete := true
	for _, serial := range slices.Sorted(maps.Keys(offered.versions)) {
		version := offered.versions[serial]
		if version.failed != nil {
			p.failed = append(p.failed, version.failed)
			complete = false
			continue
		}
		if known := listed.versions[serial]; known != nil && version.same(known) {
			next.versions[serial] = known
			p.kept++
			continue
		}
		stored, ok := version.stored(have)
		if !ok {
			p.missing = append(p.missing, &missingVersion{upstream: o.upstream, product: name, serial: serial, offered: version})
			complete = false
			continue
		}
		next.versions[serial] = stored
		p.added = append(p.added, change(o.upstream.url(), name, serial, stored))
	}
	switch {
	case complete:
		superseded := &treeProduct{versions: maps.Clone(listed.versions)}
		maps.DeleteFunc(superseded.versions, func(serial string, _ *treeVersion) bool { return next.versions[serial] != nil })
		p.retire(o.upstream.url(), name, superseded)
	case len(next.versions) == 0 && len(listed.versions) == 0:
		return
	case len(next.versions) == 0:
		p.kept += len(listed.versions)
		return
	default:
		for serial, version := range listed.versions {
			if next.versions[serial] == nil {
				next.versions[serial] = version
				p.kept++
			}
		}
	}
	p.next.products[name] = next
}

// retire reports the versions of a product as removed.
func (p *mirrorPlan) retire(upstream, name string, product *treeProduct) {
	for serial, version := range product.versions {
		p.removed = append(p.removed, change(upstream, name, serial, version))
	}
}

func change(upstream, name, serial string, version *treeVersion) MirrorChange {
	c := MirrorChange{Upstream: upstream, Product: name, Version: serial, Files: len(version.items)}
	for i := range version.items {
		c.Bytes += version.items[i].size
	}

	return c
}

// same reports whether the tree lists the version with this content.
func (v *offeredVersion) same(listed *treeVersion) bool {
	if !bytes.Equal(v.attributes, listed.attributes) || len(v.items) != len(listed.items) {
		return false
	}
	for i := range v.items {
		k := slices.IndexFunc(listed.items, func(it item) bool { return it.id == v.items[i].id })
		if k < 0 {
			return false
		}
		mine, other := v.items[i], listed.items[k]
		mine.path, other.path = "", ""
		if mine.size == 0 {
			other.size = 0
		}
		if mine != other {
			return false
		}
	}

	return true
}

// stored returns the version with the files in the store, or false if one of them is missing.
func (v *offeredVersion) stored(have func(digest) (part, bool)) (*treeVersion, bool) {
	version := &treeVersion{attributes: v.attributes, items: slices.Clone(v.items)}
	for i := range version.items {
		file, ok := have(version.items[i].sha256)
		if !ok {
			return nil, false
		}
		version.items[i].part = file
	}

	return version, true
}
