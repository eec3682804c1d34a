package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// asked returns how many bytes of an image of that size the ranges cover.
func asked(t *testing.T, ranges []string, size int) (bytes int) {
	t.Helper()
	for _, r := range ranges {
		from, end := 0, size-1
		if r != "" {
			_, err := fmt.Sscanf(r, "bytes=%d-%d", &from, &end)
			require.NoError(t, err, r)
		}
		bytes += end - from + 1
	}
	return bytes
}

func TestExportToOverConnections(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("connections", 8<<20)
	for _, connections := range []int{2, 3, 8, 64} {
		x := newExportTest(t, 0, data, nil)
		dir := t.TempDir()
		var reports []lxd.Progress
		files, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{
			Connections: connections, Progress: func(p lxd.Progress) { reports = append(reports, p) },
		})
		require.NoError(t, err)
		testkit.RequireExported(t, dir, files, data)
		require.Len(t, x.ranges(), min(connections, 8), "no part is smaller than 1 MiB")
		require.Equal(t, len(data), asked(t, x.ranges(), len(data)))
		last := reports[len(reports)-1]
		require.Equal(t, lxd.PhaseVerify, last.Phase)
		require.EqualValues(t, len(data), last.Done)
		x.ForgetRequests()
		again, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: connections})
		require.NoError(t, err)
		require.Equal(t, files, again)
		require.Empty(t, x.Requests())
	}
}

func TestExportToOverConnectionsOfWhatHasNoParts(t *testing.T) {
	t.Parallel()
	t.Run("small", func(t *testing.T) {
		t.Parallel()
		x := newExportTest(t, 0, lxdtest.UnifiedImage("small", 1<<20), nil)
		dir := t.TempDir()
		files, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: 8})
		require.NoError(t, err)
		testkit.RequireExported(t, dir, files, x.data)
		require.Equal(t, []string{""}, x.ranges())
	})
	t.Run("split", func(t *testing.T) {
		t.Parallel()
		metadata, rootfs := lxdtest.SplitImage("split", 3<<20)
		x := newExportTest(t, 0, metadata, rootfs)
		dir := t.TempDir()
		files, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: 8})
		require.NoError(t, err)
		testkit.RequireExported(t, dir, files, metadata, rootfs)
		require.Len(t, x.ranges(), 2, "one request shows that there are no parts")
	})
}

func TestExportToOverConnectionsResumes(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("resumes", 8<<20)
	x := newExportTest(t, 0, data, nil)
	dir := t.TempDir()
	cut := x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(4))
	x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		var from int
		if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from); err != nil {
			return nil, err
		}
		// The cuts are for the first requests of the parts.
		begins := slices.ContainsFunc([]int{0, 1, 2, 3}, func(part int) bool { return from == len(data)*part/4 })
		for !begins && cut.Fired() < 4 {
			if req.Context().Err() != nil {
				return nil, req.Context().Err()
			}
			time.Sleep(exportTick)
		}
		return next.RoundTrip(req)
	})
	files, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: 4})
	require.NoError(t, err)
	require.Equal(t, 4, cut.Fired())
	require.Len(t, x.ranges(), 8)
	require.Equal(t, 2*len(data)-4<<20, asked(t, x.ranges(), len(data)), "each resumes where it broke")
	testkit.RequireExported(t, dir, files, data)
}

// TestExportToOverConnectionsResumesInNextCall has the next call, with as many connections
// or another number of them, resume all parts.
func TestExportToOverConnectionsResumesInNextCall(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("goes on", 8<<20)
	for _, next := range []int{0, 2, 4, 64} {
		t.Run(fmt.Sprintf("then %d connections", next), func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, -1, data, nil)
			dir := t.TempDir()
			cut := x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(4))
			_, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: 4})
			var incomplete *lxd.FingerprintError
			require.ErrorAs(t, err, &incomplete)
			require.Empty(t, incomplete.Got)
			require.Equal(t, []string{partialPath(dir, x.image)}, testkit.FilesIn(t, dir))
			cut.Remove() // the first cut ended the transfer, before others perhaps
			// The server may yet hear of requests that the first call abandoned:
			// those of the second are counted on this side.
			var mu sync.Mutex
			var ranges []string
			x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
				mu.Lock()
				ranges = append(ranges, req.Header.Get("Range"))
				mu.Unlock()
				return next.RoundTrip(req)
			})
			files, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: next})
			require.NoError(t, err)
			testkit.RequireExported(t, dir, files, data)
			require.LessOrEqual(t, asked(t, ranges, len(data)), len(data)-1<<20, "at least the part whose end was the first to show is there")
		})
	}
}

