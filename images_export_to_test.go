package lxd_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

func partialPath(dir string, image *lxd.Image) string {
	return filepath.Join(dir, image.Fingerprint+".partial")
}

func rootfsPartialPath(dir string, image *lxd.Image) string {
	return filepath.Join(dir, image.Fingerprint+".rootfs.partial")
}

func TestExportToFetchesOnce(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("once", 1<<20), nil)
	dir := t.TempDir()
	files, err := x.image.ExportTo(t.Context(), dir, nil)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, x.image.Fingerprint+".tar"), files.Image)
	testkit.RequireExported(t, dir, files, x.data)
	x.ForgetRequests()
	again, err := x.image.ExportTo(t.Context(), dir, nil)
	require.NoError(t, err)
	require.Equal(t, files, again)
	require.Empty(t, x.Requests())
	testkit.RequireExported(t, dir, files, x.data)

	// A file of that name with other content is replaced.
	damaged := bytes.Clone(x.data)
	damaged[len(damaged)/2] ^= 1
	require.NoError(t, os.WriteFile(files.Image, damaged, 0o600))
	again, err = x.image.ExportTo(t.Context(), dir, nil)
	require.NoError(t, err)
	testkit.RequireExported(t, dir, again, x.data)
	require.Len(t, x.ranges(), 1)
}

func TestExportToOfSplitImage(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("to", 3<<20)
	x := newExportTest(t, 0, metadata, rootfs)
	dir := t.TempDir()
	cut := x.Inject(lxdtest.CutResponse(2<<20).On("GET", testkit.ExportPattern).Times(2))
	files, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Name: "web", Sync: true})
	require.NoError(t, err, "it starts over")
	require.Equal(t, 2, cut.Fired())
	require.Equal(t, []string{"", "", ""}, x.ranges())
	require.Equal(t, filepath.Join(dir, "web.meta.tar"), files.Metadata)
	require.NoError(t, files.Verify(t.Context(), x.image.Fingerprint))
	testkit.RequireExported(t, dir, files, metadata, rootfs)
	x.ForgetRequests()
	again, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Name: "web"})
	require.NoError(t, err)
	require.Equal(t, files, again)
	require.Empty(t, x.Requests())
}

func TestExportToOfSplitImageFailsAfterRetries(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("up", 3<<20)
	for name, fault := range map[string]lxdtest.Fault{
		"cut in the rootfs":   lxdtest.CutResponse(2 << 20),
		"cut in the metadata": lxdtest.CutResponse(100),
		"truncated":           lxdtest.TruncateRootfs(1 << 20),
		"corrupt":             lxdtest.Corrupt(2 << 20),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, shortRetries, metadata, rootfs)
			dir := t.TempDir()
			x.Inject(fault.On("GET", testkit.ExportPattern))
			_, err := x.image.ExportTo(t.Context(), dir, nil)
			var corrupt *lxd.FingerprintError
			require.ErrorAs(t, err, &corrupt)
			require.Empty(t, testkit.FilesIn(t, dir))
		})
	}
}

func TestExportToResumesPartialFile(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("partial", 3<<20)
	const part = 1<<20 + 17
	flipped := bytes.Clone(data[:part])
	flipped[5] ^= 1
	for _, c := range []struct {
		name    string
		partial []byte
		ranges  []string
	}{
		{"empty", nil, []string{""}},
		{"a part", data[:part], []string{fmt.Sprintf("bytes=%d-", part)}},
		{"all", data, nil},
		{"longer than the image", slices.Concat(data, []byte("more")), []string{""}},
		{"as long, but another", bytes.Repeat([]byte("x"), len(data)), []string{""}},
		{"a damaged part", flipped, []string{fmt.Sprintf("bytes=%d-", part), ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, data, nil)
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(partialPath(dir, x.image), c.partial, 0o600))
			files, err := x.image.ExportTo(t.Context(), dir, nil)
			require.NoError(t, err)
			testkit.RequireExported(t, dir, files, data)
			require.Equal(t, c.ranges, x.ranges())
		})
	}
}

