package netconn

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// unixPair returns a connection of this package and the server's end of it.
func unixPair(t *testing.T) (*Conn, net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "netconn") // t.TempDir may be too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	path := filepath.Join(dir, "socket")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer listener.Close()
	client, err := net.Dial("unix", path)
	require.NoError(t, err)
	server, err := listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { server.Close() })
	c := Plain(client, func() {})
	t.Cleanup(func() { c.Close() })
	return c, server
}

func randomFile(t *testing.T, size int) (*os.File, []byte) {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f, data
}

// drain reads a connection until it is closed.
func drain(c net.Conn) <-chan []byte {
	got := make(chan []byte, 1)
	go func() {
		data, _ := io.ReadAll(c)
		got <- data
	}()
	return got
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	c, server := unixPair(t)
	f, data := randomFile(t, 6<<20)
	got := drain(server)
	reported := 0
	const offset, n = 12345, 5 << 20
	done, err := c.WriteFile(f, offset, n, func(n int) { reported += n })
	require.NoError(t, err)
	require.EqualValues(t, n, done)
	require.Equal(t, n, reported)
	at, err := f.Seek(0, io.SeekCurrent)
	require.NoError(t, err)
	require.Zero(t, at, "the file offset does not change")
	require.NoError(t, c.Close())
	require.True(t, bytes.Equal(data[offset:offset+n], <-got))
}

func TestWriteFileEndsEarly(t *testing.T) {
	t.Parallel()
	c, server := unixPair(t)
	f, data := randomFile(t, 1<<20)
	got := drain(server)
	done, err := c.WriteFile(f, 100, 2<<20, nil)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.EqualValues(t, len(data)-100, done)
	require.NoError(t, c.Close())
	require.True(t, bytes.Equal(data[100:], <-got))

	done, err = writeFile(io.Discard, f, 100, 2<<20, nil)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "and through user space")
	require.EqualValues(t, len(data)-100, done)
}

func TestWriteFileToClosedConnection(t *testing.T) {
	t.Parallel()
	c, server := unixPair(t)
	f, _ := randomFile(t, 1<<20)
	require.NoError(t, server.Close())
	_, err := c.WriteFile(f, 0, 1<<20, nil)
	require.Error(t, err)
	require.NotErrorIs(t, err, io.ErrUnexpectedEOF)
	var op *net.OpError
	require.ErrorAs(t, err, &op)
}

// TestWriteFileWithoutSendfile uses a connection that is not a socket.
func TestWriteFileWithoutSendfile(t *testing.T) {
	t.Parallel()
	local, remote := net.Pipe()
	c := Plain(local, func() {})
	f, data := randomFile(t, 1<<20)
	got := drain(remote)
	reported := 0
	done, err := c.WriteFile(f, 7, int64(len(data))-7, func(n int) { reported += n })
	require.NoError(t, err)
	require.EqualValues(t, len(data)-7, done)
	require.Equal(t, len(data)-7, reported)
	require.NoError(t, c.Close())
	require.True(t, bytes.Equal(data[7:], <-got))
}

// sender is a body that implements Sender.
type sender struct {
	io.Reader
	limit int64
}

func (s *sender) SendTo(w FileWriter, n int64) (int64, error) {
	s.limit = n
	return io.CopyN(w, s.Reader, n)
}

func TestReadFromSender(t *testing.T) {
	t.Parallel()
	c, server := unixPair(t)
	got := drain(server)
	data := bytes.Repeat([]byte("body"), 1000)
	s := &sender{Reader: bytes.NewReader(data)}
	limited := &io.LimitedReader{R: s, N: 3000}
	n, err := c.ReadFrom(limited)
	require.NoError(t, err)
	require.EqualValues(t, 3000, n)
	require.EqualValues(t, 3000, s.limit)
	require.Zero(t, limited.N)
	n, err = c.ReadFrom(iotest.OneByteReader(bytes.NewReader(data[3000:])))
	require.NoError(t, err)
	require.EqualValues(t, 1000, n)
	require.NoError(t, c.Close())
	require.Equal(t, data, <-got)
}

func TestCopyFillsBlocks(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("x"), 2*blockSize+5)
	var w blockSizes
	n, err := Copy(&w, iotest.HalfReader(bytes.NewReader(data)), int64(len(data)))
	require.NoError(t, err)
	require.EqualValues(t, len(data), n)
	require.Equal(t, blockSizes{blockSize, blockSize, 5}, w)
	broken := errors.New("broken")
	n, err = Copy(io.Discard, io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), 1<<40)
	require.ErrorIs(t, err, broken)
	require.EqualValues(t, len(data), n)
}

type blockSizes []int

func (s *blockSizes) Write(p []byte) (int, error) {
	*s = append(*s, len(p))
	return len(p), nil
}

// blockedConn is a connection whose Write blocks once stopped is set.
type blockedConn struct {
	net.Conn
	stopped atomic.Bool
	blocked chan struct{}
	closed  chan struct{}
	once    sync.Once
}

func (c *blockedConn) Write(b []byte) (int, error) {
	if !c.stopped.Load() {
		return c.Conn.Write(b)
	}
	close(c.blocked)
	<-c.closed
	return 0, net.ErrClosed
}

func (c *blockedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestTLSCloseDoesNotWaitForWrite closes a connection while a write to its socket
// blocks.
func TestTLSCloseDoesNotWaitForWrite(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	plain, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	socket := &blockedConn{Conn: plain, blocked: make(chan struct{}), closed: make(chan struct{})}
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	c := TLS(socket, &tls.Config{RootCAs: pool, ServerName: "example.com"}, func() {})
	require.NoError(t, c.Handshake())
	socket.stopped.Store(true)
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 20<<10)) // less than gatherSize
		written <- err
	}()
	<-socket.blocked
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Close()
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second): // the write does not end
		t.Error("Close waits for the write")
		_ = socket.Close()
	}
	require.ErrorIs(t, <-written, net.ErrClosed)
}

// brokenConn cannot be written to; it can be read until eof is closed.
type brokenConn struct {
	net.Conn

	eof chan struct{}
}

func (brokenConn) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func (c brokenConn) Read([]byte) (int, error) {
	<-c.eof
	return 0, io.EOF
}

// TestBrokenPipeWaitsForTheResponse: the error of a write waits until the response is
// read, but not forever.
func TestBrokenPipeWaitsForTheResponse(t *testing.T) {
	for _, ends := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := brokenConn{eof: make(chan struct{})}
			conn := Plain(c, func() {})
			written, read := make(chan error, 1), make(chan error, 1)
			began := time.Now()
			go func() {
				_, err := conn.Write([]byte("x"))
				written <- err
			}()
			go func() {
				_, err := conn.Read(make([]byte, 1))
				read <- err
			}()
			if ends {
				time.Sleep(responseGrace / 2)
				synctest.Wait()
				require.Empty(t, written)
				close(c.eof)
				require.ErrorIs(t, <-written, syscall.EPIPE)
				require.Equal(t, responseGrace/2, time.Since(began))
			} else {
				require.ErrorIs(t, <-written, syscall.EPIPE)
				require.Equal(t, responseGrace, time.Since(began))
				close(c.eof)
			}
			require.ErrorIs(t, <-read, io.EOF)
		})
	}
}
