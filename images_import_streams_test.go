package lxd_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// tree is a simplestreams tree with an image of each kind, for servers of one
// family or "both".
func tree(t *testing.T, family string, edit func(products streamstest.Object)) map[string][]byte {
	t.Helper()
	seed := rand.Text()
	split := func(name, serial, root string) streamstest.Version {
		metadata, content := lxdtest.SplitImage(seed+name+serial, 100_000)
		if root == "disk-kvm.img" {
			metadata, content = lxdtest.VMImage(seed+name+serial, 100_000)
		}
		return streamstest.Version{Serial: serial, Label: "release", Family: family, Metadata: metadata, Roots: map[string][]byte{root: content}}
	}
	both := split("both", "20240201_07:42", "squashfs")
	_, both.Roots["disk-kvm.img"] = lxdtest.VMImage(seed, 0)
	return streamstest.Tree([]streamstest.Product{
		{
			Name: "distro:noble:amd64", Aliases: []string{"distro/noble", "distro"}, OS: "Distro", Release: "noble", ReleaseTitle: "24.04 LTS",
			Version: "24.04", Variant: "default", EndOfLife: "2099-05-31",
			Versions: []streamstest.Version{split("squashfs", "20240101_07:42", "squashfs"), split("squashfs", "20240201_07:42", "squashfs")},
		},
		{Name: "rootxz", Aliases: []string{"rootxz"}, OS: "Rootxz", Release: "1", Versions: []streamstest.Version{split("rootxz", "20240101", "root.tar.xz")}},
		{Name: "vm", Aliases: []string{"vm"}, OS: "VM", Release: "1", Versions: []streamstest.Version{split("vm", "20240101", "disk-kvm.img")}},
		{Name: "both", Aliases: []string{"both"}, OS: "Both", Release: "1", Requirements: map[string]string{"secureboot": "false"}, Versions: []streamstest.Version{both}},
		{
			Name: "unified", Aliases: []string{"unified"}, OS: "Unified", Release: "1",
			Versions: []streamstest.Version{{Serial: "20240101", Family: family, Unified: lxdtest.UnifiedImage(seed, 100_000)}},
		},
	}, edit)
}

// importStreams are the servers of a tree, over http and over https.
func importStreams(t *testing.T, files map[string][]byte) map[string]*streamstest.Server {
	t.Helper()
	servers := map[string]*streamstest.Server{
		"http": streamstest.NewServer(files), "authority": streamstest.NewTLSServer(files), "self-signed": streamstest.NewSelfSignedServer(files),
	}
	for _, s := range servers {
		t.Cleanup(s.Close)
	}
	return servers
}

func (target *importTarget) streamsFrom(s *streamstest.Server) *lxd.CreateFromSimplestreamsOptions {
	return &lxd.CreateFromSimplestreamsOptions{Certificate: s.CA, AllowHTTP: true, Wait: true}
}

// TestImportStreamsByServerAndByClient has the server and the client import the same
// images, and compares the results.
func TestImportStreamsByServerAndByClient(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		c := target.client
		for name, source := range importStreams(t, tree(t, "both", nil)) {
			if target.fake != nil && target.fake.Dialect() == lxdtest.LXD69 {
				if name != "http" {
					continue // a registry is what says whom to trust
				}
				target.fake.AddRegistry("distro", source.URL)
			}
			for _, ref := range []struct {
				alias string
				kind  lxd.ImageType
			}{
				{"distro/noble", ""}, {"distro/amd64", lxd.Container}, {"rootxz", ""}, {"vm", lxd.VirtualMachine}, {"both", lxd.Container},
				{"both", lxd.VirtualMachine}, {"unified", ""},
			} {
				var made [2]lxd.Image
				for n, via := range []lxd.Via{lxd.ViaServer, lxd.ViaClient} {
					opts := target.streamsFrom(source)
					opts.Via, opts.Type = via, ref.kind
					opts.Aliases = []lxd.Alias{{Name: "local", Description: "of " + ref.alias}}
					opts.Properties = map[string]string{"label": "ours", "origin": "test"}
					opts.Filename = "given"
					opts.Profiles = []string{"default"}
					image, err := c.Images.CreateFromSimplestreams(t.Context(), source.URL, ref.alias, opts)
					require.NoError(t, err, "%s %s %s", name, ref.alias, via)
					made[n] = *image
					if via == lxd.ViaServer {
						require.Equal(t, ref.alias, image.UpdateSource.Alias)
					}
					require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
				}
				requireSameImport(t, made[0], made[1])
				require.Equal(t, "given", made[0].Filename)
				require.Equal(t, "ours", made[0].Properties["label"])
			}
		}
	})
}

