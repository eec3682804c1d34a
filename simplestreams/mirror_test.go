package simplestreams_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// mirrorFiles is a tree with images for both families, in several versions, formats and architectures.
func mirrorFiles() map[string][]byte { return mirrorFilesOf(products("both")) }

func mirrorFilesOf(products []streamstest.Product) map[string][]byte {
	return streamstest.Tree(products, func(all streamstest.Object) {
		noble := all["ubuntu:noble:amd64:default"].(streamstest.Object)
		noble["x_unknown"] = streamstest.Object{"deep": []string{"<&>", "ü"}}
		newest := noble["versions"].(streamstest.Object)["20240201_07:42"].(streamstest.Object)
		newest["pubname"] = "ubuntu-noble"
		newest["items"].(streamstest.Object)["delta"] = streamstest.Object{
			"ftype": "squashfs.vcdiff", "path": "images/delta", "size": 5, "sha256": streamstest.Hash([]byte("delta")),
		}
	})
}

// mirrorTo is a tree that is to mirror upstreams.
type mirrorTo struct {
	*simplestreams.Tree
	store *memStore // or nil
	dir   string    // of a DirStore
}

// newMirrorTree returns a tree in memory.
func newMirrorTree(t *testing.T) *mirrorTo {
	t.Helper()
	store := newMemStore()

	return &mirrorTo{Tree: newTree(t, store, nil), store: store}
}

// newMirrorDir returns a tree in a directory.
func newMirrorDir(t *testing.T, dir string) *mirrorTo {
	t.Helper()
	store, err := simplestreams.NewDirStore(dir)
	require.NoError(t, err)
	t.Cleanup(func() { _ = store.Close() })

	return &mirrorTo{Tree: newTree(t, store, nil), dir: dir}
}

// files returns the files of the tree for a web server.
func (m *mirrorTo) files() fs.FS {
	if m.store != nil {
		return live{m.store}
	}

	return os.DirFS(m.dir)
}

// client returns a client for the tree.
func (m *mirrorTo) client(t *testing.T, family simplestreams.Family) *simplestreams.Client {
	t.Helper()
	return handlerClient(t, simplestreams.NewHandler(m.files()), func(o *simplestreams.Options) { o.Family = family })
}

// check downloads every image of the tree, for both families, and returns the versions by product.
func (m *mirrorTo) check(t *testing.T) map[string][]string {
	t.Helper()
	versions := map[string][]string{}
	for _, family := range []simplestreams.Family{"", simplestreams.LXD, simplestreams.Incus} {
		client := m.client(t, family)
		for _, image := range all(t, client) {
			require.Equal(t, image.Fingerprint, streamstest.Hash(readAll(t, client, image)))
			if !slices.Contains(versions[image.Product], image.Version) {
				versions[image.Product] = append(versions[image.Product], image.Version)
			}
		}
	}
	for _, each := range versions {
		slices.Sort(each)
	}

	return versions
}

// snapshot identifies the content of every file.
func (m *mirrorTo) snapshot(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	if m.store != nil {
		for _, name := range m.store.names() {
			files[name] = tagOf(m.store.files[name])
		}

		return files
	}
	require.NoError(t, fs.WalkDir(m.files(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		files[path] = fmt.Sprint(info.Size(), info.ModTime())
		return err
	}))

	return files
}

// images returns how many files of images are in the directory.
func (m *mirrorTo) images(t *testing.T) int {
	t.Helper()
	count := 0
	for path := range m.snapshot(t) {
		if strings.HasPrefix(path, "images/") {
			count++
		}
	}

	return count
}

func upstreams(client *simplestreams.Client, selections ...simplestreams.Selection) []simplestreams.Upstream {
	return []simplestreams.Upstream{{Client: client, Select: selections}}
}

// newest are the newest versions of the products of mirrorFiles.
var newest = map[string][]string{
	"ubuntu:noble:amd64:default": {"20240201_07:42"}, "ubuntu:noble:arm64:default": {"20240201_07:43"}, "alpine:3.20:amd64": {"20240301"},
	"appliance:amd64": {"20240302"}, "old:i386": {"20200101"}, "board:armhf": {"20200101"},
}

func TestMirror(t *testing.T) {
	t.Run("directory", func(t *testing.T) { testMirror(t, newMirrorDir(t, t.TempDir())) })
	t.Run("memory", func(t *testing.T) { testMirror(t, newMirrorTree(t)) })
}

