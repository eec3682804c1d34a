package simplestreams_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/procmem"
	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// envMirror makes a process of this test binary mirror a server: its URL, and a directory.
const envMirror = "SIMPLESTREAMS_TEST_MIRROR"

// envMirrorKills is the number of processes that TestMirrorIsKilled kills.
const envMirrorKills = "SIMPLESTREAMS_TEST_MIRROR_KILLS"

// envMirrorMemory makes such a process mirror one of many products, and then say what everything would be. It prints the
// peak of its memory after both.
const envMirrorMemory = "SIMPLESTREAMS_TEST_MIRROR_MEMORY"

func mirrorInProcess(url, dir string) error {
	client, err := simplestreams.New(url, &simplestreams.Options{AllowHTTP: true})
	if err != nil {
		return err
	}
	store, err := simplestreams.NewDirStore(dir)
	if err != nil {
		return err
	}
	tree, err := simplestreams.NewTree(store, nil)
	if err != nil {
		return err
	}
	if os.Getenv(envMirrorMemory) != "" {
		_, err := tree.Mirror(context.Background(), upstreams(client, simplestreams.Selection{Aliases: []string{"real"}}), nil)
		if err != nil {
			return err
		}
		peak := procmem.Peak(os.Getpid())
		report, err := tree.Mirror(context.Background(), upstreams(client), &simplestreams.MirrorOptions{DryRun: true})
		if err != nil {
			return err
		}
		fmt.Println(len(report.Added), peak, procmem.Peak(os.Getpid()))

		return nil
	}
	_, err = tree.Mirror(context.Background(), upstreams(client), nil)

	return err
}

// TestMirrorMemory: a mirror of one product of an index of 12,000 takes less than 64 MiB.
func TestMirrorMemory(t *testing.T) {
	const count = 12_000
	product := func(n, versions int) streamstest.Object {
		all := streamstest.Object{}
		for v := range versions {
			sum := func(text string) string { return streamstest.Hash(fmt.Appendf(nil, "%s %d %d", text, n, v)) }
			serial := fmt.Sprintf("202401%02d_07:42", v+1)
			path := fmt.Sprintf("images/system%d/release/amd64/default/%s/", n, serial)
			items := streamstest.Object{}
			for _, family := range []string{"lxd", "incus"} {
				items[family+".tar.xz"] = streamstest.Object{
					"ftype": family + ".tar.xz", "path": path + family + ".tar.xz", "size": 700, "sha256": sum(family),
					"combined_squashfs_sha256": sum("squashfs"), "combined_disk-kvm-img_sha256": sum("disk"), "combined_rootxz_sha256": sum("rootxz"),
				}
			}
			for name, ftype := range map[string]string{"rootfs.squashfs": "squashfs", "disk.qcow2": "disk-kvm.img", "rootfs.tar.xz": "root.tar.xz"} {
				items[name] = streamstest.Object{"ftype": ftype, "path": path + name, "size": 100 << 20, "sha256": sum(ftype)}
			}
			all[serial] = streamstest.Object{"items": items}
		}

		return streamstest.Object{
			"aliases": fmt.Sprintf("system%d/release/default,system%d/release", n, n), "arch": "amd64", "os": fmt.Sprintf("System%d", n),
			"release": "release", "release_title": "Release", "variant": "default", "requirements": streamstest.Object{}, "versions": all,
		}
	}
	server := serve(t, streamstest.Tree([]streamstest.Product{
		{Name: "real", Aliases: []string{"real"}, Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte("real")}}},
	}, func(all streamstest.Object) {
		for n := range count {
			all[fmt.Sprintf("system%d:release:amd64:default", n)] = product(n, 2)
		}
	}))
	child := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // this test binary
	child.Env = append(os.Environ(), envMirror+"="+server.URL, envMirror+"_DIR="+t.TempDir(), envMirrorMemory+"=1")
	child.Stderr = os.Stderr
	out, err := child.Output()
	require.NoError(t, err)
	var added int
	var peak, everything int64
	_, err = fmt.Sscan(string(out), &added, &peak, &everything)
	require.NoError(t, err)
	require.Equal(t, count, added)
	t.Logf("the peak is %d MiB, and %d MiB if everything is missing", peak>>20, everything>>20)
	require.Less(t, peak, int64(64<<20))
}

