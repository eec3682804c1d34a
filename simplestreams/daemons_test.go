package simplestreams_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// TestAgreesWithDaemons imports the images of a tree into each real daemon that the environment names, and compares the
// daemon's descriptions with those of this package. internal/cmd/testdaemons starts daemons.
func TestAgreesWithDaemons(t *testing.T) {
	lxd, incus, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, daemon := range append(lxd, incus...) {
		t.Run(daemon.Name(), func(t *testing.T) { testAgreement(t, daemon) })
	}
}

func testAgreement(t *testing.T, daemon *testdaemon.Daemon) {
	family := string(daemon.Family)
	other := map[string]string{"lxd": "incus", "incus": "lxd"}[family]
	unique := family + time.Now().String()
	files := streamstest.Tree(realProducts(t, "both", unique), nil)

	http := serve(t, files)
	signed, selfSigned := streamstest.NewTLSServer(files), streamstest.NewSelfSignedServer(files)
	defer signed.Close()
	defer selfSigned.Close()
	for name, server := range map[string]struct {
		*streamstest.Server
		certificate string
	}{
		"http": {http, ""}, "authority": {signed, signed.CA}, "self-signed": {selfSigned, selfSigned.Certificate},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := simplestreams.New(server.URL, &simplestreams.Options{
				AllowHTTP: true, Certificate: server.certificate, Family: simplestreams.Family(family), DaemonVersion: daemon.Version,
			})
			require.NoError(t, err)
			defer client.Close()
			for _, test := range []struct {
				ref  string
				kind simplestreams.ImageType
			}{
				{"split", ""}, {"split", simplestreams.VirtualMachine}, {"split/arm64", ""}, {"unified", ""}, {"tar", simplestreams.Container},
				{"vm", ""}, {"arm", ""},
			} {
				mine, err := client.Resolve(t.Context(), test.ref, &simplestreams.ResolveOptions{Type: test.kind})
				require.NoError(t, err)
				compare(t, daemon, server.URL, server.certificate, test.ref, test.kind, mine)
				require.Equal(t, mine.Fingerprint, streamstest.Hash(readAll(t, client, mine)))
			}
		})
	}

	t.Run("differences", func(t *testing.T) {
		products := differingProducts(t, unique)
		server := serve(t, streamstest.Tree(products, differ))
		client := newClient(t, server, func(o *simplestreams.Options) {
			o.Family, o.DaemonVersion = simplestreams.Family(family), daemon.Version
		})
		for _, product := range products {
			mine, err := client.Resolve(t.Context(), product.Name, nil)
			require.NoError(t, err)
			compare(t, daemon, server.URL, "", product.Name, "", mine)
			require.Equal(t, mine.Fingerprint, streamstest.Hash(readAll(t, client, mine)))
		}
	})

	t.Run("preference", func(t *testing.T) {
		// In a tree of its own: with a dozen images or more, LXD 5.0.2 at times takes an older version.
		offer := func(name, alias, arch, root string) streamstest.Product {
			return streamstest.Product{
				Name: name, Aliases: []string{alias}, Arch: arch, OS: name, Release: "1", Versions: []streamstest.Version{{
					Serial: "20240302", Family: "both", Metadata: tarball(t, unique+name, false), Roots: map[string][]byte{root: []byte(name)},
				}},
			}
		}
		server := serve(t, streamstest.Tree([]streamstest.Product{
			offer("type:amd64", "type", "amd64", "disk-kvm.img"), offer("type:arm64", "type", "arm64", "squashfs"),
			offer("arch:arm64", "arch", "arm64", "squashfs"), offer("arch:i386", "arch", "i386", "squashfs"),
		}, nil))
		client := newClient(t, server, func(o *simplestreams.Options) {
			o.Family, o.DaemonVersion = simplestreams.Family(family), daemon.Version
		})
		for ref, want := range map[string]string{"type": "type:arm64", "arch": "arch:i386"} {
			mine, err := client.Resolve(t.Context(), ref, nil)
			require.NoError(t, err)
			require.Equal(t, want, mine.Properties["os"])
			compare(t, daemon, server.URL, "", ref, "", mine)
		}
	})

	t.Run("architectures", func(t *testing.T) { testArchitectures(t, daemon) })

	t.Run("the other family's items", func(t *testing.T) {
		server := serve(t, streamstest.Tree(realProducts(t, other, unique), nil))
		client := newClient(t, server, func(o *simplestreams.Options) { o.Family = simplestreams.Family(family) })
		_, err := client.Resolve(t.Context(), "unified", nil)
		require.ErrorIs(t, err, simplestreams.ErrBadData)
		var refusal *testdaemon.Error
		require.ErrorAs(t, daemon.Do(t.Context(), "POST", "/1.0/images", pull(server.URL, "", "unified", ""), nil), &refusal)
	})
}

