package simplestreams

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// listing is the content of a products file, as far as daemons read it, and what it says beside that of its products and
// versions.
type listing struct {
	products map[string]*treeProduct
}

// treeProduct is a product of a listing.
type treeProduct struct {
	attributes jsontext.Value // a JSON object of all but the versions
	versions   map[string]*treeVersion
}

// treeVersion is a version of a product.
type treeVersion struct {
	attributes jsontext.Value // a JSON object of all but the items
	items      []item
}

// decodeListing reads a products file. keep says of each product whether it belongs to the listing; nil means all of them.
// Items that no daemon reads are left out.
func decodeListing(r io.Reader, keep func(name string, product *treeProduct) (bool, error)) (*listing, error) {
	d := &productsDecoder{decoder: newDecoder(r), file: &productsFile{}}
	l := &listing{products: map[string]*treeProduct{}}
	found := false
	err := d.document(func(name []byte) error {
		if string(name) != "products" {
			return d.SkipValue()
		}
		found = true

		return d.object(func(name []byte) error {
			key := string(name)
			product, err := d.treeProduct()
			if err != nil {
				return err
			}
			if keep != nil {
				if ok, err := keep(key, product); !ok {
					return err
				}
			}
			l.products[key] = product

			return nil
		})
	})
	if err == nil && !found {
		err = errors.New(`the file has no "products"`)
	}
	if err != nil {
		return nil, err
	}

	return l, nil
}

func (d *productsDecoder) treeProduct() (*treeProduct, error) {
	product := &treeProduct{versions: map[string]*treeVersion{}}
	var err error
	product.attributes, err = d.attributes("versions", func() error {
		return d.object(func(name []byte) error {
			version := &treeVersion{}
			product.versions[d.intern(name)] = version
			d.items = d.items[:0]
			var err error
			version.attributes, err = d.attributes("items", func() error { return d.object(d.item) })
			version.items = slices.Clone(d.items)

			return err
		})
	})

	return product, err
}

// attributes reads an object. It returns it without the member of a name, whose value member reads, and without those whose
// names differ from it only in case: daemons take them for the same.
func (d *decoder) attributes(name string, member func() error) (jsontext.Value, error) {
	object := []byte{'{'}
	err := d.object(func(found []byte) (err error) {
		if string(found) == name {
			return member()
		}
		if strings.EqualFold(string(found), name) {
			return d.SkipValue()
		}
		if len(object) > 1 {
			object = append(object, ',')
		}
		if object, err = jsontext.AppendQuote(object, found); err != nil {
			return err
		}
		value, err := d.ReadValue()
		object = append(append(object, ':'), value...)

		return noEOF(err)
	})

	return bytes.Clone(append(object, '}')), err
}

// encode writes the listing as a products file. Equal listings are the same bytes.
func (l *listing) encode(w io.Writer) error {
	e := &encoder{Encoder: jsontext.NewEncoder(w, jsontext.AllowDuplicateNames(true))}
	e.begin()
	e.text("content_id", treeContentID)
	e.text("datatype", "image-downloads")
	e.text("format", "products:1.0")
	e.name("products")
	e.begin()
	for _, name := range l.names() {
		product := l.products[name]
		e.name(name)
		e.begin()
		e.members(product.attributes)
		e.name("versions")
		e.begin()
		for _, serial := range slices.Sorted(maps.Keys(product.versions)) {
			version := product.versions[serial]
			e.name(serial)
			e.begin()
			e.members(version.attributes)
			e.name("items")
			e.begin()
			for i := range version.items {
				if broken := version.items[i].broken; broken != nil {
					return fmt.Errorf("product %q, version %q: %w", name, serial, broken)
				}
				e.item(&version.items[i])
			}
			e.end()
			e.end()
		}
		e.end()
		e.end()
	}
	e.end()
	e.end()

	return e.err
}

// encoder writes JSON, until an error.
type encoder struct {
	*jsontext.Encoder
	err error
}

func (e *encoder) token(t jsontext.Token) {
	if e.err == nil {
		e.err = e.WriteToken(t)
	}
}

func (e *encoder) begin()           { e.token(jsontext.BeginObject) }
func (e *encoder) end()             { e.token(jsontext.EndObject) }
func (e *encoder) name(name string) { e.token(jsontext.String(name)) }

func (e *encoder) text(name, value string) {
	e.name(name)
	e.token(jsontext.String(value))
}

// members writes the members of an object.
func (e *encoder) members(object jsontext.Value) {
	if e.err != nil || len(object) == 0 {
		return
	}
	d := newDecoder(bytes.NewReader(object))
	e.err = d.object(func(name []byte) error {
		e.name(string(name))
		value, err := d.ReadValue()
		if err == nil {
			err = e.err
		}
		if err == nil {
			err = e.WriteValue(value)
		}

		return err
	})
}

// combinedNames are the fields of a metadata item for the hash of it and of a root filesystem, by the type of that.
var combinedNames = [...]string{
	rootSquashfs: "combined_squashfs_sha256",
	rootUnified:  "combined_sha256",
	rootTarXZ:    "combined_rootxz_sha256",
	rootDiskKVM:  "combined_disk-kvm-img_sha256",
	rootDiskUEFI: "combined_uefi1-img_sha256",
	rootDisk1:    "combined_disk1-img_sha256",
}

func (e *encoder) item(it *item) {
	e.name(it.id)
	e.begin()
	e.text("ftype", it.ftype())
	e.text("path", it.path)
	if it.size > 0 {
		e.name("size")
		e.token(jsontext.Int(it.size))
	}
	if it.sha256 != (digest{}) {
		e.text("sha256", it.sha256.String())
	}
	for root, name := range combinedNames {
		if it.combined[root] != (digest{}) {
			e.text(name, it.combined[root].String())
		}
	}
	e.end()
}

// ftype is the index's name for the type of the file.
func (it *item) ftype() string {
	switch {
	case it.family == "":
		return it.rootType.String()
	case it.unified:
		return string(it.family) + "_combined.tar.gz"
	default:
		return string(it.family) + ".tar.xz"
	}
}

// files returns the paths of all files.
func (l *listing) files() map[string]bool {
	all := map[string]bool{}
	for _, product := range l.products {
		for _, version := range product.versions {
			for i := range version.items {
				all[version.items[i].path] = true
			}
		}
	}

	return all
}

// copies returns the files by their hashes.
func (l *listing) copies() map[digest]part {
	all := map[digest]part{}
	for _, product := range l.products {
		for _, version := range product.versions {
			for i := range version.items {
				if file := version.items[i].part; file.sha256 != (digest{}) && version.items[i].broken == nil {
					all[file.sha256] = file
				}
			}
		}
	}

	return all
}

// catalog returns the images that a client with the options sees in the listing.
func (l *listing) catalog(options *Options) (*catalog, error) {
	reader, writer := io.Pipe()
	go func() { _ = writer.CloseWithError(l.encode(writer)) }()
	defer func() { _ = reader.Close() }()

	return decodeCatalog(reader, options)
}

func decodeCatalog(r io.Reader, options *Options) (*catalog, error) {
	set := options.withDefaults()
	file, err := decodeProducts(r, set.rules(), "")
	if err != nil {
		return nil, err
	}
	c := &catalog{}
	c.arrange([]*productsFile{file})

	return c, nil
}