func requireSameImport(t *testing.T, server, client lxd.Image) {
	t.Helper()
	require.Equal(t, server.Fingerprint, client.Fingerprint)
	require.Equal(t, server.Aliases, client.Aliases)
	require.Equal(t, server.Properties, client.Properties)
	require.Equal(t, server.Profiles, client.Profiles)
	require.Equal(t, server.Type, client.Type)
	require.Equal(t, server.Architecture, client.Architecture)
	if server.Filename != "" { // Incus 6.0.4 does not keep that of the index
		require.Equal(t, server.Filename, client.Filename)
	}
	require.Equal(t, server.Size, client.Size)
	require.Equal(t, server.Public, client.Public)
	require.Equal(t, server.Cached, client.Cached)
	require.True(t, server.ExpiresAt.Equal(client.ExpiresAt), "%v %v", server.ExpiresAt, client.ExpiresAt)
}

// TestImportStreamsPlain compares imports without any option, by each kind of name of
// an image.
func TestImportStreamsPlain(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		source := importStreams(t, tree(t, "both", nil))["http"]
		streams, err := simplestreams.New(source.URL, &simplestreams.Options{AllowHTTP: true, Family: target.family})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, streams.Close()) })
		newest, err := streams.Resolve(t.Context(), "distro", nil)
		require.NoError(t, err)
		vias := []lxd.Via{lxd.ViaAuto, lxd.ViaClient}
		if target.takesStreams {
			vias = append(vias, lxd.ViaServer)
		}
		var first *lxd.Image
		for _, via := range vias {
			for _, ref := range []string{"distro", newest.Fingerprint, newest.Fingerprint[:14]} {
				opts := target.streamsFrom(source)
				opts.Via, opts.Wait = via, false
				image, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, ref, opts)
				require.NoError(t, err, "%s %s", via, ref)
				require.NoError(t, image.Wait(t.Context()), "%s %s", via, ref)
				require.Equal(t, newest.Fingerprint, image.Fingerprint)
				require.Equal(t, newest.Properties, image.Properties)
				require.True(t, image.ExpiresAt.Equal(newest.ExpiresAt))
				if first == nil {
					first = image
				}
				requireSameImport(t, *first, *image)

				// The server has it, and only the options are applied.
				opts.Properties, opts.Wait = map[string]string{"again": "yes"}, true
				again, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, ref, opts)
				require.NoError(t, err, "%s %s", via, ref)
				require.Equal(t, "yes", again.Properties["again"])
				require.Equal(t, "Distro", again.Properties["os"])
				require.NoError(t, again.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			}
		}
	})
}

// TestImportStreamsOfTheOtherFamily uses a tree that has no image for the server.
func TestImportStreamsOfTheOtherFamily(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		other := map[lxd.Family]string{lxd.LXD: "incus", lxd.Incus: "lxd"}[target.family]
		source := importStreams(t, tree(t, other, nil))["http"]
		for _, ref := range []string{"distro", "unified"} {
			opts := target.streamsFrom(source)
			image, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, ref, opts)
			require.NoError(t, err)
			require.Equal(t, lxd.Container, image.Type)
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		}
		opts := target.streamsFrom(source)
		opts.Via = lxd.ViaServer
		_, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, "distro", opts)
		require.Error(t, err)
		target.requireEmpty(t)
	})
}