func testMirror(t *testing.T, tree *mirrorTo) {
	server := serve(t, mirrorFiles())
	client := newClient(t, server, nil)

	var progress simplestreams.MirrorProgress
	report, err := tree.Mirror(t.Context(), upstreams(client), &simplestreams.MirrorOptions{Progress: func(p simplestreams.MirrorProgress) { progress = p }})
	require.NoError(t, err)
	require.Len(t, report.Added, len(newest))
	require.Empty(t, report.Removed)
	require.Zero(t, report.Kept)
	require.False(t, report.Unmodified)
	require.Equal(t, progress.Total, progress.Done)
	require.Equal(t, report.Bytes, progress.Total)
	require.Equal(t, report.Files, progress.TotalFiles)
	require.Equal(t, report.Files, tree.images(t))
	require.Equal(t, newest, tree.check(t))

	t.Run("as on the upstream", func(t *testing.T) {
		for _, family := range []simplestreams.Family{simplestreams.LXD, simplestreams.Incus} {
			upstream := newClient(t, server, func(o *simplestreams.Options) { o.Family = family })
			mirrored := tree.client(t, family)
			for _, alias := range []string{"ubuntu/24.04", "ubuntu/noble/arm64", "alpine", "appliance", "old", "board"} {
				for _, kind := range []simplestreams.ImageType{"", simplestreams.VirtualMachine} {
					options := &simplestreams.ResolveOptions{Type: kind}
					want, err := upstream.Resolve(t.Context(), alias, options)
					if err != nil {
						require.Equal(t, simplestreams.VirtualMachine, kind)
						continue
					}
					have, err := mirrored.Resolve(t.Context(), alias, options)
					require.NoError(t, err)
					want.Files, have.Files = nil, nil
					want.Filename, have.Filename = "", ""
					require.Equal(t, want, have)
				}
			}
		}
	})
	t.Run("what is not needed", func(t *testing.T) {
		requests := map[string]int{}
		for _, request := range server.Requests() {
			requests[request.Path]++
		}
		require.NotContains(t, requests, "images/delta")
		require.NotContains(t, requests, "images/ubuntu/noble/amd64/default/20240201_07:42/rootfs.root.tar.xz")
		require.NotContains(t, requests, "images/ubuntu/noble/amd64/default/20240101_07:42/lxd.tar.xz")
	})
	t.Run("unknown fields", func(t *testing.T) {
		var content []byte
		for path := range tree.snapshot(t) {
			if strings.HasPrefix(path, "streams/v1/golxd-") {
				content, err = fs.ReadFile(tree.files(), path)
			}
		}
		require.NoError(t, err)
		require.Contains(t, string(content), `"x_unknown":{"deep":["<&>","ü"]}`)
		require.Contains(t, string(content), `"pubname":"ubuntu-noble"`)
		require.Contains(t, string(content), `"golxd_mirror":"`+server.URL+`"`)
	})
	t.Run("again", func(t *testing.T) {
		server.Requests()
		before := tree.snapshot(t)
		report, err := tree.Mirror(t.Context(), upstreams(client), nil)
		require.NoError(t, err)
		require.Equal(t, &simplestreams.MirrorReport{Unmodified: true, Kept: len(newest)}, report)
		require.Equal(t, before, tree.snapshot(t))
		requests := server.Requests()
		require.Len(t, requests, 2)
		for _, request := range requests {
			require.NotEmpty(t, request.Header.Get("If-None-Match"), request.Path)
		}
	})
}

