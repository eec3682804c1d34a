package simplestreams_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// The beginnings of files by which Publish tells what they are.
const (
	xzMagic       = "\xfd7zXZ\x00"
	gzipMagic     = "\x1f\x8b"
	squashfsMagic = "hsqs"
	qcow2Magic    = "QFI\xfb"
)

// contents are the files of an image, for Publication.Files.
func contents(files ...string) iter.Seq2[io.Reader, error] {
	return func(yield func(io.Reader, error) bool) {
		for _, file := range files {
			if !yield(strings.NewReader(file), nil) {
				return
			}
		}
	}
}

// debian is a publication of a version with files.
func debian(version string, files ...string) *simplestreams.Publication {
	return &simplestreams.Publication{
		Aliases: []string{"debian/13", "debian/trixie"}, Architecture: "x86_64", OS: "Debian", Release: "trixie", ReleaseTitle: "13",
		Version: version, Files: contents(files...),
	}
}

// handlerClient returns a client of a handler, without a connection, so that it can be used in a bubble.
func handlerClient(t *testing.T, handler http.Handler, change func(*simplestreams.Options)) *simplestreams.Client {
	t.Helper()
	options := &simplestreams.Options{HTTPClient: &http.Client{Transport: handlerTransport{handler}}, RetryTimeout: -1, TTL: -1}
	if change != nil {
		change(options)
	}
	client, err := simplestreams.New("https://tree.test", options)
	require.NoError(t, err)

	return client
}

type handlerTransport struct{ http.Handler }

func (h handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	response := w.Result()
	response.Request = r

	return response, nil
}

// images reads a tree as both families do, with the files of all images, and returns a line for each. It fails if anything
// that the tree lists is missing or wrong.
func images(t *testing.T, handler http.Handler, change ...func(*simplestreams.Options)) []string {
	t.Helper()
	var lines []string
	for _, family := range []simplestreams.Family{simplestreams.LXD, simplestreams.Incus} {
		client := handlerClient(t, handler, func(o *simplestreams.Options) {
			o.Family = family
			for _, each := range change {
				each(o)
			}
		})
		for _, image := range all(t, client) {
			var content []byte
			for _, file := range image.Files {
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/"+file.Path, nil))
				require.Equal(t, http.StatusOK, w.Code, file.Path)
				require.Equal(t, file.SHA256, streamstest.Hash(w.Body.Bytes()))
				require.EqualValues(t, file.Size, w.Body.Len())
				content = append(content, w.Body.Bytes()...)
			}
			require.Equal(t, image.Fingerprint, streamstest.Hash(content))
			lines = append(lines, fmt.Sprintf("%s %s %s %s %q", family, image.Product, image.Version, image.Properties["type"], content))
		}
	}

	return lines
}

func TestTreePublish(t *testing.T) {
	store := newMemStore()
	tree, err := simplestreams.NewTree(store, nil)
	require.NoError(t, err)
	server := simplestreams.NewHandler(live{store})

	image, err := tree.Publish(t.Context(), debian("20260101_00:00", gzipMagic+"unified"), nil)
	require.NoError(t, err)
	require.Equal(t, "debian:trixie:amd64:default", image.Product)
	require.Equal(t, streamstest.Hash([]byte(gzipMagic+"unified")), image.Fingerprint)
	require.Equal(t, []string{"debian/13", "debian/13/amd64", "debian/trixie", "debian/trixie/amd64"}, image.Aliases)
	require.Equal(t, "Debian 13 amd64 (20260101_00:00)", image.Properties["description"])
	require.Equal(t, "image.tar.gz", image.Filename)

	_, err = tree.Publish(t.Context(), debian("20260102_00:00", xzMagic+"meta", squashfsMagic+"root"), nil)
	require.NoError(t, err)
	disk, err := tree.Publish(t.Context(), debian("20260102_00:00", xzMagic+"meta", qcow2Magic+"disk"), nil)
	require.NoError(t, err)
	require.Equal(t, simplestreams.VirtualMachine, disk.Type)
	require.Equal(t, []string{
		`lxd debian:trixie:amd64:default 20260102_00:00 squashfs "\xfd7zXZ\x00metahsqsroot"`,
		`lxd debian:trixie:amd64:default 20260102_00:00 disk-kvm.img "\xfd7zXZ\x00metaQFI\xfbdisk"`,
		`lxd debian:trixie:amd64:default 20260101_00:00 tar.gz "\x1f\x8bunified"`,
		`incus debian:trixie:amd64:default 20260102_00:00 squashfs "\xfd7zXZ\x00metahsqsroot"`,
		`incus debian:trixie:amd64:default 20260102_00:00 disk-kvm.img "\xfd7zXZ\x00metaQFI\xfbdisk"`,
		`incus debian:trixie:amd64:default 20260101_00:00 tar.gz "\x1f\x8bunified"`,
	}, images(t, server))
}