// badStream is a simplestreams server that must be refused.
type badStream struct {
	edit    func(products streamstest.Object)
	fault   string // path with a fault; "*" is the first image's rootfs
	is      streamstest.Fault
	ref     string
	check   func(t *testing.T, err error)
	mention string
}

func matches(sentinel error) func(*testing.T, error) {
	return func(t *testing.T, err error) {
		t.Helper()
		require.ErrorIs(t, err, sentinel)
		require.NotErrorIs(t, err, io.EOF)
	}
}

func item(products streamstest.Object, name string) streamstest.Object {
	version := products["distro:noble:amd64"].(streamstest.Object)["versions"].(streamstest.Object)["20240201_07:42"].(streamstest.Object)
	return version["items"].(streamstest.Object)[name].(streamstest.Object)
}

func badStreams() map[string]badStream {
	wrong := strings.Repeat("ab", 32)
	fingerprintError := func(t *testing.T, err error) { t.Helper(); testkit.ErrOf[*lxd.FingerprintError](t, err) }
	fileError := func(t *testing.T, err error) { t.Helper(); testkit.ErrOf[*simplestreams.Error](t, err) }
	const rootfs = "images/distro/noble/amd64/20240201_07:42/rootfs.squashfs"
	return map[string]badStream{
		"not JSON":       {fault: streamstest.IndexPath, is: streamstest.HTML(), check: matches(simplestreams.ErrBadData), mention: "index.json"},
		"no index":       {fault: streamstest.IndexPath, is: streamstest.Status(http.StatusNotFound), check: matches(lxd.ErrNotFound), mention: "index.json"},
		"cut index":      {fault: streamstest.ProductsPath, is: streamstest.Cut(500), check: fileError, mention: "images.json"},
		"loop":           {fault: streamstest.IndexPath, is: streamstest.RedirectLoop(), check: matches(simplestreams.ErrRedirect), mention: "index.json"},
		"unknown alias":  {ref: "distro/nosuch", check: matches(lxd.ErrNotFound), mention: "distro/nosuch"},
		"unknown prefix": {ref: "0123456789abcdef0123", check: matches(lxd.ErrNotFound), mention: "0123456789abcdef0123"},
		"no versions": {
			edit: func(p streamstest.Object) {
				p["distro:noble:amd64"].(streamstest.Object)["versions"] = streamstest.Object{}
			},
			check: matches(simplestreams.ErrBadData), mention: "no versions",
		},
		"path upwards": {
			edit:  func(p streamstest.Object) { item(p, "rootfs.squashfs")["path"] = "../../etc/passwd" },
			check: matches(simplestreams.ErrBadData), mention: "..",
		},
		"wrong hash": {
			edit:  func(p streamstest.Object) { item(p, "rootfs.squashfs")["sha256"] = wrong },
			check: fingerprintError, mention: "rootfs.squashfs",
		},
		"wrong combined hash": {
			edit: func(p streamstest.Object) {
				for _, family := range []string{"lxd", "incus"} {
					item(p, family+".tar.xz")["combined_squashfs_sha256"] = wrong
				}
			},
			check: fingerprintError, mention: wrong,
		},
		"corrupt":   {fault: rootfs, is: streamstest.Corrupt(1000), check: fingerprintError, mention: "rootfs.squashfs"},
		"truncated": {fault: rootfs, is: streamstest.Truncate(1000), check: matches(simplestreams.ErrBadData), mention: "rootfs.squashfs"},
		"cut":       {fault: rootfs, is: streamstest.Cut(0), check: fileError, mention: "rootfs.squashfs"},
		"no file":   {fault: rootfs, is: streamstest.Status(http.StatusNotFound), check: matches(lxd.ErrNotFound), mention: "rootfs.squashfs"},
		"page":      {fault: rootfs, is: streamstest.HTML(), check: matches(simplestreams.ErrBadData), mention: "rootfs.squashfs"},
	}
}