func TestMirrorSelections(t *testing.T) {
	server := serve(t, mirrorFiles())
	client := newClient(t, server, nil)
	type selection = simplestreams.Selection
	for name, test := range map[string]struct {
		selections []selection
		versions   map[string][]string
		files      int
	}{
		"alias":            {[]selection{{Aliases: []string{"alpine/*"}}}, map[string][]string{"alpine:3.20:amd64": {"20240301"}}, 1},
		"product":          {[]selection{{Products: []string{"old:*", "board:armhf"}}}, map[string][]string{"old:i386": {"20200101"}, "board:armhf": {"20200101"}}, 2},
		"architecture":     {[]selection{{Architectures: []string{"arm64"}}}, map[string][]string{"ubuntu:noble:arm64:default": {"20240201_07:43"}}, 2},
		"virtual machines": {[]selection{{Aliases: []string{"ubuntu/*"}, Types: []simplestreams.ImageType{simplestreams.VirtualMachine}}}, map[string][]string{"ubuntu:noble:amd64:default": {"20240201_07:42"}}, 2},
		"two versions": {[]selection{{Products: []string{"ubuntu:noble:amd64:*"}, Versions: 2}},
			map[string][]string{"ubuntu:noble:amd64:default": {"20240101_07:42", "20240201_07:42"}}, 6},
		"two selections": {[]selection{{Products: []string{"ubuntu:noble:amd64:*"}, Types: []simplestreams.ImageType{simplestreams.VirtualMachine}}, {Aliases: []string{"ubuntu/noble"}, Architectures: []string{"x86_64"}, Types: []simplestreams.ImageType{simplestreams.Container}}},
			map[string][]string{"ubuntu:noble:amd64:default": {"20240201_07:42"}}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			tree := newMirrorTree(t)
			report, err := tree.Mirror(t.Context(), upstreams(client, test.selections...), nil)
			require.NoError(t, err)
			require.Equal(t, test.versions, tree.check(t))
			require.Equal(t, test.files, report.Files)
			require.Equal(t, test.files, tree.images(t))
		})
	}
	t.Run("all formats", func(t *testing.T) {
		tree := newMirrorTree(t)
		report, err := tree.Mirror(t.Context(), upstreams(client, selection{Products: []string{"ubuntu:noble:amd64:*"}}), &simplestreams.MirrorOptions{AllFormats: true})
		require.NoError(t, err)
		require.Equal(t, 4, report.Files)
	})
	t.Run("one family", func(t *testing.T) {
		tree := newMirrorTree(t)
		lxd := newClient(t, server, func(o *simplestreams.Options) { o.Family = simplestreams.LXD })
		_, err := tree.Mirror(t.Context(), upstreams(lxd), nil)
		require.NoError(t, err)
		require.Empty(t, all(t, tree.client(t, simplestreams.Incus)))
		require.Equal(t, newest, tree.check(t))
	})
	t.Run("nothing", func(t *testing.T) {
		tree := newMirrorTree(t)
		report, err := tree.Mirror(t.Context(), upstreams(client, selection{Aliases: []string{"none"}}), nil)
		require.ErrorIs(t, err, simplestreams.ErrNotFound)
		var failed *simplestreams.MirrorError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, server.URL, failed.Upstream)
		require.Equal(t, []*simplestreams.MirrorError{failed}, report.Failed)
	})
	t.Run("nothing of one selection", func(t *testing.T) {
		tree := newMirrorTree(t)
		report, err := tree.Mirror(t.Context(), upstreams(client, selection{Aliases: []string{"alpine"}}, selection{Aliases: []string{"none"}}), nil)
		require.ErrorIs(t, err, simplestreams.ErrNotFound)
		require.ErrorContains(t, err, "Select[1] (none)")
		require.Len(t, report.Added, 1)
	})
}

func TestMirrorBadInput(t *testing.T) {
	server, client := standard(t)
	tree := newMirrorTree(t)
	none := upstreams(client)
	for field, call := range map[string]func() (*simplestreams.MirrorReport, error){
		"tree": func() (*simplestreams.MirrorReport, error) {
			return (*simplestreams.Tree)(nil).Mirror(t.Context(), none, nil)
		},
		"ctx": func() (*simplestreams.MirrorReport, error) {
			return tree.Mirror(nil, none, nil) //nolint:staticcheck // on purpose
		},
		"upstreams":           func() (*simplestreams.MirrorReport, error) { return tree.Mirror(t.Context(), nil, nil) },
		"upstreams[0].Client": func() (*simplestreams.MirrorReport, error) { return tree.Mirror(t.Context(), upstreams(nil), nil) },
		"upstreams[1].Client": func() (*simplestreams.MirrorReport, error) {
			return tree.Mirror(t.Context(), append(none, none...), nil)
		},
		"upstreams[0].Select[0].Aliases": func() (*simplestreams.MirrorReport, error) {
			return tree.Mirror(t.Context(), upstreams(client, simplestreams.Selection{Aliases: []string{"["}}), nil)
		},
		"upstreams[0].Select[0].Products": func() (*simplestreams.MirrorReport, error) {
			return tree.Mirror(t.Context(), upstreams(client, simplestreams.Selection{Products: []string{""}}), nil)
		},
		"upstreams[0].Select[1].Architectures": func() (*simplestreams.MirrorReport, error) {
			return tree.Mirror(t.Context(), upstreams(client, simplestreams.Selection{}, simplestreams.Selection{Architectures: []string{"pdp11"}}), nil)
		},
		"upstreams[0].Select[0].Types": func() (*simplestreams.MirrorReport, error) {
			return tree.Mirror(t.Context(), upstreams(client, simplestreams.Selection{Types: []simplestreams.ImageType{"vm"}}), nil)
		},
		"upstreams[0].Select[0].Versions": func() (*simplestreams.MirrorReport, error) {
			return tree.Mirror(t.Context(), upstreams(client, simplestreams.Selection{Versions: -1}), nil)
		},
		"MirrorOptions.Parallel": func() (*simplestreams.MirrorReport, error) {
			return tree.Mirror(t.Context(), none, &simplestreams.MirrorOptions{Parallel: -1})
		},
	} {
		t.Run(field, func(t *testing.T) {
			report, err := call()
			var input *simplestreams.InputError
			require.ErrorAs(t, err, &input)
			require.Equal(t, field, input.Field)
			require.Nil(t, report)
		})
	}
	require.Empty(t, server.Requests())
	require.Empty(t, tree.snapshot(t))
}