// TestTreeExisting publishes versions that exist.
func TestTreeExisting(t *testing.T) {
	store := newMemStore()
	tree := newTree(t, store, nil)
	server := simplestreams.NewHandler(live{store})
	first, err := tree.Publish(t.Context(), debian("20260101", xzMagic+"meta", squashfsMagic+"root"), nil)
	require.NoError(t, err)
	index := store.files["streams/v1/index.json"]

	again, err := tree.Publish(t.Context(), debian("20260101", xzMagic+"meta", squashfsMagic+"root"), nil)
	require.NoError(t, err)
	require.Equal(t, first, again)
	require.Equal(t, string(index), string(store.files["streams/v1/index.json"]))

	known := debian("20260101")
	known.Fingerprint = first.Fingerprint
	known.Files = func(func(io.Reader, error) bool) { t.Error("the files are read") }
	again, err = tree.Publish(t.Context(), known, nil)
	require.NoError(t, err)
	require.Equal(t, first, again)
	known.Product, known.Aliases, known.OS, known.Families = "other", []string{"other"}, "Other", []simplestreams.Family{simplestreams.Incus}
	other, err := tree.Publish(t.Context(), known, nil)
	require.NoError(t, err)
	require.Equal(t, first.Files[1], other.Files[1])
	require.Equal(t, "incus.tar.xz", other.Files[0].Type)

	different := debian("20260101", xzMagic+"meta", squashfsMagic+"another")
	_, err = tree.Publish(t.Context(), different, nil)
	require.ErrorIs(t, err, simplestreams.ErrExists)
	require.ErrorContains(t, err, "debian:trixie:amd64:default")
	// The families share the root filesystem of a version.
	different.Families = []simplestreams.Family{simplestreams.LXD}
	_, err = tree.Publish(t.Context(), different, nil)
	require.ErrorIs(t, err, simplestreams.ErrExists)
	other, err = tree.Publish(t.Context(), different, &simplestreams.PublishOptions{Replace: true})
	require.NoError(t, err)
	require.Equal(t, "lxd.tar.xz", other.Files[0].Type)
	require.Equal(t, []string{
		`lxd debian:trixie:amd64:default 20260101 squashfs "\xfd7zXZ\x00metahsqsanother"`,
		`incus other 20260101 squashfs "\xfd7zXZ\x00metahsqsroot"`,
	}, images(t, server))

	// A virtual machine with other metadata than the container has.
	_, err = tree.Publish(t.Context(), debian("20260101", xzMagic+"vm meta", qcow2Magic+"disk"), nil)
	require.NoError(t, err)
	require.Equal(t, []string{
		`lxd debian:trixie:amd64:default 20260101 squashfs "\xfd7zXZ\x00metahsqsanother"`,
		`lxd debian:trixie:amd64:default 20260101 disk-kvm.img "\xfd7zXZ\x00vm metaQFI\xfbdisk"`,
		`incus debian:trixie:amd64:default 20260101 disk-kvm.img "\xfd7zXZ\x00vm metaQFI\xfbdisk"`,
		`incus other 20260101 squashfs "\xfd7zXZ\x00metahsqsroot"`,
	}, images(t, server))
}

