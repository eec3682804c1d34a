package simplestreams

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// decoder reads JSON as a stream and keeps only the requested values. Strings that repeat, such as releases and serials,
// are kept once.
type decoder struct {
	*jsontext.Decoder
	kept    map[string]string
	scratch []byte
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{
		// Daemons accept duplicate names; rejecting them would take a table of all names.
		Decoder: jsontext.NewDecoder(r, jsontext.AllowDuplicateNames(true)),
		kept:    map[string]string{},
	}
}

// document reads an input that consists of one object.
func (d *decoder) document(member func(name []byte) error) error {
	if kind := d.PeekKind(); kind != '{' && kind != 0 {
		return d.unexpected("an object")
	}
	if err := d.object(member); err != nil {
		return err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("trailing data after the JSON document")
		}
		return err
	}

	return nil
}

// object calls member for each name of an object; member must read the value. The name is valid until then. Null is an
// empty object.
func (d *decoder) object(member func(name []byte) error) error {
	switch d.PeekKind() {
	case 'n', 0:
		_, err := d.ReadToken()
		return noEOF(err)
	case '{':
	default:
		return d.unexpected("an object")
	}
	if _, err := d.ReadToken(); err != nil {
		return noEOF(err)
	}
	for d.PeekKind() != '}' {
		name, err := d.text()
		if err != nil {
			return err
		}
		if err := member(name); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()

	return noEOF(err)
}

// text reads a string. The result is valid until the next read. Null is the empty string.
func (d *decoder) text() ([]byte, error) {
	switch d.PeekKind() {
	case '"', 'n', 0:
	default:
		return nil, d.unexpected("a string")
	}
	raw, err := d.ReadValue()
	if err != nil {
		return nil, noEOF(err)
	}
	if raw[0] == 'n' {
		return nil, nil
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], nil
	}
	d.scratch, err = jsontext.AppendUnquote(d.scratch[:0], raw)

	return d.scratch, err
}

// keep reads a string that is likely to repeat.
func (d *decoder) keep(into *string) error {
	text, err := d.text()
	if err != nil {
		return err
	}
	*into = d.intern(text)

	return nil
}

func (d *decoder) intern(text []byte) string {
	if known, ok := d.kept[string(text)]; ok {
		return known
	}
	fresh := string(text)
	d.kept[fresh] = fresh

	return fresh
}

// number reads an integer. Null is 0.
func (d *decoder) number() (int64, error) {
	switch d.PeekKind() {
	case '0', 'n', 0:
	default:
		return 0, d.unexpected("a number")
	}
	raw, err := d.ReadValue()
	if err != nil || raw[0] == 'n' {
		return 0, noEOF(err)
	}
	value, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %s is not an integer", d.StackPointer(), raw)
	}

	return value, nil
}

// emptyArray reads an array and reports whether it is empty. Null is an empty array.
func (d *decoder) emptyArray() (bool, error) {
	switch d.PeekKind() {
	case '[', 'n', 0:
	default:
		return false, d.unexpected("an array")
	}
	if d.PeekKind() == 'n' {
		return true, d.SkipValue()
	}
	if _, err := d.ReadToken(); err != nil {
		return false, noEOF(err)
	}
	empty := true
	for ; d.PeekKind() != ']'; empty = false {
		if err := d.SkipValue(); err != nil {
			return false, noEOF(err)
		}
	}
	_, err := d.ReadToken()

	return empty, noEOF(err)
}

func (d *decoder) unexpected(want string) error {
	return fmt.Errorf("%s: want %s, have %v", d.StackPointer(), want, d.PeekKind())
}

// noEOF replaces io.EOF, which is unexpected within a document, by io.ErrUnexpectedEOF.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}

	return err
}

// decodeIndex reads streams/v1/index.json and returns the paths of the products files that list images.
func decodeIndex(r io.Reader, daemons map[Family]*rules) ([]string, error) {
	reader := cmp.Or(daemons[LXD], daemons[Incus])
	d := newDecoder(r)
	var paths []string
	found := false
	err := d.document(func(name []byte) error {
		if string(name) != "index" {
			return d.SkipValue()
		}
		found = true

		return d.object(func([]byte) error {
			var dataType, path string
			empty := true
			err := d.object(func(name []byte) (err error) {
				switch string(name) {
				case "datatype":
					return d.keep(&dataType)
				case "path":
					return d.keep(&path)
				case "products":
					empty, err = d.emptyArray()
					return err
				default:
					return d.SkipValue()
				}
			})
			if dataType == "image-downloads" && !empty {
				if err == nil {
					path, err = reader.path(path)
				}
				paths = append(paths, path)
			}

			return err
		})
	})
	if err == nil && !found {
		err = errors.New(`the index has no "index"`)
	}

	return paths, err
}