// TestMirrorIsKilled kills processes at random moments. Whatever they leave is the old or the new tree, and the next
// one goes on.
func TestMirrorIsKilled(t *testing.T) {
	kills := 6
	if text := os.Getenv(envMirrorKills); text != "" {
		var err error
		kills, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	// Each generation has new versions of all products.
	generation := func(n int) map[string][]byte {
		var list []streamstest.Product
		for i := range 6 {
			big := make([]byte, 200_000+i)
			rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(i)}).Read(big)
			list = append(list, streamstest.Product{Name: fmt.Sprintf("p%d", i), Versions: []streamstest.Version{{
				Serial: fmt.Sprintf("20240101_%04d", n), Family: "both", Metadata: fmt.Appendf(nil, "metadata %d %d", i, n), Roots: map[string][]byte{"squashfs": big},
			}}})
		}

		return streamstest.Tree(list, nil)
	}
	server := serve(t, nil)
	tree := newMirrorDir(t, t.TempDir())
	versions := func(n int) map[string][]string {
		all := map[string][]string{}
		for i := range 6 {
			all[fmt.Sprintf("p%d", i)] = []string{fmt.Sprintf("20240101_%04d", n)}
		}

		return all
	}

	var whole time.Duration // of a process that is not killed
	killed, completed, last := 0, 0, -1
	for n := 0; killed < kills; n++ {
		for path, content := range generation(n) {
			server.Set(path, content)
		}
		for {
			child := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // this test binary
			child.Env = append(os.Environ(), envMirror+"="+server.URL, envMirror+"_DIR="+tree.dir)
			child.Stderr = os.Stderr
			began := time.Now()
			require.NoError(t, child.Start())
			if whole > 0 {
				time.Sleep(rand.N(whole)) // the moment is random, not a condition
				_ = child.Process.Kill()
			}
			err := child.Wait()
			if whole == 0 {
				require.NoError(t, err)
				whole = time.Since(began)
			}
			have := tree.check(t)
			switch {
			case err == nil:
				completed++
				require.Equal(t, versions(n), have)
			case last < 0:
				require.Empty(t, have)
			case have["p0"][0] == versions(last)["p0"][0]:
				require.Equal(t, versions(last), have)
			default:
				require.Equal(t, versions(n), have)
			}
			if err == nil {
				break
			}
			killed++
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit)
			require.True(t, exit.Sys().(syscall.WaitStatus).Signaled(), "it was killed")
			if have["p0"] != nil && have["p0"][0] == versions(n)["p0"][0] {
				break
			}
		}
		last = n
	}
	t.Logf("%d killed, %d completed", killed, completed)

	_, err := tree.Mirror(t.Context(), upstreams(newClient(t, server, nil)), nil)
	require.NoError(t, err)
	require.Equal(t, versions(last), tree.check(t))
	entries, err := os.ReadDir(tree.dir + "/.golxd")
	require.NoError(t, err)
	for _, entry := range entries {
		require.NotContains(t, entry.Name(), ".partial")
	}
	ledger, err := os.ReadFile(tree.dir + "/streams/v1/golxd.ledger.json")
	require.NoError(t, err)
	listed := map[string]bool{}
	for _, family := range []simplestreams.Family{simplestreams.LXD, simplestreams.Incus} {
		for _, image := range all(t, tree.client(t, family)) {
			for _, file := range image.Files {
				listed[file.Path] = true
			}
		}
	}
	for path := range tree.snapshot(t) {
		if strings.HasPrefix(path, "images/") && !listed[path] {
			require.Contains(t, string(ledger), `"`+path+`"`, "it will be deleted")
		}
	}
}

// TestMirrorStoreFails fails each call of the store in turn: the tree is the old or the new one, and the next call of Mirror
// completes it.
func TestMirrorStoreFails(t *testing.T) {
	old := []streamstest.Product{
		{Name: "a", Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte("a1")}}},
		{Name: "b", Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte("b1")}}},
	}
	next := []streamstest.Product{
		{Name: "a", Versions: []streamstest.Version{{Serial: "20240102", Metadata: []byte("a2"), Roots: map[string][]byte{"squashfs": []byte("a2 root")}}}},
		{Name: "c", Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte("c1")}}},
	}
	server := serve(t, streamstest.Tree(old, nil))
	client := newClient(t, server, nil)
	start := newMirrorTree(t)
	_, err := start.Mirror(t.Context(), upstreams(client), nil)
	require.NoError(t, err)
	before := start.check(t)
	for path, content := range streamstest.Tree(next, nil) {
		server.Set(path, content)
	}
	after := map[string][]string{"a": {"20240102"}, "c": {"20240101"}}
	for name, fails := range faults {
		for n, done := 1, false; !done; n++ {
			store := newMemStore()
			store.files = maps.Clone(start.store.files)
			store.fault = func(call int, after bool) error {
				if fails(call, after, n) {
					return errStore
				}
				return nil
			}
			tree := &mirrorTo{Tree: newTree(t, store, nil), store: store}
			_, err := tree.Mirror(t.Context(), upstreams(client), nil)
			done = err == nil && store.calls < n
			if err != nil {
				require.ErrorIs(t, err, errStore)
			}
			store.fault = nil
			switch have := tree.check(t); {
			case err == nil:
				require.Equal(t, after, have, "%s %d", name, n)
			case have["c"] != nil && have["b"] == nil && have["a"][0] == "20240102":
				require.Equal(t, after, have, "%s %d", name, n)
			case have["c"] != nil || have["b"] == nil || have["a"][0] == "20240102":
				// A file failed, which is not that of the other product.
				require.Contains(t, []map[string][]string{
					{"a": {"20240102"}}, {"a": {"20240101"}, "c": {"20240101"}}, {"a": {"20240101"}},
				}, have, "%s %d", name, n)
			default:
				require.Equal(t, before, have, "%s %d", name, n)
			}
			_, err = tree.Mirror(t.Context(), upstreams(client), nil)
			require.NoError(t, err, "%s %d", name, n)
			require.Equal(t, after, tree.check(t), "%s %d", name, n)
		}
	}
}

