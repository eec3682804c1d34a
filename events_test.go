package lxd_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
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
			}, 30*time.Second, time.Millisecond)
		})
	}
}

// TestEventsAreBounded: one that is too large ends the loop.
func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		filler   string
		tooLarge bool
	}{
		"one MiB":     {`"` + strings.Repeat("x", 1<<20) + `"`, false},
		"no end":      {"", true},
		"many values": {`[` + strings.Repeat("[],", 300_000) + `1]`, true},
	} {
		var sent atomic.Int64
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			const event = `{"type":"operation","metadata":{"id":"x","metadata":{"filler":`
			if c.filler == "" {
				out, err := conn.NextWriter(websocket.TextMessage)
				for n, block := 0, []byte(event+`"`+strings.Repeat("x", 64<<10)); err == nil && n < 256<<20; {
					_, err = out.Write(block)
					n += len(block)
					sent.Store(int64(n))
				}
				return
			}
			_ = conn.WriteMessage(websocket.TextMessage, []byte(event+c.filler+`}}}`))
			_, _, _ = conn.ReadMessage() // until the client goes
		}))
		client := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw)})
		var events []lxd.EventType
		var err error
		for event, eventErr := range client.Events(t.Context(), nil) {
			if eventErr != nil {
				err = eventErr
				break
			}
			events = append(events, event.Type)
			if event.Type == lxd.EventOperation || len(events) == 3 {
				break
			}
		}
		if c.tooLarge {
			require.ErrorIs(t, err, lxd.ErrTooLarge, name)
			require.Less(t, sent.Load(), int64(64<<20), name)
			require.Equal(t, []lxd.EventType{lxd.EventConnected}, events, name)
		} else {
			require.NoError(t, err, name)
			require.Equal(t, []lxd.EventType{lxd.EventConnected, lxd.EventOperation}, events, name)
		}
		require.NoError(t, client.Close())
		server.Close()
	}
}

// TestLifecycleNamesTheAlias whatever it contains, and however the daemon escapes it.
func TestLifecycleNamesTheAlias(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			project := s.AddProject(t)
			for _, c := range []*lxd.Client{s.Client(t), s.Client(t).InProject(project)} {
				image := testkit.Upload(t, c, nil)
				names := []string{"plain", "a/b", "a%20b", "a b?c#d", "100%", "a%252Fb", "ä"}
				if s.Column == "lxdtest Incus 7.0.2" || s.Column == "Incus 7.0.2" {
					names = []string{"plain", "a/b", "a%20b", "a#d", "a%252Fb"}
				}
				mark := testkit.Unique("x")
				var want, got []string
				begun, done := make(chan struct{}), make(chan struct{})
				started, ended := false, false
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				for event, err := range c.Events(ctx, &lxd.EventsOptions{Types: []lxd.EventType{lxd.EventLifecycle}}) {
					require.NoError(t, err)
					if event.Type == lxd.EventConnected {
						// A daemon sends no event of the moment in which the connection is new.
						go func() {
							defer close(done)
							for n := 0; ; n++ {
								_ = image.Client().Aliases.Create(t.Context(), lxd.Alias{Name: mark + "before" + strconv.Itoa(n), Target: image.Fingerprint})
								select {
								case <-begun:
									return
								case <-time.After(20 * time.Millisecond):
								}
							}
						}()
						continue
					}
					if strings.HasPrefix(event.Lifecycle.Alias(), mark+"before") {
						if started {
							continue
						}
						started = true
						close(begun)
						<-done
						for _, name := range names {
							from, to := mark+name+"1", mark+name+"2"
							require.NoError(t, image.AddAlias(t.Context(), from, ""))
							want = append(want, from)
							if s.Column == "LXD 5.0.2" && name != "a%20b" {
								continue // a renaming takes 10 seconds
							}
							require.NoError(t, c.Aliases.Rename(t.Context(), from, to))
							want = append(want, to+" from "+from)
						}
						require.NoError(t, image.AddAlias(t.Context(), mark+"end", ""))
						continue
					}
					name := event.Lifecycle.Alias()
					if !strings.HasPrefix(name, mark) {
						continue
					}
					if name == mark+"end" {
						ended = true
					} else if old := event.Lifecycle.OldName(); old != "" {
						got = append(got, name+" from "+old)
					} else {
						got = append(got, name)
					}
					// The daemons do not send events in the order in which things happen.
					if ended && len(got) >= len(want) {
						break
					}
				}
				require.ElementsMatch(t, want, got)
			}
		})
	}
	require.Empty(t, (&lxd.Lifecycle{Source: "/1.0/images/" + oneFingerprint}).Alias())
	require.Equal(t, "a b", (&lxd.Lifecycle{Source: "/1.0/images/aliases/a%20b?project=x"}).Alias())
}

// eventServer is a client of a server that sends messages on each event connection, and
// then nothing, not even pings.
func eventServer(t *testing.T, messages ...string) *lxd.Client {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		for _, message := range messages {
			_ = conn.WriteMessage(websocket.TextMessage, []byte(message))
		}
		_, _, _ = conn.ReadMessage() // until the client goes
	}))
	t.Cleanup(server.Close)
	return testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw)})
}

// TestEventsOfImagesOnly drops what is about other things, such as instances.
func TestEventsOfImagesOnly(t *testing.T) {
	t.Parallel()
	const event = `{"type":"lifecycle","timestamp":"2026-01-02T03:04:05Z","metadata":{"action":"%s","source":"/1.0/%s"}}`
	client := eventServer(t,
		fmt.Sprintf(event, "instance-started", "instances/web"), fmt.Sprintf(event, "image-created", "images/"+oneFingerprint),
		fmt.Sprintf(event, "profile-updated", "profiles/image"), fmt.Sprintf(event, "image-alias-created", "images/aliases/name"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for only, want := range map[bool][]string{
		true:  {"image-created", "image-alias-created"},
		false: {"instance-started", "image-created", "profile-updated", "image-alias-created"},
	} {
		var actions []string
		for event, err := range client.Events(ctx, &lxd.EventsOptions{ImagesOnly: only}) {
			require.NoError(t, err)
			if event.Lifecycle == nil {
				continue
			}
			actions = append(actions, event.Lifecycle.Action)
			if event.Lifecycle.Alias() != "" {
				break
			}
		}
		require.Equal(t, want, actions)
	}
}

// silencedConn loses what it receives once it is silent, like a connection behind a firewall
// that has forgotten it.
type silencedConn struct {
	net.Conn
	silent *atomic.Bool
}

func (c *silencedConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.silent.Load() {
			return n, err
		}
	}
}

// TestDeadEventConnection: a connection that is silent for longer than the daemons'
// pings is replaced, one that has pings stays.
func TestDeadEventConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer server.Close()
		var last *atomic.Bool
		client, err := lxd.New("unix:///lxd", &lxd.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := server.DialContext(ctx, network, address)
			last = new(atomic.Bool)
			return &silencedConn{conn, last}, err
		}})
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close()) }()
		ctx, cancel := context.WithCancel(t.Context())
		connected := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for event, err := range client.Events(ctx, nil) {
				if err != nil {
					return
				}
				if event.Type == lxd.EventConnected {
					connected++
				}
			}
		}()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Equal(t, 1, connected)
		last.Store(true)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Equal(t, 2, connected)
		cancel()
		<-done
	})
}
