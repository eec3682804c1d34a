//go:build unix

package lxd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/partfile"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestExportToFollowsNoLink has symbolic and hard links where the partial files
// are to be.
func TestExportToFollowsNoLink(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("link", 1<<20)
	for _, c := range []struct {
		name         string
		data, rootfs []byte
		path         func(dir string, image *lxd.Image) string
		link         func(from, to string) error
	}{
		{"unified", lxdtest.UnifiedImage("link", 1<<20), nil, partialPath, os.Symlink},
		{"metadata", metadata, rootfs, partialPath, os.Symlink},
		{"rootfs", metadata, rootfs, rootfsPartialPath, os.Symlink},
		{"unified, hard link", lxdtest.UnifiedImage("link", 1<<20), nil, partialPath, os.Link},
		{"rootfs, hard link", metadata, rootfs, rootfsPartialPath, os.Link},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, c.data, c.rootfs)
			dir, other := t.TempDir(), filepath.Join(t.TempDir(), "other")
			require.NoError(t, os.WriteFile(other, []byte("other"), 0o600))
			require.NoError(t, c.link(other, c.path(dir, x.image)))
			files, err := x.image.ExportTo(t.Context(), dir, nil)
			require.NoError(t, err)
			if c.rootfs == nil {
				testkit.RequireExported(t, dir, files, c.data)
			} else {
				testkit.RequireExported(t, dir, files, c.data, c.rootfs)
			}
			got, err := os.ReadFile(other)
			require.NoError(t, err)
			require.Equal(t, "other", string(got))
		})
	}
	x := newExportTest(t, 0, lxdtest.UnifiedImage("link", 1<<20), nil)
	dir, missing := t.TempDir(), filepath.Join(t.TempDir(), "missing")
	require.NoError(t, os.Symlink(missing, partialPath(dir, x.image)))
	_, err := x.image.ExportTo(t.Context(), dir, nil)
	require.NoError(t, err)
	require.NoFileExists(t, missing, "nothing is created through the link")
}

// TestExportToReturnsErrorOfContext has a context that was cancelled with a cause.
func TestExportToReturnsErrorOfContext(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("cause", 1<<20), nil)
	// What takes long to verify, and no room.
	const size = 1 << 40
	x.image.Size = size
	for name, prepare := range map[string]func(t *testing.T, dir string, cancel func()) func(lxd.Progress){
		"before": func(_ *testing.T, _ string, cancel func()) func(lxd.Progress) {
			cancel()
			return nil
		},
		"waiting for another call": func(t *testing.T, dir string, cancel func()) func(lxd.Progress) {
			other, err := (&partfile.Image{Dir: dir, Fingerprint: x.image.Fingerprint}).Open(t.Context())
			require.NoError(t, err)
			t.Cleanup(func() { _ = other.Close() })
			time.AfterFunc(exportTick, cancel)
			return nil
		},
		"verifying": func(t *testing.T, dir string, cancel func()) func(lxd.Progress) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, x.image.Fingerprint+".tar"), nil, 0o600))
			require.NoError(t, os.Truncate(filepath.Join(dir, x.image.Fingerprint+".tar"), size))
			return func(p lxd.Progress) {
				if p.Phase == lxd.PhaseVerify {
					cancel()
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			shutdown := errors.New("shutdown")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			options := &lxd.ExportToOptions{Progress: prepare(t, dir, func() { cancel(shutdown) })}
			before := testkit.FilesIn(t, dir)
			_, err := x.image.ExportTo(ctx, dir, options)
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorIs(t, err, shutdown)
			if name == "before" {
				require.Equal(t, before, testkit.FilesIn(t, dir))
			}
		})
	}
}

// TestExportToTrustsOnlyOwnFiles has files that another user can write to at the
// paths of the image's files, and keeps such a file open.
func TestExportToTrustsOnlyOwnFiles(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("own", 1<<20)
	for name, path := range map[string]func(dir string, image *lxd.Image) string{
		"partial":  partialPath,
		"finished": func(dir string, image *lxd.Image) string { return filepath.Join(dir, image.Fingerprint+".tar") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, data, nil)
			dir := t.TempDir()
			theirs, err := os.Create(path(dir, x.image))
			require.NoError(t, err)
			defer theirs.Close()
			require.NoError(t, theirs.Chmod(0o666))
			_, err = theirs.Write(data)
			require.NoError(t, err)
			files, err := x.image.ExportTo(t.Context(), dir, nil)
			require.NoError(t, err)
			require.Equal(t, []string{""}, x.ranges(), "it was fetched")
			_, err = theirs.WriteAt([]byte("changed"), 0)
			require.NoError(t, err)
			testkit.RequireExported(t, dir, files, data)
			info, err := os.Stat(files.Image)
			require.NoError(t, err)
			require.EqualValues(t, 0o600, info.Mode().Perm(), "the image is not public")
		})
	}
}

func TestExportToOfPublicImage(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("public", 0), nil)
	x.image.Public = true
	files, err := x.image.ExportTo(t.Context(), t.TempDir(), nil)
	require.NoError(t, err)
	info, err := os.Stat(files.Image)
	require.NoError(t, err)
	require.NotZero(t, info.Mode().Perm()&0o044)
	require.Zero(t, info.Mode().Perm()&0o022)
}
