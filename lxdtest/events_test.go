package lxdtest

import (
	"context"
	"encoding/json"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// receivedEvent is a decoded event.
type receivedEvent struct {
	Type     string `json:"type"`
	Project  string `json:"project"`
	Metadata struct {
		ID     string `json:"id"`
		Status string `json:"status"`
		Action string `json:"action"`
		Source string `json:"source"`
	} `json:"metadata"`
}

// listen opens an event socket.
func listen(t *testing.T, s *Server, query string) *websocket.Conn {
	t.Helper()
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return s.DialContext(ctx, "unix", "")
	}}
	socket, _, err := dialer.DialContext(t.Context(), "ws://lxd/1.0/events"+query, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	require.Eventually(t, func() bool {
		s.hub.mu.Lock()
		defer s.hub.mu.Unlock()
		return len(s.hub.subscribers) > 0
	}, 30*time.Second, time.Millisecond)
	return socket
}

// next returns the next event.
func next(t *testing.T, socket *websocket.Conn) receivedEvent {
	t.Helper()
	require.NoError(t, socket.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, data, err := socket.ReadMessage()
	require.NoError(t, err)
	var e receivedEvent
	require.NoError(t, json.Unmarshal(data, &e))
	return e
}

// eventsUntilSuccess returns the statuses and actions of all events until an
// operation succeeds.
func eventsUntilSuccess(t *testing.T, socket *websocket.Conn) []string {
	t.Helper()
	var words []string
	for {
		e := next(t, socket)
		words = append(words, e.Metadata.Status+e.Metadata.Action)
		if e.Metadata.Status == "Success" {
			return words
		}
	}
}

func TestUploadEvents(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	socket := listen(t, s, "?type=operation,lifecycle")
	c.upload(UnifiedImage("x", 0))
	require.Equal(t, []string{"Pending", "Running", "Running", "image-created", "Success"}, eventsUntilSuccess(t, socket))
	c.do("POST", "/1.0/images/aliases", map[string]any{"name": "a/b", "target": s.Images()[0].Fingerprint})
	e := next(t, socket)
	require.Equal(t, "image-alias-created", e.Metadata.Action)
	require.Equal(t, "/1.0/images/aliases/a%252Fb", e.Metadata.Source)
	require.Equal(t, "default", e.Project)
}

func TestEventTypesAreFiltered(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	socket := listen(t, s, "?type=lifecycle")
	newClient(t, s).upload(UnifiedImage("x", 0))
	require.Equal(t, "image-created", next(t, socket).Metadata.Action)
}

func TestEventFaults(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	socket := listen(t, s, "?type=operation")
	fault := s.Inject(DuplicateEvents())
	c.upload(UnifiedImage("1", 0))
	require.Equal(t, []string{"Pending", "Pending", "Running", "Running", "Running", "Running", "Success"}, eventsUntilSuccess(t, socket))
	next(t, socket)
	require.Equal(t, 4, fault.Fired())
	fault.Remove()

	s.Inject(ReorderEvents())
	c.upload(UnifiedImage("2", 0))
	require.Equal(t, []string{"Running", "Pending", "Success"}, eventsUntilSuccess(t, socket))
	require.Equal(t, "Running", next(t, socket).Metadata.Status)

	require.Equal(t, 1, s.Inject(DropEvents()).Fired())
	_, _, err := socket.ReadMessage()
	require.Error(t, err)
}

func TestEventSocketsArePinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, &Options{InMemory: true})
		dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.DialContext(ctx, "unix", "")
		}}
		socket, _, err := dialer.DialContext(t.Context(), "ws://lxd/1.0/events", nil)
		require.NoError(t, err)
		defer socket.Close()
		begin := time.Now()
		socket.SetPingHandler(func(string) error { return net.ErrClosed })
		_, _, err = socket.ReadMessage()
		require.ErrorIs(t, err, net.ErrClosed)
		require.Equal(t, 10*time.Second, time.Since(begin))
	})
}