// decodeProducts reads a products file and returns the images that the daemons see in it. It removes the prefix from the
// aliases.
func decodeProducts(r io.Reader, daemons map[Family]*rules, prefix string) (*productsFile, error) {
	d := &productsDecoder{decoder: newDecoder(r), daemons: daemons, prefix: prefix, file: &productsFile{}}
	found := false
	err := d.document(func(name []byte) error {
		if string(name) != "products" {
			return d.SkipValue()
		}
		found = true

		return d.object(d.product)
	})
	if err == nil && !found {
		err = errors.New(`the file has no "products"`)
	}
	if err != nil {
		return nil, err
	}

	return d.file, nil
}

// productsDecoder is the state of reading a products file.
type productsDecoder struct {
	*decoder
	daemons map[Family]*rules
	prefix  string
	file    *productsFile

	current *product
	serial  string
	entries []*entry // of the current product
	items   []item   // of the current version
}

func (d *productsDecoder) product(name []byte) error {
	p := &product{name: string(name)}
	d.current, d.entries = p, d.entries[:0]
	versions := 0
	before := len(d.file.omitted)
	err := d.object(func(name []byte) error {
		switch string(name) {
		case "aliases":
			text, err := d.text()
			if len(text) > 0 {
				p.aliases = strings.Split(string(text), ",")
			}
			for i := range p.aliases {
				p.aliases[i] = strings.TrimPrefix(p.aliases[i], d.prefix)
			}
			return err
		case "arch":
			return d.keep(&p.arch)
		case "os":
			return d.keep(&p.os)
		case "release":
			return d.keep(&p.release)
		case "release_title":
			return d.keep(&p.releaseTitle)
		case "version":
			return d.keep(&p.version)
		case "variant":
			return d.keep(&p.variant)
		case "support_eol":
			return d.keep(&p.endOfLife)
		case "requirements":
			return d.requirements(&p.requirements)
		case "lxd_requirements":
			return d.requirements(&p.lxdRequires)
		case "versions":
			return d.object(func(name []byte) error {
				versions++
				return d.version(name)
			})
		default:
			return d.SkipValue()
		}
	})
	if err != nil {
		return err
	}

	known := false
	for _, daemon := range d.daemons {
		if name, ok := daemon.architecture(p.arch); ok {
			p.architecture, known = name, true
		}
	}
	switch {
	case !known:
		d.entries = d.entries[:0]
		d.file.omitted = append(d.file.omitted[:before], omission{product: p, reason: fmt.Sprintf("no daemon knows the architecture %q", p.arch)})
	case versions == 0:
		d.file.omitted = append(d.file.omitted, omission{product: p, reason: "the product has no versions"})
	}
	d.file.entries = append(d.file.entries, d.entries...)

	return nil
}

func (d *productsDecoder) requirements(into *[]requirement) error {
	if d.PeekKind() == '{' {
		*into = []requirement{} // Daemons distinguish an empty object from none.
	}

	return d.object(func(name []byte) error {
		key := d.intern(name)
		var value string
		if err := d.keep(&value); err != nil {
			return err
		}
		*into = append(*into, requirement{key, value})

		return nil
	})
}

func (d *productsDecoder) version(name []byte) error {
	d.serial, d.items = d.intern(name), d.items[:0]
	var label string
	err := d.object(func(name []byte) error {
		switch string(name) {
		case "label":
			return d.keep(&label)
		case "items":
			return d.object(d.item)
		default:
			return d.SkipValue()
		}
	})
	if err != nil {
		return err
	}
	if _, ok := created(d.serial); !ok {
		d.omit("the version's name does not begin with a date")
		return nil
	}

	reason := ""
	found := false
	for i := range d.items {
		meta := &d.items[i]
		if meta.family == "" {
			continue
		}
		if !d.wanted(meta) {
			reason = cmp.Or(reason, fmt.Sprintf("the version has items for %s daemons only", meta.family))
			continue
		}
		if meta.unified {
			reason = d.add(meta, nil, label)
			found = found || reason == ""
			continue
		}
		for j := range d.items {
			if root := &d.items[j]; root.family == "" {
				reason = d.add(meta, root, label)
				found = found || reason == ""
			}
		}
	}
	if !found {
		d.omit(cmp.Or(reason, "the version has no items that make up an image"))
	}

	return nil
}

func (d *productsDecoder) omit(reason string) {
	d.file.omitted = append(d.file.omitted, omission{product: d.current, serial: d.serial, reason: reason})
}

// wanted reports whether the client's family reads the metadata item.
func (d *productsDecoder) wanted(meta *item) bool {
	if d.daemons[meta.family] == nil {
		return false
	}
	if meta.family == LXD || d.daemons[LXD] == nil {
		return true
	}
	// For a client of both families, an item for LXD replaces the one for Incus if both are unified, or both split.
	for i := range d.items {
		if other := &d.items[i]; other.family == LXD && other.unified == meta.unified {
			return false
		}
	}

	return true
}

