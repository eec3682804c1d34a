package lxd_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// webServer serves an image by http.ServeContent.
func webServer(t *testing.T, image *lxd.Image) string {
	t.Helper()
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, err := image.Content(r.Context(), nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer content.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("ETag", `"`+image.Fingerprint+`"`)
		http.ServeContent(w, r, "", time.Time{}, content)
	}))
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.Start()
	t.Cleanup(web.Close)
	return web.URL
}

func webGet(t *testing.T, url string, header ...string) (status int, body []byte, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	for n := 0; n < len(header); n += 2 {
		req.Header.Set(header[n], header[n+1])
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	return res.StatusCode, body, err
}

// ignoresRanges makes the server send all of the content.
func ignoresRanges(req *http.Request, next http.RoundTripper) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Del("Range")
	return next.RoundTrip(req)
}

func TestContentOverHTTP(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("over http", 3<<20)
	size := len(data)
	for name, hop := range map[string]func(*http.Request, http.RoundTripper) (*http.Response, error){"ranges": nil, "without ranges": ignoresRanges} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, data, nil)
			x.between(hop)
			url := webServer(t, x.image)
			for _, c := range []struct {
				ranges     string
				from, to   int
				wantStatus int
			}{
				{"", 0, size, 200},
				{"bytes=0-", 0, size, 206},
				{"bytes=0-0", 0, 1, 206},
				{"bytes=0-999", 0, 1000, 206},
				{"bytes=1000-2000", 1000, 2001, 206},
				{"bytes=1000000-", 1000000, size, 206},
				{"bytes=-100", size - 100, size, 206},
				{fmt.Sprintf("bytes=%d-", size), 0, 0, 416},
			} {
				status, body, err := webGet(t, url, "Range", c.ranges)
				require.NoError(t, err, c.ranges)
				require.Equal(t, c.wantStatus, status, c.ranges)
				if status != 416 {
					require.True(t, bytes.Equal(data[c.from:c.to], body), c.ranges)
				}
			}
			status, body, err := webGet(t, url, "Range", "bytes=5-9", "If-Range", `"another"`)
			require.NoError(t, err)
			require.Equal(t, 200, status)
			require.True(t, bytes.Equal(data, body))
			status, _, err = webGet(t, url, "If-None-Match", `"`+x.image.Fingerprint+`"`)
			require.NoError(t, err)
			require.Equal(t, 304, status)
		})
	}
}

// TestContentIsVerified if it is read from the beginning.
func TestContentIsVerified(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("verified", 2<<20)
	for _, offset := range []int64{1, 1 << 20, int64(len(data)) - 1} {
		x := newExportTest(t, 0, data, nil)
		url := webServer(t, x.image)
		corrupt := x.Inject(lxdtest.Corrupt(offset).On("GET", testkit.ExportPattern))
		_, body, err := webGet(t, url)
		require.Error(t, err)
		require.Less(t, len(body), len(data))
		require.NotZero(t, corrupt.Fired())

		content, err := x.image.Content(t.Context(), nil)
		require.NoError(t, err)
		_, err = io.ReadFull(content, make([]byte, len(data)))
		testkit.ErrOf[*lxd.FingerprintError](t, err)
		_, err = content.Seek(0, io.SeekStart)
		require.NoError(t, err)
		corrupt.Remove()
		got, err := io.ReadAll(content)
		require.NoError(t, err, "a Seek begins anew")
		require.True(t, bytes.Equal(data, got))
		require.NoError(t, content.Close())
	}
}

func TestContentIsAReadSeeker(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("seeker", 5000)
	x := newExportTest(t, 0, data, nil)
	content, err := x.image.Content(t.Context(), nil)
	require.NoError(t, err)
	defer content.Close()
	require.EqualValues(t, len(data), content.Size())
	require.Equal(t, []string{"bytes=0-0"}, x.ranges(), "nothing is read yet")
	require.NoError(t, iotest.TestReader(content, data))
	end, err := content.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	require.Equal(t, content.Size(), end)
	_, err = content.Seek(-1, io.SeekStart)
	require.Equal(t, "offset", testkit.ErrOf[*lxd.InputError](t, err).Field)
	_, err = content.Seek(0, 7)
	require.Equal(t, "whence", testkit.ErrOf[*lxd.InputError](t, err).Field)
	at, err := content.Seek(10, io.SeekEnd)
	require.NoError(t, err)
	require.Equal(t, content.Size()+10, at)
	_, err = content.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
}

