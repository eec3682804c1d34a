package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

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

// newExportTest returns a server that has an image, split if rootfs is not nil,
// and a client of it with the given retry timeout.
func newExportTest(t *testing.T, retryTimeout time.Duration, data, rootfs []byte) *exportTest {
	t.Helper()
	x := &exportTest{Server: lxdtest.NewServer(nil), data: data}
	if rootfs != nil {
		x.data = slices.Concat(data, rootfs)
	}
	t.Cleanup(x.Close)
	fingerprint, err := x.AddImage(data, &lxdtest.AddOptions{Aliases: []string{"newest"}, Rootfs: rootfs})
	require.NoError(t, err)
	x.client = testkit.NewClient(t, x.Endpoint(), &lxd.Options{
		RetryTimeout: retryTimeout,
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

func TestExportOfSplitImageIsNotResumed(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("split", 4<<20)
	x := newExportTest(t, 0, metadata, rootfs)
	x.Inject(lxdtest.CutResponse(2<<20).On("GET", testkit.ExportPattern).Times(1))
	_, err := readExport(t, x.image)
	var incomplete *lxd.FingerprintError
	require.ErrorAs(t, err, &incomplete)
	require.NotErrorIs(t, err, io.EOF)
	require.Len(t, x.ranges(), 1)
	got, err := readExport(t, x.image)
	require.NoError(t, err)
	require.True(t, bytes.Equal(x.data, got))
}

func TestExportReturnsErrorOfWriter(t *testing.T) {
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

// fullWriter fails after some bytes.
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
	stalled := x.Inject(lxdtest.StallResponse(1<<20).On("GET", testkit.ExportPattern))
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

// TestExportClosedByAnotherGoroutine closes while another goroutine reads, as a
// context.AfterFunc does.
func TestExportClosedByAnotherGoroutine(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("elsewhere", 4<<20)
	unified := lxdtest.UnifiedImage("elsewhere", 4<<20)
	consume := map[string]func(*lxd.Export) error{
		"Read":    func(e *lxd.Export) error { _, err := io.Copy(io.Discard, struct{ io.Reader }{e}); return err },
		"WriteTo": func(e *lxd.Export) error { _, err := io.Copy(io.Discard, e); return err },
		"Next": func(e *lxd.Export) error {
			err := e.Next()
			for ; err == nil; err = e.Next() {
			}
			return err
		},
	}
	for name, read := range consume {
		for _, split := range []bool{false, true} {
			for _, stalls := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, split: %v, stalls: %v", name, split, stalls), func(t *testing.T) {
					t.Parallel()
					data, second := unified, []byte(nil)
					if split {
						data, second = metadata, rootfs
					}
					x := newExportTest(t, 0, data, second)
					runs := 10
					if stalls {
						runs = 1
						stalled := x.Inject(lxdtest.StallResponse(1<<20).On("GET", testkit.ExportPattern))
						defer stalled.Remove()
					}
					for n := range runs {
						export, err := x.image.Export(t.Context(), nil)
						require.NoError(t, err)
						ended := make(chan error, 1)
						go func() {
							err := errors.New("nothing read")
							for range 3 { // the error stays
								err = read(export)
							}
							ended <- err
						}()
						time.Sleep(time.Duration(n) * time.Millisecond)
						require.NoError(t, export.Close())
						require.NoError(t, export.Close())
						select {
						case err := <-ended:
							if err != nil && !errors.Is(err, io.EOF) {
								require.ErrorIs(t, err, net.ErrClosed)
							} else {
								require.False(t, stalls)
							}
						case <-time.After(exportWait):
							t.Fatal("it reads on")
						}
					}
				})
			}
		}
	}
}

// TestExportCloseEndsRequest closes while the export requests the rest after a
// break.
func TestExportCloseEndsRequest(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("request", 2<<20), nil)
	x.Inject(lxdtest.CutResponse(1<<20).On("GET", testkit.ExportPattern).Times(1))
	asked, ended := make(chan struct{}), make(chan struct{})
	x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		if req.Header.Get("Range") == "" {
			return next.RoundTrip(req)
		}
		close(asked)
		<-req.Context().Done()
		close(ended)
		return nil, req.Context().Err()
	})
	export, err := x.image.Export(t.Context(), nil)
	require.NoError(t, err)
	read := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, export)
		read <- err
	}()
	<-asked
	require.NoError(t, export.Close())
	select {
	case <-ended:
	case <-time.After(exportWait):
		t.Fatal("the request continues")
	}
	require.ErrorIs(t, <-read, net.ErrClosed)
}

