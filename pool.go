package lxd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golxd/lxd/internal/netconn"
	"github.com/golxd/lxd/internal/retry"
)

// dialError marks the errors of making a connection.
type dialError struct {
	err     error
	reached bool // the server was connected to before
}

func (e *dialError) Error() string { return e.err.Error() }

func (e *dialError) Unwrap() error { return e.err }

// Transient has a socket that is missing come back where there was one: a
// daemon that restarts makes its socket anew.
func (e *dialError) Transient() bool {
	return e.reached && errors.Is(e.err, os.ErrNotExist) || retry.Transient(e.err)
}

// connections makes the connections of a client, and keeps the open ones, so
// that Close can end them.
type connections struct {
	dial dialFunc
	// lazy has a connection made when it is first written to. Every unix
	// connection must be: see netconn.Lazy.
	lazy bool
	// reached says that the server was connected to before.
	reached atomic.Bool

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

// errClosed is what a request of a closed client returns.
var errClosed error = closedError{}

type closedError struct{}

func (closedError) Error() string { return "the client is closed" }

func (closedError) Transient() bool { return false }

// plain returns a connection without TLS.
func (s *connections) plain(ctx context.Context, network, addr string) (*netconn.Conn, error) {
	c, closed, err := s.connect(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return netconn.Plain(c, closed), nil
}

// secure returns a connection after its TLS handshake.
func (s *connections) secure(ctx context.Context, network, addr string, config *tls.Config) (*netconn.TLSConn, error) {
	c, closed, err := s.connect(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.ServerName = serverName(addr)
	conn := netconn.TLS(c, config, closed)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, &dialError{err, true}
	}
	return conn, nil
}

// connect dials, now or at the first write. closed must be called when the
// connection is closed.
func (s *connections) connect(ctx context.Context, network, addr string) (c net.Conn, closed func(), err error) {
	dial := func(ctx context.Context) (net.Conn, error) {
		c, err := s.dial(ctx, network, addr)
		if err == nil && c == nil {
			err = invalid("Options.Dial", "gave no connection and no error")
		}
		if err != nil {
			return nil, &dialError{err, s.reached.Load()}
		}
		s.reached.Store(true)
		return c, nil
	}
	if s.lazy {
		c = netconn.Lazy(ctx, &net.UnixAddr{Name: addr, Net: "unix"}, dial)
	} else if c, err = dial(ctx); err != nil {
		return nil, nil, err
	}
	if closed, err = s.add(c); err != nil {
		return nil, nil, err
	}
	return c, closed, nil
}

// add takes note of c and returns what to call when it is closed.
func (s *connections) add(c net.Conn) (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(errClosed, c.Close())
	}
	if s.open == nil {
		s.open = make(map[net.Conn]struct{})
	}
	s.open[c] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, c)
	}, nil
}

func (s *connections) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// closeAll closes the connections, also those in use, and refuses new ones.
func (s *connections) closeAll() {
	s.mu.Lock()
	open := s.open
	s.open, s.closed = nil, true
	s.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
}

// continueTimeout is how long an upload that can be sent once waits for the
// server to want it. Every daemon says so as soon as it begins to read; a proxy
// may not, and gets the content all the same.
const continueTimeout = 10 * time.Second

// idleTimeout is how long an idle connection is kept: less than the 30 seconds
// after which the daemons close it (LXD 5.0.2, Incus 6.0.4), as a request on a
// connection that is being closed has no response.
const idleTimeout = 25 * time.Second

// newPool makes the one connection pool of a client.
func newPool(conns *connections, tlsConfig *tls.Config) *http.Transport {
	pool := &http.Transport{
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       idleTimeout,
		TLSHandshakeTimeout:   dialTimeout,
		ExpectContinueTimeout: continueTimeout,
		DisableCompression:    true,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       16 << 10,
		TLSClientConfig:       tlsConfig,
		Protocols:             http1Only(),
	}
	pool.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := conns.plain(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	if tlsConfig != nil {
		pool.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := conns.secure(ctx, network, addr, tlsConfig)
			if err != nil {
				return nil, err
			}
			return c, nil
		}
	}
	return pool
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// http1Only is faster for bulk than HTTP/2, which the daemons speak too.
func http1Only() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}
