package simplestreams_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

func TestResolve(t *testing.T) {
	_, client := standard(t)
	newest := streamstest.Hash([]byte("metadata 20240201_07:42"), []byte("squashfs 20240201_07:42"))
	older := streamstest.Hash([]byte("metadata 20240101_07:42"), []byte("squashfs 20240101_07:42"))
	newestVM := streamstest.Hash([]byte("metadata 20240201_07:42"), []byte("disk 20240201_07:42"))
	olderTar := streamstest.Hash([]byte("metadata 20240101_07:42"), []byte("tar 20240101_07:42"))
	arm := streamstest.Hash([]byte("metadata arm"), []byte("squashfs arm"))
	old := streamstest.Hash([]byte("an old image"))
	vm := streamstest.Hash([]byte("vm metadata"), []byte("vm disk"))
	board := streamstest.Hash([]byte("an arm image"))

	for name, test := range map[string]struct {
		ref     string
		options simplestreams.ResolveOptions
		want    string
	}{
		"alias":                   {"ubuntu/noble", simplestreams.ResolveOptions{Architecture: "amd64"}, newest},
		"another alias":           {"ubuntu/24.04", simplestreams.ResolveOptions{Architecture: "x86_64"}, newest},
		"architecture in options": {"ubuntu/noble", simplestreams.ResolveOptions{Architecture: "arm64"}, arm},
		"architecture in name":    {"ubuntu/noble/arm64", simplestreams.ResolveOptions{}, arm},
		"name before options":     {"ubuntu/noble/arm64", simplestreams.ResolveOptions{Architecture: "amd64"}, arm},
		"other spelling in name":  {"ubuntu/noble/aarch64", simplestreams.ResolveOptions{Architecture: "amd64"}, arm},
		"version":                 {"ubuntu/noble", simplestreams.ResolveOptions{Architecture: "amd64", Version: "20240101_07:42"}, older},
		"type":                    {"ubuntu/noble", simplestreams.ResolveOptions{Architecture: "amd64", Type: simplestreams.VirtualMachine}, newestVM},
		"only a virtual machine":  {"appliance", simplestreams.ResolveOptions{Architecture: "amd64"}, vm},
		"personality":             {"old", simplestreams.ResolveOptions{Architecture: "amd64"}, old},
		"personality of arm64":    {"board", simplestreams.ResolveOptions{Architecture: "arm64"}, board},
		"any architecture":        {"board", simplestreams.ResolveOptions{}, board},
		"fingerprint":             {olderTar, simplestreams.ResolveOptions{}, olderTar},
		"prefix":                  {olderTar[:12], simplestreams.ResolveOptions{}, olderTar},
		"prefix in upper case":    {strings.ToUpper(vm[:12]), simplestreams.ResolveOptions{}, vm},
	} {
		t.Run(name, func(t *testing.T) {
			image, err := client.Resolve(t.Context(), test.ref, &test.options)
			require.NoError(t, err)
			require.Equal(t, test.want, image.Fingerprint)
		})
	}
}

