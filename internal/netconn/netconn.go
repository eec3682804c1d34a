// Package netconn provides connections that send large bodies with little
// processor time: by sendfile where the kernel allows it, otherwise in large
// blocks.
//
// net/http passes a request body of known length to the connection's ReadFrom,
// but a net.UnixConn has no such method, so an ordinary transport copies every
// byte through user space in blocks of 32 KiB.
package netconn

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// blockSize is the size of the blocks in which data passes through user space.
const blockSize = 256 << 10

// sendBuffer is the requested send buffer of unix sockets. The kernel grants at
// most net.core.wmem_max. It wakes the receiver less often, which saves most of
// the time.
const sendBuffer = 1 << 20

// A Sender is a body that writes itself to a connection. SendTo writes at most
// n bytes.
type Sender interface {
	SendTo(w FileWriter, n int64) (int64, error)
}

// A FileWriter is a connection that can send part of a file without the caller
// reading it.
type FileWriter interface {
	io.Writer
	// WriteFile writes n bytes of f from offset. It does not change f's file
	// offset. If f ends early it returns io.ErrUnexpectedEOF. sent, if not nil,
	// is called with the size of every step.
	WriteFile(f *os.File, offset, n int64, sent func(n int)) (int64, error)
}

var blocks = sync.Pool{New: func() any { b := make([]byte, blockSize); return &b }}

// Copy copies at most n bytes from r to w in large blocks, each filled before it
// is written. If r ends early, it returns without an error.
func Copy(w io.Writer, r io.Reader, n int64) (int64, error) {
	block := blocks.Get().(*[]byte)
	defer blocks.Put(block)
	var done int64
	for done < n {
		b := *block
		if rest := n - done; rest < int64(len(b)) {
			b = b[:rest]
		}
		got, err := readFull(r, b)
		if got > 0 {
			wrote, werr := w.Write(b[:got])
			done += int64(wrote)
			if werr != nil {
				return done, werr
			}
		}
		if err == io.EOF {
			return done, nil
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readFull is like io.ReadFull, but returns the reader's error unchanged.
func readFull(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var got int
		got, err = r.Read(b[n:])
		n += got
	}
	if n == len(b) {
		err = nil
	}
	return n, err
}

// readFrom sends a request body; it is ReadFrom of Conn and TLSConn.
func readFrom(w FileWriter, r io.Reader) (int64, error) {
	const all = int64(1)<<62 - 1
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		if s, ok := r.(Sender); ok {
			return s.SendTo(w, all)
		}
		return Copy(w, r, all)
	}
	var n int64
	var err error
	if s, ok := limited.R.(Sender); ok {
		n, err = s.SendTo(w, limited.N)
	} else {
		n, err = Copy(w, limited.R, limited.N)
	}
	limited.N -= n
	return n, err
}

// writeFile is like WriteFile, through user space.
func writeFile(w io.Writer, f *os.File, offset, n int64, sent func(int)) (int64, error) {
	block := blocks.Get().(*[]byte)
	defer blocks.Put(block)
	var done int64
	for done < n {
		b := *block
		if rest := n - done; rest < int64(len(b)) {
			b = b[:rest]
		}
		got, err := f.ReadAt(b, offset+done)
		if got > 0 {
			wrote, werr := w.Write(b[:got])
			done += int64(wrote)
			if sent != nil {
				sent(wrote)
			}
			if werr != nil {
				return done, werr
			}
		}
		switch {
		case err == io.EOF && done < n:
			return done, io.ErrUnexpectedEOF
		case err != nil && err != io.EOF:
			return done, err
		}
	}
	return done, nil
}

// Conn is a connection without TLS.
type Conn struct {
	net.Conn
	response responseWait
	closed   func()
}

// Plain wraps a connection without TLS. Every Close calls closed.
func Plain(c net.Conn, closed func()) *Conn {
	enlargeSendBuffer(c)
	return &Conn{Conn: c, closed: closed}
}

// enlargeSendBuffer enlarges the send buffer of a unix socket. It ignores errors:
// a smaller buffer is only slower.
func enlargeSendBuffer(c net.Conn) {
	if u, ok := c.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(sendBuffer)
	}
}

// Write sends a part of a request.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, c.response.writeError(err)
}

// ReadFrom sends a request body.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	n, err := readFrom(c, r)
	return n, c.response.writeError(err)
}

// Read reads a response. Its errors end the wait of a failed write.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.response.read(err)
	return n, err
}

// Close closes the connection and ends the wait of a failed write.
func (c *Conn) Close() error {
	c.response.close()
	c.closed()
	return c.Conn.Close()
}

// WriteFile sends part of a file, by sendfile if possible.
func (c *Conn) WriteFile(f *os.File, offset, n int64, sent func(int)) (int64, error) {
	conn := c.Conn
	if lazy, ok := conn.(*lazyConn); ok {
		var err error
		if conn, err = lazy.connect(); err != nil {
			return 0, err
		}
	}
	done, handled, err := sendfile(conn, f, offset, n, sent)
	if handled || err != nil {
		return done, err
	}
	rest, err := writeFile(conn, f, offset+done, n-done, sent)
	return done + rest, err
}

// responseGrace is how long a failed write waits for the response of a server
// that responded, and closed the connection, before it had read the whole
// request.
const responseGrace = time.Second

// responseWait delays a write error until the reader has had a chance to read an
// early response: net/http reports whichever of the two comes first, and the
// response says more than "broken pipe".
type responseWait struct {
	once sync.Once
	mu   sync.Mutex
	done chan struct{}
}

func (w *responseWait) ch() chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done == nil {
		w.done = make(chan struct{})
	}
	return w.done
}

func (w *responseWait) close() { w.once.Do(func() { close(w.ch()) }) }

func (w *responseWait) read(err error) {
	if err != nil {
		w.close()
	}
}

func (w *responseWait) writeError(err error) error {
	if err == nil || !(errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		return err
	}
	timer := time.NewTimer(responseGrace)
	defer timer.Stop()
	select {
	case <-w.ch():
	case <-timer.C:
		w.close() // later errors need not wait
	}
	return err
}
