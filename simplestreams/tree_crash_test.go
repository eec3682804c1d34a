package simplestreams_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// foreignFiles are files of somebody else, and an index that names some.
func foreignFiles() map[string][]byte {
	return map[string][]byte{
		"streams/v1/index.json":         []byte(`{ "format": "index:1.0", "updated": "today", "index": { "theirs": { "datatype":"image-downloads",  "path": "streams/v1/theirs.json", "products": [ "b", "a" ] } } }`),
		"streams/v1/theirs.json":        []byte(`{"products": {"b": {}, "a": {}}}`),
		"images/theirs/disk.img":        []byte("theirs"),
		"streams/v1/golxd-notours.json": []byte("{}"),
	}
}

// requireForeign requires that what is of somebody else is as it was.
func requireForeign(t *testing.T, files map[string][]byte) {
	t.Helper()
	for path, content := range foreignFiles() {
		if path == "streams/v1/index.json" {
			require.Contains(t, string(files[path]), `{ "datatype":"image-downloads",  "path": "streams/v1/theirs.json", "products": [ "b", "a" ] }`)
			require.Contains(t, string(files[path]), `"updated": "today"`)
			continue
		}
		require.Equal(t, string(content), string(files[path]), path)
	}
}

// unlisted returns the files that are neither listed nor of somebody else.
func unlisted(t *testing.T, files map[string][]byte) []string {
	t.Helper()
	known := foreignFiles()
	known["streams/v1/golxd.ledger.json"] = nil
	var index struct {
		Index map[string]struct{ Path string }
	}
	var paths []string
	for _, name := range []string{"streams/v1/index.json", "streams/v1/index.sjson"} {
		if files[name] == nil {
			continue
		}
		known[name] = nil
		require.NoError(t, json.Unmarshal(unsigned(files[name]), &index))
		if own := index.Index["golxd"].Path; own != "" {
			paths = append(paths, own)
		}
	}
	for _, path := range paths {
		known[path] = nil
		require.Contains(t, files, path)
		var products struct {
			Products map[string]struct {
				Versions map[string]struct {
					Items map[string]struct{ Path string }
				}
			}
		}
		require.NoError(t, json.Unmarshal(unsigned(files[path]), &products))
		for _, product := range products.Products {
			for _, version := range product.Versions {
				for _, item := range version.Items {
					require.Contains(t, files, item.Path)
					known[item.Path] = nil
				}
			}
		}
	}

	return slices.DeleteFunc(slices.Sorted(maps.Keys(files)), func(path string) bool { _, ok := known[path]; return ok })
}

// fakeSigner encloses documents in lines.
type fakeSigner struct{}

func (fakeSigner) Sign(document []byte) (inline, detached []byte, err error) {
	return []byte("SIGNED\n" + string(document) + "\nEND"), []byte("signature"), nil
}

// VerifyInline implements Verifier.
func (fakeSigner) VerifyInline(signed []byte) ([]byte, error) {
	rest, ok := strings.CutPrefix(string(signed), "SIGNED\n")
	document, end := strings.CutSuffix(rest, "\nEND")
	if !ok || !end {
		return nil, errors.New("not signed")
	}

	return []byte(document), nil
}

// VerifyDetached implements Verifier.
func (fakeSigner) VerifyDetached([]byte, []byte) error { return errors.New("not signed") }

// unsigned returns a document without the signature that it may have.
func unsigned(document []byte) []byte {
	if content, err := (fakeSigner{}).VerifyInline(document); err == nil {
		return content
	}

	return document
}

// treeChanges are changes of a tree, each of which follows those before it.
var treeChanges = []struct {
	name   string
	change func(context.Context, *simplestreams.Tree) error
}{
	{"first", publish(debian("20260101", gzipMagic+"one"), nil)},
	{"same", publish(debian("20260101", gzipMagic+"one"), nil)},
	{"split", publish(debian("20260102", xzMagic+"two", squashfsMagic+"root"), nil)},
	{"disk", publish(debian("20260102", xzMagic+"two", qcow2Magic+"disk"), nil)},
	{"other metadata", publish(debian("20260103", xzMagic+"three", squashfsMagic+"root"), nil)},
	{"replace", publish(debian("20260102", gzipMagic+"other"), &simplestreams.PublishOptions{Replace: true})},
	{"keep", publish(debian("20260104", gzipMagic+"four"), &simplestreams.PublishOptions{Keep: 2})},
	{"remove", func(ctx context.Context, tree *simplestreams.Tree) error {
		return tree.Remove(ctx, "debian:trixie:amd64:default", "20260103")
	}},
	{"fingerprint", func(ctx context.Context, tree *simplestreams.Tree) error {
		p := debian("20260104", gzipMagic+"four")
		p.Product, p.Fingerprint = "another", tagOf([]byte(gzipMagic+"four"))
		_, err := tree.Publish(ctx, p, nil)
		return err
	}},
	{"prune", func(ctx context.Context, tree *simplestreams.Tree) error {
		_, err := tree.Prune(ctx, &simplestreams.PruneOptions{Keep: 1})
		return err
	}},
	{"product", func(ctx context.Context, tree *simplestreams.Tree) error { return tree.Remove(ctx, "another") }},
	{"last", func(ctx context.Context, tree *simplestreams.Tree) error {
		return tree.Remove(ctx, "debian:trixie:amd64:default")
	}},
}

