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
	"github.com/golxd/lxd/lxdtest"
)

// TestExportToFollowsNoLink has symbolic links where the partial files are to
// be.
func TestExportToFollowsNoLink(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("link", 1<<20)
	for _, c := range []struct {
		name         string
		data, rootfs []byte
		path         func(dir string, image *lxd.Image) string
	}{
		{"unified", lxdtest.UnifiedImage("link", 1<<20), nil, partialPath},
		{"metadata", metadata, rootfs, partialPath},
		{"rootfs", metadata, rootfs, rootfsPartialPath},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, c.data, c.rootfs)
			dir, other := t.TempDir(), filepath.Join(t.TempDir(), "other")
			require.NoError(t, os.WriteFile(other, []byte("other"), 0o600))
			link := c.path(dir, x.image)
			require.NoError(t, os.Symlink(other, link))
			_, err := x.image.ExportTo(t.Context(), dir, nil)
			require.ErrorContains(t, err, link+" is a symbolic link")
			require.Equal(t, []string{link}, filesIn(t, dir))
			got, err := os.ReadFile(other)
			require.NoError(t, err)
			require.Equal(t, "other", string(got))
		})
	}
}

// TestExportToTellsOfItsContext has one that was cancelled for a reason.
func TestExportToTellsOfItsContext(t *testing.T) {
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
			before := filesIn(t, dir)
			_, err := x.image.ExportTo(ctx, dir, options)
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorIs(t, err, shutdown)
			if name == "before" {
				require.Equal(t, before, filesIn(t, dir))
			}
		})
	}
}
