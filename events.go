package lxd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/wire"
)

// EventType is the kind of an event.
type EventType string

// The event types.
const (
	// EventOperation tells a new state of an operation.
	EventOperation EventType = "operation"
	// EventLifecycle tells that something was made, changed or deleted.
	EventLifecycle EventType = "lifecycle"
	// EventConnected is not the server's: the connection is there, at first and
	// again after it broke. What happened before is not told, so read what
	// matters when it comes.
	EventConnected EventType = "connected"
)

// Event is something that happened on a server.
type Event struct {
	Type      EventType
	Timestamp time.Time
	Project   string
	Location  string           // the cluster member
	Operation *OperationStatus // of EventOperation, else nil
	Lifecycle *Lifecycle       // of EventLifecycle, else nil
}

// Lifecycle is what was done, and to what.
type Lifecycle struct {
	Action  string         `json:"action"` // such as "image-created" or "image-alias-deleted"
	Source  string         `json:"source"` // the URL path, such as "/1.0/images/aff…"
	Name    string         `json:"name"`   // on newer servers
	Context map[string]any `json:"context"`
}

// Fingerprint is that of the image that a lifecycle event of an image is
// about, or empty.
func (l *Lifecycle) Fingerprint() string {
	u, err := url.Parse(l.Source)
	if err != nil {
		return ""
	}
	rest, ok := strings.CutPrefix(u.Path, "/1.0/images/")
	if !ok || strings.HasPrefix(rest, "aliases/") {
		return ""
	}
	fingerprint, _, _ := strings.Cut(rest, "/")
	return fingerprint
}

// EventsOptions narrow the events.
type EventsOptions struct {
	// Types. Default: EventOperation and EventLifecycle.
	Types []EventType
	// AllProjects listens to all projects. Default: the client's own.
	AllProjects bool
	// ImagesOnly leaves out the lifecycle events of all but images and their
	// aliases.
	ImagesOnly bool
}

// endless is the retry policy of what goes on until ctx ends.
var endless = retry.Policy{Timeout: math.MaxInt64}

const (
	// eventSilence is how long a connection may be silent: servers ping every
	// 10 seconds (LXD 5.0.2, Incus 6.0.4).
	eventSilence = 40 * time.Second
	maxEvent     = 16 << 20
)

// Events iterates over the server's events. The first is an [EventConnected]:
// what happens after it is told. The order is the server's, which is not always
// that of what happened. A broken connection is made again, and another
// EventConnected tells so: there is no timeout, the pauses are those of every
// retry. The first connection is retried for Options.RetryTimeout. The loop ends
// when it is left, with ctx (its error is the last thing yielded), with an error
// that is not transient, such as a refusal, or with an event that is none
// ([ErrBadResponse]) or too large ([ErrTooLarge]). Ranging again connects anew.
func (c *Client) Events(ctx context.Context, opts *EventsOptions) iter.Seq2[Event, error] {
	var o EventsOptions
	if opts != nil {
		o = *opts
		o.Types = slices.Clone(opts.Types)
	}
	return func(yield func(Event, error) bool) {
		retries := c.t.retry.Begin()
		for {
			req := c.eventsRequest(&o)
			more, began, err := c.oneEvents(ctx, req, &o, yield)
			if began {
				retries = endless.Begin()
			}
			if !more {
				return
			}
			if errors.Is(err, ErrUnavailable) && retry.Transient(err) && !c.t.conns.isClosed() {
				if err = retries.Pause(ctx, err); err == nil {
					continue
				}
			}
			if ctx.Err() != nil {
				err = c.t.connectionError(ctx, req, ctx.Err())
			}
			yield(Event{}, err)
			return
		}
	}
}

// oneEvents yields the events of one connection. began says that there was one,
// more is false if the loop was left. A panic in the loop closes the connection
// too.
func (c *Client) oneEvents(ctx context.Context, req *request, o *EventsOptions, yield func(Event, error) bool) (more, began bool, err error) {
	conn, err := c.dialEvents(ctx, req)
	if err != nil {
		return true, false, err
	}
	defer func() { _ = conn.Close() }()
	if !yield(Event{Type: EventConnected, Timestamp: time.Now()}, nil) {
		return false, true, nil
	}
	more, err = c.readEvents(ctx, conn, req, o, yield)
	return more, true, err
}

func (c *Client) eventsRequest(o *EventsOptions) *request {
	types := o.Types
	if len(types) == 0 {
		types = []EventType{EventOperation, EventLifecycle}
	}
	names := make([]string, len(types))
	for n, t := range types {
		names[n] = string(t)
	}
	query := url.Values{"type": {strings.Join(names, ",")}}
	switch {
	case o.AllProjects:
		query.Set("all-projects", "true")
	case c.project != "":
		query.Set("project", c.project)
	}
	return &request{method: http.MethodGet, path: path("events"), query: query}
}