func TestImportStreamsFromBadServers(t *testing.T) {
	t.Parallel()
	onImportTargetsWith(t, shortRetries, func(t *testing.T, target *importTarget) {
		for name, bad := range badStreams() {
			t.Run(name, func(t *testing.T) {
				source := importStreams(t, tree(t, "both", bad.edit))["http"]
				if bad.fault != "" {
					source.Fault(bad.fault, bad.is)
				}
				ref := bad.ref
				if ref == "" {
					ref = "distro"
				}
				vias := []lxd.Via{lxd.ViaClient, lxd.ViaAuto, lxd.ViaServer}
				if name == "loop" && target.fake == nil {
					vias = vias[:1] // the daemons do not get away from it
				}
				requireImportFails(t, target, vias, bad.check, bad.mention, func(via lxd.Via) (*lxd.Image, error) {
					opts := target.streamsFrom(source)
					opts.Via, opts.Aliases = via, []lxd.Alias{{Name: "never"}}
					opts.HTTPClient, opts.StallTimeout = &http.Client{}, time.Second
					return target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, ref, opts)
				})
			})
		}
	})
}

func TestImportStreamsStalls(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		for _, path := range []string{streamstest.IndexPath, "images/distro/noble/amd64/20240201_07:42/rootfs.squashfs"} {
			source := importStreams(t, tree(t, "both", nil))["http"]
			source.Fault(path, streamstest.Stall(10))
			for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaClient} {
				ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
				begin := time.Now()
				opts := target.streamsFrom(source)
				opts.Via = via
				_, err := target.client.Images.CreateFromSimplestreams(ctx, source.URL, "distro", opts)
				cancel()
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Less(t, time.Since(begin), patience)
			}
		}
	})
}

// TestImportStreamsInsecure: the client refuses http unless it is allowed.
func TestImportStreamsInsecure(t *testing.T) {
	t.Parallel()
	target := importFake(t, lxdtest.LXD50, nil)
	source := importStreams(t, tree(t, "lxd", nil))["http"]
	_, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, "distro", &lxd.CreateFromSimplestreamsOptions{Via: lxd.ViaClient, Wait: true})
	require.ErrorIs(t, err, simplestreams.ErrInsecure)
	require.ErrorContains(t, err, "AllowHTTP")
	require.Empty(t, source.Requests())
}

// TestImportStreamsAutoUpdate: AutoUpdate is set if the server fetches the image, and
// otherwise refused.
func TestImportStreamsAutoUpdate(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		c := target.client
		source := importStreams(t, tree(t, "both", nil))["http"]
		opts := target.streamsFrom(source)
		opts.AutoUpdate = true
		if !target.takesStreams {
			_, err := c.Images.CreateFromSimplestreams(t.Context(), source.URL, "distro", opts)
			require.ErrorIs(t, err, lxd.ErrUnsupported)
			require.ErrorContains(t, err, "registr")
			target.fake.AddRegistry("distro", source.URL+"/")
		}
		image, err := c.Images.CreateFromSimplestreams(t.Context(), source.URL, "distro", opts)
		require.NoError(t, err)
		require.True(t, image.AutoUpdate)
		require.Equal(t, "distro", image.UpdateSource.Alias)
		if !target.takesStreams {
			require.Equal(t, "distro", image.UpdateSource.ImageRegistry)
		}
		require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))

		// A fingerprint has no newer version.
		_, err = c.Images.CreateFromSimplestreams(t.Context(), source.URL, image.Fingerprint, opts)
		require.Equal(t, "CreateFromSimplestreamsOptions.AutoUpdate", testkit.ErrOf[*lxd.InputError](t, err).Field)

		// The client could fetch it, but nobody would update it.
		source.Fault(streamstest.IndexPath, streamstest.Status(http.StatusInternalServerError))
		fresh := importStreams(t, nil)["http"]
		_, err = c.Images.CreateFromSimplestreams(t.Context(), fresh.URL, "distro", opts)
		require.ErrorIs(t, err, lxd.ErrUnsupported)
		target.requireEmpty(t)

		// The server already had it, without a source.
		opts.AutoUpdate, opts.Via = false, lxd.ViaClient
		source.Fault(streamstest.IndexPath, nil)
		_, err = c.Images.CreateFromSimplestreams(t.Context(), source.URL, "distro", opts)
		require.NoError(t, err)
		opts.AutoUpdate, opts.Via = true, lxd.ViaAuto
		there, err := c.Images.CreateFromSimplestreams(t.Context(), source.URL, "distro", opts)
		require.ErrorIs(t, err, lxd.ErrUnsupported)
		require.Equal(t, image.Fingerprint, there.Fingerprint)
		require.NoError(t, there.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
	})
}

