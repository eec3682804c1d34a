package simplestreams

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// upstreamReader reads the metadata files of an upstream.
type upstreamReader struct {
	client     *Client
	selections []Selection
	all        bool // MirrorOptions.AllFormats

	matched  []bool           // by selection
	metadata upstreamMetadata // what was read last
}

// upstreamMetadata identifies the content of an upstream's metadata files.
type upstreamMetadata struct {
	Index    metadataFile   `json:"index"`
	Products []metadataFile `json:"products"`
}

// metadataFile identifies the content of a metadata file.
type metadataFile struct {
	Path   string `json:"path"`   // in the index
	Source string `json:"source"` // the path that was read: that of the signed file, if there is one
	Stamp  stamp  `json:"stamp"`
}

// offer is what an upstream has of the selections.
type offer struct {
	upstream *upstreamReader
	products map[string]*offeredProduct
	failed   []*MirrorError // selections without an image
}

type offeredProduct struct {
	attributes jsontext.Value // with mirrorAttribute
	versions   map[string]*offeredVersion
}

// offeredVersion is a version with the items that are needed. Their paths are the upstream's.
type offeredVersion struct {
	treeVersion

	// failed says why the version cannot be mirrored.
	failed *MirrorError
}

func (u *upstreamReader) url() string { return u.client.URL() }

func (u *upstreamReader) failure(err error) *MirrorError {
	return &MirrorError{Upstream: u.url(), Err: err}
}

// read returns what the upstream has of the selections, or nil if its files are still those of the known metadata.
func (u *upstreamReader) read(ctx context.Context, known *upstreamMetadata) (*offer, error) {
	index, err := getChanged(ctx, u.client, indexPath, known.index(), func(r io.Reader) ([]string, error) {
		paths, err := decodeIndex(r, u.client.daemons)
		return append([]string{}, paths...), err
	})
	if err != nil {
		return nil, err
	}
	metadata := upstreamMetadata{Index: identify(indexPath, index)}
	paths := index.content
	if paths == nil && known != nil {
		for _, each := range known.Products {
			paths = append(paths, each.Path)
		}
	} else {
		known = nil
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	u.matched = make([]bool, len(u.selections))
	contents := make([]map[string]*offeredProduct, len(paths))
	modified := known == nil
	for i, path := range paths {
		products, err := getChanged(ctx, u.client, path, known.products(path), u.decode)
		if err != nil {
			return nil, err
		}
		metadata.Products = append(metadata.Products, identify(path, products))
		contents[i] = products.content
		modified = modified || products.content != nil
	}
	if !modified {
		return nil, nil
	}
	for i, path := range paths {
		if contents[i] == nil {
			// Another file has changed, so that the content of this one is needed too.
			products, err := getChanged(ctx, u.client, path, nil, u.decode)
			if err != nil {
				return nil, err
			}
			contents[i] = products.content
		}
	}
	u.metadata = metadata
	o := u.merge(contents)
	if len(o.products) == 0 {
		return nil, fmt.Errorf("%w: the server has no image of the selections", ErrNotFound)
	}

	return o, nil
}

// merge returns the products of all products files. If several have one product, its attributes are those of the first.
func (u *upstreamReader) merge(files []map[string]*offeredProduct) *offer {
	o := &offer{upstream: u, products: map[string]*offeredProduct{}}
	for _, file := range files {
		for name, product := range file {
			first := o.products[name]
			if first == nil {
				o.products[name] = product
				continue
			}
			for serial, version := range product.versions {
				if first.versions[serial] == nil {
					first.versions[serial] = version
				}
			}
		}
	}
	for i, matched := range u.matched {
		if !matched {
			s := u.selections[i]
			words := slices.Concat(s.Aliases, s.Products, s.Architectures)
			o.failed = append(o.failed, u.failure(fmt.Errorf("%w: the server has no image of Select[%d] (%s)", ErrNotFound, i, strings.Join(words, ", "))))
		}
	}

	return o
}

// getChanged downloads a metadata file, unless it is the known one: then the content is the zero value.
func getChanged[T any](ctx context.Context, c *Client, path string, known *metadataFile, parse func(io.Reader) (T, error)) (*document[T], error) {
	var unmodified *document[T]
	if known != nil {
		unmodified = &document[T]{path: known.Source, stamp: known.Stamp}
	}

	return getVerified(ctx, c, path, unmodified, true, parse)
}

func identify[T any](path string, file *document[T]) metadataFile {
	id := metadataFile{Path: path, Source: file.path, Stamp: file.stamp}
	id.Stamp.Checked = time.Time{}

	return id
}

func (m *upstreamMetadata) index() *metadataFile {
	if m == nil {
		return nil
	}

	return &m.Index
}

func (m *upstreamMetadata) products(path string) *metadataFile {
	if m != nil {
		for i := range m.Products {
			if m.Products[i].Path == path {
				return &m.Products[i]
			}
		}
	}

	return nil
}

// decode returns what is selected of a products file.
func (u *upstreamReader) decode(r io.Reader) (map[string]*offeredProduct, error) {
	products := map[string]*offeredProduct{}
	_, err := decodeListing(r, func(name string, product *treeProduct) (keep bool, err error) {
		offered, err := u.choose(name, product)
		if err != nil || len(offered.versions) == 0 {
			return false, err
		}
		products[name] = offered
		offered.attributes, err = mirrored(product.attributes, u.url())

		return false, err
	})

	return products, err
}

// choose returns the versions and items of a product that are selected.
func (u *upstreamReader) choose(name string, product *treeProduct) (*offeredProduct, error) {
	offered := &offeredProduct{versions: map[string]*offeredVersion{}}
	text, err := product.text("aliases", "arch")
	if err != nil {
		return nil, err
	}
	aliases := strings.Split(text["aliases"], ",")
	architecture := ""
	for _, daemon := range u.client.daemons {
		if known, ok := daemon.architecture(text["arch"]); ok {
			architecture = known
		}
	}
	if architecture == "" {
		return offered, nil
	}
	for _, alias := range aliases {
		if short, ok := strings.CutPrefix(alias, u.client.aliasPrefix()); ok {
			aliases = append(aliases, short)
		}
	}
	serials := slices.Collect(maps.Keys(product.versions))
	slices.Sort(serials)
	slices.Reverse(serials)
	for i := range u.selections {
		selection := &u.selections[i]
		if !selection.has(name, aliases, architecture) {
			continue
		}
		count := 0
		for _, serial := range serials {
			if count == selection.Versions {
				break
			}
			if _, ok := created(serial); !ok {
				continue
			}
			version := product.versions[serial]
			needed := u.needed(version.items, selection.Types)
			if len(needed) == 0 {
				continue
			}
			count++
			u.matched[i] = true
			if err := offered.add(serial, version, needed); err != nil {
				return nil, err
			}
		}
	}
	for serial, version := range offered.versions {
		if file, err := u.prepare(version.items); err != nil {
			version.failed = &MirrorError{Upstream: u.url(), Product: name, Version: serial, File: file, Err: err}
		}
	}

	return offered, nil
}

// has reports whether the selection has a product.
func (s *Selection) has(name string, aliases []string, architecture string) bool {
	if len(s.Architectures) > 0 && !slices.Contains(s.Architectures, architecture) {
		return false
	}
	if len(s.Products) > 0 && !matches(s.Products, name) {
		return false
	}

	return len(s.Aliases) == 0 || slices.ContainsFunc(aliases, func(alias string) bool { return matches(s.Aliases, alias) })
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, _ := path.Match(pattern, name)
		return ok
	})
}