func (c *Client) dialEvents(ctx context.Context, req *request) (*websocket.Conn, error) {
	t := c.t
	if err := ctx.Err(); err != nil {
		return nil, t.connectionError(ctx, req, err)
	}
	header := http.Header{"User-Agent": {t.agent}}
	if t.token != nil {
		var err error
		if req.bearer, err = t.bearer(ctx); err != nil {
			return nil, err
		}
		header.Set("Authorization", "Bearer "+req.bearer)
	}
	stop := func() bool { return false }
	defer func() { stop() }()
	dialer := websocket.Dialer{
		HandshakeTimeout: dialTimeout,
		NetDialContext: func(dialing context.Context, network, addr string) (net.Conn, error) {
			conn, err := t.conns.plain(dialing, network, addr)
			if err != nil {
				return nil, err
			}
			// The handshake obeys deadlines, not the end of ctx.
			stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
			return conn, nil
		},
	}
	if t.tls != nil {
		dialer.TLSClientConfig = t.tls.Clone()
	}
	// http://unix becomes ws://unix, https://host becomes wss://host.
	conn, res, err := dialer.DialContext(ctx, "ws"+strings.TrimPrefix(t.base, "http")+req.path+"?"+req.query.Encode(), header)
	if err == nil {
		return conn, nil
	}
	if res != nil {
		defer func() { _ = res.Body.Close() }()
		if !errors.Is(err, websocket.ErrBadHandshake) {
			return nil, t.connectionError(ctx, req, err)
		}
		if _, aerr := t.readAnswer(ctx, req, res, nil); aerr != nil {
			return nil, aerr
		}
		return nil, t.badResponse(req, res, errors.New("it is not an event stream"))
	}
	return nil, t.connectionError(ctx, req, err)
}

// readEvents yields events until the connection breaks (more is then true), or
// the loop is left.
func (c *Client) readEvents(ctx context.Context, conn *websocket.Conn, req *request, o *EventsOptions, yield func(Event, error) bool) (more bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	conn.SetReadLimit(maxEvent)
	alive := func() error { return conn.SetReadDeadline(time.Now().Add(eventSilence)) }
	if err := alive(); err != nil {
		return true, c.t.connectionError(ctx, req, err)
	}
	pong := conn.PingHandler()
	conn.SetPingHandler(func(data string) error {
		return errors.Join(alive(), pong(data))
	})
	own := req.hidden()
	var sent, secrets *redact.Secrets // prepared for the first event, and again when there are new ones
	for {
		_, data, err := conn.ReadMessage()
		switch {
		case errors.Is(err, websocket.ErrReadLimit), err == nil && memoryOf(data) > maxEvent:
			return true, &Error{
				StatusCode: http.StatusSwitchingProtocols, Method: http.MethodGet, Path: path("events"), kind: ErrTooLarge,
				Message: fmt.Sprintf("%v: an event takes more than %d MiB of memory", ErrTooLarge, maxEvent>>20),
			}
		case err != nil:
			return true, c.t.connectionError(ctx, req, err)
		}
		if err := alive(); err != nil {
			return true, c.t.connectionError(ctx, req, err)
		}
		if latest := c.t.secrets.joined(); secrets == nil || latest != sent {
			sent, secrets = latest, redact.Join(latest, own)
		}
		event, wanted, err := decodeEvent(data, o, secrets)
		if err != nil {
			return true, secrets.Error(err)
		}
		if wanted && !yield(event, nil) {
			return false, nil
		}
	}
}

func decodeEvent(data []byte, o *EventsOptions, secrets *redact.Secrets) (event Event, wanted bool, err error) {
	var raw wire.Event
	if err := wire.Unmarshal(data, &raw); err != nil {
		return Event{}, false, fmt.Errorf("event: %w: %w", ErrBadResponse, err)
	}
	event = Event{Type: EventType(raw.Type), Timestamp: raw.Timestamp, Project: raw.Project, Location: raw.Location}
	switch event.Type {
	case EventOperation:
		var state wire.Operation
		if err := wire.Unmarshal(raw.Metadata, &state); err != nil {
			return Event{}, false, fmt.Errorf("operation event: %w: %w", ErrBadResponse, err)
		}
		state = without(state, secrets)
		status := statusOf(&state)
		event.Operation = &status
	case EventLifecycle:
		event.Lifecycle = &Lifecycle{}
		if err := wire.Unmarshal(raw.Metadata, event.Lifecycle); err != nil {
			return Event{}, false, fmt.Errorf("lifecycle event: %w: %w", ErrBadResponse, err)
		}
		event.Lifecycle.Context, _ = secrets.Value(event.Lifecycle.Context).(map[string]any)
		if o.ImagesOnly && !strings.HasPrefix(event.Lifecycle.Action, "image-") {
			return Event{}, false, nil
		}
	}
	return event, true, nil
}