// TestExportToAndWrongContinuations is about a partial file of an
// earlier call. TestExportRefusesWrongContinuations has the breaks within one.
func TestExportToAndWrongContinuations(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("wrong", 2<<20)
	const part = 1 << 20
	for name, hop := range map[string]func(*http.Request, http.RoundTripper) (*http.Response, error){
		"Range ignored": func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			req = req.Clone(req.Context())
			req.Header.Del("Range")
			return next.RoundTrip(req)
		},
		"another offset": func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			res, err := next.RoundTrip(req)
			if err == nil {
				res.Header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)))
			}
			return res, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, data, nil)
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(partialPath(dir, x.image), data[:part], 0o600))
			x.between(hop)
			files, err := x.image.ExportTo(t.Context(), dir, nil)
			if name == "Range ignored" {
				require.NoError(t, err)
				testkit.RequireExported(t, dir, files, data)
				return
			}
			require.ErrorIs(t, err, lxd.ErrBadResponse)
			require.Equal(t, []string{partialPath(dir, x.image)}, testkit.FilesIn(t, dir))
		})
	}
}

func TestExportToKeepsPartialFile(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, -1, lxdtest.UnifiedImage("came", 3<<20), nil)
	dir := t.TempDir()
	x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(1))
	_, err := x.image.ExportTo(t.Context(), dir, nil)
	var incomplete *lxd.FingerprintError
	require.ErrorAs(t, err, &incomplete)
	require.Equal(t, []string{partialPath(dir, x.image)}, testkit.FilesIn(t, dir))
	files, err := x.image.ExportTo(t.Context(), dir, nil)
	require.NoError(t, err)
	testkit.RequireExported(t, dir, files, x.data)
	require.Equal(t, []string{"", fmt.Sprintf("bytes=%d-", 1<<20)}, x.ranges())
}

func TestExportToOfCorruptContentLeavesNothing(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("corrupt", 1<<20), nil)
	dir := t.TempDir()
	x.Inject(lxdtest.Corrupt(500<<10).On("GET", testkit.ExportPattern))
	_, err := x.image.ExportTo(t.Context(), dir, nil)
	var corrupt *lxd.FingerprintError
	require.ErrorAs(t, err, &corrupt)
	require.Equal(t, x.image.Fingerprint, corrupt.Want)
	require.Len(t, corrupt.Got, 64)
	require.Empty(t, testkit.FilesIn(t, dir))
	require.Len(t, x.ranges(), 1)
}

// TestExportToOfReplacedImage has the alias moved between two calls.
func TestExportToOfReplacedImage(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, -1, lxdtest.UnifiedImage("old", 2<<20), nil)
	dir := t.TempDir()
	x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(1))
	options := &lxd.ExportToOptions{Name: "newest"}
	_, err := x.image.ExportTo(t.Context(), dir, options)
	require.Error(t, err)
	require.NoError(t, x.image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
	other := lxdtest.UnifiedImage("new", 2<<20)
	_, err = x.AddImage(other, &lxdtest.AddOptions{Aliases: []string{"newest"}})
	require.NoError(t, err)

	_, err = x.image.ExportTo(t.Context(), dir, options)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	now, err := x.client.Images.GetByAlias(t.Context(), "newest")
	require.NoError(t, err)
	files, err := now.ExportTo(t.Context(), dir, options)
	require.NoError(t, err)
	got, err := os.ReadFile(files.Image)
	require.NoError(t, err)
	require.True(t, bytes.Equal(other, got))
}

func TestTwoExportToAtOnce(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("two", 2<<20), nil)
	dir := t.TempDir()
	stalled := x.Inject(lxdtest.StallResponse(1<<20).On("GET", testkit.ExportPattern))
	const calls = 4
	var group sync.WaitGroup
	var files [calls]*lxd.ExportedFiles
	var errs [calls]error
	for n := range calls {
		group.Go(func() { files[n], errs[n] = x.image.ExportTo(t.Context(), dir, nil) })
	}
	require.Eventually(t, func() bool { return stalled.Fired() == 1 }, exportWait, exportTick)
	stalled.Release()
	group.Wait()
	for n := range calls {
		require.NoError(t, errs[n])
		require.Equal(t, files[0], files[n])
	}
	testkit.RequireExported(t, dir, files[0], x.data)
	require.Equal(t, []string{""}, x.ranges(), "one call fetches, the others find its file")
}

