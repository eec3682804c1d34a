package simplestreams_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// TestEachDaemonsReading reads one index for each daemon. TestAgreesWithDaemons compares with the daemons themselves.
func TestEachDaemonsReading(t *testing.T) {
	products := differingProducts(t, "")
	for _, arch := range []string{"amd64v3", "x86_64_v1", "x86_64_v4", "x86_64_v5"} {
		products = append(products, streamstest.Product{
			Name: arch, Aliases: []string{arch}, Arch: arch,
			Versions: []streamstest.Version{{Serial: "20240101", Family: "both", Unified: []byte(arch)}},
		})
	}
	server := serve(t, streamstest.Tree(products, differ))
	for _, test := range []struct {
		family      simplestreams.Family
		version     string
		shared      string // the requirement of a product that has only the shared ones
		empty       string // that of a product with empty requirements for LXD
		variant     string
		knows       []string
		knowsNot    []string
		readsEscape bool
	}{
		{"lxd", "5.0.2", "", "", "", nil, []string{"amd64v3", "x86_64_v1", "x86_64_v5"}, false},
		{"lxd", "4.0.13", "", "", "", nil, []string{"amd64v3"}, false},
		{"lxd", "6.9", "false", "", "", []string{"amd64v3"}, []string{"x86_64_v1", "x86_64_v4"}, false},
		{"lxd", "", "false", "", "", []string{"amd64v3"}, []string{"x86_64_v1"}, false},
		{"incus", "6.0.4", "false", "yes", "", nil, []string{"amd64v3", "x86_64_v1"}, true},
		{"incus", "7.0.2", "false", "yes", " (cloud)", []string{"x86_64_v1", "x86_64_v4"}, []string{"amd64v3", "x86_64_v5"}, true},
		{"incus", "edge", "false", "yes", " (cloud)", []string{"x86_64_v4"}, []string{"amd64v3"}, true},
		{"", "", "false", "", "", []string{"amd64v3", "x86_64_v4"}, []string{"x86_64_v5"}, false},
	} {
		t.Run(string(test.family)+test.version, func(t *testing.T) {
			client := newClient(t, server, func(o *simplestreams.Options) { o.Family, o.DaemonVersion = test.family, test.version })
			get := func(name string) *simplestreams.Image {
				t.Helper()
				image, err := client.Resolve(t.Context(), name, nil)
				require.NoError(t, err)

				return image
			}
			require.Equal(t, test.shared, get("shared").Properties["requirements.secureboot"])
			require.Equal(t, test.empty, get("empty").Properties["requirements.shared"])
			own := "own"
			if test.family == simplestreams.Incus {
				own = "shared"
			}
			require.Equal(t, own, get("own").Properties["requirements.both"])
			require.Equal(t, "Differs  amd64"+test.variant+" (release) (20240301)", get("cloud").Properties["description"])
			require.Equal(t, "cloud", get("cloud").Properties["variant"])
			require.Equal(t, "Differs  amd64 (release) (20240301)", get("shared").Properties["description"])
			for _, name := range test.knows {
				require.Equal(t, "x86_64", get(name).Architecture)
			}
			for _, name := range test.knowsNot {
				_, err := client.Resolve(t.Context(), name, nil)
				require.ErrorIs(t, err, simplestreams.ErrBadData, name)
				require.ErrorContains(t, err, name)
			}
			require.Equal(t, get("slash").Fingerprint, streamstest.Hash(readAll(t, client, get("slash"))))
			require.Equal(t, "images/slash/20240301/"+get("slash").Filename, get("slash").Files[0].Path)
			if test.readsEscape {
				require.Equal(t, "incus_combined.tar.gz", get("escaped").Filename)
				require.Equal(t, get("escaped").Fingerprint, streamstest.Hash(readAll(t, client, get("escaped"))))
			}
		})
	}
}

// TestPathsOfTheIndex has the products file under a path that begins with "/" or is escaped.
func TestPathsOfTheIndex(t *testing.T) {
	const escaped = "streams/v1/%69mages.json"
	for _, path := range []string{"/streams/v1/images.json", "//streams//v1/images.json", escaped} {
		files := streamstest.Tree(products("both"), nil)
		files[streamstest.IndexPath] = []byte(`{"index":{"images":{"datatype":"image-downloads","path":"` + path + `","products":["p"]}}}`)
		below := map[string][]byte{}
		for name, content := range files {
			below["sub/"+name] = content
		}
		for _, family := range []simplestreams.Family{"", simplestreams.LXD, simplestreams.Incus} {
			for _, prefix := range []string{"", "/sub"} {
				server := serve(t, map[string]map[string][]byte{"": files, "/sub": below}[prefix])
				client, err := simplestreams.New(server.URL+prefix, &simplestreams.Options{AllowHTTP: true, Family: family, RetryTimeout: -1})
				require.NoError(t, err)
				_, err = client.Resolve(t.Context(), "alpine", nil)
				if path == escaped && family != simplestreams.Incus {
					require.ErrorIs(t, err, simplestreams.ErrNotFound)
				} else {
					require.NoError(t, err, "%s %s %s", path, family, prefix)
				}
				require.NoError(t, client.Close())
			}
		}
	}
}

// TestEscapedPathsAreCheckedDecoded: what is refused is refused in its escaped form too.
func TestEscapedPathsAreCheckedDecoded(t *testing.T) {
	for path, says := range map[string]string{
		"%2e%2e/secret": "not below", "a%2F..%2F..%2Fb": "not below", "a%0d%0ab": "control character", "100%": "invalid URL escape", "http:%2F%2Fb/a": "not relative",
	} {
		server := serve(t, streamstest.Tree(products("incus"), func(all streamstest.Object) {
			version := all["alpine:3.20:amd64"].(streamstest.Object)["versions"].(streamstest.Object)["20240301"].(streamstest.Object)
			version["items"].(streamstest.Object)["incus_combined.tar.gz"].(streamstest.Object)["path"] = path
		}))
		_, err := newClient(t, server, nil).Resolve(t.Context(), "alpine", nil)
		require.ErrorIs(t, err, simplestreams.ErrBadData, path)
		require.ErrorContains(t, err, says)
	}
}