func publish(p *simplestreams.Publication, options *simplestreams.PublishOptions) func(context.Context, *simplestreams.Tree) error {
	return func(ctx context.Context, tree *simplestreams.Tree) error {
		_, err := tree.Publish(ctx, p, options)
		return err
	}
}

// TestTreeCrashes ends each change at each call of the store. The tree is then the old or the new one, the change can be
// made again, and after the grace period no file is left that is not listed.
func TestTreeCrashes(t *testing.T) {
	for name, options := range map[string]*simplestreams.TreeOptions{
		"at once": {Grace: -1}, "signed": {Grace: -1, Signer: fakeSigner{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testCrashes(t, options) })
		})
	}
}

func testCrashes(t *testing.T, options *simplestreams.TreeOptions) {
	known := map[string][]string{}
	// read returns what clients see; of an index that was read before only the files that it names are looked for.
	read := func(store *memStore) []string {
		index := string(store.files["streams/v1/index.json"]) + string(store.files["streams/v1/index.sjson"])
		if lines, ok := known[index]; ok {
			unlisted(t, store.files)
			return lines
		}
		known[index] = images(t, simplestreams.NewHandler(live{store}))
		if store.files["streams/v1/index.sjson"] != nil {
			verified(t, store)
		}

		return known[index]
	}
	base := &memStore{files: foreignFiles()}
	for _, step := range treeChanges {
		before := read(base)
		done := &memStore{files: maps.Clone(base.files)}
		require.NoError(t, step.change(t.Context(), newTree(t, done, options)), step.name)
		after := read(done)
		for name, fault := range faults {
			if options.Signer != nil && !strings.Contains("first, disk, keep, last", step.name) {
				continue // What is signed differs little from one change to another.
			}
			for n := 1; n <= done.calls; n++ {
				at := fmt.Sprintf("%s: %s at call %d of %d", step.name, name, n, done.calls)
				store := &memStore{files: maps.Clone(base.files)}
				store.fault = func(call int, after bool) error {
					if fault(call, after, n) {
						return errStore
					}

					return nil
				}
				err := step.change(t.Context(), newTree(t, store, options))
				store.fault = nil
				have := read(store)
				if err == nil {
					require.Equal(t, after, have, at)
				} else {
					require.ErrorIs(t, err, errStore, at)
					require.True(t, slices.Equal(before, have) || slices.Equal(after, have), at)
				}

				// Another program goes on: it deletes what is left, or makes the change again.
				next := &memStore{files: maps.Clone(store.files)}
				if err := step.change(t.Context(), newTree(t, next, options)); !errors.Is(err, simplestreams.ErrNotFound) {
					require.NoError(t, err, at)
				}
				require.Empty(t, leftAfterGrace(t, next, options), at)
				require.Equal(t, after, read(next), at)
				require.Empty(t, leftAfterGrace(t, store, options), at)
				require.Equal(t, have, read(store), at)
				for _, each := range []*memStore{store, next} {
					requireForeign(t, each.files)
					if each.files["streams/v1/index.sjson"] != nil {
						require.Equal(t, named(each, "streams/v1/index.json"), named(each, "streams/v1/index.sjson"), at)
					}
				}
			}
		}
		require.Empty(t, leftAfterGrace(t, done, options), step.name)
		base = done
		base.calls = 0
	}
	require.Empty(t, read(base))
	requireForeign(t, base.files)
}

// named returns the path of the tree's products file in an index, without what differs in a signed one.
func named(store *memStore, index string) string {
	_, path, _ := strings.Cut(string(store.files[index]), `"streams/v1/golxd-`)
	path, _, _ = strings.Cut(path, ".")

	return path
}