// fullStore has no room for more than some bytes of images.
type fullStore struct {
	*memStore
	room int64
}

func (s *fullStore) Put(ctx context.Context, path string, content io.Reader) error {
	if !strings.HasPrefix(path, "images/") {
		return s.memStore.Put(ctx, path, content)
	}
	read, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.room -= int64(len(read))
	full := s.room < 0
	s.mu.Unlock()
	if full {
		return &os.PathError{Op: "write", Path: path, Err: syscall.ENOSPC}
	}

	return s.memStore.Put(ctx, path, strings.NewReader(string(read)))
}

// TestMirrorFullDisk: what fits is mirrored, and the errors name the rest.
func TestMirrorFullDisk(t *testing.T) {
	server := serve(t, mirrorFiles())
	client := newClient(t, server, nil)
	store := &fullStore{newMemStore(), 80}
	tree := &mirrorTo{Tree: newTree(t, store, nil), store: store.memStore}
	report, err := tree.Mirror(t.Context(), upstreams(client), nil)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.NotEmpty(t, report.Failed)
	failed := map[string]bool{}
	for _, each := range report.Failed {
		require.ErrorIs(t, each, syscall.ENOSPC)
		require.NotEmpty(t, each.File)
		failed[each.Product] = true
	}
	have := tree.check(t)
	require.Len(t, have, len(newest)-len(failed))
	require.NotEmpty(t, have)

	store.room = 1 << 20
	_, err = tree.Mirror(t.Context(), upstreams(client), nil)
	require.NoError(t, err)
	require.Equal(t, newest, tree.check(t))
}

