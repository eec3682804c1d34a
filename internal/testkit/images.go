package testkit

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// Upload makes an image of its own and has it deleted after the test.
func Upload(t *testing.T, c *lxd.Client, opts *lxd.CreateOptions) *lxd.Image {
	t.Helper()
	o := lxd.CreateOptions{}
	if opts != nil {
		o = *opts
	}
	o.Wait = true
	image, err := c.Images.Create(t.Context(), bytes.NewReader(Unified(t, 0)), &o)
	require.NoError(t, err)
	DeleteAfter(t, image)
	return image
}

// Unified is the content of an image that is like no other.
func Unified(t *testing.T, size int64) []byte {
	t.Helper()
	return lxdtest.UnifiedImage(rand.Text(), size)
}

// DeleteAfter has an image deleted after the test, if it is still there.
func DeleteAfter(t *testing.T, image *lxd.Image) {
	t.Helper()
	client := image.Client()
	fingerprint := image.Fingerprint
	t.Cleanup(func() {
		ctx := context.Background()
		again, err := client.Images.Get(ctx, fingerprint)
		if err == nil {
			err = again.Delete(ctx, &lxd.DeleteOptions{Wait: true})
		}
		if !errors.Is(err, lxd.ErrNotFound) {
			require.NoError(t, err)
		}
	})
}

// OneShotReader hides everything but Read: it cannot be rewound.
type OneShotReader struct{ io.Reader }

// Fingerprints are those of images, in their order.
func Fingerprints(images []*lxd.Image) []string {
	list := []string{}
	for _, i := range images {
		list = append(list, i.Fingerprint)
	}
	return list
}

// CopySource has everything that a copy must keep.
func CopySource(t *testing.T, c *lxd.Client, split bool) *lxd.Image {
	t.Helper()
	o := &lxd.CreateOptions{
		Wait: true, Filename: "source.tar.gz", Properties: map[string]string{"os": "changed", "with space": "a & b"},
		ExpiresAt: time.Date(2036, 1, 2, 3, 4, 5, 0, time.UTC), Aliases: []lxd.Alias{{Name: Unique("copy/a"), Description: "one"}, {Name: Unique("copy#b")}},
	}
	data := io.Reader(bytes.NewReader(Unified(t, 200_000)))
	if split {
		metadata, rootfs := lxdtest.SplitImage(rand.Text(), 200_000)
		data, o.Rootfs = bytes.NewReader(metadata), bytes.NewReader(rootfs)
	}
	image, err := c.Images.Create(t.Context(), data, o)
	require.NoError(t, err)
	DeleteAfter(t, image)
	delete(image.Properties, "release")
	require.NoError(t, image.Update(t.Context(), nil))
	return image
}

// RequireCopy fails if a copy, or its state on the server, differs from the image.
func RequireCopy(t *testing.T, image *lxd.Image, copied *lxd.Copied) {
	t.Helper()
	read, err := copied.Client().Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	require.Equal(t, string(copied.Mode), copied.Transfer().Way)
	require.Len(t, copied.Transfer().Failed, len(copied.Failed))
	for _, c := range []*lxd.Image{copied.Image, read} {
		require.Equal(t, image.Fingerprint, c.Fingerprint)
		require.Equal(t, image.Properties, c.Properties)
		require.ElementsMatch(t, image.Aliases, c.Aliases)
		require.Equal(t, image.Profiles, c.Profiles)
		require.Equal(t, image.Public, c.Public)
		require.Equal(t, image.Type, c.Type)
		require.Equal(t, image.Size, c.Size)
		if copied.Mode != lxd.CopyPush {
			require.Equal(t, image.Filename, c.Filename)
		}
		require.True(t, image.ExpiresAt.Equal(c.ExpiresAt), "%s, not %s", c.ExpiresAt, image.ExpiresAt)
		require.True(t, image.CreatedAt.Equal(c.CreatedAt))
	}
}

// ExportPattern is the path of an export, for lxdtest.Fault.On.
const ExportPattern = "/1.0/images/*/export"

// RequireExported fails unless the directory contains exactly these files of the
// image.
func RequireExported(t *testing.T, dir string, files *lxd.ExportedFiles, want ...[]byte) {
	t.Helper()
	paths := []string{files.Image}
	if len(want) == 2 {
		paths = []string{files.Metadata, files.Rootfs}
	}
	require.Equal(t, len(want) == 2, files.Image == "")
	require.Len(t, paths, len(want))
	for n, path := range paths {
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want[n], got), path)
	}
	slices.Sort(paths)
	require.Equal(t, paths, FilesIn(t, dir))
}

// FilesIn are the paths of what is in a directory.
func FilesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var paths []string
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths
}