func newTree(t *testing.T, store simplestreams.Store, options *simplestreams.TreeOptions) *simplestreams.Tree {
	t.Helper()
	tree, err := simplestreams.NewTree(store, options)
	require.NoError(t, err)

	return tree
}

// leftAfterGrace returns the files that are not listed once the grace period and a day are over.
func leftAfterGrace(t *testing.T, store *memStore, options *simplestreams.TreeOptions) []string {
	t.Helper()
	time.Sleep(25 * time.Hour)
	_, err := newTree(t, store, options).Prune(t.Context(), nil)
	require.NoError(t, err)

	return unlisted(t, store.files)
}

// verified reads a tree with a client that verifies signatures.
func verified(t *testing.T, store *memStore) []string {
	t.Helper()
	return images(t, simplestreams.NewHandler(live{store}), func(o *simplestreams.Options) { o.Verifier = fakeSigner{} })
}

// TestTreeTwoPublishers publishes and removes with several programs at once, whose calls of the store take arbitrary times:
// nothing is lost, and nothing is left.
func TestTreeTwoPublishers(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testPublishers(t, seed) })
		})
	}
}

func testPublishers(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	options := &simplestreams.TreeOptions{Grace: -1}
	slowest := time.Second
	if seed%2 == 1 {
		slowest = 20 * time.Minute
	}
	if seed%3 == 2 {
		options.Signer = fakeSigner{}
	}
	store := &memStore{files: foreignFiles()}
	var mu sync.Mutex
	store.fault = func(int, bool) error {
		mu.Lock()
		pause := time.Duration(random.Int64N(int64(slowest)))
		mu.Unlock()
		time.Sleep(pause)

		return nil
	}
	var programs sync.WaitGroup
	var want []string
	for program := range 3 {
		tree := newTree(t, store, options)
		product := fmt.Sprintf("product-%d", program)
		p := func(version int) *simplestreams.Publication {
			// The roots are the same everywhere: one program deletes what another one is about to list.
			p := debian(fmt.Sprintf("2026010%d", version), fmt.Sprintf("%s%d", xzMagic, version%2), squashfsMagic+"root")
			p.Product, p.Aliases = product, nil
			return p
		}
		programs.Go(func() {
			for version := 1; version <= 3; version++ {
				_, err := tree.Publish(t.Context(), p(version), &simplestreams.PublishOptions{Keep: 1})
				if err != nil {
					t.Error(err)
				}
			}
			if err := tree.Remove(t.Context(), product); err != nil {
				t.Error(err)
			}
			if _, err := tree.Publish(t.Context(), p(4), nil); err != nil {
				t.Error(err)
			}
			if _, err := tree.Prune(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
		want = append(want, fmt.Sprintf("%s 20260104 squashfs %q", product, xzMagic+"0"+squashfsMagic+"root"))
	}
	programs.Wait()
	store.fault = nil
	have := images(t, simplestreams.NewHandler(live{store}))
	for _, line := range want {
		require.Contains(t, have, "lxd "+line)
		require.Contains(t, have, "incus "+line)
	}
	require.Len(t, have, 2*len(want))
	if options.Signer != nil {
		require.Equal(t, have, verified(t, store))
	}
	require.Empty(t, leftAfterGrace(t, store, options))
	require.Equal(t, have, images(t, simplestreams.NewHandler(live{store})))
	requireForeign(t, store.files)
}

// reserved is how long a program can take from storing a file to listing it.
const reserved = 24 * time.Hour

// TestTreeInterleaved makes a change of a program while another one, which may be slow, is at each of its calls of the store.
// Both changes are made, and nothing is left. Only if it takes more than a day, the slow one may fail.
func TestTreeInterleaved(t *testing.T) {
	for name, test := range map[string]struct {
		signer simplestreams.Signer
		pause  time.Duration
	}{"slow": {nil, 3 * time.Hour}, "too slow": {nil, 30 * time.Hour}, "signed": {fakeSigner{}, 0}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				testInterleaved(t, &simplestreams.TreeOptions{Grace: -1, Signer: test.signer}, test.pause)
			})
		})
	}
}

