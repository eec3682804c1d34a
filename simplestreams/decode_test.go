package simplestreams

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
)

// manyProducts returns a products file like that of a big public server: three versions of each product, each with
// metadata, squashfs, a disk and a delta.
func manyProducts(products int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"content_id":"images","datatype":"image-downloads","format":"products:1.0","products":{`)
	for p := range products {
		if p > 0 {
			b.WriteByte(',')
		}
		os, release := fmt.Sprintf("os%d", p/200), fmt.Sprintf("r%d", p/10)
		arch := []string{"amd64", "arm64", "armhf", "i386", "ppc64el", "s390x", "riscv64"}[p%7]
		fmt.Fprintf(&b, `"%s:%s:%s:v%d":{"aliases":"%s/%s/v%d,%s/%d","arch":"%s","os":"%s","release":"%s","release_title":"%s",`+
			`"requirements":{"secureboot":"false"},"lxd_requirements":{"secureboot":"false"},"variant":"v%d","versions":{`,
			os, release, arch, p, os, release, p, os, p, arch, os, release, release, p%10)
		for v := range 3 {
			if v > 0 {
				b.WriteByte(',')
			}
			serial := fmt.Sprintf("202401%02d_07:42", v+1)
			hash := func(s string) string { return streamstest.Hash(fmt.Appendf(nil, "%d %d %s", p, v, s)) }
			folder := fmt.Sprintf("images/%s/%s/%s/v%d/%s/", os, release, arch, p, serial)
			fmt.Fprintf(&b, `"%s":{"items":{`+
				`"lxd.tar.xz":{"combined_disk-kvm-img_sha256":"%s","combined_sha256":"%s","combined_squashfs_sha256":"%s","ftype":"lxd.tar.xz","path":"%slxd.tar.xz","sha256":"%s","size":%d},`+
				`"root.squashfs":{"ftype":"squashfs","path":"%srootfs.squashfs","sha256":"%s","size":%d},`+
				`"disk.qcow2":{"ftype":"disk-kvm.img","path":"%sdisk.qcow2","sha256":"%s","size":%d},`+
				`"delta.20231231_07:42.vcdiff":{"delta_base":"20231231_07:42","ftype":"squashfs.vcdiff","path":"%sdelta.vcdiff","sha256":"%s","size":%d}}}`,
				serial, hash("c1"), hash("c2"), hash("c2"), folder, hash("m"), 700+v, folder, hash("r"), 100<<20+p, folder, hash("d"), 200<<20+p, folder, hash("x"), 1<<20)
		}
		b.WriteString("}}")
	}
	b.WriteString("}}")

	return b.Bytes()
}

func TestManyProducts(t *testing.T) {
	file, err := decodeProducts(bytes.NewReader(manyProducts(500)), (&Options{}).rules(), "")
	require.NoError(t, err)
	require.Len(t, file.entries, 500*3*2)
	require.Empty(t, file.omitted)
	var index catalog
	index.arrange([]*productsFile{file})
	claimed := 0
	for i := range index.entries {
		claimed += len(index.entries[i].names())
	}
	require.Equal(t, 500*2*2*2, claimed, "the newest version of each product has both aliases, short and long, as container and VM")
}

// TestMemoryIsInProportion checks that a big index does not keep its source in memory.
func TestMemoryIsInProportion(t *testing.T) {
	text := manyProducts(2000)
	before := heap()
	file, err := decodeProducts(bytes.NewReader(text), (&Options{}).rules(), "")
	require.NoError(t, err)
	var index catalog
	index.arrange([]*productsFile{file})
	kept := int64(heap()) - int64(before)
	require.Less(t, kept, int64(len(text))*3/4, "kept of %d bytes", len(text))
	runtime.KeepAlive(text)
	runtime.KeepAlive(&index)
	runtime.KeepAlive(file)
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)

	return stats.HeapAlloc
}

// TestEveryCut parses every prefix of two documents: each is an error, and never io.EOF.
func TestEveryCut(t *testing.T) {
	tree := streamstest.Tree([]streamstest.Product{{
		Name: "p", Aliases: []string{"a"}, Requirements: map[string]string{"b": "c"},
		Versions: []streamstest.Version{{Serial: "20240101", Metadata: []byte("m"), Roots: map[string][]byte{"squashfs": []byte("r")}}},
	}}, nil)
	for n := range tree[streamstest.IndexPath] {
		_, err := decodeIndex(bytes.NewReader(tree[streamstest.IndexPath][:n]), (&Options{}).rules())
		require.Error(t, err)
		require.False(t, errors.Is(noEOF(err), io.EOF))
	}
	for n := range tree[streamstest.ProductsPath] {
		_, err := decodeProducts(bytes.NewReader(tree[streamstest.ProductsPath][:n]), (&Options{}).rules(), "")
		require.Error(t, err)
		require.NotErrorIs(t, err, io.EOF)
	}
}

// FuzzProducts checks that the images of any products file are valid and agree with what encoding/json reads.
func FuzzProducts(f *testing.F) {
	seeds, err := filepath.Glob("testdata/products/*.json")
	require.NoError(f, err)
	require.NotEmpty(f, seeds)
	for _, path := range seeds {
		seed, err := os.ReadFile(path)
		require.NoError(f, err)
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := decodeProducts(bytes.NewReader(text), (&Options{}).rules(), "")
		if err != nil {
			if errors.Is(err, io.EOF) {
				t.Fatalf("a bad document looks like the end of a good one: %v", err)
			}
			return
		}
		if !json.Valid(text) {
			t.Fatal("accepted what is not JSON")
		}
		var index catalog
		index.arrange([]*productsFile{file})
		if len(index.entries) != len(file.entries) {
			t.Fatalf("%d images of %d", len(index.entries), len(file.entries))
		}
		for i := range index.entries {
			e := &index.entries[i]
			image := e.image()
			if e.broken != nil {
				continue
			}
			if !isHash(image.Fingerprint) || image.Architecture == "" || image.CreatedAt.IsZero() && image.Version[:4] != "0001" || image.Size < 0 && e.meta.size+e.root.size >= 0 {
				t.Fatalf("unsound image %+v", image)
			}
			for _, file := range image.Files {
				if strings.Contains("/"+file.Path+"/", "/../") || strings.HasPrefix(file.Path, "/") || file.Size < 0 {
					t.Fatalf("unsafe file %+v", file)
				}
			}
			for _, alias := range image.Aliases[:min(len(image.Aliases), 10)] {
				if !e.product.named(alias) {
					t.Fatalf("%q does not lead to %+v", alias, image)
				}
			}
		}
	})
}

// FuzzIndex checks that parsing an index returns paths or an error that is not io.EOF.
func FuzzIndex(f *testing.F) {
	seeds, err := filepath.Glob("testdata/index/*.json")
	require.NoError(f, err)
	require.NotEmpty(f, seeds)
	for _, path := range seeds {
		seed, err := os.ReadFile(path)
		require.NoError(f, err)
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		paths, err := decodeIndex(bytes.NewReader(text), (&Options{}).rules())
		if errors.Is(noEOF(err), io.EOF) {
			t.Fatal("a bad document looks like the end of a good one")
		}
		if err == nil && !json.Valid(text) {
			t.Fatalf("accepted what is not JSON: %q", paths)
		}
	})
}

func BenchmarkIndex12000(b *testing.B) {
	text := manyProducts(12000)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		file, err := decodeProducts(bytes.NewReader(text), (&Options{}).rules(), "")
		if err != nil {
			b.Fatal(err)
		}
		var index catalog
		index.arrange([]*productsFile{file})
		if len(index.entries) != 72000 {
			b.Fatal(len(index.entries))
		}
	}
	b.StopTimer()
	before := heap()
	file, err := decodeProducts(bytes.NewReader(text), (&Options{}).rules(), "")
	if err != nil {
		b.Fatal(err)
	}
	var index catalog
	index.arrange([]*productsFile{file})
	b.ReportMetric(float64(heap()-before), "kept-bytes")
	runtime.KeepAlive(text)
	runtime.KeepAlive(&index)
	runtime.KeepAlive(file)
}

// BenchmarkIndex12000Plain uses encoding/json with one struct per object, for comparison.
func BenchmarkIndex12000Plain(b *testing.B) {
	type item struct {
		Ftype, Path, SHA256 string
		Size                int64
		Squashfs            string `json:"combined_squashfs_sha256"`
		Disk                string `json:"combined_disk-kvm-img_sha256"`
	}
	type products struct {
		Products map[string]struct {
			Aliases, Arch, OS, Release, Variant string
			Versions                            map[string]struct{ Items map[string]item }
		}
	}
	text := manyProducts(12000)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		body, err := io.ReadAll(bytes.NewReader(text))
		if err != nil {
			b.Fatal(err)
		}
		var all products
		if err := json.Unmarshal(body, &all); err != nil || len(all.Products) != 12000 {
			b.Fatal(err)
		}
	}
}

func BenchmarkResolve12000(b *testing.B) {
	file, err := decodeProducts(bytes.NewReader(manyProducts(12000)), (&Options{}).rules(), "")
	if err != nil {
		b.Fatal(err)
	}
	var index catalog
	index.arrange([]*productsFile{file})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := index.resolve("os59/11999", &ResolveOptions{}, []string{"x86_64"}, false); err != nil {
			b.Fatal(err)
		}
	}
}
