package simplestreams_test

import (
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
	for _, name := range store.names() {
		t.Log(name)
	}
	t.Log(string(store.files["streams/v1/index.json"]))
	t.Log(string(store.files["streams/v1/golxd.ledger.json"]))
}
