package lxd_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// cuttingProxy passes TCP connections on to a server and cuts the first so many
// of them when so much has come from the server.
type cuttingProxy struct {
	address string
	after   int64
	cuts    atomic.Int64 // left
	passed  atomic.Int64 // bytes from the server
	conns   sync.WaitGroup
}

func startCuttingProxy(t *testing.T, server string, cuts, after int64) *cuttingProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &cuttingProxy{address: listener.Addr().String(), after: after}
	p.cuts.Store(cuts)
	p.conns.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			p.conns.Go(func() { p.serve(c, server) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.conns.Wait()
	})
	return p
}

func (p *cuttingProxy) serve(client net.Conn, address string) {
	defer client.Close()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	p.conns.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.(*net.TCPConn).CloseWrite()
	})
	counted := writerFunc(func(data []byte) (int, error) {
		n, err := client.Write(data)
		p.passed.Add(int64(n))
		return n, err
	})
	if _, err := io.CopyN(counted, server, p.after); err != nil {
		return
	}
	if p.cuts.Add(-1) >= 0 {
		return
	}
	_, _ = io.Copy(counted, server)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

// TestCutAndResume exports through a proxy that breaks connections, from lxdtest and, if
// the environment names them, from real daemons.
func TestCutAndResume(t *testing.T) {
	testkit.Parallel(t)
	// So much that, of every call's two connections, one comes to its cut as
	// long as there are cuts to be made.
	const cuts, after, size = 3, 1 << 20, 8 << 20
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			s.TLS = true
			direct := s.Client(t)
			data := lxdtest.UnifiedImage("proxy "+s.Column, size)
			image, err := direct.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
			require.NoError(t, err)
			testkit.DeleteAfter(t, image)

			through := func(t *testing.T, retryTimeout time.Duration) (*cuttingProxy, *lxd.Image) {
				proxy := startCuttingProxy(t, strings.TrimPrefix(direct.Endpoint(), "https://"), cuts, after)
				client := clientAt(t, s, "https://"+proxy.address, retryTimeout)
				image, err := client.Images.Get(t.Context(), image.Fingerprint)
				require.NoError(t, err)
				return proxy, image
			}
			const overhead = 128 << 10 // TLS, headers, and what the proxy holds, for each connection
			requireCut := func(t *testing.T, proxy *cuttingProxy) {
				require.Negative(t, proxy.cuts.Load(), "all cuts were made, and a connection came further")
			}
			t.Run("Export", func(t *testing.T) {
				proxy, image := through(t, 0)
				got, err := readExport(t, image)
				require.NoError(t, err)
				require.True(t, bytes.Equal(data, got))
				requireCut(t, proxy)
				require.Less(t, proxy.passed.Load(), int64(len(data)+(cuts+1)*overhead))
			})
			for name, connections := range map[string]int{"": 0, ", two connections": 2} {
				t.Run("ExportTo, call after call"+name, func(t *testing.T) {
					proxy, image := through(t, -1)
					dir := t.TempDir()
					var before int64 // bytes that came before the last call
					failures := 0
					for {
						before = proxy.passed.Load()
						files, err := image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: connections})
						if err == nil {
							testkit.RequireExported(t, dir, files, data)
							break
						}
						failures++
						require.LessOrEqual(t, failures, cuts)
						require.Equal(t, []string{partialPath(dir, image)}, testkit.FilesIn(t, dir))
					}
					requireCut(t, proxy)
					// Of each call that failed, all that came over the connection
					// that was cut was kept. What was on the way over another one
					// was given up with it.
					kept := failures * (after - overhead)
					require.Less(t, proxy.passed.Load()-before, int64(len(data)-kept+2*overhead))
				})
			}
		})
	}
}

// clientAt is a trusted client that reaches the daemon at another address.
func clientAt(t *testing.T, s *testkit.Subject, url string, retryTimeout time.Duration) *lxd.Client {
	t.Helper()
	o := &lxd.Options{RetryTimeout: retryTimeout}
	if s.Fake != nil {
		o.ClientCertificate, o.ClientKey = s.Fake.ClientCertificate()
		o.ServerCertificate = s.Fake.Certificate()
	} else {
		o.ClientCertificate, o.ClientKey, o.ServerCertificate = s.Real.ClientCertificate, s.Real.ClientKey, s.Real.ServerCertificate
	}
	return testkit.NewClient(t, url, o)
}

// TestExportFromRealDaemonsOnFullDisk has a file system of a megabyte. Without
// daemons in the environment, TestExportToOnFullDisk covers it.
func TestExportFromRealDaemonsOnFullDisk(t *testing.T) {
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, d := range append(lxds, incuses...) {
		client := testkit.NewClient(t, "unix://"+d.Socket, nil)
		// Over one connection it shows before anything is written of the file
		// that there is no room for.
		metadata, rootfs := lxdtest.SplitImage("full "+d.String(), 3<<20)
		split, err := client.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(rootfs), Wait: true})
		require.NoError(t, err)
		data := lxdtest.UnifiedImage("full "+d.String(), 3<<20)
		image, err := client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		for _, c := range []struct {
			image *lxd.Image
			large []byte
		}{{image, data}, {split, rootfs}} {
			dir := t.TempDir()
			unmount := mountSmall(t, dir)
			_, err := c.image.ExportTo(t.Context(), dir, nil)
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.ErrorContains(t, err, fmt.Sprintf("reserve %d bytes", len(c.large)))
			require.Empty(t, testkit.FilesIn(t, dir))
			unmount()
		}
		require.NoError(t, split.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))

		options := &lxd.ExportToOptions{Connections: 3}
		dir := t.TempDir()
		unmount := mountSmall(t, dir)
		_, err = image.ExportTo(t.Context(), dir, options)
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.Equal(t, []string{partialPath(dir, image)}, testkit.FilesIn(t, dir))
		// The partial file is resumed when there is space.
		part, err := os.ReadFile(partialPath(dir, image))
		require.NoError(t, err)
		require.NotEmpty(t, part)
		unmount()
		require.NoError(t, os.WriteFile(partialPath(dir, image), part, 0o600))
		files, err := image.ExportTo(t.Context(), dir, options)
		require.NoError(t, err)
		testkit.RequireExported(t, dir, files, data)
		require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
	}
}

// mountSmall mounts a file system of one megabyte, until the test ends or the
// function that it returns is called. It needs root, as the real daemons do.
func mountSmall(t *testing.T, dir string) (unmount func()) {
	t.Helper()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	unmount = sync.OnceFunc(func() { require.NoError(t, syscall.Unmount(dir, 0)) })
	t.Cleanup(unmount)
	return unmount
}