// testArchitectures imports an image for every spelling of an architecture.
func testArchitectures(t *testing.T, daemon *testdaemon.Daemon) {
	spellings := strings.Fields(`386 aarch64 amd64 arm arm64 arm64_generic armel armhf armhfp armv6l armv7 armv7a_hardfp
		armv7a_vfpv3_hardfp armv7l armv8l generic_32 generic_64 i386 i586 i686 loong64 loongarch64 mips mips64 mips64el mips64le
		mipsel mipsle powerpc powerpc64 ppc ppc64 ppc64el ppc64le riscv32 riscv64 s390x x86 x86_64
		amd64v3 x86_64_v1 x86_64_v2 x86_64_v3 x86_64_v4`)
	var products []streamstest.Product
	for _, spelling := range spellings {
		unified := tarball(t, spelling+time.Now().String(), true)
		products = append(products, streamstest.Product{
			Name: spelling, Aliases: []string{"on-" + spelling}, Arch: spelling,
			Versions: []streamstest.Version{{Serial: "20240101", Family: string(daemon.Family), Unified: unified}},
		})
	}
	server := serve(t, streamstest.Tree(products, nil))
	client := newClient(t, server, func(o *simplestreams.Options) {
		o.Family, o.DaemonVersion = simplestreams.Family(daemon.Family), daemon.Version
	})
	for _, spelling := range spellings {
		if daemon.Family == testdaemon.LXD && strings.HasPrefix(spelling, "loong") {
			continue // LXD 5.0.2 does not know it.
		}
		mine, err := client.Resolve(t.Context(), "on-"+spelling, nil)
		if strings.Contains(spelling, "v") && err != nil {
			require.ErrorIs(t, err, simplestreams.ErrBadData)
			require.Error(t, daemon.Do(t.Context(), "POST", "/1.0/images", pull(server.URL, "", "on-"+spelling, ""), nil), spelling)
			continue
		}
		require.NoError(t, err)
		compare(t, daemon, server.URL, "", "on-"+spelling, "", mine)
	}
}

func pull(server, certificate, ref string, kind simplestreams.ImageType) map[string]any {
	return map[string]any{"source": map[string]any{
		"type": "image", "mode": "pull", "protocol": "simplestreams", "server": server, "certificate": certificate,
		"alias": ref, "image_type": string(kind),
	}}
}

// compare imports an image by its alias and compares the result.
func compare(t *testing.T, daemon *testdaemon.Daemon, server, certificate, ref string, kind simplestreams.ImageType, mine *simplestreams.Image) {
	t.Helper()
	var imported struct{ Fingerprint string }
	require.NoError(t, daemon.Do(t.Context(), "POST", "/1.0/images", pull(server, certificate, ref, kind), &imported))
	type description struct {
		Fingerprint, Architecture, Type string
		Size                            int64
		Properties                      map[string]string
		CreatedAt                       time.Time `json:"created_at"`
		ExpiresAt                       time.Time `json:"expires_at"`
	}
	var theirs description
	require.NoError(t, daemon.Do(t.Context(), "GET", "/1.0/images/"+imported.Fingerprint, nil, &theirs))
	ours := description{
		mine.Fingerprint, mine.Architecture, string(mine.Type), mine.Size, mine.Properties, mine.CreatedAt, mine.ExpiresAt,
	}
	if mine.ExpiresAt.IsZero() {
		ours.ExpiresAt = time.Unix(0, 0).UTC()
	}
	require.Equal(t, theirs, ours, ref)
	require.NoError(t, daemon.Do(t.Context(), "DELETE", "/1.0/images/"+imported.Fingerprint, nil, nil))
}

// realProducts are products whose metadata daemons accept.
func realProducts(t *testing.T, family, unique string) []streamstest.Product {
	split := func(serial string) streamstest.Version {
		return streamstest.Version{
			Serial: serial, Label: "release", Family: family, Metadata: tarball(t, unique+serial, false),
			Roots: map[string][]byte{"squashfs": []byte(serial), "root.tar.xz": tarball(t, serial, true), "disk-kvm.img": []byte("disk " + serial)},
		}
	}
	only := func(name, arch, root string) streamstest.Product {
		version := split("20240302")
		version.Metadata = tarball(t, unique+name, false)
		version.Roots = map[string][]byte{root: version.Roots[root]}

		return streamstest.Product{Name: name, Aliases: []string{name}, Arch: arch, OS: name, Release: "1", Versions: []streamstest.Version{version}}
	}
	first := streamstest.Product{
		Name: "split:amd64", Aliases: []string{"split/default", "split"}, OS: "Split", Release: "noble", ReleaseTitle: "24.04 LTS", Version: "24.04",
		Variant: "default", EndOfLife: "2099-05-31", Requirements: map[string]string{"secureboot": "false"},
		Versions: []streamstest.Version{split("20240101_07:42"), split("20240201_07:42")},
	}
	second := only("split:arm64", "arm64", "squashfs")
	second.Aliases, second.OS, second.Release = first.Aliases, first.OS, first.Release
	unified := streamstest.Version{Serial: "20240301", Family: family, Unified: tarball(t, unique+"unified", true)}

	return []streamstest.Product{
		first, second, only("tar", "", "root.tar.xz"), only("vm", "", "disk-kvm.img"), only("arm", "arm64", "squashfs"),
		{Name: "unified", Aliases: []string{"unified"}, OS: "Unified", Release: "3.20", Versions: []streamstest.Version{unified}},
	}
}