func testInterleaved(t *testing.T, options *simplestreams.TreeOptions, pause time.Duration) {
	root := squashfsMagic + "root"
	named := func(product, version string, files ...string) *simplestreams.Publication {
		p := debian(version, files...)
		p.Product, p.Aliases = product, nil
		return p
	}
	known := named("a", "20260101", xzMagic+"old", root)
	known.Fingerprint = streamstest.Hash([]byte(xzMagic+"old"), []byte(root))
	changes := map[string]func(context.Context, *simplestreams.Tree) error{
		"publish":      publish(named("a", "20260101", xzMagic+"a", root), nil),
		"fingerprint":  publish(known, nil),
		"remove other": func(ctx context.Context, tree *simplestreams.Tree) error { return tree.Remove(ctx, "also", "20260102") },
	}
	others := map[string]func(context.Context, *simplestreams.Tree) error{
		"delete":  func(context.Context, *simplestreams.Tree) error { return nil },
		"remove":  func(ctx context.Context, tree *simplestreams.Tree) error { return tree.Remove(ctx, "old") },
		"keep":    publish(named("old", "20260105", gzipMagic+"new"), &simplestreams.PublishOptions{Keep: 1}),
		"publish": publish(named("b", "20260101", xzMagic+"b", root), nil),
	}
	base := &memStore{files: foreignFiles()}
	for _, p := range []*simplestreams.Publication{
		named("old", "20260101", xzMagic+"old", root), named("also", "20260101", gzipMagic+"also"), named("also", "20260102", gzipMagic+"more"),
	} {
		require.NoError(t, publish(p, nil)(t.Context(), newTree(t, base, options)))
	}
	if options.Signer != nil {
		delete(changes, "fingerprint")
		delete(others, "publish")
	}
	for changeName, change := range changes {
		for otherName, other := range others {
			pause := pause
			if otherName == "delete" {
				pause = 0 // The index remains the same, so nothing tells a program that it was too slow.
			}
			serial := &memStore{files: maps.Clone(base.files)}
			require.NoError(t, change(t.Context(), newTree(t, serial, options)))
			calls := serial.calls
			require.NoError(t, other(t.Context(), newTree(t, serial, options)))
			want := images(t, simplestreams.NewHandler(live{serial}))
			alone := &memStore{files: maps.Clone(base.files)}
			require.NoError(t, other(t.Context(), newTree(t, alone, options)))
			wantAlone := images(t, simplestreams.NewHandler(live{alone}))
			for n := 1; n <= calls; n++ {
				at := fmt.Sprintf("%s at call %d of %d of %s", otherName, n, calls, changeName)
				store := &memStore{files: maps.Clone(base.files)}
				store.fault = func(call int, after bool) error {
					if after || call != n {
						return nil
					}
					store.fault = nil
					time.Sleep(pause)
					if err := other(t.Context(), newTree(t, store, options)); err != nil {
						return err
					}
					time.Sleep(pause)
					_, err := newTree(t, store, options).Prune(t.Context(), nil)
					time.Sleep(pause)

					return err
				}
				want := want
				if err := change(t.Context(), newTree(t, store, options)); pause > reserved && err != nil {
					require.ErrorContains(t, err, "the file was deleted", at)
					want = wantAlone
				} else {
					require.NoError(t, err, at)
				}
				require.Equal(t, want, images(t, simplestreams.NewHandler(live{store})), at)
				if options.Signer != nil {
					require.Equal(t, want, verified(t, store), at)
				}
				require.Empty(t, leftAfterGrace(t, store, options), at)
				requireForeign(t, store.files)
			}
		}
	}
}

// envPublish is set for the test binary as a publisher: the directory, the product, and the number of versions.
const envPublish = "SIMPLESTREAMS_TEST_PUBLISH"

// publisher publishes versions of a product, keeping three, until it is killed or has published them all.
func publisher(job string) error {
	fields := strings.Split(job, "|")
	store, err := simplestreams.NewDirStore(fields[0])
	if err != nil {
		return err
	}
	defer store.Close()
	tree, err := simplestreams.NewTree(store, &simplestreams.TreeOptions{Grace: -1})
	if err != nil {
		return err
	}
	versions, err := strconv.Atoi(fields[2])
	if err != nil {
		return err
	}
	for n := range versions {
		p := debian(fmt.Sprintf("20260101_%05d", n), fmt.Sprintf("%s%s %d", xzMagic, fields[1], n), squashfsMagic+"root")
		p.Product, p.Aliases = fields[1], nil
		if _, err := tree.Publish(context.Background(), p, &simplestreams.PublishOptions{Keep: 3, Replace: true}); err != nil {
			return err
		}
	}

	return nil
}

// readFiles returns the files in a directory.
func readFiles(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[name], err = os.ReadFile(path)

		return err
	}))

	return files
}
