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

// dialError is an error of making a connection; no request was sent.
type dialError struct {
	err     error
	reached bool // an earlier connection succeeded
}

func (e *dialError) Error() string { return e.err.Error() }

func (e *dialError) Unwrap() error { return e.err }

// Transient reports whether a retry may succeed. A missing socket is transient
// only if the server was reached before: a restarting daemon recreates its socket.
func (e *dialError) Transient() bool {
	return e.reached && errors.Is(e.err, os.ErrNotExist) || retry.Transient(e.err)
}

// connections makes the connections of a client, and keeps track of the open
// ones, so that Close can close them.
type connections struct {
	dial dialFunc
	// lazy connects at the first write. It must be set for unix sockets: see
	// netconn.Lazy.
	lazy bool
	// reached is true once a connection has succeeded.
	reached atomic.Bool

	// shown has the fingerprint of the certificate of each address.
	shown sync.Map

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
	done   chan struct{} // closed by closeAll; nil if that is never called
}

// errClosed is the error of a request of a closed client.
var errClosed error = closedError{}

type closedError struct{}

func (closedError) Error() string { return "the client is closed" }

func (closedError) Is(target error) bool { return target == net.ErrClosed }

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
	s.shown.Store(addr, certificateFingerprint(conn.ConnectionState().PeerCertificates[0].Raw))
	return conn, nil
}

// shownAt returns the fingerprint of the certificate that the server at an
// address has shown last; "" if none.
func (s *connections) shownAt(addr string) string {
	fingerprint, _ := s.shown.Load(addr)
	text, _ := fingerprint.(string)
	return text
}

// connect dials, now or at the first write. closed must be called when the
// connection is closed.
func (s *connections) connect(ctx context.Context, network, addr string) (c net.Conn, closed func(), err error) {
	dial := func(ctx context.Context) (net.Conn, error) {
		c, err := s.dial(ctx, network, addr)
		if err == nil && c == nil {
			err = invalid("Options.Dial", "returned no connection and no error")
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

// add records c as open, and returns the function to call when it is closed.
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

// closeAll closes all connections, even those in use; no new one can be made.
func (s *connections) closeAll() {
	s.mu.Lock()
	open := s.open
	if !s.closed {
		close(s.done)
	}
	s.open, s.closed = nil, true
	s.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
}

// continueTimeout is how long an upload of a one-shot reader waits for the
// response "100 Continue". Daemons send it when they begin to read the body; a
// proxy may not, so the content is sent after the timeout.
const continueTimeout = 10 * time.Second

// idleTimeout is how long an idle connection is kept: less than the 30 seconds
// after which the daemons close it (LXD 5.0.2, Incus 6.0.4), as a request on a
// connection that is being closed has no response.
const idleTimeout = 25 * time.Second

// newPool returns the connection pool of a client.
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

// http1Only selects HTTP/1.1: for large transfers it is faster than HTTP/2, which
// the daemons also support.
func http1Only() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}