func TestResolveNotFound(t *testing.T) {
	_, client := standard(t)
	image := all(t, client)[0]
	for name, test := range map[string]struct {
		ref     string
		options *simplestreams.ResolveOptions
		is      error
		says    string
	}{
		"empty":             {"", nil, simplestreams.ErrInvalid, "ref is empty"},
		"unknown type":      {"alpine", &simplestreams.ResolveOptions{Type: "vm"}, simplestreams.ErrInvalid, `ResolveOptions.Type is "vm", not one of "", "container", "virtual-machine"`},
		"unknown arch":      {"alpine", &simplestreams.ResolveOptions{Architecture: "pdp11"}, simplestreams.ErrInvalid, `ResolveOptions.Architecture is "pdp11", not one of 386, aarch64, `},
		"unknown alias":     {"fedora", nil, simplestreams.ErrNotFound, "not found"},
		"near alias":        {"ubuntu/nobel", nil, simplestreams.ErrNotFound, "similar: ubuntu/noble/default, ubuntu/noble"},
		"other arch":        {"alpine", &simplestreams.ResolveOptions{Architecture: "s390x"}, simplestreams.ErrNotFound, "not found with architecture s390x: the server has container x86_64 20240301"},
		"other arch by fp":  {image.Fingerprint, &simplestreams.ResolveOptions{Architecture: "s390x"}, simplestreams.ErrNotFound, ""},
		"other type":        {"alpine", &simplestreams.ResolveOptions{Type: simplestreams.VirtualMachine}, simplestreams.ErrNotFound, "type virtual-machine"},
		"other type by fp":  {image.Fingerprint, &simplestreams.ResolveOptions{Type: simplestreams.VirtualMachine}, simplestreams.ErrNotFound, ""},
		"other version":     {"alpine", &simplestreams.ResolveOptions{Version: "20990101"}, simplestreams.ErrNotFound, "version 20990101"},
		"part of an alias":  {"ubuntu", nil, simplestreams.ErrNotFound, ""},
		"too long":          {image.Fingerprint + "0", nil, simplestreams.ErrNotFound, ""},
		"alias and no arch": {"alpine/", nil, simplestreams.ErrNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.Resolve(t.Context(), test.ref, test.options)
			var failed *simplestreams.ResolveError
			require.ErrorAs(t, err, &failed)
			require.Equal(t, test.ref, failed.Ref)
			require.ErrorContains(t, err, test.says)
			if test.is != nil {
				require.ErrorIs(t, err, test.is)
			}
		})
	}
}

func TestResolveAmbiguous(t *testing.T) {
	// At least two of 17 fingerprints have the same first digit.
	var versions []streamstest.Version
	for i := range 17 {
		serial := fmt.Sprintf("202401%02d", i+1)
		versions = append(versions, streamstest.Version{Serial: serial, Unified: []byte(serial)})
	}
	server := serve(t, streamstest.Tree([]streamstest.Product{{Name: "p", Aliases: []string{"p"}, Versions: versions}}, nil))
	client := newClient(t, server, nil)
	count := map[string]int{}
	for _, image := range all(t, client) {
		count[image.Fingerprint[:1]]++
	}
	ambiguous := 0
	for digit, n := range count {
		image, err := client.Resolve(t.Context(), digit, nil)
		if n == 1 {
			require.NoError(t, err)
			require.Equal(t, digit, image.Fingerprint[:1])
			continue
		}
		ambiguous++
		require.ErrorIs(t, err, simplestreams.ErrAmbiguous)
		var failed *simplestreams.ResolveError
		require.ErrorAs(t, err, &failed)
		require.Len(t, failed.Matches, min(n, 10))
		require.ErrorContains(t, err, failed.Matches[0])
	}
	require.Positive(t, ambiguous)
}