// add adds the items of a version that a selection needs to those of others.
func (p *offeredProduct) add(serial string, version *treeVersion, needed []bool) error {
	offered := p.versions[serial]
	if offered == nil {
		offered = &offeredVersion{}
		offered.attributes = version.attributes
		if err := normalize(&offered.attributes); err != nil {
			return err
		}
		p.versions[serial] = offered
	}
	if offered.items == nil {
		count := 0
		for _, each := range needed {
			if each {
				count++
			}
		}
		offered.items = make([]item, 0, count)
	}
	for i, it := range version.items {
		if needed[i] && !slices.ContainsFunc(offered.items, func(other item) bool { return other.id == it.id }) {
			offered.items = append(offered.items, it)
		}
	}

	return nil
}

// needed reports which items make up the images of the types; it returns nil if there are none.
func (u *upstreamReader) needed(items []item, types []ImageType) []bool {
	type class struct {
		family Family
		kind   ImageType
	}
	type image struct {
		class
		rootType   rootType
		meta, root int
	}
	var images []image
	best := map[class]rootType{}
	for i := range items {
		for j := range items {
			meta, root := &items[i], &items[j]
			if meta.family == "" || u.client.daemons[meta.family] == nil || meta.fingerprint(root) == (digest{}) {
				continue
			}
			found := image{class: class{meta.family, Container}, rootType: rootUnified, meta: i, root: j}
			if root != meta {
				found.rootType = root.rootType
			}
			if found.rootType.virtualMachine() {
				found.kind = VirtualMachine
			}
			if len(types) > 0 && !slices.Contains(types, found.kind) {
				continue
			}
			images = append(images, found)
			if known, ok := best[found.class]; !ok || found.rootType < known {
				best[found.class] = found.rootType
			}
		}
	}
	if len(images) == 0 {
		return nil
	}
	needed := make([]bool, len(items))
	for _, each := range images {
		if u.all || each.rootType == best[each.class] {
			needed[each.meta], needed[each.root] = true, true
		}
	}

	return needed
}

// prepare replaces the paths in the index by those of the files. If an item cannot be mirrored, it returns the reason, and
// the path of the file.
func (u *upstreamReader) prepare(items []item) (file string, err error) {
	split := u.client.daemons[Incus]
	for i := range items {
		if it := &items[i]; it.family == LXD && !it.unified {
			split = u.client.daemons[LXD]
		}
	}
	for i := range items {
		it := &items[i]
		daemon := split
		if it.family != "" {
			daemon = u.client.daemons[it.family]
		}
		path, err := daemon.path(it.path)
		switch {
		case it.broken != nil:
			return it.path, it.broken
		case err != nil:
			return it.path, badDataf("item %q: %w", it.id, err)
		case it.sha256 == (digest{}):
			return it.path, badDataf("item %q has no sha256: daemons refuse it", it.id)
		}
		it.path = path
	}

	return "", nil
}

// mirrored returns the attributes of a product with mirrorAttribute.
func mirrored(attributes jsontext.Value, url string) (jsontext.Value, error) {
	d := newDecoder(bytes.NewReader(attributes))
	others, err := d.attributes(mirrorAttribute, d.SkipValue) // It may be there several times.
	if err != nil {
		return nil, err
	}
	all, err := setMembers(others, []member{{mirrorAttribute, quoted(url)}})
	if err != nil {
		return nil, err
	}

	return all, normalize(&all)
}

// normalize makes the attributes those that are read when they have been written.
func normalize(attributes *jsontext.Value) error {
	return attributes.Format(jsontext.AllowDuplicateNames(true))
}