// TestMirrorDryRun: a dry run tells what the run does.
func TestMirrorDryRun(t *testing.T) {
	server := serve(t, mirrorFiles())
	client := newClient(t, server, nil)
	tree := newMirrorTree(t)
	two := simplestreams.Selection{Aliases: []string{"ubuntu/noble"}, Versions: 2}
	for _, selections := range [][]simplestreams.Selection{{two}, {{}}, {{Aliases: []string{"alpine"}}}, {{Aliases: []string{"alpine"}}}} {
		before := tree.snapshot(t)
		server.Requests()
		would, err := tree.Mirror(t.Context(), upstreams(client, selections...), &simplestreams.MirrorOptions{DryRun: true})
		require.NoError(t, err)
		require.Equal(t, before, tree.snapshot(t))
		for _, request := range server.Requests() {
			require.Contains(t, []string{streamstest.IndexPath, streamstest.ProductsPath}, request.Path)
		}
		did, err := tree.Mirror(t.Context(), upstreams(client, selections...), nil)
		require.NoError(t, err)
		require.Equal(t, did, would)
	}
}

// TestMirrorParallel: as many files as asked for are downloaded at once.
func TestMirrorParallel(t *testing.T) {
	const parallel = 3
	var several []streamstest.Product
	for i := range 9 {
		several = append(several, streamstest.Product{Name: fmt.Sprint("p", i), Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte(fmt.Sprint("image ", i))}}})
	}
	files := streamstest.Tree(several, nil)
	server := serve(t, files)
	var running, most atomic.Int64
	full := make(chan struct{})
	fill := sync.OnceFunc(func() { close(full) })
	for path := range files {
		if strings.HasPrefix(path, "images/") {
			server.Fault(path, func(_ *streamstest.Server, next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					now := running.Add(1)
					defer running.Add(-1)
					most.Store(max(most.Load(), now))
					if now == parallel {
						fill()
					}
					<-full
					next.ServeHTTP(w, r)
				})
			})
		}
	}
	report, err := newMirrorTree(t).Mirror(t.Context(), upstreams(newClient(t, server, nil)), &simplestreams.MirrorOptions{Parallel: parallel})
	require.NoError(t, err)
	require.Equal(t, 9, report.Files)
	require.EqualValues(t, parallel, most.Load())
}