// TestUnusableImages has one product for each kind of error in the description of an image.
func TestUnusableImages(t *testing.T) {
	const version, item = "20240101", "lxd_combined.tar.gz"
	change := map[string]func(product, version, item streamstest.Object){
		"no versions":      func(p, _, _ streamstest.Object) { p["versions"] = streamstest.Object{} },
		"null versions":    func(p, _, _ streamstest.Object) { p["versions"] = nil },
		"no date":          func(p, v, _ streamstest.Object) { p["versions"] = streamstest.Object{"latest": v} },
		"bad date":         func(p, v, _ streamstest.Object) { p["versions"] = streamstest.Object{"20241301": v} },
		"no items":         func(_, v, _ streamstest.Object) { delete(v, "items") },
		"unknown arch":     func(p, _, _ streamstest.Object) { p["arch"] = "pdp11" },
		"unknown type":     func(_, _, i streamstest.Object) { i["ftype"] = "manifest" },
		"no sha256":        func(_, _, i streamstest.Object) { delete(i, "sha256") },
		"no combined hash": func(_, _, i streamstest.Object) { i["ftype"] = "lxd.tar.xz" },
		"no path":          func(_, _, i streamstest.Object) { delete(i, "path") },
		"short hash":       func(_, _, i streamstest.Object) { i["sha256"] = "abc" },
		"no hex":           func(_, _, i streamstest.Object) { i["sha256"] = "zz" + streamstest.Hash(nil)[2:] },
		"negative size":    func(_, _, i streamstest.Object) { i["size"] = -1 },
		"parent path":      func(_, _, i streamstest.Object) { i["path"] = "images/../../secret" },
		"absolute parent":  func(_, _, i streamstest.Object) { i["path"] = "/../secret" },
		"URL":              func(_, _, i streamstest.Object) { i["path"] = "http://other.example.net/a" },
		"backslashes":      func(_, _, i streamstest.Object) { i["path"] = `..\secret` },
		"control":          func(_, _, i streamstest.Object) { i["path"] = "a\r\nHost: b" },
	}
	says := map[string]string{
		"no versions": "no versions", "null versions": "no versions", "no date": "date", "bad date": "date", "no items": "no items",
		"unknown arch": "pdp11", "unknown type": "no items", "no sha256": "sha256", "no combined hash": "combined hash", "no path": "no path",
		"short hash": `"abc"`, "no hex": "SHA-256", "negative size": "-1", "parent path": "not below", "absolute parent": "not below",
		"URL": "not relative", "backslashes": "not relative", "control": "control character",
	}
	list := []streamstest.Product{{Name: "good", Aliases: []string{"good"}, Versions: []streamstest.Version{{Serial: version, Unified: []byte("good")}}}}
	for name := range change {
		versions := []streamstest.Version{{Serial: version, Unified: []byte(name)}}
		if name == "no combined hash" {
			versions[0].Roots = map[string][]byte{"squashfs": []byte(name)}
		}
		list = append(list, streamstest.Product{Name: name, Aliases: []string{name}, Versions: versions})
	}
	server := serve(t, streamstest.Tree(list, func(all streamstest.Object) {
		for name, apply := range change {
			p := all[name].(streamstest.Object)
			v := p["versions"].(streamstest.Object)[version].(streamstest.Object)
			apply(p, v, v["items"].(streamstest.Object)[item].(streamstest.Object))
		}
	}))
	client := newClient(t, server, nil)
	images := all(t, client)
	require.Len(t, images, 1, "only what can be downloaded is listed")
	require.Equal(t, "good", images[0].Product)
	for name := range change {
		t.Run(name, func(t *testing.T) {
			_, err := client.Resolve(t.Context(), name, nil)
			require.ErrorIs(t, err, simplestreams.ErrBadData)
			require.ErrorContains(t, err, `product "`+name+`"`)
			require.ErrorContains(t, err, says[name])
		})
	}
}

func TestBrokenNewestIsNotReplacedByAnOlderOne(t *testing.T) {
	server := serve(t, streamstest.Tree([]streamstest.Product{{Name: "p", Aliases: []string{"p"}, Versions: []streamstest.Version{
		{Serial: "20240101", Unified: []byte("older")}, {Serial: "20240102", Unified: []byte("newest")},
	}}}, func(all streamstest.Object) {
		version := all["p"].(streamstest.Object)["versions"].(streamstest.Object)["20240102"].(streamstest.Object)
		version["items"].(streamstest.Object)["lxd_combined.tar.gz"].(streamstest.Object)["path"] = "../newest"
	}))
	client := newClient(t, server, nil)
	_, err := client.Resolve(t.Context(), "p", nil)
	require.ErrorIs(t, err, simplestreams.ErrBadData)
	require.ErrorContains(t, err, "20240102")
	image, err := client.Resolve(t.Context(), "p", &simplestreams.ResolveOptions{Version: "20240101"})
	require.NoError(t, err)
	require.Equal(t, "20240101", image.Version)
}