// TestCloseWithinProgress closes the Export from its Progress.
func TestCloseWithinProgress(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("within", 1<<20)
	within := func(t *testing.T, f func()) {
		t.Helper()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			f()
		}()
		select {
		case <-ended:
		case <-time.After(exportWait):
			t.Fatal("it does not end")
		}
	}
	for _, last := range []bool{false, true} {
		t.Run(fmt.Sprintf("Export, last report: %v", last), func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, data, nil)
			if !last {
				stalled := x.Inject(lxdtest.StallResponse(512<<10).On("GET", testkit.ExportPattern))
				defer stalled.Remove()
			}
			ready := make(chan struct{})
			var export *lxd.Export
			var err error
			reports := 0
			export, err = x.image.Export(t.Context(), &lxd.ExportOptions{Progress: func(lxd.Progress) {
				<-ready
				reports++
				_ = export.Close()
			}})
			require.NoError(t, err)
			close(ready)
			within(t, func() {
				_, err = io.Copy(io.Discard, export)
				_ = export.Close()
			})
			if !last {
				require.ErrorIs(t, err, net.ErrClosed)
				require.Equal(t, 1, reports)
			}
		})
	}
	t.Run("Client, in ExportTo, Create and Copy", func(t *testing.T) {
		t.Parallel()
		x := newExportTest(t, 0, data, nil)
		other := newExportTest(t, 0, data, nil)
		for name, call := range map[string]func(*lxd.Client, func(lxd.Progress)) error{
			"ExportTo": func(c *lxd.Client, progress func(lxd.Progress)) error {
				image, err := c.Images.Get(t.Context(), x.image.Fingerprint)
				require.NoError(t, err)
				_, err = image.ExportTo(t.Context(), t.TempDir(), &lxd.ExportToOptions{Progress: progress})
				return err
			},
			"Create": func(c *lxd.Client, progress func(lxd.Progress)) error {
				_, err := c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Dedupe: true, Progress: progress})
				return err
			},
			"Copy": func(c *lxd.Client, progress func(lxd.Progress)) error {
				image, err := c.Images.Get(t.Context(), x.image.Fingerprint)
				require.NoError(t, err)
				_, err = image.Copy(t.Context(), other.client, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true, Progress: progress})
				return err
			},
		} {
			client := testkit.NewClient(t, x.Endpoint(), nil)
			closed := false
			within(t, func() {
				_ = call(client, func(lxd.Progress) {
					closed = true
					_ = client.Close()
				})
			})
			require.True(t, closed, name)
		}
	})
}

// TestExportRefusesThirdFile has a split image with one file more, behind the
// two that make up the image.
func TestExportRefusesThirdFile(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("third", 64<<10)
	for _, files := range []int{2, 3} {
		x := newExportTest(t, -1, metadata, rootfs)
		x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			res, err := next.RoundTrip(req)
			if err != nil {
				return nil, err
			}
			_ = res.Body.Close()
			var body bytes.Buffer
			form := multipart.NewWriter(&body)
			for n, data := range [][]byte{metadata, rootfs, nil}[:files] {
				part, err := form.CreateFormFile("file", fmt.Sprint(n))
				if err != nil {
					return nil, err
				}
				_, _ = part.Write(data)
			}
			_ = form.Close()
			res.Body, res.ContentLength = io.NopCloser(&body), -1
			res.Header.Set("Content-Type", form.FormDataContentType())
			return res, nil
		})
		_, err := readExport(t, x.image)
		if files == 2 {
			require.NoError(t, err)
			continue
		}
		var failed *lxd.FingerprintError
		require.ErrorAs(t, err, &failed)
		require.ErrorContains(t, err, "it contains a third file")
	}
}

