package simplestreams

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	// treeContentID is the key of a tree's entry in the index, and the content_id of its products file.
	treeContentID = "golxd"

	signedIndexPath = "streams/v1/index.sjson"

	// maxTreeMetadata limits what is read of one metadata file, in bytes.
	maxTreeMetadata = 1 << 30
)

// treeIndex is the index of a tree: what others have in it, and which products file is the tree's.
type treeIndex struct {
	tag      string // for Swap; empty if there is no index
	hash     string // of the file
	members  []member
	others   []member // the entries of others
	products string   // the path of the tree's products file; empty if it lists nothing
}

// member is a member of a JSON object.
type member struct {
	name  string
	value jsontext.Value
}

// productsPath is the form of the products file's path. It has a part of the content's hash, so that a listing that is the
// same is not written again, and a random one, so that no path is used twice.
var productsPath = regexp.MustCompile(`^streams/v1/golxd-[0-9a-f]{32}-[a-z2-7]{26}\.json$`)

// newProductsPath returns a path for the products file with a hash.
func newProductsPath(hash digest) string {
	return productsPrefix(hash) + strings.ToLower(rand.Text()) + ".json"
}

func productsPrefix(hash digest) string {
	return "streams/v1/golxd-" + hash.String()[:32] + "-"
}

// signedPath returns the path of the signed products file beside the one with this path.
func signedPath(products string) string { return strings.TrimSuffix(products, ".json") + ".sjson" }

// loadIndex reads the index.
func (t *Tree) loadIndex(ctx context.Context) (*treeIndex, error) {
	content, tag, err := t.store.Load(ctx, indexPath)
	if errors.Is(err, fs.ErrNotExist) {
		return &treeIndex{members: []member{{"format", jsontext.Value(`"index:1.0"`)}, {"index", nil}}}, nil
	}
	if err != nil {
		return nil, treeError(indexPath, err)
	}
	index := &treeIndex{tag: tag, hash: hashText(content)}
	if err := index.decode(content); err != nil {
		return nil, treeError(indexPath, badDataf("%w", noEOF(err)))
	}

	return index, nil
}

func hashText(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func (i *treeIndex) decode(content []byte) error {
	d := newDecoder(bytes.NewReader(content))
	found := false
	err := d.document(func(name []byte) error {
		if string(name) != "index" {
			return d.member(&i.members, name)
		}
		if found {
			return errors.New(`there are two "index"`)
		}
		found = true
		i.members = append(i.members, member{name: "index"})

		return d.object(func(name []byte) error {
			if string(name) == treeContentID {
				return i.own(d)
			}

			return d.member(&i.others, name)
		})
	})
	if err == nil && !found {
		err = errors.New(`the index has no "index"`)
	}

	return err
}

// own reads the tree's own entry.
func (i *treeIndex) own(d *decoder) error {
	err := d.object(func(name []byte) error {
		if string(name) == "path" {
			return d.keep(&i.products)
		}

		return d.SkipValue()
	})
	if err == nil && !productsPath.MatchString(i.products) {
		err = fmt.Errorf("its entry %q is not of this package: the path is %.200q", treeContentID, i.products)
	}

	return err
}

// member reads a value as it is.
func (d *decoder) member(into *[]member, name []byte) error {
	key := string(name)
	value, err := d.ReadValue()
	*into = append(*into, member{key, value.Clone()})

	return noEOF(err)
}

// encode returns the index with another products file. What is of others remains as it is.
func (i *treeIndex) encode(products string, names []string) ([]byte, error) {
	entries := slices.Clone(i.others)
	if products != "" {
		var entry bytes.Buffer
		e := &encoder{Encoder: jsontext.NewEncoder(&entry)}
		e.begin()
		e.text("datatype", "image-downloads")
		e.text("path", products)
		e.text("format", "products:1.0")
		e.name("products")
		e.token(jsontext.BeginArray)
		for _, name := range names {
			e.token(jsontext.String(name))
		}
		e.token(jsontext.EndArray)
		e.end()
		if e.err != nil {
			return nil, e.err
		}
		entries = append(entries, member{treeContentID, bytes.TrimSpace(entry.Bytes())})
	}
	inner, err := encodeMembers(entries)
	if err != nil {
		return nil, err
	}
	outer := slices.Clone(i.members)
	outer[slices.IndexFunc(outer, func(m member) bool { return m.name == "index" })].value = inner
	content, err := encodeMembers(outer)

	return append(content, '\n'), err
}

func encodeMembers(members []member) (jsontext.Value, error) {
	object := []byte("{")
	for n, each := range members {
		if n > 0 {
			object = append(object, ',')
		}
		object = append(object, '\n')
		var err error
		if object, err = jsontext.AppendQuote(object, each.name); err != nil {
			return nil, err
		}
		object = append(append(object, ": "...), each.value...)
	}

	return append(object, "\n}"...), nil
}

// current reads what the tree lists.
func (t *Tree) current(ctx context.Context) (*treeIndex, *listing, error) {
	l := &listing{products: map[string]*treeProduct{}}
	index, err := t.open(ctx, func(r *metadataReader) (err error) {
		l, err = parseAll(r, func(r io.Reader) (*listing, error) { return decodeListing(r, nil) })
		return err
	})

	return index, l, err
}

// open calls read with the products file that the index names, if there is one.
func (t *Tree) open(ctx context.Context, read func(*metadataReader) error) (*treeIndex, error) {
	index, err := t.loadIndex(ctx)
	for {
		if err != nil || index.products == "" {
			return index, err
		}
		file, err := t.store.Open(ctx, index.products)
		if errors.Is(err, fs.ErrNotExist) {
			// Another publisher may have replaced it since the index was read.
			again, indexErr := t.loadIndex(ctx)
			if indexErr == nil && again.tag == index.tag {
				return nil, treeError(index.products, fmt.Errorf("%w, but %s names it", err, indexPath))
			}
			index, err = again, indexErr
			if err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, treeError(index.products, err)
		}
		err = read(newMetadataReader(&ctxReader{ctx, file}, maxTreeMetadata))
		_ = file.Close()
		if err != nil {
			return nil, treeError(index.products, err)
		}

		return index, nil
	}
}

// treeError wraps the failure of a file of a tree.
func treeError(path string, err error) error { return &Error{URL: path, Err: err} }

// names returns the products, in order.
func (l *listing) names() []string { return slices.Sorted(maps.Keys(l.products)) }
