package lxd_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

func TestExportResumes(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("cut", 8<<20), nil)
	const cut = 2 << 20
	fault := x.Inject(lxdtest.CutResponse(cut).On("GET", testkit.ExportPattern).Times(3))
	x.received.Store(0)
	got, err := readExport(t, x.image)
	require.NoError(t, err)
	require.True(t, bytes.Equal(x.data, got))
	require.Equal(t, 3, fault.Fired())
	require.Equal(t, []string{"", fmt.Sprintf("bytes=%d-", cut), fmt.Sprintf("bytes=%d-", 2*cut), fmt.Sprintf("bytes=%d-", 3*cut)}, x.ranges())
	const buffer, headers = 256 << 10, 16 << 10
	require.LessOrEqual(t, x.received.Load(), int64(len(x.data)+3*buffer+headers))
}

func TestExportFailsAfterRetries(t *testing.T) {
	t.Parallel()
	for _, timeout := range []time.Duration{-1, shortRetries} {
		x := newExportTest(t, timeout, lxdtest.UnifiedImage("retries", 4<<20), nil)
		x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(1))
		x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			res, err := next.RoundTrip(req)
			if err == nil && req.Header.Get("Range") != "" {
				_ = res.Body.Close() // without another byte
			}
			return res, err
		})
		began := time.Now()
		got, err := readExport(t, x.image)
		if timeout < 0 {
			require.Len(t, x.ranges(), 1)
		} else {
			require.Greater(t, len(x.ranges()), 1)
			require.GreaterOrEqual(t, time.Since(began), timeout)
		}
		var incomplete *lxd.FingerprintError
		require.ErrorAs(t, err, &incomplete)
		require.Empty(t, incomplete.Got)
		require.NotErrorIs(t, err, io.EOF)
		require.True(t, bytes.HasPrefix(x.data, got))
	}
}

// TestExportRefusesWrongContinuations has a server that responds to the request for
// the rest with something else.
func TestExportRefusesWrongContinuations(t *testing.T) {
	t.Parallel()
	changed := func(name, value string) func(*http.Request, http.RoundTripper) (*http.Response, error) {
		return func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			res, err := next.RoundTrip(req)
			if err == nil && req.Header.Get("Range") != "" {
				res.Header.Set(name, value)
			}
			return res, err
		}
	}
	data := lxdtest.UnifiedImage("continue", 4<<20)
	size := len(data)
	for name, hop := range map[string]func(*http.Request, http.RoundTripper) (*http.Response, error){
		"Range ignored": func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			req = req.Clone(req.Context())
			req.Header.Del("Range")
			return next.RoundTrip(req)
		},
		"another offset":   changed("Content-Range", fmt.Sprintf("bytes %d-%d/%d", 1<<20+1, size-1, size)),
		"another total":    changed("Content-Range", fmt.Sprintf("bytes %d-%d/%d", 1<<20, size, size+1)),
		"stops in between": changed("Content-Range", fmt.Sprintf("bytes %d-%d/%d", 1<<20, size-2, size)),
		"no Content-Range": changed("Content-Range", ""),
		"not a range":      changed("Content-Range", "bytes */4096"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, data, nil)
			x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(1))
			x.between(hop)
			got, err := readExport(t, x.image)
			require.ErrorIs(t, err, lxd.ErrBadResponse)
			require.NotErrorIs(t, err, io.EOF)
			require.Equal(t, data[:len(got)], got)
		})
	}
}

// TestExportOfImageThatIsReplaced has another image take over the alias, and the
// first deleted, between a break and the request for the rest.
func TestExportOfImageThatIsReplaced(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("first", 4<<20), nil)
	other := lxdtest.UnifiedImage("second", 4<<20)
	x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(1))
	var once sync.Once
	image, err := x.client.Images.GetByAlias(t.Context(), "newest")
	require.NoError(t, err)
	x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		if req.Header.Get("Range") == "" {
			return next.RoundTrip(req)
		}
		var err error
		once.Do(func() {
			x.between(nil)
			if err = x.image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}); err == nil {
				_, err = x.AddImage(other, &lxdtest.AddOptions{Aliases: []string{"newest"}})
			}
		})
		if err != nil {
			return nil, err
		}
		return next.RoundTrip(req)
	})
	_, err = readExport(t, image)
	require.ErrorIs(t, err, lxd.ErrNotFound)

	now, err := x.client.Images.GetByAlias(t.Context(), "newest")
	require.NoError(t, err)
	got, err := readExport(t, now)
	require.NoError(t, err)
	require.True(t, bytes.Equal(other, got))
}