// TestMirrorTwice runs two mirrors of one directory at once, in two trees as of two processes: they do the work once.
func TestMirrorTwice(t *testing.T) {
	server := serve(t, mirrorFiles())
	dir := t.TempDir()
	var running sync.WaitGroup
	for range 2 {
		tree, client := newMirrorDir(t, dir), newClient(t, server, nil)
		running.Go(func() {
			_, err := tree.Mirror(t.Context(), upstreams(client), nil)
			if err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	files := 0
	for path, count := range countRequests(server) {
		if strings.HasPrefix(path, "images/") {
			require.Equal(t, 1, count, path)
			files++
		}
	}
	tree := newMirrorDir(t, dir)
	require.Equal(t, newest, tree.check(t))
	require.Equal(t, files, tree.images(t))
}

// TestMirrorWithoutOneScratch runs two mirrors of one store at once that do not know each other.
func TestMirrorWithoutOneScratch(t *testing.T) {
	server := serve(t, mirrorFiles())
	shared := newMirrorTree(t)
	var running sync.WaitGroup
	for range 2 {
		tree, client := newTree(t, shared.store, nil), newClient(t, server, nil)
		running.Go(func() {
			_, err := tree.Mirror(t.Context(), upstreams(client), nil)
			if err != nil && !errors.Is(err, simplestreams.ErrConflict) {
				t.Error(err)
			}
		})
	}
	running.Wait()
	_, err := shared.Mirror(t.Context(), upstreams(newClient(t, server, nil)), nil)
	require.NoError(t, err)
	require.Equal(t, newest, shared.check(t))
}

// TestMirrorAmongOthers: files and index entries of others, and what was published, remain.
func TestMirrorAmongOthers(t *testing.T) {
	store := newMemStore()
	maps.Copy(store.files, foreignFiles())
	tree := &mirrorTo{Tree: newTree(t, store, nil), store: store}
	published := debian("20260101", gzipMagic+"published")
	published.Product = "alpine:3.20:amd64"
	_, err := tree.Publish(t.Context(), published, nil)
	require.NoError(t, err)
	server := serve(t, mirrorFiles())
	client := newClient(t, server, nil)

	for range 2 {
		report, err := tree.Mirror(t.Context(), upstreams(client), nil)
		require.ErrorIs(t, err, simplestreams.ErrExists)
		require.Len(t, report.Failed, 1)
		require.Equal(t, "alpine:3.20:amd64", report.Failed[0].Product)
		requireForeign(t, store.files)
	}
	want := maps.Clone(newest)
	want["alpine:3.20:amd64"] = []string{"20260101"}
	delete(store.files, "streams/v1/theirs.json") // It has no images that could be downloaded.
	have := map[string][]string{}
	for image, err := range tree.Images(t.Context()) {
		require.NoError(t, err)
		have[image.Product] = []string{image.Version}
	}
	require.Equal(t, want, have)
	for _, request := range server.Requests() {
		require.NotContains(t, request.Path, "alpine", "what is not mirrored is not downloaded")
	}

	report, err := tree.Mirror(t.Context(), upstreams(client, simplestreams.Selection{Products: []string{"old:*"}}), nil)
	require.NoError(t, err)
	require.Len(t, report.Removed, len(newest)-2)
	published.Version, published.Files = "20260102", contents(gzipMagic+"published later")
	_, err = tree.Publish(t.Context(), published, nil)
	require.NoError(t, err)
}

// TestMirrorTwoUpstreams: the first has the products of both, and one mirror leaves those of another alone.
func TestMirrorTwoUpstreams(t *testing.T) {
	named := func(content string, names ...string) *streamstest.Server {
		var list []streamstest.Product
		for _, name := range names {
			list = append(list, streamstest.Product{Name: name, Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte(content + name)}}})
		}

		return serve(t, streamstest.Tree(list, nil))
	}
	first, second := newClient(t, named("first ", "a", "both"), nil), newClient(t, named("second ", "b", "both"), nil)
	tree := newMirrorTree(t)
	fingerprints := func() map[string]string {
		all := map[string]string{}
		for image, err := range tree.Images(t.Context()) {
			require.NoError(t, err)
			all[image.Product] = image.Fingerprint
		}

		return all
	}
	sum := func(text string) string { return streamstest.Hash([]byte(text)) }

	_, err := tree.Mirror(t.Context(), upstreams(second), nil)
	require.NoError(t, err)
	report, err := tree.Mirror(t.Context(), upstreams(first), nil)
	require.ErrorIs(t, err, simplestreams.ErrExists)
	require.ErrorContains(t, err, second.URL())
	require.Equal(t, "both", report.Failed[0].Product)
	require.Equal(t, map[string]string{"a": sum("first a"), "b": sum("second b"), "both": sum("second both")}, fingerprints())

	_, err = tree.Mirror(t.Context(), append(upstreams(first), upstreams(second)...), nil)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": sum("first a"), "b": sum("second b"), "both": sum("first both")}, fingerprints())
	report, err = tree.Mirror(t.Context(), append(upstreams(first), upstreams(second)...), nil)
	require.NoError(t, err)
	require.True(t, report.Unmodified)
}

// TestMirrorRetires: a version that is not selected any longer is unlisted at once, and its files are deleted after the
// grace period, by a call that finds nothing new.
func TestMirrorRetires(t *testing.T) {
	server := serve(t, streamstest.Tree([]streamstest.Product{{Name: "p", Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte("old")}}}}, nil))
	newer := streamstest.Tree([]streamstest.Product{{Name: "p", Versions: []streamstest.Version{{Serial: "20240102", Unified: []byte("new")}}}}, nil)
	synctest.Test(t, func(t *testing.T) {
		client := handlerClient(t, server, nil)
		store := newMemStore()
		tree := &mirrorTo{Tree: newTree(t, store, &simplestreams.TreeOptions{Grace: time.Hour}), store: store}
		_, err := tree.Mirror(t.Context(), upstreams(client), nil)
		require.NoError(t, err)
		time.Sleep(25 * time.Hour)
		report, err := tree.Mirror(t.Context(), upstreams(client), nil)
		require.NoError(t, err)
		require.True(t, report.Unmodified)
		for path, content := range newer {
			server.Set(path, content)
		}
		report, err = tree.Mirror(t.Context(), upstreams(client), nil)
		require.NoError(t, err)
		require.Len(t, report.Removed, 1)
		require.Equal(t, "20240101", report.Removed[0].Version)
		require.Equal(t, map[string][]string{"p": {"20240102"}}, tree.check(t))
		require.Equal(t, 2, tree.images(t))

		time.Sleep(time.Hour - time.Second)
		report, err = tree.Mirror(t.Context(), upstreams(client), nil)
		require.NoError(t, err)
		require.True(t, report.Unmodified)
		require.Equal(t, 2, tree.images(t))
		time.Sleep(time.Second)
		report, err = tree.Mirror(t.Context(), upstreams(client), nil)
		require.NoError(t, err)
		require.True(t, report.Unmodified)
		require.Equal(t, 1, tree.images(t))
		require.Equal(t, map[string][]string{"p": {"20240102"}}, tree.check(t))
	})
}