// TestImportStreamsWhoseOperationIsForgotten has the server forget the operation of an
// import: the source determines the fingerprint.
func TestImportStreamsWhoseOperationIsForgotten(t *testing.T) {
	t.Parallel()
	for _, aliases := range [][]lxd.Alias{nil, {{Name: "local"}}} {
		target := importFake(t, lxdtest.LXD50, nil)
		source := importStreams(t, tree(t, "lxd", nil))["http"]
		target.fake.Inject(lxdtest.ForgetOperations())
		opts := target.streamsFrom(source)
		opts.Aliases = aliases
		image, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, "unified", opts)
		require.NoError(t, err)
		require.Equal(t, "Unified", image.Properties["os"])
		require.Equal(t, len(aliases), len(image.Aliases))

		// Nothing determines it here: the server is another, and the source does not exist.
		reached := make(chan struct{})
		source.Fault("images/vm/20240101/rootfs.disk-kvm.img", func(s *streamstest.Server, next http.Handler) http.Handler {
			close(reached)
			return streamstest.Stall(10)(s, next)
		})
		opts.Aliases, opts.Type, opts.Wait = nil, lxd.VirtualMachine, false
		image, err = target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, "vm", opts)
		require.NoError(t, err)
		<-reached
		source.Fault(streamstest.IndexPath, streamstest.Status(http.StatusNotFound))
		target.fake.Restart()
		require.ErrorIs(t, image.Wait(t.Context()), lxd.ErrOutcomeUnknown)
	}
}

// TestImportStreamsArchitecture imports "alias/x86_64", where the index says amd64, by
// the server: only then the image has an update source.
func TestImportStreamsArchitecture(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		source := importStreams(t, tree(t, "both", nil))["http"]
		if !target.takesStreams {
			target.fake.AddRegistry("distro", source.URL)
		}
		for ref, asked := range map[string]string{"distro/noble/x86_64": "distro/noble/amd64", "distro/amd64": "distro/amd64"} {
			opts := target.streamsFrom(source)
			opts.AutoUpdate = true
			image, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, ref, opts)
			require.NoError(t, err)
			require.Equal(t, asked, image.UpdateSource.Alias)
			require.True(t, image.AutoUpdate)
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		}

		// The client cannot read the index: the server gets the name as it is.
		opts := target.streamsFrom(source)
		opts.AllowHTTP, opts.Via = false, lxd.ViaServer
		_, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, "distro/x86_64", opts)
		require.Error(t, err)
		target.requireEmpty(t)
	})
}

