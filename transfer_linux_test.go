package lxd_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// watchedConn notes the sizes of what passes through user space.
type watchedConn struct {
	*net.UnixConn
	seen *traffic
}

func (c watchedConn) Write(p []byte) (int, error) {
	c.seen.note(&c.seen.writes, len(p))
	return c.UnixConn.Write(p)
}

// watchedTCP is the same for TCP.
type watchedTCP struct {
	net.Conn
	seen *traffic
}

func (c watchedTCP) Write(p []byte) (int, error) {
	c.seen.note(&c.seen.writes, len(p))
	return c.Conn.Write(p)
}

func (c watchedTCP) Read(p []byte) (int, error) {
	c.seen.note(&c.seen.reads, len(p))
	return c.Conn.Read(p)
}

type traffic struct {
	mu            sync.Mutex
	reads, writes []int // sizes of the calls' buffers
}

func (t *traffic) note(list *[]int, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	*list = append(*list, n)
}

// take returns what was recorded, and forgets it.
func (t *traffic) take() (reads, writes []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	reads, writes = t.reads, t.writes
	t.reads, t.writes = nil, nil
	return reads, writes
}

func fileOf(t *testing.T, data []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

// TestKernelSendsFiles sees that what is in files does not pass through user
// space on its way to a unix socket, with all other options, and that what
// is not a file does.
func TestKernelSendsFiles(t *testing.T) {
	t.Parallel()
	s := lxdtest.NewServer(nil)
	t.Cleanup(s.Close)
	seen := &traffic{}
	client := testkit.NewClient(t, s.Endpoint(), &lxd.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return watchedConn{c.(*net.UnixConn), seen}, nil
	}})
	const size = 4 << 20
	metadata, rootfs := lxdtest.SplitImage("kernel", size)
	unified := lxdtest.UnifiedImage("kernel", size)
	var done atomic.Int64
	for _, c := range []struct {
		name   string
		opts   lxd.CreateOptions
		split  bool
		kernel bool
	}{
		{name: "file", kernel: true},
		{name: "file, hashed", opts: lxd.CreateOptions{Verify: true}, kernel: true},
		{name: "file, with progress", opts: lxd.CreateOptions{Progress: func(p lxd.Progress) { done.Store(p.Done) }}, kernel: true},
		{name: "split image", split: true, kernel: true},
		{name: "split image, hashed, with progress", opts: lxd.CreateOptions{Verify: true, Progress: func(lxd.Progress) {}}, split: true, kernel: true},
		{name: "bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			opts := c.opts
			opts.Wait = true
			seen.take()
			var image *lxd.Image
			var err error
			switch {
			case c.split:
				opts.Rootfs = fileOf(t, rootfs)
				image, err = client.Images.Create(t.Context(), fileOf(t, metadata), &opts)
			case c.kernel:
				image, err = client.Images.Create(t.Context(), fileOf(t, unified), &opts)
			default:
				image, err = client.Images.Create(t.Context(), bytes.NewReader(unified), &opts)
			}
			require.NoError(t, err)
			passed := 0
			_, writes := seen.take()
			for _, n := range writes {
				passed += n
			}
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			if !c.kernel {
				require.Greater(t, passed, len(unified))
				return
			}
			// The headers, and the beginning that fills net/http's buffer.
			require.Less(t, passed, 64<<10)
		})
	}
	require.EqualValues(t, len(unified), done.Load())
}

// TestSocketBufferIsRaised looks at the socket of a client.
func TestSocketBufferIsRaised(t *testing.T) {
	t.Parallel()
	s := lxdtest.NewServer(nil)
	t.Cleanup(s.Close)
	var conn *net.UnixConn
	var before int
	client := testkit.NewClient(t, s.Endpoint(), &lxd.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		conn = c.(*net.UnixConn)
		if err := conn.SetWriteBuffer(32 << 10); err != nil {
			return nil, err
		}
		before = sendBuffer(t, conn)
		return c, nil
	}})
	_, err := client.Server(t.Context())
	require.NoError(t, err)
	require.Greater(t, sendBuffer(t, conn), before)
}