// add adds the image of a metadata item and a root filesystem, or of a unified item. If there is none, it returns the
// reason.
func (d *productsDecoder) add(meta, root *item, label string) string {
	e := &entry{product: d.current, serial: d.serial, label: label, rules: d.daemons[meta.family], meta: meta.part, rootType: rootUnified}
	e.fingerprint = meta.sha256
	e.broken = meta.broken
	e.read(&e.meta, meta.id)
	if root != nil {
		e.root, e.rootType = root.part, root.rootType
		e.fingerprint = meta.fingerprint(root)
		if e.broken == nil {
			e.broken = root.broken
		}
		e.read(&e.root, root.id)
	}
	switch {
	case e.broken == nil && e.fingerprint == (digest{}) && root == nil:
		return "the item has no sha256"
	case e.broken == nil && e.fingerprint == (digest{}):
		return fmt.Sprintf("the metadata item has no combined hash for %v", e.rootType)
	case meta.path == "":
		return "the metadata item has no path"
	}
	d.entries = append(d.entries, e)

	return ""
}

// read replaces the path in the index by that of the file.
func (e *entry) read(file *part, id string) {
	path, err := e.rules.path(file.path)
	if err != nil && e.broken == nil {
		e.broken = badDataf("item %q: %w", id, err)
	}
	file.path = path
}

// maxItems limits the items of a version that daemons read: each is combined with each. Public servers have about ten.
const maxItems = 1000

// item is a file of a version, as the index describes it.
type item struct {
	part
	id       string // its key in the index
	family   Family // of a metadata item; empty for a root filesystem
	unified  bool
	rootType rootType
	combined [rootDisk1 + 1]digest // by type; that of rootUnified is the old combined_sha256
	broken   error
}

func (d *productsDecoder) item(name []byte) error {
	id := d.intern(name)
	it := item{id: id}
	known := false
	err := d.object(func(name []byte) (err error) {
		switch string(name) {
		case "ftype":
			text, err := d.text()
			known = it.setType(text)
			return err
		case "path":
			text, err := d.text()
			it.path = string(text)
			return err
		case "size":
			it.size, err = d.number()
			return err
		case "sha256":
			return d.hash(id, "sha256", &it, &it.sha256)
		case "combined_squashfs_sha256":
			return d.hash(id, "combined_squashfs_sha256", &it, &it.combined[rootSquashfs])
		case "combined_rootxz_sha256":
			return d.hash(id, "combined_rootxz_sha256", &it, &it.combined[rootTarXZ])
		case "combined_sha256":
			return d.hash(id, "combined_sha256", &it, &it.combined[rootUnified])
		case "combined_disk-kvm-img_sha256":
			return d.hash(id, "combined_disk-kvm-img_sha256", &it, &it.combined[rootDiskKVM])
		case "combined_uefi1-img_sha256":
			return d.hash(id, "combined_uefi1-img_sha256", &it, &it.combined[rootDiskUEFI])
		case "combined_disk1-img_sha256":
			return d.hash(id, "combined_disk1-img_sha256", &it, &it.combined[rootDisk1])
		default:
			return d.SkipValue()
		}
	})
	if err != nil || !known {
		return err
	}
	if len(d.items) == maxItems {
		return fmt.Errorf("%s: the version has more than %d items", d.StackPointer(), maxItems)
	}

	if it.size < 0 {
		it.fail("item %q: the size is %d", id, it.size)
	}
	d.items = append(d.items, it)

	return nil
}

// setType sets the fields that the ftype determines, and reports whether daemons read items of it.
func (it *item) setType(ftype []byte) bool {
	switch string(ftype) {
	case "lxd.tar.xz":
		it.family = LXD
	case "incus.tar.xz":
		it.family = Incus
	case "lxd_combined.tar.gz":
		it.family, it.unified = LXD, true
	case "incus_combined.tar.gz":
		it.family, it.unified = Incus, true
	default:
		root, ok := rootTypes[string(ftype)]
		it.rootType = root
		return ok
	}

	return true
}

// fingerprint returns the fingerprint of the image of a metadata item and a root filesystem, or of a unified item and
// itself. If they are no image, it returns the zero digest.
func (it *item) fingerprint(root *item) digest {
	switch {
	case it == root && it.unified:
		return it.sha256
	case it.unified || root.family != "":
		return digest{}
	case root.rootType == rootTarXZ && it.combined[rootTarXZ] == (digest{}):
		return it.combined[rootUnified]
	default:
		return it.combined[root.rootType]
	}
}

func (it *item) fail(format string, args ...any) {
	if it.broken == nil {
		it.broken = badDataf(format, args...)
	}
}

func (d *productsDecoder) hash(id, field string, it *item, into *digest) error {
	text, err := d.text()
	if err != nil || len(text) == 0 {
		return err
	}
	if len(text) != hex.EncodedLen(len(into)) {
		it.fail("item %q: %s %.70q is not a SHA-256 hash", id, field, text)
		return nil
	}
	if _, err := hex.Decode(into[:], text); err != nil {
		it.fail("item %q: %s %.70q is not a SHA-256 hash", id, field, text)
	}

	return nil
}

// created returns the date at the beginning of a version's name, which is the only date that daemons read.
func created(serial string) (time.Time, bool) {
	if len(serial) < 8 {
		return time.Time{}, false
	}
	day, err := time.Parse("20060102", serial[:8])

	return day, err == nil
}