// TestImportStreamsReplacedVersion has an index in the cache whose files the source has
// replaced by those of a new version.
func TestImportStreamsReplacedVersion(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		for n, gone := range []string{"lxd.tar.xz incus.tar.xz rootfs.squashfs", "rootfs.squashfs", "rootfs.squashfs"} {
			old := tree(t, "both", nil)
			source := importStreams(t, old)["http"]
			cache := simplestreams.DirCache(t.TempDir())
			streams, err := simplestreams.New(source.URL, &simplestreams.Options{AllowHTTP: true, Cache: cache})
			require.NoError(t, err)
			require.NoError(t, streams.Refresh(t.Context()))
			require.NoError(t, streams.Close())
			for name := range strings.FieldsSeq(gone) {
				path := "images/distro/noble/amd64/20240201_07:42/" + name
				if n < 2 {
					source.Set(path, nil)
					continue
				}
				other := bytes.Clone(old[path])
				other[0]++
				source.Set(path, other)
			}
			next := tree(t, "both", func(products streamstest.Object) {
				product := products["distro:noble:amd64"].(streamstest.Object)
				delete(product["versions"].(streamstest.Object), "20240201_07:42")
			})
			for path, content := range next {
				if !strings.Contains(path, "20240201") {
					source.Set(path, content)
				}
			}
			opts := target.streamsFrom(source)
			opts.Via, opts.Cache = lxd.ViaClient, cache
			image, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, "distro", opts)
			require.NoError(t, err)
			require.Equal(t, "20240101_07:42", image.Properties["serial"])
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			target.requireEmpty(t)
		}
	})
}

// TestImportStreamsLikeTheServer has the server and the client import what the daemons
// describe differently.
func TestImportStreamsLikeTheServer(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		if target.fake != nil {
			return // what the daemons do is compared with the daemons
		}
		source := importStreams(t, tree(t, "both", func(products streamstest.Object) {
			product := products["unified"].(streamstest.Object)
			product["variant"] = "cloud"
			product["requirements"] = streamstest.Object{"secureboot": "false"}
			for _, item := range product["versions"].(streamstest.Object)["20240101"].(streamstest.Object)["items"].(streamstest.Object) {
				item.(streamstest.Object)["path"] = "/" + item.(streamstest.Object)["path"].(string)
			}
		}))["http"]
		var made [2]lxd.Image
		for n, via := range []lxd.Via{lxd.ViaServer, lxd.ViaClient} {
			opts := target.streamsFrom(source)
			opts.Via = via
			image, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, "unified", opts)
			require.NoError(t, err, via)
			made[n] = *image
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		}
		requireSameImport(t, made[0], made[1])
	})
}

// TestEnsureReadsOneIndex: sources with a common cache read the index once.
func TestEnsureReadsOneIndex(t *testing.T) {
	t.Parallel()
	const aliases = 50
	tree, names := manyProducts(t, aliases)
	server := streamstest.NewServer(tree)
	t.Cleanup(server.Close)
	size := int64(len(tree[streamstest.IndexPath]) + len(tree[streamstest.ProductsPath]))
	for _, test := range []struct {
		cache    simplestreams.Cache
		names    []string
		requests int64
	}{{simplestreams.DirCache(t.TempDir()), names, 2}, {nil, names[:10], 2 * 10}} {
		f := testkit.StartFake(t)
		f.Inject(lxdtest.CacheStreams())
		reads := &reads{RoundTripper: http.DefaultTransport}
		opts := &lxd.FromSimplestreamsOptions{AllowHTTP: true, Cache: test.cache, HTTPClient: &http.Client{Transport: reads}}
		for _, name := range test.names {
			_, err := f.Client.Images.Ensure(t.Context(), lxd.FromSimplestreams(server.URL, name, opts), &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: name}}})
			require.NoError(t, err)
		}
		require.Equal(t, test.requests, reads.requests.Load())
		require.Equal(t, test.requests/2*size, reads.bytes.Load())
		images, err := f.Client.Images.All(t.Context(), nil)
		require.NoError(t, err)
		require.Len(t, images, len(test.names))
	}
}