// TestMirrorTakesLong: neither files that were stored long before the last one, nor those that are downloaded long after the
// first one, are deleted before they are listed.
func TestMirrorTakesLong(t *testing.T) {
	var several []streamstest.Product
	for i := range 7 {
		several = append(several, streamstest.Product{Name: fmt.Sprint("p", i), Versions: []streamstest.Version{{Serial: "20240101", Unified: fmt.Appendf(nil, "image %d", i)}}})
	}
	server := serve(t, streamstest.Tree(several, nil))
	synctest.Test(t, func(t *testing.T) {
		client := handlerClient(t, server, nil)
		tree := newMirrorTree(t)
		report, err := tree.Mirror(t.Context(), upstreams(client), &simplestreams.MirrorOptions{Parallel: 1, Progress: func(simplestreams.MirrorProgress) {
			time.Sleep(10 * time.Hour)
			// Another program collects meanwhile.
			_, err := newTree(t, tree.store, nil).Prune(t.Context(), nil)
			require.NoError(t, err)
		}})
		require.NoError(t, err)
		require.Len(t, report.Added, 7)
		require.Len(t, tree.check(t), 7)
		require.Equal(t, 7, tree.images(t))
	})
}

// TestMirrorSigned: a mirror is signed by the tree's own Signer, and the upstream's signature is verified.
func TestMirrorSigned(t *testing.T) {
	server := serve(t, mirrorFiles())
	store := newMemStore()
	tree := &mirrorTo{Tree: newTree(t, store, &simplestreams.TreeOptions{Signer: fakeSigner{}}), store: store}
	_, err := tree.Mirror(t.Context(), upstreams(newClient(t, server, nil)), nil)
	require.NoError(t, err)
	require.NotEmpty(t, verified(t, store))

	verifying := newClient(t, serve(t, store.files), func(o *simplestreams.Options) { o.Verifier = fakeSigner{} })
	second := newMirrorTree(t)
	for _, unmodified := range []bool{false, true} {
		report, err := second.Mirror(t.Context(), upstreams(verifying), nil)
		require.NoError(t, err)
		require.Equal(t, unmodified, report.Unmodified)
	}
	require.Equal(t, newest, second.check(t))

	unsignedClient := newClient(t, server, func(o *simplestreams.Options) { o.Verifier = fakeSigner{} })
	_, err = newMirrorTree(t).Mirror(t.Context(), upstreams(unsignedClient), nil)
	require.ErrorIs(t, err, simplestreams.ErrSignature)
}

// TestMirrorVerifiesLater: what was mirrored without a Verifier is not taken for verified, and a tree that was not signed is
// signed by a mirror that finds nothing new.
func TestMirrorVerifiesLater(t *testing.T) {
	files := mirrorFiles()
	for _, path := range []string{streamstest.IndexPath, streamstest.ProductsPath} {
		files[path+".gpg"] = []byte("not a signature")
	}
	server := serve(t, files)
	store := newMemStore()
	_, err := newTree(t, store, nil).Mirror(t.Context(), upstreams(newClient(t, server, nil)), nil)
	require.NoError(t, err)

	verifying := newClient(t, server, func(o *simplestreams.Options) { o.Verifier = fakeSigner{} })
	report, err := newTree(t, store, nil).Mirror(t.Context(), upstreams(verifying), nil)
	require.ErrorIs(t, err, simplestreams.ErrSignature)
	require.False(t, report.Unmodified)

	signing := newTree(t, store, &simplestreams.TreeOptions{Signer: fakeSigner{}})
	for _, dry := range []bool{true, false} {
		report, err = signing.Mirror(t.Context(), upstreams(newClient(t, server, nil)), &simplestreams.MirrorOptions{DryRun: dry})
		require.NoError(t, err)
		require.True(t, report.Unmodified)
		require.Equal(t, dry, store.files[signedIndex] == nil)
	}
	require.NotEmpty(t, verified(t, store))
}
