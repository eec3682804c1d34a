package netconn

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
)

// gatherSize is the number of bytes of TLS records, of at most 16 KiB each, that
// are combined into one write to the socket.
const gatherSize = 64 << 10

// recordReadSize is the size of the reads from the socket.
const recordReadSize = 256 << 10

// TLSConn is a TLS connection that reads and writes its socket in large blocks.
type TLSConn struct {
	*tls.Conn
	socket   *gatherConn
	response responseWait
	closed   func()

	writing atomic.Int32 // the number of Writes in progress that gather records
}

// TLS returns a TLS client connection over c. The caller starts the handshake.
// Every Close calls closed.
func TLS(c net.Conn, config *tls.Config, closed func()) *TLSConn {
	socket := &gatherConn{Conn: c}
	return &TLSConn{Conn: tls.Client(socket, config), socket: socket, closed: closed}
}

// Write sends b with few writes to the socket.
func (c *TLSConn) Write(b []byte) (int, error) {
	if len(b) <= 16<<10 {
		n, err := c.Conn.Write(b)
		return n, c.response.writeError(err)
	}
	c.writing.Add(1)
	defer c.writing.Add(-1)
	c.socket.startGathering()
	n, err := c.Conn.Write(b)
	if ferr := c.socket.endGathering(); err == nil {
		err = ferr
	}
	return n, c.response.writeError(err)
}

// Read reads a response. Its errors end the wait of a failed write.
func (c *TLSConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.response.read(err)
	return n, err
}

// ReadFrom sends a request body.
func (c *TLSConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := readFrom(c, r)
	return n, c.response.writeError(err)
}

// WriteFile encrypts and sends part of a file.
func (c *TLSConn) WriteFile(f *os.File, offset, n int64, sent func(int)) (int64, error) {
	return writeFile(c, f, offset, n, sent)
}

// Close closes the connection and ends the wait of a failed write.
func (c *TLSConn) Close() error {
	c.response.close()
	c.closed()
	if c.writing.Load() > 0 {
		// crypto/tls does not know of the blocked flush that follows its own
		// write, and would wait behind it for five seconds to send an alert.
		_ = c.socket.Conn.Close()
	}
	return c.Conn.Close()
}

// gatherConn is the socket below TLS. It can combine writes.
type gatherConn struct {
	net.Conn

	readOnce sync.Once
	reader   *bufio.Reader

	mu        sync.Mutex
	gathering bool
	buffer    []byte
	err       error
}

func (c *gatherConn) Read(b []byte) (int, error) {
	c.readOnce.Do(func() { c.reader = bufio.NewReaderSize(c.Conn, recordReadSize) })
	return c.reader.Read(b)
}

func (c *gatherConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if !c.gathering {
		return c.Conn.Write(b)
	}
	if c.buffer == nil {
		c.buffer = make([]byte, 0, gatherSize+(17<<10))
	}
	c.buffer = append(c.buffer, b...)
	if len(c.buffer) >= gatherSize {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// startGathering makes Write collect data until endGathering.
func (c *gatherConn) startGathering() {
	c.mu.Lock()
	c.gathering = true
	c.mu.Unlock()
}

func (c *gatherConn) endGathering() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathering = false
	return c.flush()
}

func (c *gatherConn) flush() error {
	if len(c.buffer) == 0 || c.err != nil {
		return c.err
	}
	_, c.err = c.Conn.Write(c.buffer)
	c.buffer = c.buffer[:0]
	return c.err
}
