package netconn

import (
	"context"
	"net"
	"os"
	"sync"
	"time"
)

// lazyConn is a connection that is made when it is first written to.
//
// LXD 5.0.2 and Incus 6.0.4 read the first bytes of a unix connection inside
// their accept loop: one that is open and unwritten keeps everybody else out.
// net/http makes such connections: it dials for a request, another connection
// becomes idle first, and the new one waits in the pool.
type lazyConn struct {
	dial   func(context.Context) (net.Conn, error)
	addr   net.Addr
	ctx    context.Context //nolint:containedctx // of the connection's life, which Close ends
	cancel context.CancelFunc
	begin  sync.Once
	ended  chan struct{} // closed when dialing has ended

	mu            sync.Mutex
	conn          net.Conn // nil until it is made
	err           error    // of dialing
	readDeadline  time.Time
	writeDeadline time.Time
}

// Lazy returns a connection to addr that dial makes when it is first written
// to; the error of dial is then the error of that write. Until then a read
// waits. dial receives the values of ctx, but not its end: Close ends it.
func Lazy(ctx context.Context, addr net.Addr, dial func(context.Context) (net.Conn, error)) net.Conn {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &lazyConn{dial: dial, addr: addr, ctx: ctx, cancel: cancel, ended: make(chan struct{})}
}

// connect makes the connection in a goroutine of its own: a dial function that
// does not obey its context must not hold up Close.
func (c *lazyConn) connect() {
	conn, err := c.dial(c.ctx)
	if conn != nil {
		large(conn)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(c.ended)
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

// made waits until the connection is there. A deadline that is changed
// meanwhile is not looked at.
func (c *lazyConn) made(deadline time.Time) (net.Conn, error) {
	select {
	case <-c.ended: // the usual case, without a timer
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
	case <-c.ended:
		return c.conn, c.err
	case <-c.ctx.Done():
		return nil, net.ErrClosed
	case <-timeout:
		return nil, os.ErrDeadlineExceeded
	}
}

// forWrite makes the connection.
func (c *lazyConn) forWrite() (net.Conn, error) {
	if c.ctx.Err() != nil {
		return nil, net.ErrClosed
	}
	c.begin.Do(func() { go c.connect() })
	c.mu.Lock()
	deadline := c.writeDeadline
	c.mu.Unlock()
	return c.made(deadline)
}

func (c *lazyConn) Write(b []byte) (int, error) {
	conn, err := c.forWrite()
	if err != nil {
		return 0, err
	}
	return conn.Write(b)
}

func (c *lazyConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	deadline := c.readDeadline
	c.mu.Unlock()
	conn, err := c.made(deadline)
	if err != nil {
		return 0, err
	}
	return conn.Read(b)
}

// Close ends the connection, or the making of it.
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

// LocalAddr is the server's address until the connection is made.
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