// TestTreeAttributes publishes with the properties of an image, and changes attributes.
func TestTreeAttributes(t *testing.T) {
	store := newMemStore()
	tree := newTree(t, store, nil)
	p := &simplestreams.Publication{
		Architecture: "aarch64", Aliases: []string{"app", "app/1"}, EndOfLife: time.Date(2030, 1, 2, 0, 0, 0, 0, time.UTC),
		Properties: map[string]string{
			"os": "App", "release": "one", "variant": "cloud", "version": "1.0", "label": "daily", "serial": "20260101_01:02",
			"architecture": "arm64", "requirements.secureboot": "false", "name": "ignored",
		},
		Files: contents(gzipMagic + "app"),
	}
	image, err := tree.Publish(t.Context(), p, nil)
	require.NoError(t, err)
	require.Equal(t, "app:one:arm64:cloud", image.Product)
	require.Equal(t, map[string]string{
		"architecture": "arm64", "os": "App", "release": "one", "variant": "cloud", "version": "1.0", "label": "daily", "serial": "20260101_01:02",
		"requirements.secureboot": "false", "type": "tar.gz", "description": "App one arm64 (cloud) (daily) (20260101_01:02)",
	}, withFamily(t, store, simplestreams.Incus, "app").Properties)
	require.Equal(t, "false", withFamily(t, store, simplestreams.LXD, "app").Properties["requirements.secureboot"])
	require.Equal(t, p.EndOfLife, image.ExpiresAt)
	require.Equal(t, "aarch64", image.Architecture)

	// What is not set remains.
	_, err = tree.Publish(t.Context(), &simplestreams.Publication{
		Product: "app:one:arm64:cloud", Architecture: "arm64", Version: "20260102", ReleaseTitle: "First", Files: contents(gzipMagic + "more"),
	}, nil)
	require.NoError(t, err)
	image = withFamily(t, store, simplestreams.Incus, "app")
	require.Equal(t, "App First arm64 (cloud) (20260102)", image.Properties["description"])
	require.Equal(t, "false", image.Properties["requirements.secureboot"])
	require.Equal(t, p.EndOfLife, image.ExpiresAt)
}

func withFamily(t *testing.T, store *memStore, family simplestreams.Family, ref string) *simplestreams.Image {
	t.Helper()
	client := handlerClient(t, simplestreams.NewHandler(live{store}), func(o *simplestreams.Options) { o.Family = family })
	image, err := client.Resolve(t.Context(), ref, nil)
	require.NoError(t, err)

	return image
}

// TestTreeRefuses has input that is refused before anything is stored, and content that is refused without being left.
func TestTreeRefuses(t *testing.T) {
	store := newMemStore()
	tree := newTree(t, store, nil)
	for field, change := range map[string]func(*simplestreams.Publication){
		"Architecture": func(p *simplestreams.Publication) { p.Architecture = "z80" },
		"Product":      func(p *simplestreams.Publication) { p.Release = "" },
		"Version":      func(p *simplestreams.Publication) { p.Version = "1.0" },
		"Label":        func(p *simplestreams.Publication) { p.Label = "a\nb" },
		"Aliases":      func(p *simplestreams.Publication) { p.Aliases = []string{"a,b"} },
		"Requirements": func(p *simplestreams.Publication) { p.Requirements = map[string]string{"": "x"} },
		"Families":     func(p *simplestreams.Publication) { p.Families = []simplestreams.Family{"lxc"} },
		"Fingerprint":  func(p *simplestreams.Publication) { p.Fingerprint = "abc" },
		"Files":        func(p *simplestreams.Publication) { p.Files = nil },
	} {
		p := debian("20260101", gzipMagic)
		change(p)
		_, err := tree.Publish(t.Context(), p, nil)
		var refused *simplestreams.InputError
		require.ErrorAs(t, err, &refused, field)
		require.Equal(t, "Publication."+field, refused.Field)
	}
	require.Empty(t, store.names())

	broken := errors.New("broken")
	wrong := debian("20260101", gzipMagic+"content")
	wrong.Fingerprint = streamstest.Hash([]byte("something else"))
	failing := debian("20260101")
	failing.Files = func(yield func(io.Reader, error) bool) {
		yield(io.MultiReader(strings.NewReader(gzipMagic+strings.Repeat("x", 1000)), iotest.ErrReader(broken)), nil)
	}
	unopened := debian("20260101")
	unopened.Files = func(yield func(io.Reader, error) bool) {
		if yield(strings.NewReader(xzMagic), nil) {
			yield(nil, broken)
		}
	}
	for name, test := range map[string]struct {
		p    *simplestreams.Publication
		want error
	}{
		"no image":    {debian("20260101", "text"), simplestreams.ErrBadData},
		"empty":       {debian("20260101", ""), simplestreams.ErrBadData},
		"disk first":  {debian("20260101", qcow2Magic), simplestreams.ErrBadData},
		"exchanged":   {debian("20260101", squashfsMagic, xzMagic), simplestreams.ErrBadData},
		"bad rootfs":  {debian("20260101", xzMagic, "text"), simplestreams.ErrBadData},
		"three files": {debian("20260101", xzMagic, squashfsMagic, squashfsMagic), simplestreams.ErrInvalid},
		"no files":    {debian("20260101"), simplestreams.ErrInvalid},
		"other hash":  {wrong, simplestreams.ErrBadData},
		"read error":  {failing, broken},
		"open error":  {unopened, broken},
	} {
		_, err := tree.Publish(t.Context(), test.p, nil)
		require.ErrorIs(t, err, test.want, name)
		require.Subset(t, []string{"streams/v1/golxd.ledger.json"}, store.names(), name)
	}

	_, err := tree.Publish(t.Context(), debian("20260101", gzipMagic), nil)
	require.NoError(t, err)
	other := debian("20260102", gzipMagic)
	other.Product, other.Architecture = "debian:trixie:amd64:default", "arm64"
	_, err = tree.Publish(t.Context(), other, nil)
	require.ErrorIs(t, err, simplestreams.ErrInvalid)
	require.ErrorIs(t, tree.Remove(t.Context(), "nothing"), simplestreams.ErrNotFound)
	require.ErrorIs(t, tree.Remove(t.Context(), "debian:trixie:amd64:default", "20260101", "20260102"), simplestreams.ErrNotFound)
	require.Len(t, images(t, simplestreams.NewHandler(live{store})), 2)
	_, err = tree.Prune(t.Context(), &simplestreams.PruneOptions{Keep: -1})
	require.ErrorIs(t, err, simplestreams.ErrInvalid)
	_, err = simplestreams.NewTree(nil, nil)
	require.ErrorIs(t, err, simplestreams.ErrInvalid)
}

