package soak_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestSoak does mixed operations from 64 goroutines on one client, while the
// server misbehaves now and then. In the end nothing is left, and the memory is
// as it was after the first quarter.
func TestSoak(t *testing.T) {
	const workers = 64
	total := testkit.Size(t, 600, 10_000)
	s := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus60}, nil)
	other := testkit.StartFake(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	base, err := s.AddImage(lxdtest.UnifiedImage("soak", 10_000), nil)
	require.NoError(t, err)
	image, err := s.Client.Images.Get(ctx, base)
	require.NoError(t, err)
	s.Inject(lxdtest.CutResponse(5_000).On("GET", testkit.ExportPattern).Times(total / 50))
	s.Inject(lxdtest.Unavailable().On("GET", "/1.0/images/*").Times(total / 50))

	var created atomic.Int64
	heaps := make([]uint64, 0, 4)
	for range 4 {
		onAll(t, workers, total/4, func(n int) error {
			switch rand.N(7) {
			case 0, 1: // upload, by turns with and without Wait, and delete
				data := lxdtest.UnifiedImage(fmt.Sprint("soak", created.Add(1)), 0)
				var body io.Reader = bytes.NewReader(data)
				if n%3 == 0 {
					body = testkit.OneShotReader{Reader: body}
				}
				made, err := s.Client.Images.Create(ctx, body, &lxd.CreateOptions{Wait: n%2 == 0})
				if err == nil {
					err = made.Wait(ctx)
				}
				if err != nil {
					return err
				}
				return made.Delete(ctx, &lxd.DeleteOptions{Wait: true})
			case 2:
				export, err := image.Export(ctx, nil)
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, export)
				return errors.Join(err, export.Close())
			case 3: // an export that is given up
				export, err := image.Export(ctx, nil)
				if err != nil {
					return err
				}
				return export.Close()
			case 4:
				name := testkit.Unique("soak/?#")
				if err := s.Client.Aliases.Create(ctx, lxd.Alias{Name: name, Target: base}); err != nil {
					return err
				}
				return s.Client.Aliases.Delete(ctx, name)
			case 5: // a copy there, of an image of its own
				data := lxdtest.UnifiedImage(fmt.Sprint("copy", created.Add(1)), 0)
				made, err := s.Client.Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
				if err != nil {
					return err
				}
				copied, err := made.Copy(ctx, other.Client, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true})
				if err != nil {
					return err
				}
				return errors.Join(made.Delete(ctx, &lxd.DeleteOptions{Wait: true}), copied.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
			default:
				secret, err := image.Secret(ctx)
				if err != nil {
					return err
				}
				if _, err := s.Client.Images.All(ctx, nil); err != nil {
					return errors.Join(err, secret.Revoke(ctx))
				}
				return secret.Revoke(ctx)
			}
		})
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		heaps = append(heaps, memory.HeapAlloc)
	}
	require.Len(t, s.Images(), 1)
	require.Empty(t, other.Images())
	for _, server := range []*lxdtest.Server{s.Server, other.Server} {
		require.Empty(t, server.Tokens())
		require.Empty(t, server.Running())
	}
	require.LessOrEqual(t, s.Open(), workers+16)
	// The fake keeps its last requests; forgotten, what remains is the client.
	s.ForgetRequests()
	other.ForgetRequests()
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	t.Logf("heap after each quarter: %v, at the end %d", heaps, memory.HeapAlloc)
	require.Less(t, memory.HeapAlloc, heaps[0]+(16<<20))
	require.NoError(t, s.Client.Close())
	require.NoError(t, other.Client.Close())
	require.Eventually(t, func() bool { return s.Open() == 0 && other.Open() == 0 }, 30*time.Second, time.Millisecond)
}

