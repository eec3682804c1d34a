// Package netconn makes connections that move large bodies with little
// processor time: by sendfile where the kernel allows it, in large blocks
// everywhere else.
//
// net/http hands a request's body of known length to the connection's ReadFrom,
// but no connection to a unix socket has one of that meaning, so a plain
// transport copies every byte through user space in 32 KiB pieces.
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

// blockSize is how much is read at a time where bytes pass through user space.
const blockSize = 256 << 10

// sendBuffer is asked for on sockets that files are sent through. The kernel
// grants at most net.core.wmem_max. Fewer, larger wake-ups of the receiver are
// where most of the saved time comes from.
const sendBuffer = 1 << 20

// A Sender is a body that writes itself to a connection. SendTo writes at most
// n bytes.
type Sender interface {
	SendTo(w FileWriter, n int64) (int64, error)
}

// A FileWriter is a connection that takes part of a file without the caller
// reading it.
type FileWriter interface {
	io.Writer
	// WriteFile writes n bytes of f from offset. It does not move f's own
	// offset. Reaching the end of f early gives io.ErrUnexpectedEOF. sent, if
	// not nil, is told of every step.
	WriteFile(f *os.File, offset, n int64, sent func(n int)) (int64, error)
}

var blocks = sync.Pool{New: func() any { b := make([]byte, blockSize); return &b }}

// Copy copies at most n bytes from r to w in large blocks, each filled before
// it is written. It stops early without an error where r ends early.
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

// readFull is io.ReadFull that leaves the reader's own error as it is.
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

// readFrom is what both kinds of connection do with a request's body.
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

// writeFile is WriteFile through user space.
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
	answer answerWait
	closed func()
}

// Plain wraps a connection without TLS. closed is called when it is closed, at
// least once.
func Plain(c net.Conn, closed func()) *Conn {
	large(c)
	return &Conn{Conn: c, closed: closed}
}

// large gives a unix socket a large send buffer. Best effort: a smaller one is
// slower, not wrong.
func large(c net.Conn) {
	if u, ok := c.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(sendBuffer)
	}
}

// Write sends a request, or a part of one.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, c.answer.writeError(err)
}

// ReadFrom sends a request's body.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	n, err := readFrom(c, r)
	return n, c.answer.writeError(err)
}

// Read notes that the server has said something.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.answer.read(err)
	return n, err
}

// Close lets nobody wait any longer.
func (c *Conn) Close() error {
	c.answer.close()
	c.closed()
	return c.Conn.Close()
}

// WriteFile sends part of a file by sendfile where there is one.
func (c *Conn) WriteFile(f *os.File, offset, n int64, sent func(int)) (int64, error) {
	conn := c.Conn
	if lazy, ok := conn.(*lazyConn); ok {
		var err error
		if conn, err = lazy.forWrite(); err != nil {
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

// answerGrace is how long a failed write waits for the answer of a server that
// answered, and closed the connection, before it had read the whole request.
const answerGrace = time.Second

// answerWait holds back a write error until the reader has had a chance to see
// an early answer: net/http reports whichever of the two comes first, and the
// answer says more than "broken pipe".
type answerWait struct {
	once sync.Once
	mu   sync.Mutex
	done chan struct{}
}

func (a *answerWait) ch() chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done == nil {
		a.done = make(chan struct{})
	}
	return a.done
}

func (a *answerWait) close() { a.once.Do(func() { close(a.ch()) }) }

func (a *answerWait) read(err error) {
	if err != nil {
		a.close()
	}
}

func (a *answerWait) writeError(err error) error {
	if err == nil || !(errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		return err
	}
	timer := time.NewTimer(answerGrace)
	defer timer.Stop()
	select {
	case <-a.ch():
	case <-timer.C:
		a.close() // once is enough
	}
	return err
}