func TestExportToWaitsUnderItsContext(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("wait", 2<<20), nil)
	dir := t.TempDir()
	stalled := x.Inject(lxdtest.StallResponse(1<<20).On("GET", testkit.ExportPattern))
	defer stalled.Remove()
	first, cancelFirst := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := x.image.ExportTo(first, dir, nil)
		ended <- err
	}()
	require.Eventually(t, func() bool { return stalled.Fired() == 1 }, exportWait, exportTick)
	second, cancelSecond := context.WithCancel(t.Context())
	cancelSecond()
	_, err := x.image.ExportTo(second, dir, nil)
	require.ErrorIs(t, err, context.Canceled)
	cancelFirst()
	require.ErrorIs(t, <-ended, context.Canceled)
	for _, path := range testkit.FilesIn(t, dir) {
		require.Equal(t, partialPath(dir, x.image), path)
	}
}

// TestExportToOfSplitImageReplacesRest has the files of a process that was killed.
func TestExportToOfSplitImageReplacesRest(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("rest", 1<<20)
	x := newExportTest(t, 0, metadata, rootfs)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(rootfsPartialPath(dir, x.image), make([]byte, 2<<20), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "web.lock.partial"), nil, 0o600))
	files, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Name: "web"})
	require.NoError(t, err)
	testkit.RequireExported(t, dir, files, metadata, rootfs)
}

// TestExportToReplacesFilesOfItsName exports two images with one name.
func TestExportToReplacesFilesOfItsName(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("first", 64<<10)
	x := newExportTest(t, 0, metadata, rootfs)
	dir := t.TempDir()
	options := &lxd.ExportToOptions{Name: "web"}
	first, err := x.image.ExportTo(t.Context(), dir, options)
	require.NoError(t, err)
	testkit.RequireExported(t, dir, first, metadata, rootfs)

	data := lxdtest.UnifiedImage("second", 64<<10)
	fingerprint, err := x.AddImage(data, nil)
	require.NoError(t, err)
	second, err := x.client.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	files, err := second.ExportTo(t.Context(), dir, options)
	require.NoError(t, err)
	require.Equal(t, &lxd.ExportedFiles{Image: first.Rootfs}, files, "they have the same extension")
	testkit.RequireExported(t, dir, &lxd.ExportedFiles{Metadata: first.Metadata, Rootfs: files.Image}, metadata, data)

	again, err := x.image.ExportTo(t.Context(), dir, options)
	require.NoError(t, err)
	require.Equal(t, first, again)
	testkit.RequireExported(t, dir, again, metadata, rootfs)
}

// TestExportToOfSplitImageThatCannotBePublished has a directory, with something in
// it, at the path of one of the files.
func TestExportToOfSplitImageThatCannotBePublished(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("published", 64<<10)
	for _, c := range []struct {
		name    string
		blocked string
		earlier string
		kept    bool
	}{
		{"no metadata", "web.meta.tar", "web.tar", true},
		{"no rootfs", "web.tar", "web.meta.tar", false}, // it could be taken for that of a new rootfs
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, metadata, rootfs)
			dir := t.TempDir()
			blocked, earlier := filepath.Join(dir, c.blocked), filepath.Join(dir, c.earlier)
			require.NoError(t, os.MkdirAll(filepath.Join(blocked, "something"), 0o700))
			require.NoError(t, os.WriteFile(earlier, []byte("earlier"), 0o600))
			_, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Name: "web"})
			require.Error(t, err)
			if !c.kept {
				require.Equal(t, []string{blocked}, testkit.FilesIn(t, dir))
				return
			}
			require.Equal(t, []string{blocked, earlier}, testkit.FilesIn(t, dir))
			got, err := os.ReadFile(earlier)
			require.NoError(t, err)
			require.Equal(t, "earlier", string(got))
		})
	}
}

func TestExportToMissingDirectory(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("nowhere", 0), nil)
	x.ForgetRequests()
	_, err := x.image.ExportTo(t.Context(), filepath.Join(t.TempDir(), "missing"), nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
	for _, name := range []string{"..", "a/b", `a\b`, "a\nb", strings.Repeat("n", 256)} {
		_, err = x.image.ExportTo(t.Context(), t.TempDir(), &lxd.ExportToOptions{Name: name})
		require.ErrorIs(t, err, lxd.ErrInvalid)
		require.True(t, strings.HasPrefix(err.Error(), "ExportToOptions.Name "), err)
	}
	require.Empty(t, x.Requests())
}

