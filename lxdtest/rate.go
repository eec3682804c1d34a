package lxdtest

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// rateBurst is how much time of an idle link can still be used. It makes up for
	// timers that fire late.
	rateBurst = 20 * time.Millisecond

	// rateShare is the longest time for which one connection has the link to itself,
	// so that small messages need not wait long.
	rateShare = 10 * time.Millisecond

	// maxRateChunk is the most that one connection sends or receives at a time. It is
	// the size of a TLS record: connections with and without TLS have equal shares.
	maxRateChunk = 16 << 10
)

// link is one direction of a server's network link.
type link struct {
	mu   sync.Mutex
	free time.Time // when everything so far has passed
}

// reserve queues n bytes and returns when they have passed.
func (l *link) reserve(n int, rate int64) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if earliest := time.Now().Add(-rateBurst); l.free.Before(earliest) {
		l.free = earliest
	}
	l.free = l.free.Add(time.Duration(int64(n) * int64(time.Second) / rate))
	return l.free
}

// rateLimits returns the faults that limit the network link. It takes no lock, because
// each read and write calls it.
func (s *Server) rateLimits() []*Injection {
	if limits := s.limits.Load(); limits != nil {
		return *limits
	}
	return nil
}

// setRateLimits replaces the faults that limit the network link; the caller holds the
// lock.
func (s *Server) setRateLimits(limits []*Injection) { s.limits.Store(&limits) }

// sendLink and receiveLink return the directions of the link that a RateLimit limits.
func (i *Injection) sendLink() *link    { return &i.sends }
func (i *Injection) receiveLink() *link { return &i.receives }

// deadline is a deadline of a connection, for what waits for the link.
type deadline struct {
	mu      sync.Mutex
	at      time.Time     // zero for none
	changed chan struct{} // closed when at changes
}

func newDeadline() *deadline { return &deadline{changed: make(chan struct{})} }

func (d *deadline) set(at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = at
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *deadline) get() (at time.Time, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at, d.changed
}

// linkConn is a connection over the server's network link, which all of them share:
// one that the server has accepted, or one that it has opened itself.
type linkConn struct {
	net.Conn
	server                      *Server
	readDeadline, writeDeadline *deadline

	once   sync.Once
	closed chan struct{}
}

func (s *Server) newLinkConn(raw net.Conn) *linkConn {
	return &linkConn{
		Conn: raw, server: s, closed: make(chan struct{}),
		readDeadline: newDeadline(), writeDeadline: newDeadline(),
	}
}

// Read reads from the connection and returns when the link would have received the
// data. A deadline ends the waiting; the data is returned nevertheless.
func (c *linkConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:c.chunk(len(p))])
	if n == 0 {
		return n, err
	}
	if late := c.pass(n, (*Injection).receiveLink, c.readDeadline); errors.Is(late, net.ErrClosed) {
		return 0, late
	}
	return n, err
}

// Write writes to the connection as fast as the link can send.
func (c *linkConn) Write(p []byte) (int, error) {
	written := 0
	for {
		chunk := p[written:]
		chunk = chunk[:c.chunk(len(chunk))]
		if err := c.pass(len(chunk), (*Injection).sendLink, c.writeDeadline); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(chunk)
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

// Close closes the connection and ends its waiting for the link.
func (c *linkConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.closed)
		err = c.Conn.Close()
	})
	return err
}

// SetDeadline sets both deadlines, also for a Read or Write that waits for the link.
func (c *linkConn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return c.Conn.SetDeadline(t)
}

// SetReadDeadline sets the deadline, also for a Read that waits for the link.
func (c *linkConn) SetReadDeadline(t time.Time) error {
	c.readDeadline.set(t)
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline sets the deadline, also for a Write that waits for the link.
func (c *linkConn) SetWriteDeadline(t time.Time) error {
	c.writeDeadline.set(t)
	return c.Conn.SetWriteDeadline(t)
}

// chunk returns how many of n bytes to send or receive at a time.
func (c *linkConn) chunk(n int) int {
	for _, i := range c.server.rateLimits() {
		n = min(n, maxRateChunk, max(1, int(i.fault.bytes/int64(time.Second/rateShare))))
	}
	return n
}

// pass waits until n bytes have passed the link in one direction. It returns
// net.ErrClosed if the connection is closed before, and os.ErrDeadlineExceeded at the
// deadline.
func (c *linkConn) pass(n int, direction func(*Injection) *link, d *deadline) error {
	for _, i := range c.server.rateLimits() {
		if err := c.wait(i, direction(i).reserve(n, i.fault.bytes), d); err != nil {
			return err
		}
	}
	return nil
}

// wait waits for a time, or until the limit is removed.
func (c *linkConn) wait(i *Injection, until time.Time, d *deadline) error {
	for counted := false; ; {
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		if !counted {
			c.server.mu.Lock()
			i.count(1)
			c.server.mu.Unlock()
			counted = true
		}
		at, changed := d.get()
		if !at.IsZero() {
			if left = min(left, time.Until(at)); left <= 0 {
				return os.ErrDeadlineExceeded
			}
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-changed:
		case <-i.released:
			timer.Stop()
			return nil
		case <-c.closed:
			timer.Stop()
			return net.ErrClosed
		}
		timer.Stop()
	}
}
