package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

const exportPattern = "/1.0/images/*/export"

// exportWait and exportTick are for require.Eventually.
const (
	exportWait = 10 * time.Second
	exportTick = time.Millisecond
)

// The environment of a child process of the tests, which is the test binary
// again.
const (
	envExportEndpoint    = "LXD_TEST_EXPORT_ENDPOINT"
	envExportFingerprint = "LXD_TEST_EXPORT_FINGERPRINT"
	envExportFolder      = "LXD_TEST_EXPORT_FOLDER"
	envExportConnections = "LXD_TEST_EXPORT_CONNECTIONS"
	envExportFileLimit   = "LXD_TEST_EXPORT_FILE_LIMIT" // bytes; empty for none
)

// exportTest is a server with one image, and a client whose traffic is counted.
type exportTest struct {
	*lxdtest.Server
	client   *lxd.Client
	image    *lxd.Image
	data     []byte // of a unified image; or of both files of a split one
	received atomic.Int64

	mu  sync.Mutex
	hop func(*http.Request, http.RoundTripper) (*http.Response, error)
}

// newExportTest gives a server that has an image, split where rootfs is given,
// and a client of it with the given retries.
func newExportTest(t *testing.T, retries int, data, rootfs []byte) *exportTest {
	t.Helper()
	x := &exportTest{Server: lxdtest.NewServer(nil), data: bytes.Join([][]byte{data, rootfs}, nil)}
	t.Cleanup(x.Close)
	fingerprint, err := x.AddImage(data, &lxdtest.AddOptions{Aliases: []string{"newest"}, Rootfs: rootfs})
	require.NoError(t, err)
	x.client = newClient(t, x.Endpoint(), &lxd.Options{
		Retries: retries,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &countingConn{Conn: c, read: &x.received}, nil
		},
		Transport: func(next http.RoundTripper) http.RoundTripper {
			return roundTripFunc(func(req *http.Request) (*http.Response, error) {
				x.mu.Lock()
				hop := x.hop
				x.mu.Unlock()
				if hop == nil {
					return next.RoundTrip(req)
				}
				return hop(req, next)
			})
		},
	})
	x.image, err = x.client.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	return x
}

// between puts f between the client and the server.
func (x *exportTest) between(f func(*http.Request, http.RoundTripper) (*http.Response, error)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hop = f
}

// ranges are the Range headers of the exports that the server has seen.
func (x *exportTest) ranges() []string {
	var list []string
	for _, r := range x.Requests() {
		if strings.HasSuffix(r.Path, "/export") {
			list = append(list, r.Header.Get("Range"))
		}
	}
	return list
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

type countingConn struct {
	net.Conn
	read *atomic.Int64
}

func (c *countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// readExport reads a whole export.
func readExport(t *testing.T, image *lxd.Image) ([]byte, error) {
	t.Helper()
	export, err := image.Export(t.Context(), nil)
	if err != nil {
		return nil, err
	}
	defer export.Close()
	var all bytes.Buffer
	for {
		if _, err := io.Copy(&all, export); err != nil {
			return all.Bytes(), err
		}
		switch err := export.Next(); {
		case errors.Is(err, io.EOF):
			return all.Bytes(), nil
		case err != nil:
			return all.Bytes(), err
		}
	}
}

func TestExportGoesOnAfterCuts(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 3, lxdtest.UnifiedImage("cut", 8<<20), nil)
	const cut = 2 << 20
	fault := x.Inject(lxdtest.CutResponse(cut).On("GET", exportPattern).Times(3))
	x.received.Store(0)
	got, err := readExport(t, x.image)
	require.NoError(t, err)
	require.True(t, bytes.Equal(x.data, got))
	require.Equal(t, 3, fault.Fired())
	require.Equal(t, []string{"", fmt.Sprintf("bytes=%d-", cut), fmt.Sprintf("bytes=%d-", 2*cut), fmt.Sprintf("bytes=%d-", 3*cut)}, x.ranges())
	const buffer, headers = 256 << 10, 16 << 10
	require.LessOrEqual(t, x.received.Load(), int64(len(x.data)+3*buffer+headers))
}

func TestExportGivesUpAfterRetries(t *testing.T) {
	t.Parallel()
	for _, retries := range []int{-1, 2} {
		x := newExportTest(t, retries, lxdtest.UnifiedImage("retries", 4<<20), nil)
		fault := x.Inject(lxdtest.CutResponse(1<<20).On("GET", exportPattern))
		got, err := readExport(t, x.image)
		require.Equal(t, max(retries, 0)+1, fault.Fired())
		var incomplete *lxd.FingerprintError
		require.ErrorAs(t, err, &incomplete)
		require.Empty(t, incomplete.Got)
		require.NotErrorIs(t, err, io.EOF)
		require.True(t, bytes.HasPrefix(x.data, got))
	}
}

func TestExportOfSplitImageIsNotResumed(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("split", 4<<20)
	x := newExportTest(t, 0, metadata, rootfs)
	x.Inject(lxdtest.CutResponse(2<<20).On("GET", exportPattern).Times(1))
	_, err := readExport(t, x.image)
	var incomplete *lxd.FingerprintError
	require.ErrorAs(t, err, &incomplete)
	require.NotErrorIs(t, err, io.EOF)
	require.Len(t, x.ranges(), 1)
	got, err := readExport(t, x.image)
	require.NoError(t, err)
	require.True(t, bytes.Equal(x.data, got))
}

// TestExportRefusesWrongContinuations has a server that answers the request for
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
			x := newExportTest(t, 2, data, nil)
			x.Inject(lxdtest.CutResponse(1<<20).On("GET", exportPattern).Times(1))
			x.between(hop)
			got, err := readExport(t, x.image)
			require.ErrorIs(t, err, lxd.ErrBadResponse)
			require.NotErrorIs(t, err, io.EOF)
			require.Equal(t, data[:len(got)], got)
		})
	}
}