// manyProducts returns the tree of a simplestreams server with so many images, and an
// alias of each.
func manyProducts(tb testing.TB, n int) (tree map[string][]byte, names []string) {
	tb.Helper()
	var products []streamstest.Product
	for i := range n {
		name := fmt.Sprintf("product-%d", i)
		names = append(names, name)
		products = append(products, streamstest.Product{
			Name: name, Aliases: []string{name}, OS: "Distro", Release: "1",
			Versions: []streamstest.Version{{Serial: "20240101", Family: "both", Unified: lxdtest.UnifiedImage(name, 0)}},
		})
	}
	return streamstest.Tree(products, nil), names
}

// reads counts the requests that a client sends, and the bytes that it reads.
type reads struct {
	http.RoundTripper

	requests, bytes atomic.Int64
}

func (r *reads) RoundTrip(req *http.Request) (*http.Response, error) {
	r.requests.Add(1)
	res, err := r.RoundTripper.RoundTrip(req)
	if err == nil {
		res.Body = &readBody{res.Body, &r.bytes}
	}
	return res, err
}

type readBody struct {
	io.ReadCloser

	bytes *atomic.Int64
}

func (b *readBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(int64(n))
	return n, err
}

// markVerifier takes what begins with "signed:" for signed.
type markVerifier struct{}

func (markVerifier) VerifyInline(signed []byte) ([]byte, error) {
	document, ok := bytes.CutPrefix(signed, []byte("signed:"))
	if !ok {
		return nil, errors.New("the mark is missing")
	}
	return document, nil
}

func (markVerifier) VerifyDetached(_, _ []byte) error { return errors.New("the mark is missing") }

// TestImportStreamsSigned imports only from a signed index.
func TestImportStreamsSigned(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	files := tree(t, "both", nil)
	streams := streamstest.NewServer(files)
	t.Cleanup(streams.Close)
	opts := func(via lxd.Via) *lxd.CreateFromSimplestreamsOptions {
		return &lxd.CreateFromSimplestreamsOptions{AllowHTTP: true, Verifier: markVerifier{}, Via: via, Wait: true}
	}
	for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaServer} {
		_, err := f.Client.Images.CreateFromSimplestreams(t.Context(), streams.URL, "unified", opts(via))
		input := testkit.ErrOf[*lxd.InputError](t, err)
		require.Equal(t, "CreateFromSimplestreamsOptions.Verifier", input.Field)
	}
	source := lxd.FromSimplestreams(streams.URL, "unified", &lxd.FromSimplestreamsOptions{AllowHTTP: true, Verifier: markVerifier{}, Via: lxd.ViaClient})
	_, err := f.Client.Images.InstanceSource(t.Context(), source)
	require.ErrorIs(t, err, lxd.ErrInvalid, "the server would fetch it")
	require.Empty(t, streams.Requests())

	_, err = f.Client.Images.CreateFromSimplestreams(t.Context(), streams.URL, "unified", opts(lxd.ViaClient))
	require.ErrorIs(t, err, simplestreams.ErrSignature)
	_, err = source.Resolve(t.Context(), f.Client)
	require.ErrorIs(t, err, simplestreams.ErrSignature)
	_, err = f.Client.Images.CreateFrom(t.Context(), source, nil)
	require.ErrorIs(t, err, simplestreams.ErrSignature)

	for _, path := range []string{streamstest.IndexPath, streamstest.ProductsPath} {
		streams.Set(strings.TrimSuffix(path, ".json")+".sjson", append([]byte("signed:"), files[path]...))
		streams.Set(path, nil)
	}
	image, err := f.Client.Images.CreateFromSimplestreams(t.Context(), streams.URL, "unified", opts(lxd.ViaClient))
	require.NoError(t, err)
	require.Equal(t, "Unified", image.Properties["os"])
	again, err := f.Client.Images.CreateFrom(t.Context(), source, &lxd.CreateFromOptions{Wait: true})
	require.NoError(t, err)
	require.Equal(t, image.Fingerprint, again.Fingerprint)
}
