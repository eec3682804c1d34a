package simplestreams

import (
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func digestOf(text string) digest { return sha256.Sum256([]byte(text)) }

// planned returns an item of a version, with the content as its name.
func planned(content, path string) item {
	return item{part: part{path: path, size: int64(len(content)), sha256: digestOf(content)}, id: "lxd_combined.tar.gz", family: LXD, unified: true}
}

// listed returns a listing of products in the form "name@upstream": "version=content version=content".
func planListing(t *testing.T, products map[string]string) *listing {
	t.Helper()
	l := &listing{products: map[string]*treeProduct{}}
	for key, versions := range products {
		name, upstream, isMirrored := strings.Cut(key, "@")
		product := &treeProduct{attributes: []byte(`{}`), versions: map[string]*treeVersion{}}
		if isMirrored {
			var err error
			product.attributes, err = mirrored(product.attributes, "https://"+upstream)
			require.NoError(t, err)
		}
		for text := range strings.FieldsSeq(versions) {
			serial, content, _ := strings.Cut(text, "=")
			product.versions[serial] = &treeVersion{attributes: []byte(`{}`), items: []item{planned(content, "images/"+content)}}
		}
		l.products[name] = product
	}

	return l
}

// offerOf returns an offer. A version "serial!content" has failed.
func offerOf(t *testing.T, upstream string, products map[string]string) *offer {
	t.Helper()
	client, err := New("https://"+upstream, nil)
	require.NoError(t, err)
	reader := &upstreamReader{client: client}
	o := &offer{upstream: reader, products: map[string]*offeredProduct{}}
	for name, versions := range products {
		attributes, err := mirrored([]byte(`{}`), reader.url())
		require.NoError(t, err)
		product := &offeredProduct{attributes: attributes, versions: map[string]*offeredVersion{}}
		for text := range strings.FieldsSeq(versions) {
			serial, content, fine := strings.Cut(text, "=")
			if !fine {
				serial, content, _ = strings.Cut(text, "!")
			}
			version := &offeredVersion{treeVersion: treeVersion{attributes: []byte(`{}`), items: []item{planned(content, "up/"+content)}}}
			if !fine {
				(&missingVersion{upstream: reader, product: name, serial: serial, offered: version}).fail("up/"+content, ErrBadData)
			}
			product.versions[serial] = version
		}
		o.products[name] = product
	}

	return o
}

// describe is the inverse of planListing.
func describe(t *testing.T, l *listing) map[string]string {
	t.Helper()
	products := map[string]string{}
	for name, product := range l.products {
		text, err := product.text(mirrorAttribute)
		require.NoError(t, err)
		if upstream := text[mirrorAttribute]; upstream != "" {
			name += "@" + strings.TrimPrefix(upstream, "https://")
		}
		var versions []string
		for _, serial := range []string{"1", "2", "3"} {
			if version := product.versions[serial]; version != nil {
				versions = append(versions, serial+"="+strings.TrimPrefix(version.items[0].path, "images/"))
			}
		}
		products[name] = strings.Join(versions, " ")
	}

	return products
}

func TestPlanMirror(t *testing.T) {
	type products = map[string]string
	type offered struct {
		upstream string
		products
	}
	for name, test := range map[string]struct {
		current products
		offers  []offered
		have    string // contents in the store beside those that are listed
		next    products
		added   string
		removed string
		kept    int
		missing string
		failed  string
	}{
		"nothing is there": {
			offers: []offered{{"a", products{"p": "1=x"}}}, next: products{}, missing: "p 1",
		},
		"first": {
			offers: []offered{{"a", products{"p": "1=x", "q": "1=y 2=z"}}}, have: "x y z",
			next: products{"p@a": "1=x", "q@a": "1=y 2=z"}, added: "p 1, q 1, q 2",
		},
		"same": {
			current: products{"p@a": "1=x"}, offers: []offered{{"a", products{"p": "1=x"}}}, next: products{"p@a": "1=x"}, kept: 1,
		},
		"newer version": {
			current: products{"p@a": "1=x"}, offers: []offered{{"a", products{"p": "2=y"}}}, have: "y",
			next: products{"p@a": "2=y"}, added: "p 2", removed: "p 1",
		},
		"newer version is missing": {
			current: products{"p@a": "1=x"}, offers: []offered{{"a", products{"p": "2=y"}}},
			next: products{"p@a": "1=x"}, kept: 1, missing: "p 2",
		},
		"one of two newer versions has failed": {
			current: products{"p@a": "1=x"}, offers: []offered{{"a", products{"p": "2=y 3!z"}}}, have: "y z",
			next: products{"p@a": "1=x 2=y"}, kept: 1, added: "p 2", failed: "p 3",
		},
		"the only version has failed": {
			offers: []offered{{"a", products{"p": "1!x", "q": "1=y"}}}, have: "x y", next: products{"q@a": "1=y"}, added: "q 1", failed: "p 1",
		},
		"version with other content": {
			current: products{"p@a": "1=x"}, offers: []offered{{"a", products{"p": "1=y"}}}, have: "y",
			next: products{"p@a": "1=y"}, added: "p 1",
		},
		"version with other content is missing": {
			current: products{"p@a": "1=x"}, offers: []offered{{"a", products{"p": "1=y"}}},
			next: products{"p@a": "1=x"}, kept: 1, missing: "p 1",
		},
		"product is gone": {
			current: products{"p@a": "1=x 2=y", "q@a": "1=z"}, offers: []offered{{"a", products{"q": "1=z"}}},
			next: products{"q@a": "1=z"}, removed: "p 1, p 2", kept: 1,
		},
		"published products": {
			current: products{"p": "1=x", "mine": "1=y"}, offers: []offered{{"a", products{"p": "1=z", "q": "1=z"}}}, have: "z",
			next: products{"p": "1=x", "mine": "1=y", "q@a": "1=z"}, added: "q 1", failed: "p ",
		},
		"product of an upstream that is not read": {
			current: products{"p@b": "1=x", "q@b": "1=y"}, offers: []offered{{"a", products{"p": "1=z"}}}, have: "z",
			next: products{"p@b": "1=x", "q@b": "1=y"}, failed: "p ",
		},
		"two upstreams with one product": {
			offers: []offered{{"a", products{"p": "1=x"}}, {"b", products{"p": "2=y", "q": "1=y"}}}, have: "x y",
			next: products{"p@a": "1=x", "q@b": "1=y"}, added: "p 1, q 1",
		},
		"the first upstream has a product of the second": {
			current: products{"p@b": "1=x"}, offers: []offered{{"a", products{"p": "1=x 2=y"}}, {"b", products{"p": "1=x", "q": "1=x"}}}, have: "x y",
			next: products{"p@a": "1=x 2=y", "q@b": "1=x"}, kept: 1, added: "p 2, q 1",
		},
		"the second upstream has a product of the first": {
			current: products{"p@a": "1=x"}, offers: []offered{{"a", products{"q": "1=x"}}, {"b", products{"p": "1=x"}}}, have: "x",
			next: products{"q@a": "1=x", "p@b": "1=x"}, kept: 1, added: "q 1",
		},
		"names that differ only in case": {
			offers: []offered{{"a", products{"p": "1=x", "P": "1=y"}}}, have: "x y", next: products{"p@a": "1=x", "P@a": "1=y"}, added: "P 1, p 1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			current := planListing(t, test.current)
			var offers []*offer
			for _, each := range test.offers {
				offers = append(offers, offerOf(t, each.upstream, each.products))
			}
			have := map[digest]part{}
			for content := range strings.FieldsSeq(test.have) {
				have[digestOf(content)] = planned(content, "images/"+content).part
			}
			before := describe(t, current)
			plan, err := planMirror(current, offers, func(sum digest) (part, bool) { file, ok := have[sum]; return file, ok })
			require.NoError(t, err)
			changes := func(list []MirrorChange) string {
				var texts []string
				for _, each := range list {
					require.Equal(t, 1, each.Files)
					require.EqualValues(t, 1, each.Bytes)
					texts = append(texts, each.Product+" "+each.Version)
				}

				return strings.Join(texts, ", ")
			}
			var missing, failed []string
			for _, each := range plan.missing {
				missing = append(missing, each.product+" "+each.serial)
			}
			for _, each := range plan.failed {
				failed = append(failed, each.Product+" "+each.Version)
			}
			require.Equal(t, test.next, describe(t, plan.next))
			require.Equal(t, test.added, changes(plan.added))
			require.Equal(t, test.removed, changes(plan.removed))
			require.Equal(t, test.kept, plan.kept)
			require.Equal(t, test.missing, strings.Join(missing, ", "))
			require.Equal(t, test.failed, strings.Join(failed, ", "))
			require.Equal(t, before, describe(t, current), "the current listing is not changed")
		})
	}
}