// TestExportThroughAWebHandler: the client of a handler or proxy that knows nothing
// of fingerprints receives no complete wrong copy.
func TestExportThroughAWebHandler(t *testing.T) {
	t.Parallel()
	data := lxdtest.UnifiedImage("web", 1<<20)
	size := int64(len(data))
	pass := map[string]func(w http.ResponseWriter, r *http.Request, export *lxd.Export){
		"WriteTo": func(w http.ResponseWriter, _ *http.Request, export *lxd.Export) {
			w.Header().Set("Content-Length", fmt.Sprint(export.Size()))
			_, _ = io.Copy(w, export)
		},
		"Read": func(w http.ResponseWriter, _ *http.Request, export *lxd.Export) {
			w.Header().Set("Content-Length", fmt.Sprint(export.Size()))
			_, _ = io.Copy(w, struct{ io.Reader }{export})
		},
		"proxy": func(w http.ResponseWriter, r *http.Request, export *lxd.Export) {
			(&httputil.ReverseProxy{
				ErrorLog: log.New(io.Discard, "", 0),
				Rewrite:  func(*httputil.ProxyRequest) {},
				Transport: roundTripFunc(func(req *http.Request) (*http.Response, error) {
					return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Length": {fmt.Sprint(export.Size())}}, Request: req, ContentLength: export.Size(), Body: export}, nil
				}),
			}).ServeHTTP(w, r)
		},
	}
	for name, serve := range pass {
		for what, fault := range map[string]*lxdtest.Fault{
			"right":                 nil,
			"first byte corrupt":    new(lxdtest.Corrupt(0)),
			"corrupt in the middle": new(lxdtest.Corrupt(size / 2)),
			"last byte corrupt":     new(lxdtest.Corrupt(size - 1)),
		} {
			t.Run(name+", "+what, func(t *testing.T) {
				t.Parallel()
				x := newExportTest(t, 0, data, nil)
				if fault != nil {
					x.Inject(fault.On("GET", testkit.ExportPattern))
				}
				web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					export, err := x.image.Export(r.Context(), nil)
					if err != nil {
						t.Error(err)
						return
					}
					defer export.Close()
					serve(w, r, export)
				}))
				web.Config.ErrorLog = log.New(io.Discard, "", 0)
				web.Start()
				defer web.Close()
				res, err := web.Client().Get(web.URL)
				require.NoError(t, err)
				defer res.Body.Close()
				require.Equal(t, size, res.ContentLength)
				got, err := io.ReadAll(res.Body)
				if fault == nil {
					require.NoError(t, err)
					require.True(t, bytes.Equal(data, got))
					return
				}
				require.Error(t, err)
				require.Less(t, len(got), len(data))
			})
		}
	}
}

// TestExportHoldsBackTheEnd for every way to read, and content of every size.
func TestExportHoldsBackTheEnd(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("held", 600<<10)
	small := lxdtest.UnifiedImage("held", 0)
	for name, c := range map[string]struct {
		data, rootfs []byte
		fault        lxdtest.Fault
	}{
		"small":             {small, nil, lxdtest.Corrupt(10)},
		"large":             {lxdtest.UnifiedImage("held", 1<<20), nil, lxdtest.Corrupt(900 << 10)},
		"split, metadata":   {metadata, rootfs, lxdtest.Corrupt(400)},
		"split, rootfs":     {metadata, rootfs, lxdtest.Corrupt(400 << 10)},
		"split, shortened":  {metadata, rootfs, lxdtest.TruncateRootfs(int64(len(rootfs)) - 1)},
		"another's content": {small, nil, lxdtest.HTML()},
	} {
		for way, read := range map[string]func(w io.Writer, export *lxd.Export) error{
			"Read": func(w io.Writer, export *lxd.Export) error {
				_, err := io.Copy(w, struct{ io.Reader }{export})
				return err
			},
			"WriteTo": func(w io.Writer, export *lxd.Export) error { _, err := export.WriteTo(w); return err },
			"Next":    func(io.Writer, *lxd.Export) error { return nil },
		} {
			t.Run(name+", "+way, func(t *testing.T) {
				t.Parallel()
				x := newExportTest(t, -1, c.data, c.rootfs)
				x.Inject(c.fault.On("GET", testkit.ExportPattern))
				export, err := x.image.Export(t.Context(), nil)
				if name == "another's content" {
					require.ErrorIs(t, err, lxd.ErrBadResponse)
					return
				}
				require.NoError(t, err)
				defer export.Close()
				var all bytes.Buffer
				for err == nil {
					if err = read(&all, export); err == nil {
						err = export.Next()
					}
				}
				require.NotErrorIs(t, err, io.EOF)
				testkit.ErrOf[*lxd.FingerprintError](t, err)
				require.Less(t, all.Len(), len(c.data)+len(c.rootfs))
				_, again := export.Read(make([]byte, 1))
				require.Equal(t, err, again, "it stays")
			})
		}
	}
}