// TestExportToOverConnectionsResumesSingleConnection divides what is missing of a
// file that one connection began.
func TestExportToOverConnectionsResumesSingleConnection(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("beginning", 8<<20)
	const part = 3<<20 + 5
	x := newExportTest(t, 0, data, nil)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(partialPath(dir, x.image), data[:part], 0o600))
	files, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: 4})
	require.NoError(t, err)
	testkit.RequireExported(t, dir, files, data)
	require.Len(t, x.ranges(), 4)
	require.Equal(t, len(data)-part, asked(t, x.ranges(), len(data)))
}

func TestExportToOverConnectionsUnderFaults(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("weather", 4<<20)
	damaged := bytes.Clone(data[:2<<20])
	damaged[5] ^= 1
	options := func() *lxd.ExportToOptions { return &lxd.ExportToOptions{Connections: 3} }
	withoutRange := func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		req = req.Clone(req.Context())
		req.Header.Del("Range")
		return next.RoundTrip(req)
	}
	for name, partial := range map[string][]byte{
		"nothing there": nil,
		"a part there":  data[:1<<20],
		"a damaged part there, which is fetched again": damaged,
		"longer than the image":                        slices.Concat(data, []byte("golxd/lxd parts\n and what is none")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, ignored := range []bool{false, true} {
				x := newExportTest(t, 0, data, nil)
				dir := t.TempDir()
				require.NoError(t, os.WriteFile(partialPath(dir, x.image), partial, 0o600))
				if ignored {
					x.between(withoutRange)
				}
				files, err := x.image.ExportTo(t.Context(), dir, options())
				require.NoError(t, err)
				testkit.RequireExported(t, dir, files, data)
			}
		})
	}
	t.Run("ranges ignored after a break", func(t *testing.T) {
		t.Parallel()
		x := newExportTest(t, 0, data, nil)
		dir := t.TempDir()
		cut := x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(1))
		x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			if cut.Fired() > 0 && strings.HasSuffix(req.URL.Path, "/export") {
				return withoutRange(req, next)
			}
			return next.RoundTrip(req)
		})
		files, err := x.image.ExportTo(t.Context(), dir, options())
		require.NoError(t, err)
		testkit.RequireExported(t, dir, files, data)
	})
	for name, header := range map[string]string{
		"another offset": fmt.Sprintf("bytes 1-%d/%d", len(data)-1, len(data)),
		"another total":  "bytes 0-9/10",
		"stops too soon": fmt.Sprintf("bytes 0-9/%d", len(data)),
		"no numbers":     "bytes */*",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, data, nil)
			dir := t.TempDir()
			x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
				res, err := next.RoundTrip(req)
				if err == nil {
					res.Header.Set("Content-Range", header)
				}
				return res, err
			})
			_, err := x.image.ExportTo(t.Context(), dir, options())
			require.ErrorIs(t, err, lxd.ErrBadResponse)
			require.Empty(t, testkit.FilesIn(t, dir))
		})
	}
	t.Run("corrupt", func(t *testing.T) {
		t.Parallel()
		x := newExportTest(t, 0, data, nil)
		dir := t.TempDir()
		x.Inject(lxdtest.Corrupt(500<<10).On("GET", testkit.ExportPattern).Times(1))
		_, err := x.image.ExportTo(t.Context(), dir, options())
		var corrupt *lxd.FingerprintError
		require.ErrorAs(t, err, &corrupt)
		require.Len(t, corrupt.Got, 64)
		require.Empty(t, testkit.FilesIn(t, dir))
		require.Len(t, x.ranges(), 3, "what is wrong is not asked for again")
	})
	t.Run("one part fails, the others would not end", func(t *testing.T) {
		t.Parallel()
		x := newExportTest(t, -1, data, nil)
		dir := t.TempDir()
		stalled := x.Inject(lxdtest.StallResponse(100<<10).On("GET", testkit.ExportPattern))
		defer stalled.Remove()
		x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			if req.Header.Get("Range") == fmt.Sprintf("bytes=%d-%d", len(data)*2/3, len(data)-1) {
				for stalled.Fired() < 2 && req.Context().Err() == nil {
					time.Sleep(exportTick)
				}
				return nil, errors.New("broken")
			}
			return next.RoundTrip(req)
		})
		ended := make(chan error)
		go func() {
			_, err := x.image.ExportTo(t.Context(), dir, options())
			ended <- err
		}()
		select {
		case err := <-ended:
			require.ErrorContains(t, err, "broken")
			require.NoError(t, t.Context().Err())
		case <-time.After(exportWait):
			t.Fatal("it waits for the other parts")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		x := newExportTest(t, 0, data, nil)
		dir := t.TempDir()
		stalled := x.Inject(lxdtest.StallResponse(100<<10).On("GET", testkit.ExportPattern))
		defer stalled.Remove()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := x.image.ExportTo(ctx, dir, options())
			ended <- err
		}()
		require.Eventually(t, func() bool { return stalled.Fired() == 3 }, exportWait, exportTick, "all at once")
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		for _, path := range testkit.FilesIn(t, dir) {
			require.Equal(t, partialPath(dir, x.image), path)
		}
	})
}