// TestMirrorFailedFile: a product whose files fail keeps its versions, the others are mirrored, and the next call makes up
// for it.
func TestMirrorFailedFile(t *testing.T) {
	old := mirrorFiles()
	const dir = "images/alpine/3.20/amd64/20240401/"
	later := products("both")
	later[2].Versions = append(later[2].Versions, streamstest.Version{Serial: "20240401", Family: "both", Unified: []byte("a newer unified image")})
	later[3].Versions[0].Serial = "20240402"
	next := mirrorFilesOf(later)
	bad := func(name string) string { return dir + name + "_combined.tar.gz" }
	for name, test := range map[string]struct {
		fault streamstest.Fault
		err   error
	}{
		"missing":   {streamstest.Status(http.StatusNotFound), simplestreams.ErrNotFound},
		"corrupt":   {streamstest.Corrupt(3), simplestreams.ErrBadData},
		"truncated": {streamstest.Truncate(3), simplestreams.ErrBadData},
		"cut":       {streamstest.Cut(3), nil},
		"HTML":      {streamstest.HTML(), simplestreams.ErrBadData},
		"forbidden": {streamstest.Status(http.StatusForbidden), nil},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, old)
			client := newClient(t, server, nil)
			tree := newMirrorTree(t)
			options := &simplestreams.MirrorOptions{Scratch: filepath.Join(t.TempDir(), "scratch")}
			_, err := tree.Mirror(t.Context(), upstreams(client), options)
			require.NoError(t, err)
			for path, content := range next {
				server.Set(path, content)
			}
			server.Fault(bad("lxd"), test.fault)
			server.Fault(bad("incus"), test.fault)

			report, err := tree.Mirror(t.Context(), upstreams(client), options)
			var failed *simplestreams.MirrorError
			require.ErrorAs(t, err, &failed)
			require.Equal(t, "alpine:3.20:amd64", failed.Product)
			require.Equal(t, "20240401", failed.Version)
			require.Contains(t, failed.File, dir)
			if test.err != nil {
				require.ErrorIs(t, err, test.err)
			}
			require.Equal(t, []*simplestreams.MirrorError{failed}, report.Failed)
			require.Len(t, report.Added, 1)
			want := maps.Clone(newest)
			want["appliance:amd64"] = []string{"20240402"}
			require.Equal(t, want, tree.check(t))

			server.Fault(bad("lxd"), nil)
			server.Fault(bad("incus"), nil)
			report, err = tree.Mirror(t.Context(), upstreams(client), options)
			require.NoError(t, err)
			require.Equal(t, 1, report.Files)
			want["alpine:3.20:amd64"] = []string{"20240401"}
			require.Equal(t, want, tree.check(t))
			partial, err := os.ReadDir(options.Scratch)
			require.NoError(t, err)
			require.Empty(t, partial)
		})
	}
}

// TestMirrorBadIndex: an index that is not right in itself adds nothing wrong.
func TestMirrorBadIndex(t *testing.T) {
	other := streamstest.Hash([]byte("other"))
	for name, edit := range map[string]func(version, meta, root streamstest.Object){
		"path with ..":           func(_, _, root streamstest.Object) { root["path"] = "images/../../../etc/passwd" },
		"escaped path with ..":   func(version, meta, _ streamstest.Object) { meta["path"] = "images/%2e%2e/%2e%2e/x" },
		"absolute URL":           func(_, _, root streamstest.Object) { root["path"] = "http://127.0.0.1:1/x" },
		"control character":      func(_, meta, _ streamstest.Object) { meta["path"] = "images/\nx" },
		"size is too small":      func(_, _, root streamstest.Object) { root["size"] = 1 },
		"size is too large":      func(_, _, root streamstest.Object) { root["size"] = 1 << 40 },
		"negative size":          func(_, _, root streamstest.Object) { root["size"] = -1 },
		"wrong hash":             func(_, _, root streamstest.Object) { root["sha256"] = other },
		"malformed hash":         func(_, _, root streamstest.Object) { root["sha256"] = "x" },
		"no hash":                func(_, _, root streamstest.Object) { delete(root, "sha256") },
		"wrong combined hash":    func(_, meta, _ streamstest.Object) { meta["combined_squashfs_sha256"] = other },
		"wrong hash of the meta": func(_, meta, _ streamstest.Object) { meta["sha256"] = other },
	} {
		t.Run(name, func(t *testing.T) {
			const product = "ubuntu:noble:arm64:default"
			files := streamstest.Tree(products("incus"), func(all streamstest.Object) {
				version := all[product].(streamstest.Object)["versions"].(streamstest.Object)["20240201_07:43"].(streamstest.Object)
				items := version["items"].(streamstest.Object)
				edit(version, items["incus.tar.xz"].(streamstest.Object), items["rootfs.squashfs"].(streamstest.Object))
			})
			tree := newMirrorTree(t)
			server := serve(t, files)
			report, err := tree.Mirror(t.Context(), upstreams(newClient(t, server, nil)), nil)
			require.ErrorIs(t, err, simplestreams.ErrBadData)
			require.Len(t, report.Failed, 1)
			require.Equal(t, product, report.Failed[0].Product)
			require.NotEmpty(t, report.Failed[0].File)
			require.Len(t, report.Added, len(newest)-1)
			require.NotContains(t, tree.check(t), product)
			for _, request := range server.Requests() {
				require.NotContains(t, request.Path, "passwd")
				require.NotContains(t, request.Path, "..")
			}
		})
	}
}

