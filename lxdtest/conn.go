package lxdtest

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// conn is the server's end of a connection. The server counts it while it is
// open, and faults break it in ways that net/http alone cannot.
type conn struct {
	*linkConn

	mu     sync.Mutex
	frozen chan struct{} // non-nil while half-open; closed when thawed
	drip   time.Duration // the pause before each byte written; 0 for none
	local  bool          // a unix socket: its callers are trusted

	first []byte // read by Accept, not yet returned by Read
}

// Read reads from the connection. While it is half-open, Read blocks.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	n, err := c.linkConn.Read(p)
	c.mu.Lock()
	frozen := c.frozen
	c.mu.Unlock()
	if frozen == nil {
		return n, err
	}
	select {
	case <-frozen:
		return n, err
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

// Write writes to the connection, byte by byte if drip is set. On a half-open
// connection the data is discarded.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	frozen, drip := c.frozen != nil, c.drip
	c.mu.Unlock()
	if frozen {
		return len(p), nil
	}
	if drip == 0 {
		return c.linkConn.Write(p)
	}
	for i := range p {
		timer := time.NewTimer(drip)
		select {
		case <-timer.C:
		case <-c.closed:
			timer.Stop()
			return i, net.ErrClosed
		}
		if _, err := c.linkConn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// ReadFrom copies with a larger buffer than that of the HTTP server.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(onlyWriter{c}, onlyReader{r}, make([]byte, 128<<10))
}

// Close closes the connection and removes it from the server's list.
func (c *conn) Close() error {
	c.server.forgetConn(c)
	return c.linkConn.Close()
}

// reset closes the connection at once, over TCP with a reset.
func (c *conn) reset() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// freeze makes the connection half-open until the returned function is called.
func (c *conn) freeze() (thaw func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen == nil {
		c.frozen = make(chan struct{})
	}
	frozen := c.frozen
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.frozen = nil
		close(frozen)
	})
}

// setDrip sets the pause before each written byte; 0 ends it.
func (c *conn) setDrip(pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drip = pause
}

type connKey struct{}

// withConn is the ConnContext of the HTTP server: it stores the connection in
// the context of its requests.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	return context.WithValue(ctx, connKey{}, c)
}

// connOf returns the connection of a request.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

// listener wraps the connections of another listener, each in a *conn.
type listener struct {
	net.Listener
	server *Server
	local  bool
}

// firstBytes is the number of bytes that Accept reads from a local connection.
const firstBytes = 8

// Accept waits for a connection and registers it. Like LXD 5.0.2 and Incus
// 6.0.4 it waits for the first bytes of a local one: until they arrive or the
// connection is closed, no other connection is accepted.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, err := l.server.newConn(raw, l.local)
		if err != nil {
			_ = raw.Close()
			continue
		}
		if l.local {
			first := make([]byte, firstBytes)
			if _, err := io.ReadFull(raw, first); err != nil {
				_ = c.Close()
				continue
			}
			c.first = first
		}
		return c, nil
	}
}

// pipeListener accepts the in-memory connections of DialContext.
type pipeListener struct {
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

func newPipeListener(addr net.Addr) *pipeListener {
	return &pipeListener{queue: make(chan net.Conn), closed: make(chan struct{}), addr: addr}
}

// Accept waits for the next in-memory connection.
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// dial creates a pipe, queues one end for Accept and returns the other.
func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.queue <- server:
		return client, nil
	case <-l.closed:
		return nil, errRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close makes Accept return net.ErrClosed.
func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns the address given to newPipeListener.
func (l *pipeListener) Addr() net.Addr { return l.addr }
