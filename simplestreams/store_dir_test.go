package simplestreams_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/simplestreams"
)

func newDirStore(t *testing.T, dir string) *simplestreams.DirStore {
	t.Helper()
	store, err := simplestreams.NewDirStore(dir)
	require.NoError(t, err)
	t.Cleanup(func() { _ = store.Close() })

	return store
}

// TestStores holds the stores to what the interface says; that in memory is the one of the other tests.
func TestStores(t *testing.T) {
	for name, store := range map[string]simplestreams.Store{"directory": newDirStore(t, filepath.Join(t.TempDir(), "new", "tree")), "memory": newMemStore()} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			_, err := store.Open(ctx, "a/b")
			require.ErrorIs(t, err, fs.ErrNotExist)
			_, _, err = store.Load(ctx, "a/b")
			require.ErrorIs(t, err, fs.ErrNotExist)
			require.NoError(t, store.Delete(ctx, "a/b"))

			require.NoError(t, store.Put(ctx, "a/b", strings.NewReader("one")))
			broken := errors.New("broken")
			require.ErrorIs(t, store.Put(ctx, "a/b", io.MultiReader(strings.NewReader("two"), iotest.ErrReader(broken))), broken)
			require.ErrorIs(t, store.Put(ctx, "a/c", iotest.ErrReader(broken)), broken)
			_, err = store.Open(ctx, "a/c")
			require.ErrorIs(t, err, fs.ErrNotExist)
			content, err := store.Open(ctx, "a/b")
			require.NoError(t, err)
			read, err := io.ReadAll(content)
			require.NoError(t, err)
			require.Equal(t, "one", string(read))
			require.NoError(t, content.Close())

			loaded, tag, err := store.Load(ctx, "a/b")
			require.NoError(t, err)
			require.Equal(t, "one", string(loaded))
			require.NotEmpty(t, tag)
			require.ErrorIs(t, store.Swap(ctx, "a/b", []byte("two"), ""), simplestreams.ErrConflict)
			require.ErrorIs(t, store.Swap(ctx, "a/b", []byte("two"), "another"), simplestreams.ErrConflict)
			require.ErrorIs(t, store.Swap(ctx, "a/d", []byte("two"), tag), simplestreams.ErrConflict)
			require.NoError(t, store.Swap(ctx, "a/b", []byte("two"), tag))
			require.ErrorIs(t, store.Swap(ctx, "a/b", []byte("three"), tag), simplestreams.ErrConflict)
			require.NoError(t, store.Swap(ctx, "a/d", []byte("new"), ""))

			for _, file := range []string{"a/b", "a/d"} {
				require.NoError(t, store.Delete(ctx, file))
				_, err = store.Open(ctx, file)
				require.ErrorIs(t, err, fs.ErrNotExist)
			}
			ended, cancel := context.WithCancel(ctx)
			cancel()
			require.ErrorIs(t, store.Swap(ended, "a/b", nil, ""), context.Canceled)
			require.ErrorIs(t, store.Put(ended, "a/b", strings.NewReader("x")), context.Canceled)
			require.ErrorIs(t, store.Delete(ended, "a/b"), context.Canceled)
		})
	}
}