// TestMirrorBadUpstream: an upstream that cannot be read changes nothing, and others are mirrored.
func TestMirrorBadUpstream(t *testing.T) {
	for name, test := range map[string]struct {
		path  string
		fault streamstest.Fault
		set   []byte
	}{
		"no index":         {path: streamstest.IndexPath, fault: streamstest.Status(http.StatusNotFound)},
		"index of HTML":    {path: streamstest.IndexPath, fault: streamstest.HTML()},
		"index is cut":     {path: streamstest.IndexPath, fault: streamstest.Cut(20)},
		"index stalls":     {path: streamstest.IndexPath, fault: streamstest.Stall(20)},
		"products are cut": {path: streamstest.ProductsPath, fault: streamstest.Cut(500)},
		"products stall":   {path: streamstest.ProductsPath, fault: streamstest.Stall(500)},
		"no products":      {path: streamstest.ProductsPath, fault: streamstest.Status(http.StatusNotFound)},
		"bad JSON":         {path: streamstest.ProductsPath, set: []byte(`{"products":{"a":{"versions":[]}}}`)},
		"empty":            {path: streamstest.ProductsPath, set: []byte(`{"products":{}}`)},
		"empty index":      {path: streamstest.IndexPath, set: []byte(`{"index":{}}`)},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, mirrorFiles())
			client := newClient(t, server, func(o *simplestreams.Options) { o.StallTimeout = 300 * time.Millisecond })
			tree := newMirrorTree(t)
			_, err := tree.Mirror(t.Context(), upstreams(client), nil)
			require.NoError(t, err)
			server.Fault(test.path, test.fault)
			if test.set != nil {
				server.Set(test.path, test.set)
			}
			other := serve(t, streamstest.Tree([]streamstest.Product{{Name: "other", Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte("other")}}}}, nil))

			report, err := tree.Mirror(t.Context(), append(upstreams(client), upstreams(newClient(t, other, nil))...), nil)
			require.Error(t, err)
			require.Len(t, report.Failed, 1)
			require.Equal(t, server.URL, report.Failed[0].Upstream)
			require.Len(t, report.Added, 1)
			require.Empty(t, report.Removed)
			want := maps.Clone(newest)
			want["other"] = []string{"20240101"}
			require.Equal(t, want, tree.check(t))
		})
	}
}

// TestMirrorTooMuch: what an upstream lists is bounded.
func TestMirrorTooMuch(t *testing.T) {
	server := serve(t, mirrorFiles())
	client := newClient(t, server, func(o *simplestreams.Options) { o.MaxMetadataSize = 10 << 10 })
	tree := newMirrorTree(t)
	var many strings.Builder
	many.WriteString(`{"products":{`)
	for i := range 10_000 {
		fmt.Fprintf(&many, `"p%d":{},`, i)
	}
	server.Set(streamstest.ProductsPath, []byte(strings.TrimSuffix(many.String(), ",")+`}}`))
	_, err := tree.Mirror(t.Context(), upstreams(client), nil)
	require.ErrorIs(t, err, simplestreams.ErrTooLarge)
}

// TestMirrorStalledFile: a file that does not arrive fails.
func TestMirrorStalledFile(t *testing.T) {
	server := serve(t, mirrorFiles())
	server.Fault("images/board/armhf/20200101/lxd_combined.tar.gz", streamstest.Stall(2))
	server.Fault("images/board/armhf/20200101/incus_combined.tar.gz", streamstest.Stall(2))
	tree := newMirrorTree(t)
	report, err := tree.Mirror(t.Context(), upstreams(newClient(t, server, func(o *simplestreams.Options) { o.StallTimeout = 300 * time.Millisecond })), nil)
	require.ErrorIs(t, err, simplestreams.ErrStalled)
	require.Equal(t, "board:armhf", report.Failed[0].Product)
	require.Len(t, report.Added, len(newest)-1)
}

