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

// gatherSize is how many bytes of TLS records (16 KiB each at most) are put
// into one write to the socket.
const gatherSize = 64 << 10

// recordReadSize is how much is read from the socket at a time.
const recordReadSize = 256 << 10

// TLSConn is a TLS connection that reads and writes its socket in large pieces.
type TLSConn struct {
	*tls.Conn
	socket *gatherConn
	answer answerWait
	closed func()

	gathered atomic.Int32 // a Write goes on that gathers
}

// TLS makes a TLS client connection over c. The handshake is the caller's to
// start. closed is called when the connection is closed, at least once.
func TLS(c net.Conn, config *tls.Config, closed func()) *TLSConn {
	socket := &gatherConn{Conn: c}
	return &TLSConn{Conn: tls.Client(socket, config), socket: socket, closed: closed}
}

// Write sends b in few writes to the socket.
func (c *TLSConn) Write(b []byte) (int, error) {
	if len(b) <= 16<<10 {
		n, err := c.Conn.Write(b)
		return n, c.answer.writeError(err)
	}
	c.gathered.Add(1)
	defer c.gathered.Add(-1)
	c.socket.hold()
	n, err := c.Conn.Write(b)
	if ferr := c.socket.release(); err == nil {
		err = ferr
	}
	return n, c.answer.writeError(err)
}

// Read notes that the server has said something.
func (c *TLSConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.answer.read(err)
	return n, err
}

// ReadFrom sends a request's body.
func (c *TLSConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := readFrom(c, r)
	return n, c.answer.writeError(err)
}

// WriteFile sends part of a file through the encryption.
func (c *TLSConn) WriteFile(f *os.File, offset, n int64, sent func(int)) (int64, error) {
	return writeFile(c, f, offset, n, sent)
}

// Close lets nobody wait any longer.
func (c *TLSConn) Close() error {
	c.answer.close()
	c.closed()
	if c.gathered.Load() > 0 {
		// crypto/tls does not know of a write that goes on after its own, and
		// would wait five seconds to say goodbye behind it.
		_ = c.socket.Conn.Close()
	}
	return c.Conn.Close()
}

// gatherConn is the socket below TLS.
type gatherConn struct {
	net.Conn

	readOnce sync.Once
	reader   *bufio.Reader

	mu     sync.Mutex
	held   bool
	buffer []byte
	err    error
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
	if !c.held {
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

// hold gathers what is written until release.
func (c *gatherConn) hold() {
	c.mu.Lock()
	c.held = true
	c.mu.Unlock()
}

func (c *gatherConn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
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
