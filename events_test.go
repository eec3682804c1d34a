package lxd_test

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// openConns are the connections of a client that are not closed.
type openConns struct {
	mu   sync.Mutex
	list map[net.Conn]bool
}

func (o *openConns) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.list == nil {
		o.list = map[net.Conn]bool{}
	}
	conn := &openConn{c, o}
	o.list[conn] = true
	return conn, nil
}

func (o *openConns) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.list)
}

type openConn struct {
	net.Conn
	of *openConns
}

func (c *openConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.list, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// TestPanicInALoop leaves no connection open, wherever the loop was.
func TestPanicInALoop(t *testing.T) {
	t.Parallel()
	s := lxdtest.NewServer(nil)
	t.Cleanup(s.Close)
	// Too long a list for net/http to read its rest and keep the connection.
	long := &lxdtest.AddOptions{Properties: map[string]string{"long": strings.Repeat("x", 1<<20)}}
	for n := range 3 {
		_, err := s.AddImage(lxdtest.UnifiedImage("panic"+string(rune('a'+n)), 0), long)
		require.NoError(t, err)
	}
	for name, loop := range map[string]func(*lxd.Client){
		"Events, connected": func(c *lxd.Client) {
			for range c.Events(t.Context(), nil) {
				panic("in the loop")
			}
		},
		"Events, event": func(c *lxd.Client) {
			for event := range c.Events(t.Context(), nil) {
				if event.Type != lxd.EventConnected {
					panic("in the loop")
				}
				_, err := s.AddImage(lxdtest.UnifiedImage("panic in event", 0), nil)
				require.NoError(t, err)
			}
		},
		"Each": func(c *lxd.Client) {
			for range c.Images.Each(t.Context(), nil) {
				panic("in the loop")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var conns openConns
			client := testkit.NewClient(t, s.Endpoint(), &lxd.Options{Dial: conns.dial})
			require.PanicsWithValue(t, "in the loop", func() { loop(client) })
			// What is not read to its end is closed.
			require.Eventually(t, func() bool {
				return conns.count() == 0
			}, 10*time.Second, time.Millisecond)
		})
	}
}