// TestMirrorChangesInBetween: the upstream publishes a new version while its files are downloaded.
func TestMirrorChangesInBetween(t *testing.T) {
	server := serve(t, mirrorFiles())
	later := products("both")
	later[2].Versions = []streamstest.Version{{Serial: "20240501", Family: "both", Unified: []byte("the newest unified image")}}
	next := mirrorFilesOf(later)
	change := func(_ *streamstest.Server, _ http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for path, content := range next {
				server.Set(path, content)
			}
			http.NotFound(w, nil)
		})
	}
	server.Fault("images/alpine/3.20/amd64/20240301/lxd_combined.tar.gz", change)
	server.Fault("images/alpine/3.20/amd64/20240301/incus_combined.tar.gz", change)
	tree := newMirrorTree(t)
	report, err := tree.Mirror(t.Context(), upstreams(newClient(t, server, nil)), nil)
	require.NoError(t, err)
	require.Len(t, report.Added, len(newest))
	want := maps.Clone(newest)
	want["alpine:3.20:amd64"] = []string{"20240501"}
	require.Equal(t, want, tree.check(t))
	require.Equal(t, tree.images(t), report.Files)
	for path, count := range countRequests(server) {
		if strings.HasPrefix(path, "images/") {
			require.Equal(t, 1, count, path)
		}
	}
}

func countRequests(server *streamstest.Server) map[string]int {
	counts := map[string]int{}
	for _, request := range server.Requests() {
		counts[request.Path]++
	}

	return counts
}

// TestMirrorResumes: the next call, with another Tree and Client, requests only what is missing.
func TestMirrorResumes(t *testing.T) {
	big := make([]byte, 100_000)
	for i := range big {
		big[i] = byte(i >> 3)
	}
	server := serve(t, streamstest.Tree([]streamstest.Product{{Name: "big", Versions: []streamstest.Version{
		{Serial: "20240101", Family: "both", Metadata: []byte("metadata"), Roots: map[string][]byte{"squashfs": big}},
	}}}, nil))
	const root, meta = "images/big/20240101/rootfs.squashfs", "images/big/20240101/lxd.tar.xz"
	dir := t.TempDir()
	for n, at := range []int{30_000, 30_000, 0} {
		server.Fault(root, nil)
		if at > 0 {
			server.Fault(root, streamstest.Cut(int64(at)))
		}
		server.Requests()
		_, err := newMirrorDir(t, dir).Mirror(t.Context(), upstreams(newClient(t, server, nil)), nil)
		require.Equal(t, at > 0, err != nil)
		for _, request := range server.Requests() {
			switch request.Path {
			case meta:
				require.Zero(t, n, "the metadata is there")
			case root:
				want := ""
				if n > 0 {
					want = fmt.Sprintf("bytes=%d-", 30_000*n)
				}
				require.Equal(t, want, request.Header.Get("Range"))
			}
		}
	}
	require.Equal(t, map[string][]string{"big": {"20240101"}}, newMirrorDir(t, dir).check(t))
}

// TestMirrorWrongPartial: a partial file with other content is replaced.
func TestMirrorWrongPartial(t *testing.T) {
	server := serve(t, mirrorFiles())
	tree := newMirrorDir(t, t.TempDir())
	require.NoError(t, os.Mkdir(tree.dir+"/.golxd", 0o700))
	wrong := filepath.Join(tree.dir, ".golxd", streamstest.Hash([]byte("an old image"))+".partial")
	require.NoError(t, os.WriteFile(wrong, []byte("no"), 0o600))
	_, err := tree.Mirror(t.Context(), upstreams(newClient(t, server, nil)), nil)
	require.NoError(t, err)
	require.Equal(t, newest, tree.check(t))
	require.NoFileExists(t, wrong)
}

// TestMirrorCanceled: the call ends with its context, and leaves a tree that another call completes.
func TestMirrorCanceled(t *testing.T) {
	server := serve(t, mirrorFiles())
	client := newClient(t, server, nil)
	tree := newMirrorTree(t)
	shutdown := errors.New("shutdown")
	for _, path := range []string{streamstest.IndexPath, streamstest.ProductsPath, "images/ubuntu/noble/amd64/default/20240201_07:42/rootfs.squashfs"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		server.Fault(path, func(s *streamstest.Server, next http.Handler) http.Handler {
			cancel(shutdown)
			return streamstest.Stall(-1)(s, next)
		})
		report, err := tree.Mirror(ctx, upstreams(client), nil)
		require.ErrorIs(t, err, shutdown, path)
		require.Nil(t, report)
		server.Fault(path, nil)
	}
	_, err := tree.Mirror(t.Context(), upstreams(client), nil)
	require.NoError(t, err)
	require.Equal(t, newest, tree.check(t))
}