// TestExportOfImageThatIsReplaced has another image take over the alias, and the
// first deleted, between a cut and the request for the rest.
func TestExportOfImageThatIsReplaced(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 2, lxdtest.UnifiedImage("first", 4<<20), nil)
	other := lxdtest.UnifiedImage("second", 4<<20)
	x.Inject(lxdtest.CutResponse(1<<20).On("GET", exportPattern).Times(1))
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

func TestExportTellsWritersErrorFromItsOwn(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("writer", 2<<20), nil)
	export, err := x.image.Export(t.Context(), nil)
	require.NoError(t, err)
	full := errors.New("the disk is full")
	n, err := io.Copy(&fullWriter{room: 300 << 10, err: full}, export)
	require.ErrorIs(t, err, full)
	require.EqualValues(t, 300<<10, n)
	var corrupt *lxd.FingerprintError
	require.NotErrorAs(t, err, &corrupt)
	require.NoError(t, export.Close())
	_, err = export.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, io.EOF)
}

// fullWriter has room for some bytes.
type fullWriter struct {
	room int
	err  error
}

func (w *fullWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.room -= n
	if n < len(p) {
		return n, w.err
	}
	return n, nil
}

// TestExportReadsInSmallPieces mixes Read and WriteTo.
func TestExportReadsInSmallPieces(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("pieces", 1<<20), nil)
	export, err := x.image.Export(t.Context(), nil)
	require.NoError(t, err)
	defer export.Close()
	require.EqualValues(t, len(x.data), export.Size())
	head := make([]byte, 1000)
	_, err = io.ReadFull(export, head)
	require.NoError(t, err)
	rest, err := io.ReadAll(export)
	require.NoError(t, err)
	require.True(t, bytes.Equal(x.data, append(head, rest...)))
	_, err = export.Read(head)
	require.ErrorIs(t, err, io.EOF)
	require.ErrorIs(t, export.Next(), io.EOF)
}

func TestExportEndsWithItsContext(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("context", 4<<20), nil)
	stalled := x.Inject(lxdtest.StallResponse(1<<20).On("GET", exportPattern))
	defer stalled.Remove()
	ctx, cancel := context.WithCancel(t.Context())
	export, err := x.image.Export(ctx, nil)
	require.NoError(t, err)
	defer export.Close()
	got, err := io.ReadAll(io.LimitReader(export, 768<<10))
	require.NoError(t, err)
	require.Equal(t, x.data[:len(got)], got)
	cancel()
	_, err = io.Copy(io.Discard, export)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, io.EOF)
}