// TestExportToRefusesAnotherLength has a server whose Content-Length, or content, has
// not the image's length.
func TestExportToRefusesAnotherLength(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("length", 1<<20)
	metadata, rootfs := lxdtest.SplitImage("length", 1<<20)
	length := func(n int64) func(*http.Response) {
		return func(res *http.Response) {
			res.ContentLength = n
			res.Header.Set("Content-Length", fmt.Sprint(n))
		}
	}
	endless := func(res *http.Response) {
		length(-1)(res)
		body := res.Body
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(io.LimitReader(body, 512<<10), endlessReader{}), body}
	}
	for _, c := range []struct {
		name         string
		data, rootfs []byte
		change       func(*http.Response)
	}{
		{"a huge one", data, nil, length(9e18)},
		{"one more", data, nil, length(int64(len(data)) + 1)},
		{"one less", data, nil, length(int64(len(data)) - 1)},
		{"none, and no end", data, nil, endless},
		{"split, and no end", metadata, rootfs, endless},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, -1, c.data, c.rootfs)
			x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
				res, err := next.RoundTrip(req)
				if err == nil {
					c.change(res)
				}
				return res, err
			})
			dir := t.TempDir()
			_, err := x.image.ExportTo(t.Context(), dir, nil)
			var failed *lxd.FingerprintError
			require.ErrorAs(t, err, &failed)
			require.ErrorIs(t, err, lxd.ErrBadResponse)
			for _, path := range testkit.FilesIn(t, dir) {
				require.Contains(t, c.name, "no end")
				info, err := os.Stat(path)
				require.NoError(t, err)
				require.LessOrEqual(t, info.Size(), x.image.Size)
			}
			_, err = readExport(t, x.image)
			require.ErrorAs(t, err, &failed)
			require.ErrorIs(t, err, lxd.ErrBadResponse)
		})
	}
}

type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) { return len(p), nil }

// TestPanicInAnExport has a callback of the caller's panic: nothing is left
// locked or running.
func TestPanicInAnExport(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("panic", 1<<20), nil)
	dir := t.TempDir()
	x.between(func(*http.Request, http.RoundTripper) (*http.Response, error) { panic("in a callback") })
	require.PanicsWithValue(t, "in a callback", func() {
		_, _ = x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Progress: func(lxd.Progress) {}})
	})
	require.PanicsWithValue(t, "in a callback", func() {
		_, _ = x.image.Export(t.Context(), &lxd.ExportOptions{Progress: func(lxd.Progress) {}})
	})
	x.between(nil)
	require.Empty(t, testkit.FilesIn(t, dir))
	ctx, cancel := context.WithTimeout(t.Context(), exportWait)
	defer cancel()
	files, err := x.image.ExportTo(ctx, dir, nil)
	require.NoError(t, err)
	testkit.RequireExported(t, dir, files, x.data)
}

// TestVerifyExportedFiles without a server.
func TestVerifyExportedFiles(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("verify", 1000)
	unified := lxdtest.UnifiedImage("verify", 1000)
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		return path
	}
	one, m, r := write("one", unified), write("m", metadata), write("r", rootfs)
	oneSum, pairSum := lxdtest.Fingerprint(unified), lxdtest.Fingerprint(metadata, rootfs)
	require.NoError(t, (&lxd.ExportedFiles{Image: one}).Verify(t.Context(), strings.ToUpper(oneSum)))
	require.NoError(t, (&lxd.ExportedFiles{Metadata: m, Rootfs: r}).Verify(t.Context(), pairSum))
	for _, wrong := range []*lxd.ExportedFiles{{Image: m}, {Metadata: r, Rootfs: m}, {Image: write("changed", append(unified, 'x'))}} {
		err := wrong.Verify(t.Context(), pairSum)
		require.NotEmpty(t, testkit.ErrOf[*lxd.FingerprintError](t, err).Got)
	}
	for _, incomplete := range []*lxd.ExportedFiles{nil, {}, {Metadata: m}, {Rootfs: r}, {Image: one, Rootfs: r}} {
		require.Equal(t, "files", testkit.ErrOf[*lxd.InputError](t, incomplete.Verify(t.Context(), pairSum)).Field)
	}
	require.Equal(t, "fingerprint", testkit.ErrOf[*lxd.InputError](t, (&lxd.ExportedFiles{Image: one}).Verify(t.Context(), oneSum[:12])).Field)
	require.ErrorIs(t, (&lxd.ExportedFiles{Image: filepath.Join(dir, "none")}).Verify(t.Context(), oneSum), fs.ErrNotExist)
	require.ErrorContains(t, (&lxd.ExportedFiles{Image: dir}).Verify(t.Context(), oneSum), "not a regular file")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, (&lxd.ExportedFiles{Image: one}).Verify(ended, oneSum), context.Canceled)
}