// TestExportOfBrokenConnection matches ErrUnavailable, and says what to do.
func TestExportOfBrokenConnection(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("broken", 2<<20)
	for name, parts := range map[string][2][]byte{"unified": {lxdtest.UnifiedImage("broken", 2<<20), nil}, "split": {metadata, rootfs}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, -1, parts[0], parts[1])
			cut := x.Inject(lxdtest.CutResponse(300<<10).On("GET", testkit.ExportPattern))
			_, err := readExport(t, x.image)
			broken := func(err error) {
				t.Helper()
				testkit.ErrOf[*lxd.FingerprintError](t, err)
				testkit.ErrOf[*lxd.ConnectionError](t, err)
				require.ErrorIs(t, err, lxd.ErrUnavailable)
				require.NotErrorIs(t, err, lxd.ErrBadResponse)
				require.True(t, lxd.IsTransient(err))
			}
			broken(err)
			for _, connections := range []int{1, 2} {
				_, err = x.image.ExportTo(t.Context(), t.TempDir(), &lxd.ExportToOptions{Connections: connections})
				broken(err)
				if name == "unified" {
					require.ErrorContains(t, err, "call ExportTo again")
				} else {
					require.NotContains(t, err.Error(), "again", "it starts over")
				}
			}
			cut.Remove()
			x.Inject(lxdtest.Corrupt(1<<20).On("GET", testkit.ExportPattern))
			_, err = readExport(t, x.image)
			require.NotErrorIs(t, err, lxd.ErrUnavailable, "it was read to its end")
			_, err = x.image.ExportTo(t.Context(), t.TempDir(), nil)
			require.NotErrorIs(t, err, lxd.ErrUnavailable)
		})
	}
}

func TestExportFiles(t *testing.T) {
	t.Parallel()
	metadata, rootfs := lxdtest.SplitImage("files", 1<<20)
	for _, c := range []struct {
		name         string
		data, rootfs []byte
		want         [][]byte
	}{
		{"unified", lxdtest.UnifiedImage("files", 1<<20), nil, [][]byte{lxdtest.UnifiedImage("files", 1<<20)}},
		{"split", metadata, rootfs, [][]byte{metadata, rootfs}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, -1, c.data, c.rootfs)
			open := func() *lxd.Export {
				export, err := x.image.Export(t.Context(), nil)
				require.NoError(t, err)
				t.Cleanup(func() { _ = export.Close() })
				return export
			}
			// failure reads the files, and returns the first error of the sequence or of a reader.
			failure := func(export *lxd.Export) error {
				for file, err := range export.Files() {
					if err != nil {
						require.Nil(t, file)
						return err
					}
					if _, err := io.ReadAll(file); err != nil {
						return err
					}
				}
				return nil
			}

			export := open()
			var got [][]byte
			for file, err := range export.Files() {
				require.NoError(t, err)
				content, err := io.ReadAll(file)
				require.NoError(t, err)
				got = append(got, content)
			}
			require.Equal(t, c.want, got)
			require.ErrorContains(t, failure(export), "has been read")

			export = open()
			n := 0
			for _, err := range export.Files() {
				require.NoError(t, err, "what is not read is dropped")
				n++
			}
			require.Len(t, c.want, n)

			export = open()
			for range export.Files() {
				break
			}
			require.ErrorContains(t, failure(export), "has been read")

			export = open()
			require.NoError(t, export.Close())
			require.ErrorIs(t, failure(export), net.ErrClosed)

			var corrupt *lxd.FingerprintError
			x.Inject(lxdtest.Corrupt(500<<10).On("GET", testkit.ExportPattern))
			require.ErrorAs(t, failure(open()), &corrupt)
			for _, err := range open().Files() {
				if err != nil {
					require.ErrorAs(t, err, &corrupt, "the content was dropped, but verified")
					return
				}
			}
			t.Fatal("the corrupt content is no error")
		})
	}
}