// TestTreeForeignIndex has an index that is not to be replaced.
func TestTreeForeignIndex(t *testing.T) {
	for name, index := range map[string]string{
		"no JSON":       "<html>",
		"no index":      `{"format": "index:1.0"}`,
		"foreign entry": `{"index": {"golxd": {"path": "streams/v1/images.json"}}}`,
		"missing file":  `{"index": {"golxd": {"path": "streams/v1/golxd-` + strings.Repeat("0", 32) + "-" + strings.Repeat("a", 26) + `.json"}}}`,
	} {
		store := newMemStore()
		store.files["streams/v1/index.json"] = []byte(index)
		_, err := newTree(t, store, nil).Publish(t.Context(), debian("20260101", gzipMagic), nil)
		var failed *simplestreams.Error
		require.ErrorAs(t, err, &failed, name)
		require.Equal(t, index, string(store.files["streams/v1/index.json"]))
		require.Len(t, store.files, 1, name)
	}
}

// TestTreePublishCancelled ends the context while a reader blocks.
func TestTreePublishCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		reader, writer := io.Pipe()
		defer writer.Close()
		p := debian("20260101")
		p.Files = func(yield func(io.Reader, error) bool) {
			yield(io.MultiReader(strings.NewReader(gzipMagic), reader), nil)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := newTree(t, store, nil).Publish(ctx, p, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Subset(t, []string{"streams/v1/golxd.ledger.json"}, store.names())
	})
}

// TestTreeSlowUpload reads a file for three days, while another program deletes what is old.
func TestTreeSlowUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		reader, writer := io.Pipe()
		go func() {
			_, _ = io.WriteString(writer, gzipMagic+strings.Repeat("x", 1000))
			for range 72 {
				time.Sleep(time.Hour)
				_, _ = writer.Write(make([]byte, 256<<10))
				if _, err := newTree(t, store, nil).Prune(t.Context(), nil); err != nil {
					t.Error(err)
				}
			}
			_ = writer.Close()
		}()
		p := debian("20260101")
		p.Files = func(yield func(io.Reader, error) bool) { yield(reader, nil) }
		_, err := newTree(t, store, nil).Publish(t.Context(), p, nil)
		require.NoError(t, err)
		listed := all(t, newTree(t, store, nil))
		require.Len(t, listed, 1)
		content, err := store.Open(t.Context(), listed[0].Files[0].Path)
		require.NoError(t, err)
		require.NoError(t, content.Close())
	})
}