func sendBuffer(t *testing.T, c *net.UnixConn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	var size int
	var callErr error
	require.NoError(t, raw.Control(func(fd uintptr) {
		size, callErr = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF)
	}))
	require.NoError(t, callErr)
	return size
}

// TestTLSUsesLargePieces looks at the socket below TLS.
func TestTLSUsesLargePieces(t *testing.T) {
	t.Parallel()
	s := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(s.Close)
	seen := &traffic{}
	cert, key := s.ClientCertificate()
	client := testkit.NewClient(t, s.URL(), &lxd.Options{
		ClientCertificate: cert, ClientKey: key, ServerCertificate: s.Certificate(),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			return watchedTCP{c, seen}, err
		},
	})
	const size = 8 << 20
	data := lxdtest.UnifiedImage("pieces", size)
	image, err := client.Images.Create(t.Context(), fileOf(t, data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	_, writes := seen.take()
	require.GreaterOrEqual(t, slices.Max(writes), 64<<10)
	require.Less(t, len(writes), 2*len(data)/(64<<10), "a TLS record has 16 KiB")
	got, err := readExport(t, image)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	reads, _ := seen.take()
	require.Equal(t, 256<<10, slices.Max(reads))
}

// gate is a connection that stops in the middle of what is sent. A server that
// stops reading is not enough to stop a client over TCP: the kernels' buffers may
// be as large as the image.
type gate struct {
	net.Conn
	left    int64 // to be sent before the gate
	reached chan struct{}
	open    chan struct{}
}

func (g *gate) Write(b []byte) (int, error) {
	if g.left -= int64(len(b)); g.left < 0 {
		select {
		case <-g.reached:
		default:
			close(g.reached)
		}
		<-g.open
	}
	return g.Conn.Write(b)
}

// TestFileThatChangesWhileItIsSent stops an upload in the middle, changes the
// file, and lets it continue.
func TestFileThatChangesWhileItIsSent(t *testing.T) {
	t.Parallel()
	const size = 6 << 20
	for _, overTLS := range []bool{false, true} {
		for name, change := range map[string]int64{"grows": 1000, "shrinks": -1000, "shrinks a lot": -4 << 20} {
			for _, split := range []bool{false, true} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					s := lxdtest.NewServer(&lxdtest.Options{TLS: true})
					t.Cleanup(s.Close)
					endpoint, opts := s.Endpoint(), &lxd.Options{}
					stopped := make(chan struct{})
					var proceed func()
					if overTLS {
						endpoint = s.URL()
						opts.ClientCertificate, opts.ClientKey = s.ClientCertificate()
						opts.ServerCertificate = s.Certificate()
						open := make(chan struct{})
						proceed = sync.OnceFunc(func() { close(open) })
						opts.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
							c, err := new(net.Dialer).DialContext(ctx, network, address)
							return &gate{Conn: c, left: 1 << 20, reached: stopped, open: open}, err
						}
					} else {
						stalled := s.Inject(lxdtest.StallRequest(1<<20).On("POST", "/1.0/images"))
						proceed = stalled.Release
						go func() {
							for stalled.Fired() == 0 {
								time.Sleep(exportTick)
							}
							close(stopped)
						}()
					}
					defer proceed()
					client := testkit.NewClient(t, endpoint, opts)
					var metadata, data []byte
					if split {
						metadata, data = lxdtest.SplitImage(name, size)
					} else {
						data = lxdtest.UnifiedImage(name, size)
					}
					f := fileOf(t, data)
					ended := make(chan error, 1)
					go func() {
						var err error
						if split {
							_, err = client.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: f, Wait: true})
						} else {
							_, err = client.Images.Create(t.Context(), f, &lxd.CreateOptions{Wait: true})
						}
						ended <- err
					}()
					<-stopped
					require.NoError(t, os.Truncate(f.Name(), int64(len(data))+change))
					proceed()
					require.ErrorIs(t, <-ended, lxd.ErrBodyChanged)
					require.Empty(t, s.Images())
				})
			}
		}
	}
}