func TestNeededItems(t *testing.T) {
	client, err := New("https://a", nil)
	require.NoError(t, err)
	meta := func(family Family, roots ...rootType) item {
		it := item{id: string(family), family: family, part: part{sha256: digestOf("m")}}
		for _, root := range roots {
			it.combined[root] = digestOf("c")
		}

		return it
	}
	unified := item{id: "unified", family: LXD, unified: true, part: part{sha256: digestOf("u")}}
	root := func(kind rootType) item {
		return item{id: kind.String(), rootType: kind, part: part{sha256: digestOf("r")}}
	}
	all := []item{
		meta(LXD, rootSquashfs, rootTarXZ, rootDiskKVM, rootDiskUEFI), meta(Incus, rootTarXZ, rootDisk1), unified,
		root(rootSquashfs), root(rootTarXZ), root(rootDiskKVM), root(rootDiskUEFI), root(rootDisk1),
	}
	for name, test := range map[string]struct {
		items  []item
		types  []ImageType
		all    bool
		needed string
	}{
		"best of each":          {items: all, needed: "lxd incus squashfs root.tar.xz disk-kvm.img disk1.img"},
		"all formats":           {items: all, all: true, needed: "lxd incus unified squashfs root.tar.xz disk-kvm.img uefi1.img disk1.img"},
		"virtual machines":      {items: all, types: []ImageType{VirtualMachine}, needed: "lxd incus disk-kvm.img disk1.img"},
		"unified":               {items: []item{unified, meta(LXD, rootTarXZ), root(rootTarXZ)}, needed: "unified"},
		"no combined hash":      {items: []item{meta(LXD), root(rootSquashfs)}},
		"no metadata":           {items: []item{root(rootSquashfs)}},
		"no such type":          {items: []item{unified}, types: []ImageType{VirtualMachine}},
		"combined_sha256":       {items: []item{meta(LXD, rootUnified), root(rootTarXZ)}, needed: "lxd root.tar.xz"},
		"no sha256 for unified": {items: []item{{id: "u", family: LXD, unified: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			reader := &upstreamReader{client: client, all: test.all}
			var ids []string
			for i, needed := range reader.needed(test.items, test.types) {
				if needed {
					ids = append(ids, test.items[i].id)
				}
			}
			require.Equal(t, test.needed, strings.Join(ids, " "))
		})
	}
}