// TestTreeGrace reads a tree with the index that was current before a change.
func TestTreeGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		tree := newTree(t, store, nil)
		_, err := tree.Publish(t.Context(), debian("20260101", gzipMagic+"old"), nil)
		require.NoError(t, err)
		client := handlerClient(t, simplestreams.NewHandler(live{store}), func(o *simplestreams.Options) { o.TTL = 100 * time.Hour })
		old, err := client.Resolve(t.Context(), "debian/13", nil)
		require.NoError(t, err)

		_, err = tree.Publish(t.Context(), debian("20260102", gzipMagic+"new"), &simplestreams.PublishOptions{Keep: 1})
		require.NoError(t, err)
		time.Sleep(23 * time.Hour)
		report, err := tree.Prune(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, report.Deleted)
		require.Equal(t, gzipMagic+"old", string(readAll(t, client, old)))

		time.Sleep(2 * time.Hour)
		would, err := tree.Prune(t.Context(), &simplestreams.PruneOptions{DryRun: true})
		require.NoError(t, err)
		require.Contains(t, would.Deleted, old.Files[0].Path)
		require.Contains(t, store.names(), old.Files[0].Path)
		report, err = tree.Prune(t.Context(), nil)
		require.NoError(t, err)
		require.ElementsMatch(t, would.Deleted, report.Deleted)
		require.Len(t, report.Deleted, 2)
		require.NotContains(t, store.names(), old.Files[0].Path)
	})
}

// TestTreePrune keeps the newest versions of each product.
func TestTreePrune(t *testing.T) {
	store := newMemStore()
	tree := newTree(t, store, nil)
	for _, version := range []string{"20260103", "20260101", "20260102"} {
		for _, product := range []string{"a", "b"} {
			p := debian(version, gzipMagic+version+product)
			p.Product = product
			_, err := tree.Publish(t.Context(), p, nil)
			require.NoError(t, err)
		}
	}
	before := images(t, simplestreams.NewHandler(live{store}))
	options := &simplestreams.PruneOptions{Keep: 2, DryRun: true}
	would, err := tree.Prune(t.Context(), options)
	require.NoError(t, err)
	require.Equal(t, []simplestreams.TreeVersion{{"a", "20260101"}, {"b", "20260101"}}, would.Removed)
	require.Equal(t, before, images(t, simplestreams.NewHandler(live{store})))
	options.DryRun = false
	report, err := tree.Prune(t.Context(), options)
	require.NoError(t, err)
	require.Equal(t, would, report)
	var versions []string
	for image, err := range tree.Images(t.Context()) {
		require.NoError(t, err)
		versions = append(versions, image.Product+" "+image.Version)
	}
	require.Equal(t, []string{"a 20260103", "b 20260103", "a 20260102", "b 20260102"}, versions)
}

// TestTreeSigned reads a tree with a verifier, and changes it without the signer.
func TestTreeSigned(t *testing.T) {
	store := newMemStore()
	plain, signing := newTree(t, store, nil), newTree(t, store, &simplestreams.TreeOptions{Signer: fakeSigner{}})
	_, err := plain.Publish(t.Context(), debian("20260101", gzipMagic), nil)
	require.NoError(t, err)
	_, err = signing.Prune(t.Context(), nil) // signs a tree that was not signed
	require.NoError(t, err)
	require.Len(t, verified(t, store), 2)
	_, err = signing.Publish(t.Context(), debian("20260102", gzipMagic), nil)
	require.NoError(t, err)
	require.Len(t, verified(t, store), 4)
	require.Equal(t, verified(t, store), images(t, simplestreams.NewHandler(live{store})))

	_, err = plain.Publish(t.Context(), debian("20260103", gzipMagic+"3"), nil)
	require.ErrorIs(t, err, simplestreams.ErrInvalid)
	require.ErrorContains(t, err, "TreeOptions.Signer")
	require.Len(t, images(t, simplestreams.NewHandler(live{store})), 4)
	delete(store.files, "streams/v1/index.sjson")
	_, err = plain.Publish(t.Context(), debian("20260103", gzipMagic+"3"), nil)
	require.NoError(t, err)

	refusing := newTree(t, store, &simplestreams.TreeOptions{Signer: noSigner{}})
	_, err = refusing.Publish(t.Context(), debian("20260104", gzipMagic+"4"), nil)
	require.ErrorIs(t, err, errNoKey)
	require.Len(t, images(t, simplestreams.NewHandler(live{store})), 6)
}

