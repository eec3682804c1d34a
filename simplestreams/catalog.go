package simplestreams

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// digest is a SHA-256 hash; half the size of its text.
type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// product is what all versions of a product share.
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

// requirement is one pair of a product's requirements. They are few: a map would be ten times as large.
type requirement struct{ key, value string }

// part is one file of an image.
type part struct {
	path   string
	size   int64
	sha256 digest // zero if the index has none
}

// entry is one image of the index. There are tens of thousands of them, so what can be worked out of the rest is made
// only when an Image is asked for.
type entry struct {
	product     *product
	serial      string
	label       string
	fingerprint digest
	meta        part
	root        part // the zero part for a unified image
	rootType    rootType
	family      Family

	// broken says why the image cannot be downloaded although daemons would list it. It hides no older version:
	// whoever asks for this image gets this error.
	broken error
}

// listed is an image at its place among the others.
type listed struct {
	*entry

	// claimsAll says that every alias of the product leads here; claims lists the names if only some do.
	claimsAll bool
	claims    []string
}

// skipped is a product, or a version of one, that holds nothing that a daemon would list.
type skipped struct {
	product *product
	serial  string
	reason  string
}

// catalog is a read index. It is not changed once it is made.
type catalog struct {
	checked  time.Time
	index    *document[[]string]
	products map[string]*document[*productsFile]
	entries  []listed
	skipped  []skipped
}

// productsFile is the content of one products file.
type productsFile struct {
	entries []*entry
	skipped []skipped
}

// arrange puts the images of all files in the order in which LXD and Incus hand out aliases, and hands them out.
func (c *catalog) arrange(files []*productsFile) {
	count := 0
	for _, file := range files {
		count += len(file.entries)
	}
	c.entries = make([]listed, 0, count)
	for _, file := range files {
		for _, e := range file.entries {
			c.entries = append(c.entries, listed{entry: e})
		}
		c.skipped = append(c.skipped, file.skipped...)
	}
	slices.SortStableFunc(c.entries, preference)
	c.claim()
}

// preference orders by operating system, release and variant, the newest version first within them, then by
// architecture and by type of root filesystem.
func preference(a, b listed) int {
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

// claim gives each name to the first image that asks for it, per type and architecture.
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

// names returns the names that lead to the image.
func (e *listed) names() []string {
	if !e.claimsAll {
		return slices.Clone(e.claims)
	}
	names := make([]string, 0, 2*len(e.product.aliases))
	for _, alias := range e.product.aliases {
		names = append(names, alias, alias+"/"+e.product.arch)
	}

	return names
}

// named reports whether the product goes by the name.
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
	rootUnified           // none: the root filesystem is in the one file
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