// TestMemoryOfTransfers: whatever an image's size is, a transfer of it needs no buffer
// of that size and no temporary file. A push or pull does not pass through the client.
func TestMemoryOfTransfers(t *testing.T) {
	const size, limit = 32 << 20, 16 << 20
	s := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus60, TLS: true}, nil)
	other := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus60, TLS: true}, nil)
	dir := t.TempDir()
	path := filepath.Join(dir, "image.tar")
	file, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, lxdtest.WriteUnifiedImage(file, "memory", size))
	require.NoError(t, file.Close())
	metadata, _ := lxdtest.SplitImage("memory", 0)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }))
	t.Cleanup(web.Close)
	// Nobody can create a temporary file.
	t.Setenv("TMPDIR", filepath.Join(dir, "missing"))

	image, split := (*lxd.Image)(nil), (*lxd.Image)(nil)
	// create uploads the file, and returns the image; the one before is deleted.
	create := func(to **lxd.Image, do func(*os.File) (*lxd.Image, error)) func() error {
		return func() error {
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }()
			if *to != nil {
				if err := (*to).Delete(t.Context(), &lxd.DeleteOptions{Wait: true}); err != nil {
					return err
				}
			}
			*to, err = do(file)
			return err
		}
	}
	upload := func(opts lxd.CreateOptions) func() error {
		return create(&image, func(f *os.File) (*lxd.Image, error) {
			opts.Wait = true
			return s.Client.Images.Create(t.Context(), f, &opts)
		})
	}
	export := func(image **lxd.Image) func() error {
		return func() error {
			export, err := (*image).Export(t.Context(), nil)
			if err != nil {
				return err
			}
			for err == nil {
				err = export.Next()
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return errors.Join(err, export.Close())
		}
	}
	exportTo := func(image **lxd.Image, connections int) func() error {
		return func() error {
			files, err := (*image).ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: connections})
			if err != nil {
				return err
			}
			return errors.Join(os.RemoveAll(files.Image), os.RemoveAll(files.Metadata), os.RemoveAll(files.Rootfs))
		}
	}
	copyTo := func(image **lxd.Image, mode lxd.CopyMode) func() error {
		return func() error {
			copied, err := (*image).Copy(t.Context(), other.Client, &lxd.CopyOptions{Mode: mode, Wait: true})
			if err != nil {
				return err
			}
			return copied.Delete(t.Context(), &lxd.DeleteOptions{Wait: true})
		}
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"upload", upload(lxd.CreateOptions{})},
		{"upload, verified", upload(lxd.CreateOptions{Verify: true})},
		{"upload, hashed before", upload(lxd.CreateOptions{Dedupe: true})},
		{"import by the client", create(&image, func(*os.File) (*lxd.Image, error) {
			return s.Client.Images.CreateFromURL(t.Context(), web.URL+"/image.tar", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true})
		})},
		{"upload of a stream", create(&image, func(f *os.File) (*lxd.Image, error) {
			return s.Client.Images.Create(t.Context(), testkit.OneShotReader{Reader: f}, &lxd.CreateOptions{Wait: true})
		})},
		{"upload of two files", create(&split, func(f *os.File) (*lxd.Image, error) {
			return s.Client.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: testkit.OneShotReader{Reader: f}, Wait: true})
		})},
		{"export", export(&image)},
		{"export of two files", export(&split)},
		{"export to a file", exportTo(&image, 0)},
		{"export over connections", exportTo(&image, 4)},
		{"export to two files", exportTo(&split, 0)},
		{"content", func() error {
			content, err := image.Content(t.Context(), nil)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, content)
			return errors.Join(err, content.Close())
		}},
		{"relay", copyTo(&image, lxd.CopyRelay)},
		{"relay of two files", copyTo(&split, lxd.CopyRelay)},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		require.NoError(t, step.do(), step.name)
		runtime.ReadMemStats(&after)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(limit), step.name)
		t.Logf("%s: %d KiB", step.name, (after.TotalAlloc-before.TotalAlloc)>>10)
	}
}