var errNoKey = errors.New("there is no key")

type noSigner struct{}

func (noSigner) Sign([]byte) (inline, detached []byte, err error) { return nil, nil, errNoKey }

// TestTreeShape compares what a Tree writes with samples of what public servers have: each field that daemons read is in
// the same place and has the same type.
func TestTreeShape(t *testing.T) {
	store := newMemStore()
	tree := newTree(t, store, nil)
	p := debian("20260101_00:00", xzMagic, squashfsMagic)
	p.Requirements, p.EndOfLife, p.ReleaseVersion, p.Variant, p.Label = map[string]string{"secureboot": "false"}, time.Now(), "13", "default", "release"
	for _, files := range []iter.Seq2[io.Reader, error]{contents(xzMagic, squashfsMagic), contents(xzMagic, qcow2Magic)} {
		p.Files = files
		_, err := tree.Publish(t.Context(), p, nil)
		require.NoError(t, err)
	}
	for version, files := range map[string]iter.Seq2[io.Reader, error]{"20260102": contents(xzMagic, xzMagic), "20260103": contents(gzipMagic)} {
		p.Version, p.Files = version, files
		_, err := tree.Publish(t.Context(), p, nil)
		require.NoError(t, err)
	}
	var index any
	require.NoError(t, json.Unmarshal(store.files["streams/v1/index.json"], &index))
	path := index.(map[string]any)["index"].(map[string]any)["golxd"].(map[string]any)["path"].(string)
	ours := map[string]string{}
	shape(t, "index", store.files["streams/v1/index.json"], ours)
	shape(t, "products", store.files[path], ours)

	samples, err := filepath.Glob("testdata/shapes/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, samples)
	for _, sample := range samples {
		content, err := os.ReadFile(sample)
		require.NoError(t, err)
		theirs := map[string]string{}
		kind, _, _ := strings.Cut(filepath.Base(sample), "-")
		shape(t, kind, content, theirs)
		compared := 0
		for field, kind := range theirs {
			if have, ok := ours[field]; ok {
				require.Equal(t, kind, have, "%s: %s", sample, field)
				compared++
			}
		}
		require.Greater(t, compared, 4, sample)
	}
	for _, field := range []string{
		"index.format", "index.index.*.datatype", "index.index.*.format", "index.index.*.path", "index.index.*.products.*",
		"products.format", "products.datatype", "products.content_id", "products.products.*.arch", "products.products.*.aliases",
		"products.products.*.versions.*.items.*.combined_squashfs_sha256", "products.products.*.versions.*.items.*.combined_rootxz_sha256",
		"products.products.*.versions.*.items.*.combined_disk-kvm-img_sha256", "products.products.*.versions.*.items.*.combined_sha256",
		"products.products.*.requirements.*", "products.products.*.lxd_requirements.*",
	} {
		require.Contains(t, ours, field)
	}
}

// shape adds the types of all values of a document by their places. Names of products, versions, items and the like are "*".
func shape(t *testing.T, place string, document []byte, into map[string]string) {
	t.Helper()
	var value any
	require.NoError(t, json.Unmarshal(document, &value))
	var walk func(place string, value any)
	walk = func(place string, value any) {
		into[place] = fmt.Sprintf("%T", value)
		switch value := value.(type) {
		case []any:
			for _, each := range value {
				walk(place+".*", each)
			}
		case map[string]any:
			for name, each := range value {
				for _, list := range []string{"index.index", ".products", ".versions", ".items", "requirements"} {
					if strings.HasSuffix(place, list) && place != "products" {
						name = "*"
					}
				}
				walk(place+"."+name, each)
			}
		}
	}
	walk(place, value)
}