// differingProducts are products that the daemons describe differently once differ has changed the index.
func differingProducts(t *testing.T, unique string) []streamstest.Product {
	var products []streamstest.Product
	for _, name := range []string{"cloud", "shared", "own", "empty", "slash", "escaped"} {
		products = append(products, streamstest.Product{
			Name: name, Aliases: []string{name}, OS: "Differs", Release: "1", Variant: "cloud",
			Versions: []streamstest.Version{{Serial: "20240301", Label: "release", Family: "both", Unified: tarball(t, unique+name, true)}},
		})
	}

	return products
}

func differ(products streamstest.Object) {
	set := func(name, key string, value any) { products[name].(streamstest.Object)[key] = value }
	set("shared", "variant", "default")
	set("shared", "requirements", streamstest.Object{"secureboot": "false"})
	set("own", "requirements", streamstest.Object{"both": "shared", "shared": "yes"})
	set("own", "lxd_requirements", streamstest.Object{"both": "own", "own": "yes"})
	set("empty", "requirements", streamstest.Object{"shared": "yes"})
	set("empty", "lxd_requirements", streamstest.Object{})
	for name, change := range map[string]func(string) string{
		"slash":   func(path string) string { return "/" + path },
		"escaped": func(path string) string { return strings.Replace(path, "incus_", "incus%5F", 1) }, // LXD takes this literally
	} {
		version := products[name].(streamstest.Object)["versions"].(streamstest.Object)["20240301"].(streamstest.Object)
		for _, each := range version["items"].(streamstest.Object) {
			item := each.(streamstest.Object)
			item["path"] = change(item["path"].(string))
		}
	}
}

// tarball is metadata that differs from the index in every value that is in both.
func tarball(t *testing.T, name string, rootfs bool) []byte {
	var packed bytes.Buffer
	compressor := gzip.NewWriter(&packed)
	archive := tar.NewWriter(compressor)
	metadata := "architecture: x86_64\ncreation_date: 1500000000\nexpiry_date: 1900000000\nproperties:\n  os: Metadata\n  name: \"" + name + "\"\n"
	require.NoError(t, archive.WriteHeader(&tar.Header{Name: "metadata.yaml", Mode: 0o644, Size: int64(len(metadata))}))
	_, err := archive.Write([]byte(metadata))
	require.NoError(t, err)
	if rootfs {
		require.NoError(t, archive.WriteHeader(&tar.Header{Name: "rootfs/", Mode: 0o755, Typeflag: tar.TypeDir}))
	}
	require.NoError(t, archive.Close())
	require.NoError(t, compressor.Close())

	return packed.Bytes()
}

// TestDaemonsImportFromMirror imports the images of a mirror into each real daemon that the environment names.
func TestDaemonsImportFromMirror(t *testing.T) {
	lxd, incus, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, daemon := range append(lxd, incus...) {
		t.Run(daemon.Name(), func(t *testing.T) {
			files := streamstest.Tree(realProducts(t, "both", daemon.Name()+time.Now().String()), nil)
			tree := newMirrorTree(t)
			_, err := tree.Mirror(t.Context(), upstreams(newClient(t, serve(t, files), nil)), nil)
			require.NoError(t, err)
			server := serve(t, tree.store.files)
			client := newClient(t, server, func(o *simplestreams.Options) {
				o.Family, o.DaemonVersion = simplestreams.Family(daemon.Family), daemon.Version
			})
			for _, test := range []struct {
				ref  string
				kind simplestreams.ImageType
			}{{"split", ""}, {"split", simplestreams.VirtualMachine}, {"split/arm64", ""}, {"unified", ""}, {"tar", ""}, {"vm", ""}} {
				mine, err := client.Resolve(t.Context(), test.ref, &simplestreams.ResolveOptions{Type: test.kind})
				require.NoError(t, err)
				compare(t, daemon, server.URL, "", test.ref, test.kind, mine)
			}
		})
	}
}
