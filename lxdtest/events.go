package lxdtest

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// event is a message on an event socket.
type event struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Metadata  any       `json:"metadata"`
	Location  string    `json:"location"`
	Project   string    `json:"project,omitempty"`
}

// lifecycleJSON is the metadata of a lifecycle event.
type lifecycleJSON struct {
	Action    string         `json:"action"`
	Source    string         `json:"source"`
	Context   map[string]any `json:"context,omitempty"`
	Requestor *requestorJSON `json:"requestor,omitempty"`
	Name      string         `json:"name,omitempty"`
	Project   string         `json:"project,omitempty"`
}

// requestorJSON is the client that caused a lifecycle event.
type requestorJSON struct {
	Username string `json:"username"`
	Protocol string `json:"protocol"`
	Address  string `json:"address"`
}

// hub sends events to the open event sockets.
type hub struct {
	mu          sync.Mutex
	subscribers []*subscriber
	delayed     *event // to be sent after the next one
}

// subscriber is one open event socket.
type subscriber struct {
	types   []string // empty for all
	project string   // "" for all
	wake    chan struct{}

	mu     sync.Mutex
	queue  [][]byte
	closed chan struct{}
	once   sync.Once
}

// drop makes serveEvents close the connection without a close message.
func (sub *subscriber) drop() { sub.once.Do(func() { close(sub.closed) }) }

// wants reports whether a socket has subscribed to an event.
func (sub *subscriber) wants(e *event) bool {
	if len(sub.types) > 0 && !slices.Contains(sub.types, e.Type) {
		return false
	}
	return sub.project == "" || e.Project == "" || sub.project == e.Project
}

// push queues one encoded event.
func (sub *subscriber) push(data []byte) {
	sub.mu.Lock()
	sub.queue = append(sub.queue, data)
	sub.mu.Unlock()
	select {
	case sub.wake <- struct{}{}:
	default:
	}
}

// take empties the queue and returns its content.
func (sub *subscriber) take() [][]byte {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	queue := sub.queue
	sub.queue = nil
	return queue
}

// reset drops the sockets from before a restart.
func (h *hub) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, sub := range h.subscribers {
		sub.drop()
	}
	h.subscribers, h.delayed = nil, nil
}

// add adds a socket to the list.
func (h *hub) add(sub *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subscribers = append(h.subscribers, sub)
}

// remove removes a closed socket from the list.
func (h *hub) remove(sub *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subscribers = slices.DeleteFunc(h.subscribers, func(other *subscriber) bool { return other == sub })
}

// dropAll drops every socket and returns their number.
func (h *hub) dropAll() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, sub := range h.subscribers {
		sub.drop()
	}
	n := len(h.subscribers)
	h.subscribers = nil
	return n
}

// reorderLimit is the longest delay of an event: there may be no next one.
const reorderLimit = 100 * time.Millisecond

// flush sends an event if it is still delayed.
func (h *hub) flush(e *event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.delayed == e {
		h.delayed = nil
		h.send(e)
	}
}

// send queues an event for all sockets that want it; the caller holds h.mu.
func (h *hub) send(e *event) {
	data, err := json.Marshal(e)
	if err != nil {
		return
	}
	// The daemons end each message with a newline.
	data = append(data, '\n')
	for _, sub := range h.subscribers {
		if sub.wants(e) {
			sub.push(data)
		}
	}
}

// publish sends an event, or with DuplicateEvents and ReorderEvents twice or
// late; the caller holds the server's lock.
func (s *Server) publish(e *event) {
	e.Timestamp = s.now()
	e.Location = "none"
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	operation := e.Type == "operation"
	if operation && s.hub.delayed == nil && s.fire(kindReorder) {
		s.hub.delayed = e
		time.AfterFunc(reorderLimit, func() { s.hub.flush(e) })
		return
	}
	s.hub.send(e)
	if operation && s.fire(kindDuplicate) {
		s.hub.send(e)
	}
	if late := s.hub.delayed; late != nil && operation {
		s.hub.delayed = nil
		s.hub.send(late)
	}
}

// publishOperation publishes the state of an operation; the caller holds the
// lock.
func (s *Server) publishOperation(op *operation) {
	s.publish(&event{Type: "operation", Metadata: s.render(op), Project: op.project})
}

// requestorOf returns the client of a request.
func requestorOf(r *http.Request) *requestorJSON {
	if r.TLS == nil {
		return &requestorJSON{Username: "root", Protocol: "unix", Address: "@"}
	}
	requestor := &requestorJSON{Protocol: "tls", Address: r.RemoteAddr}
	if len(r.TLS.PeerCertificates) > 0 {
		requestor.Username = certFingerprint(r.TLS.PeerCertificates[0])
	}
	return requestor
}

// publishLifecycle publishes a lifecycle event of an image or an alias. If a request has
// caused it, its project is that of the request, even if that project shares the images of
// the default one (LXD 5.0.2, Incus 6.0.4 and 7.0.2).
func (s *Server) publishLifecycle(r *http.Request, action, source, project string, context map[string]any) {
	lifecycle := lifecycleJSON{Action: action, Source: source, Context: context}
	if r != nil {
		lifecycle.Requestor = requestorOf(r)
		project = projectParam(r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publish(&event{Type: "lifecycle", Metadata: lifecycle, Project: project})
}

// serveEvents upgrades the connection to a WebSocket and sends events until
// either side closes it.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) error {
	if !websocket.IsWebSocketUpgrade(r) {
		return statusErrorf(http.StatusBadRequest, "websocket: the client is not using the websocket protocol: 'upgrade' token not found in 'Connection' header")
	}
	query := r.URL.Query()
	sub := &subscriber{wake: make(chan struct{}, 1), closed: make(chan struct{})}
	if types := query.Get("type"); types != "" {
		sub.types = strings.Split(types, ",")
	}
	if query.Get("all-projects") != "true" {
		sub.project = projectParam(r)
	}
	// Subscribed before the upgrade, so that no event after the response is
	// missed.
	s.mu.Lock()
	runCtx := s.runCtx
	s.hub.add(sub)
	s.mu.Unlock()
	defer s.hub.remove(sub)
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	socket, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		// The upgrader has sent the error.
		return nil
	}
	defer socket.Close()

	gone := make(chan struct{})
	s.tasks.Go(func() {
		defer close(gone)
		for {
			// Only a pending read handles pongs and notices that the client is
			// gone.
			if _, _, err := socket.ReadMessage(); err != nil {
				return
			}
		}
	})
	defer func() {
		_ = socket.Close()
		<-gone
	}()
	ping := time.NewTicker(s.opts.PingInterval)
	defer ping.Stop()
	for {
		select {
		case <-sub.wake:
			for _, data := range sub.take() {
				if err := socket.WriteMessage(websocket.TextMessage, data); err != nil {
					return nil
				}
				if s.dropEventSocket() {
					return nil
				}
			}
		case <-ping.C:
			if err := socket.WriteControl(websocket.PingMessage, nil, time.Now().Add(5*time.Second)); err != nil {
				return nil
			}
		case <-sub.closed:
			return nil
		case <-gone:
			return nil
		case <-runCtx.Done():
			return nil
		}
	}
}