// TestContentResumes, at any offset, and says why if it cannot.
func TestContentResumes(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("resumes", 4<<20)
	for _, from := range []int64{0, 100_000} {
		x := newExportTest(t, 0, data, nil)
		content, err := x.image.Content(t.Context(), nil)
		require.NoError(t, err)
		defer content.Close()
		cut := x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(2))
		_, err = content.Seek(from, io.SeekStart)
		require.NoError(t, err)
		got, err := io.ReadAll(content)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data[from:], got))
		require.Equal(t, 2, cut.Fired())

		x = newExportTest(t, -1, data, nil)
		content, err = x.image.Content(t.Context(), nil)
		require.NoError(t, err)
		defer content.Close()
		x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern))
		_, err = content.Seek(from, io.SeekStart)
		require.NoError(t, err)
		_, err = io.ReadAll(content)
		testkit.ErrOf[*lxd.FingerprintError](t, err)
		require.ErrorIs(t, err, lxd.ErrUnavailable)
	}
}

func TestContentThatCannotBeRead(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("content", 2<<20)
	split := newExportTest(t, 0, metadata, rootfs)
	_, err := split.image.Content(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrUnsupported)
	require.ErrorContains(t, err, "Image.Export")

	x := newExportTest(t, 0, lxdtest.UnifiedImage("content", 2<<20), nil)
	x.between(ignoresRanges)
	short := x.Inject(lxdtest.ShortLength(10).On("GET", testkit.ExportPattern))
	_, err = x.image.Content(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrBadResponse, "it has another length")
	short.Remove()

	content, err := x.image.Content(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, x.image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
	_, err = content.Read(make([]byte, 1))
	require.ErrorIs(t, err, lxd.ErrNotFound)
	_, err = x.image.Content(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

// TestContentEnds with its context, and by Close from another goroutine.
func TestContentEnds(t *testing.T) {
	t.Parallel()
	for _, from := range []int64{0, 1000} {
		for name, end := range map[string]func(cancel func(), content *lxd.Content){
			"context": func(cancel func(), _ *lxd.Content) { cancel() },
			"Close":   func(_ func(), content *lxd.Content) { _ = content.Close() },
		} {
			x := newExportTest(t, 0, lxdtest.UnifiedImage("ends", 4<<20), nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			content, err := x.image.Content(ctx, nil)
			require.NoError(t, err)
			stall := x.Inject(lxdtest.StallResponse(1<<20).On("GET", testkit.ExportPattern))
			_, err = content.Seek(from, io.SeekStart)
			require.NoError(t, err)
			failed := make(chan error, 1)
			go func() {
				_, err := io.Copy(io.Discard, content)
				failed <- err
			}()
			require.Eventually(t, func() bool { return stall.Fired() > 0 }, exportWait, exportTick)
			began := time.Now()
			end(cancel, content)
			err = <-failed
			require.Less(t, time.Since(began), exportWait, "not a stall's timeout")
			if name == "context" {
				require.ErrorIs(t, err, context.Canceled)
			} else {
				require.ErrorIs(t, err, net.ErrClosed)
				_, err = content.Read(make([]byte, 1))
				require.ErrorIs(t, err, net.ErrClosed)
				_, err = content.Seek(0, io.SeekStart)
				require.ErrorIs(t, err, net.ErrClosed)
			}
			require.NoError(t, content.Close())
		}
	}
}

// TestContentIsClosedBeforeTheResponse ends the Read that waits for it.
func TestContentIsClosedBeforeTheResponse(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("closed", 4<<20), nil)
	content, err := x.image.Content(t.Context(), nil)
	require.NoError(t, err)
	stall := x.Inject(lxdtest.StallHeaders().On("GET", testkit.ExportPattern))
	defer stall.Remove()
	failed := make(chan error, 1)
	go func() {
		_, err := content.Read(make([]byte, 1))
		failed <- err
	}()
	require.Eventually(t, func() bool { return stall.Fired() > 0 }, exportWait, exportTick)
	require.NoError(t, content.Close())
	select {
	case err := <-failed:
		require.ErrorIs(t, err, net.ErrClosed)
	case <-time.After(exportWait):
		t.Fatal("it still waits for the response")
	}
}

// TestContentOfDaemons: all of them accept ranges.
func TestContentOfDaemons(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			data := testkit.Unified(t, 1<<20)
			image, err := s.Client(t).Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
			require.NoError(t, err)
			testkit.DeleteAfter(t, image)
			url := webServer(t, image)
			for _, c := range []struct {
				ranges   string
				from, to int
			}{{"", 0, len(data)}, {"bytes=70000-80000", 70000, 80001}, {"bytes=-1", len(data) - 1, len(data)}} {
				_, body, err := webGet(t, url, "Range", c.ranges)
				require.NoError(t, err)
				require.True(t, bytes.Equal(data[c.from:c.to], body), c.ranges)
			}
			metadata, rootfs := lxdtest.SplitImage(s.Column, 100_000)
			split, err := s.Client(t).Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Wait: true, Rootfs: bytes.NewReader(rootfs)})
			require.NoError(t, err)
			testkit.DeleteAfter(t, split)
			_, err = split.Content(t.Context(), nil)
			require.ErrorIs(t, err, lxd.ErrUnsupported)
		})
	}
}