// TestStoresSwapOnce swaps at the same time: no change is lost.
func TestStoresSwapOnce(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for range 3 {
		store := newDirStore(t, dir)
		all.Go(func() {
			for done := 0; done < 10; {
				content, tag, err := store.Load(t.Context(), "count")
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
					return
				}
				err = store.Swap(t.Context(), "count", append(content, '.'), tag)
				if err == nil {
					done++
				} else if !errors.Is(err, simplestreams.ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	content, err := os.ReadFile(filepath.Join(dir, "count"))
	require.NoError(t, err)
	require.Len(t, content, 30)
}

func TestDirStore(t *testing.T) {
	dir := t.TempDir()
	store := newDirStore(t, dir)
	for _, path := range []string{"", ".", "..", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.hidden", ".golxd/put-1", `a\b`, "a\x00"} {
		for name, err := range map[string]error{
			"Put":    store.Put(t.Context(), path, strings.NewReader("x")),
			"Swap":   store.Swap(t.Context(), path, nil, ""),
			"Delete": store.Delete(t.Context(), path),
		} {
			require.ErrorIs(t, err, simplestreams.ErrInvalid, "%s %q", name, path)
		}
	}
	require.Empty(t, testkit.FilesIn(t, dir))

	// Links do not lead out, and a link to a directory remains when that is empty.
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "file"), nil, 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "out")))
	require.Error(t, store.Put(t.Context(), "out/new", strings.NewReader("x")))
	require.Error(t, store.Delete(t.Context(), "out/file"))
	require.FileExists(t, filepath.Join(outside, "file"))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "disk", "images"), 0o755))
	require.NoError(t, os.Symlink("disk/images", filepath.Join(dir, "images")))
	require.NoError(t, store.Put(t.Context(), "images/a/file", strings.NewReader("x")))
	require.FileExists(t, filepath.Join(dir, "disk", "images", "a", "file"))
	require.NoError(t, store.Delete(t.Context(), "images/a/file"))
	require.NoDirExists(t, filepath.Join(dir, "disk", "images", "a"))
	info, err := os.Stat(filepath.Join(dir, "images"))
	require.NoError(t, err)
	require.True(t, info.IsDir())

	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	require.Error(t, store.Put(t.Context(), "dangling/file", strings.NewReader("x")))

	// A web server of another user can read the files, but not those that are not complete.
	require.NoError(t, store.Put(t.Context(), "streams/v1/file", strings.NewReader("x")))
	for path, mode := range map[string]fs.FileMode{"streams/v1/file": 0o644, "streams/v1": 0o755, ".golxd": 0o700} {
		info, err := os.Stat(filepath.Join(dir, path))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), path)
	}

	// A web server that makes the ETag of whole seconds and the size sees each Swap.
	seconds := map[int64]bool{}
	for n := range 3 {
		_, tag, err := store.Load(t.Context(), "index")
		require.True(t, err == nil || errors.Is(err, fs.ErrNotExist))
		require.NoError(t, store.Swap(t.Context(), "index", fmt.Append(nil, n), tag))
		info, err := os.Stat(filepath.Join(dir, "index"))
		require.NoError(t, err)
		seconds[info.ModTime().Unix()] = true
	}
	require.Len(t, seconds, 3)

	require.NoError(t, store.Close())
	require.Error(t, store.Put(t.Context(), "a", strings.NewReader("x")))
	_, err = simplestreams.NewDirStore("")
	require.ErrorIs(t, err, simplestreams.ErrInvalid)
	_, err = simplestreams.NewDirStore(filepath.Join(outside, "file"))
	require.Error(t, err)
}

// TestTreeNil calls methods of values that no constructor has returned.
func TestTreeNil(t *testing.T) {
	ctx := t.Context()
	var store *simplestreams.DirStore
	for _, tree := range []*simplestreams.Tree{nil, {}} {
		_, published := tree.Publish(ctx, debian("20260101", gzipMagic), nil)
		_, pruned := tree.Prune(ctx, nil)
		var listed error
		for _, err := range tree.Images(ctx) {
			listed = err
		}
		for _, err := range []error{published, pruned, listed, tree.Remove(ctx, "a")} {
			require.ErrorIs(t, err, simplestreams.ErrInvalid)
		}
	}
	_, opened := store.Open(ctx, "a")
	_, _, loaded := store.Load(ctx, "a")
	for _, err := range []error{opened, loaded, store.Put(ctx, "a", nil), store.Swap(ctx, "a", nil, ""), store.Delete(ctx, "a"), store.Close()} {
		require.ErrorIs(t, err, simplestreams.ErrInvalid)
	}
	tree := newTree(t, newMemStore(), nil)
	_, err := tree.Publish(ctx, nil, nil)
	require.ErrorIs(t, err, simplestreams.ErrInvalid)
	_, err = tree.Publish(nil, debian("20260101", gzipMagic), nil) //nolint:staticcheck // It is what is tested.
	require.ErrorIs(t, err, simplestreams.ErrInvalid)
}
