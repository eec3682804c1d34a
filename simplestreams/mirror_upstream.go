package simplestreams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// mirrorField is the field of a mirrored product with the URL of its upstream.
const mirrorField = "golxd_mirror"

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
	Index    stamp           `json:"index"`
	Products []productsStamp `json:"products"`
}

type productsStamp struct {
	Path  string `json:"path"`
	Stamp stamp  `json:"stamp"`
}

// offer is what an upstream has of the selections.
type offer struct {
	upstream *upstreamReader
	products map[string]*offeredProduct
	failed   []*MirrorError // selections without an image
}

type offeredProduct struct {
	attributes jsontext.Value // with mirrorField
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
	metadata := upstreamMetadata{Index: index.stamp}
	metadata.Index.Checked = time.Time{}
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
		products.stamp.Checked = time.Time{}
		metadata.Products = append(metadata.Products, productsStamp{path, products.stamp})
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
			o.failed = append(o.failed, u.failure(fmt.Errorf("%w: the server has no image of selection %d", ErrNotFound, i)))
		}
	}

	return o
}

// getChanged downloads a metadata file, unless it is the one with the stamp: then the content is the zero value.
func getChanged[T any](ctx context.Context, c *Client, path string, known *stamp, parse func(io.Reader) (T, error)) (file *document[T], err error) {
	var unmodified *document[T]
	if known != nil {
		unmodified = &document[T]{stamp: *known}
	}
	err = c.retry(ctx, path, func() (err error) {
		file, err = fetch(ctx, c, path, unmodified, parse)
		return err
	})

	return file, err
}

func (m *upstreamMetadata) index() *stamp {
	if m == nil {
		return nil
	}

	return &m.Index
}

func (m *upstreamMetadata) products(path string) *stamp {
	if m != nil {
		for i := range m.Products {
			if m.Products[i].Path == path {
				return &m.Products[i].Stamp
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
	aliases, arch, err := product.names()
	if err != nil {
		return nil, err
	}
	architecture := ""
	for _, daemon := range u.client.daemons {
		if known, ok := daemon.architecture(arch); ok {
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

// names returns the aliases and the architecture of a product.
func (p *treeProduct) names() (aliases []string, arch string, err error) {
	d := newDecoder(bytes.NewReader(p.attributes))
	err = d.object(func(name []byte) error {
		switch string(name) {
		case "aliases":
			text, err := d.text()
			aliases = strings.Split(string(text), ",")
			return err
		case "arch":
			return d.keep(&arch)
		default:
			return d.SkipValue()
		}
	})

	return aliases, arch, err
}

// mirror returns the URL of the upstream of a mirrored product, or "".
func (p *treeProduct) mirror() (url string, err error) {
	d := newDecoder(bytes.NewReader(p.attributes))
	_, err = d.attributes(mirrorField, func() error { return d.keep(&url) })

	return url, err
}

// mirrored returns the attributes of a product with mirrorField.
func mirrored(attributes jsontext.Value, url string) (jsontext.Value, error) {
	d := newDecoder(bytes.NewReader(attributes))
	others, err := d.attributes(mirrorField, d.SkipValue)
	if err != nil {
		return nil, err
	}
	field, err := jsontext.AppendQuote([]byte(`{"`+mirrorField+`":`), url)
	if len(others) > len("{}") {
		field = append(field, ',')
	}
	all := jsontext.Value(append(field, others[1:]...))

	return all, errors.Join(err, normalize(&all))
}

// normalize makes the attributes those that are read when they have been written.
func normalize(attributes *jsontext.Value) error {
	return attributes.Format(jsontext.AllowDuplicateNames(true))
}
