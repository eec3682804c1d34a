package simplestreams

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// digest is a SHA-256 hash, in half the memory of its text.
type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// parseDigest returns the hash with a text, and whether it is one.
func parseDigest(text string) (d digest, ok bool) {
	if len(text) != hex.EncodedLen(len(d)) {
		return d, false
	}
	_, err := hex.Decode(d[:], []byte(text))

	return d, err == nil
}

// product has the attributes that all versions of a product share.
type product struct {
	name         string
	aliases      []string
	arch         string // as the index spells it
	architecture string // as daemons spell it
	os           string
	release      string
	releaseTitle string
	version      string
	variant      string
	endOfLife    string
	requirements []requirement
	lxdRequires  []requirement
}

// requirement is one of a product's requirements. There are few: a map would take ten times the memory.
type requirement struct{ key, value string }

// part is one file of an image.
type part struct {
	path   string
	size   int64
	sha256 digest // zero if the index has none
}

// entry is one image of the index. There are tens of thousands of them, so everything that can be derived is computed only
// when an Image is requested.
type entry struct {
	product     *product
	serial      string
	label       string
	fingerprint digest
	meta        part
	root        part // the zero part for a unified image
	rootType    rootType
	rules       *rules

	// broken says why the image cannot be downloaded although daemons would list it. The image is not replaced by an
	// older version: resolving it returns this error.
	broken error
}

// listEntry is an entry of the ordered list, with the names that resolve to it.
type listEntry struct {
	*entry

	// claimsAll is true if every alias of the product resolves to this entry; otherwise claims lists those that do.
	claimsAll bool
	claims    []string
}

// omission is a product, or a version of one, without an image that a daemon would list.
type omission struct {
	product *product
	serial  string
	reason  string
}

// catalog is a parsed index. It is immutable.
type catalog struct {
	checked  time.Time
	index    *document[[]string]
	products map[string]*document[*productsFile]
	entries  []listEntry
	omitted  []omission
}

// productsFile is the content of one products file.
type productsFile struct {
	entries []*entry
	omitted []omission
}

// arrange sorts the images of all files into the order in which LXD and Incus assign aliases, and assigns the aliases.
func (c *catalog) arrange(files []*productsFile) {
	count := 0
	for _, file := range files {
		count += len(file.entries)
	}
	c.entries = make([]listEntry, 0, count)
	for _, file := range files {
		for _, e := range file.entries {
			c.entries = append(c.entries, listEntry{entry: e})
		}
		c.omitted = append(c.omitted, file.omitted...)
	}
	slices.SortStableFunc(c.entries, preference)
	c.claim()
}

// preference orders by operating system, release and variant, the newest version first within them, then by
// architecture and by type of root filesystem.
func preference(a, b listEntry) int {
	return cmp.Or(
		emptyLast(a.product.os, b.product.os),
		emptyLast(a.product.release, b.product.release),
		emptyLast(a.product.variant, b.product.variant),
		strings.Compare(b.serial, a.serial),
		emptyLast(a.product.arch, b.product.arch),
		cmp.Compare(a.rootType, b.rootType),
	)
}

func emptyLast(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == "":
		return 1
	case b == "":
		return -1
	}

	return strings.Compare(a, b)
}

// claim assigns each name to the first image that claims it, per type and architecture.
func (c *catalog) claim() {
	taken := make(map[string]struct{}, len(c.entries))
	var key []byte
	for i := range c.entries {
		e := &c.entries[i]
		free := func(name ...string) bool {
			key = append(append(key[:0], e.kind()...), e.product.architecture...)
			key = append(key, ' ')
			for _, part := range name {
				key = append(key, part...)
			}
			if _, ok := taken[string(key)]; ok {
				return false
			}
			taken[string(key)] = struct{}{}

			return true
		}

		var claims []string
		for _, alias := range e.product.aliases {
			if free(alias) {
				claims = append(claims, alias)
			}
			if free(alias, "/", e.product.arch) {
				claims = append(claims, alias+"/"+e.product.arch)
			}
		}
		e.claimsAll = len(claims) == 2*len(e.product.aliases)
		if !e.claimsAll {
			e.claims = claims
		}
	}
}

// names returns the names that resolve to the image.
func (e *listEntry) names() []string {
	if !e.claimsAll {
		return slices.Clone(e.claims)
	}
	names := make([]string, 0, 2*len(e.product.aliases))
	for _, alias := range e.product.aliases {
		names = append(names, alias, alias+"/"+e.product.arch)
	}

	return names
}

// named reports whether the product has the name, with or without its architecture.
func (p *product) named(name string) bool {
	for _, alias := range p.aliases {
		if rest, ok := strings.CutPrefix(name, alias); ok && (rest == "" || rest[0] == '/' && rest[1:] == p.arch) {
			return true
		}
	}

	return false
}

// rootType is the type of a root filesystem, in the order in which daemons prefer them.
type rootType uint8

const (
	rootSquashfs rootType = iota
	rootUnified           // no separate root filesystem
	rootTarXZ
	rootDiskKVM
	rootDiskUEFI
	rootDisk1
)

var rootTypes = map[string]rootType{
	"squashfs":     rootSquashfs,
	"root.tar.xz":  rootTarXZ,
	"disk-kvm.img": rootDiskKVM,
	"uefi1.img":    rootDiskUEFI,
	"disk1.img":    rootDisk1,
}

// String returns the image's property "type".
func (t rootType) String() string {
	switch t {
	case rootSquashfs:
		return "squashfs"
	case rootTarXZ:
		return "root.tar.xz"
	case rootDiskKVM:
		return "disk-kvm.img"
	case rootDiskUEFI:
		return "uefi1.img"
	case rootDisk1:
		return "disk1.img"
	default:
		return "tar.gz"
	}
}

func (t rootType) virtualMachine() bool { return t >= rootDiskKVM }
