package netconn

import (
	"context"
	"net"
	"os"
	"sync"
	"time"
)

// lazyConn is a connection that is dialed at the first write.
//
// LXD 5.0.2 and Incus 6.0.4 read the first bytes of a unix connection inside
// their accept loop: an open connection on which nothing was written blocks all
// other clients. net/http opens such connections: it dials for a request,
// another connection becomes idle first, and the new one goes to the pool
// unused.
type lazyConn struct {
	dial     func(context.Context) (net.Conn, error)
	addr     net.Addr
	ctx      context.Context //nolint:containedctx // canceled by Close
	cancel   context.CancelFunc
	dialOnce sync.Once
	dialed   chan struct{} // closed when dialing has succeeded or failed

	mu            sync.Mutex
	conn          net.Conn // nil until it is dialed
	err           error    // of dialing
	readDeadline  time.Time
	writeDeadline time.Time
}

// Lazy returns a connection to addr that calls dial at the first write, which
// returns the error of dial. Until then, Read blocks. The context of dial has
// the values of ctx, but is canceled by Close, not with ctx.
func Lazy(ctx context.Context, addr net.Addr, dial func(context.Context) (net.Conn, error)) net.Conn {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &lazyConn{dial: dial, addr: addr, ctx: ctx, cancel: cancel, dialed: make(chan struct{})}
}

// runDial dials. It runs in a new goroutine, so that a dial function that ignores
// its context does not delay Close.
func (c *lazyConn) runDial() {
	conn, err := c.dial(c.ctx)
	if conn != nil {
		enlargeSendBuffer(conn)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(c.dialed)
	switch {
	case err != nil:
		c.err = err
	case c.ctx.Err() != nil:
		_ = conn.Close()
		c.err = net.ErrClosed
	default:
		_ = conn.SetReadDeadline(c.readDeadline)
		_ = conn.SetWriteDeadline(c.writeDeadline)
		c.conn = conn
	}
}

// wait waits until the connection is dialed. It ignores changes of the deadline
// meanwhile.
func (c *lazyConn) wait(deadline time.Time) (net.Conn, error) {
	select {
	case <-c.dialed: // the usual case, without a timer
		return c.conn, c.err
	default:
	}
	var timeout <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-c.dialed:
		return c.conn, c.err
	case <-c.ctx.Done():
		return nil, net.ErrClosed
	case <-timeout:
		return nil, os.ErrDeadlineExceeded
	}
}

// connect dials, unless that has been done, and waits for the connection.
func (c *lazyConn) connect() (net.Conn, error) {
	if c.ctx.Err() != nil {
		return nil, net.ErrClosed
	}
	c.dialOnce.Do(func() { go c.runDial() })
	c.mu.Lock()
	deadline := c.writeDeadline
	c.mu.Unlock()
	return c.wait(deadline)
}

func (c *lazyConn) Write(b []byte) (int, error) {
	conn, err := c.connect()
	if err != nil {
		return 0, err
	}
	return conn.Write(b)
}

func (c *lazyConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	deadline := c.readDeadline
	c.mu.Unlock()
	conn, err := c.wait(deadline)
	if err != nil {
		return 0, err
	}
	return conn.Read(b)
}

// Close closes the connection or ends its dialing.
func (c *lazyConn) Close() error {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

func (c *lazyConn) SetDeadline(t time.Time) error { return c.setDeadlines(&t, &t) }

func (c *lazyConn) SetReadDeadline(t time.Time) error { return c.setDeadlines(&t, nil) }

func (c *lazyConn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(nil, &t) }

func (c *lazyConn) setDeadlines(read, write *time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if read != nil {
		c.readDeadline = *read
		if c.conn != nil {
			err = c.conn.SetReadDeadline(*read)
		}
	}
	if write != nil && err == nil {
		c.writeDeadline = *write
		if c.conn != nil {
			err = c.conn.SetWriteDeadline(*write)
		}
	}
	return err
}

// LocalAddr returns the server's address until the connection is dialed.
func (c *lazyConn) LocalAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return c.addr
	}
	return c.conn.LocalAddr()
}

func (c *lazyConn) RemoteAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return c.addr
	}
	return c.conn.RemoteAddr()
}
