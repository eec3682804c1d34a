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

// EventType is the type of an event.
type EventType string

// The event types.
const (
	// EventOperation reports a new state of an operation.
	EventOperation EventType = "operation"
	// EventLifecycle reports that something was created, changed or deleted.
	EventLifecycle EventType = "lifecycle"
	// EventConnected is sent by this package on each connect and reconnect.
	// Earlier events are not repeated, so read the relevant state again when it
	// arrives.
	EventConnected EventType = "connected"
)

// Event is something that happened on a server.
type Event struct {
	Type      EventType
	Timestamp time.Time
	Project   string
	Location  string           // the cluster member
	Operation *OperationStatus // nil unless Type is EventOperation
	Lifecycle *Lifecycle       // nil unless Type is EventLifecycle
}

// Lifecycle is the content of a lifecycle event: an action and its object.
type Lifecycle struct {
	Action  string         `json:"action"` // such as "image-created" or "image-alias-deleted"
	Source  string         `json:"source"` // the URL path of the object, such as "/1.0/images/aff…"
	Name    string         `json:"name"`   // of the object; empty on older servers
	Context map[string]any `json:"context"`

	escapes aliasEscapes // how the server escapes the name of an alias in Source
}

// aliasEscapes are how often servers escape an alias in a Source, besides once.
type aliasEscapes int

const (
	onceEscaped  aliasEscapes = iota // LXD 5.21 and 6.9, Incus
	notEscaped                       // LXD 4.0
	twiceEscaped                     // LXD 5.0
)

// Alias returns the name of the alias that the event is about; after a renaming, the
// new one. It is "" if the event is not about an alias. LXD 4.0 does not escape names:
// there one that contains "?project=" ends before that.
func (l *Lifecycle) Alias() string {
	name, ok := strings.CutPrefix(l.Source, "/1.0/images/aliases/")
	switch {
	case !ok:
		return ""
	case l.Name != "":
		return l.Name
	}
	if at := strings.LastIndex(name, "?project="); at >= 0 {
		name = name[:at]
	}
	unescape := func(text string) string {
		if plain, err := url.PathUnescape(text); err == nil {
			return plain
		}
		return text
	}
	switch l.escapes {
	case notEscaped:
		return name
	case twiceEscaped:
		return unescape(unescape(name))
	}
	return unescape(name)
}

// OldName returns the name that the object had before the event renamed it; "" if it
// was not renamed.
func (l *Lifecycle) OldName() string {
	name, _ := l.Context["old_name"].(string)
	return name
}

// escapesOf determines how the server escapes the alias in an event. It asks the
// server, once, only if that makes a difference; if it does not respond, the alias is
// taken to be escaped once.
func (c *Client) escapesOf(ctx context.Context, l *Lifecycle) aliasEscapes {
	if l.Name != "" || !strings.HasPrefix(l.Source, "/1.0/images/aliases/") || !strings.Contains(l.Source, "%") {
		return onceEscaped
	}
	s, err := c.serverInfo(ctx, false)
	switch {
	case err != nil || s.Family != LXD || s.Has("event_lifecycle_name_and_project"):
		return onceEscaped
	case s.Has("event_hub"): // LXD 5.0 has it, and 4.0 has not
		return twiceEscaped
	}
	return notEscaped
}

// Fingerprint returns the fingerprint of the image that the event is about; "" if
// it is not about an image.
func (l *Lifecycle) Fingerprint() string { return imageInPath(l.Source) }

// imageInPath returns the fingerprint in the URL path of an image, or of what belongs to
// it; "" if it is another path.
func imageInPath(path string) string {
	u, err := url.Parse(path)
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

// EventsOptions filter the events.
type EventsOptions struct {
	// Types are the types of the events that the server sends. The default is
	// EventOperation and EventLifecycle.
	Types []EventType
	// AllProjects selects the events of all projects. The default is the
	// client's project.
	AllProjects bool
	// ImagesOnly drops the lifecycle events that are not about images or their
	// aliases.
	ImagesOnly bool
}

// endless is the retry timeout of work that only ctx ends.
const endless = math.MaxInt64

const (
	// eventSilence is how long a connection may be silent before it counts as
	// broken: servers ping every 10 seconds (LXD 5.0.2, Incus 6.0.4).
	eventSilence = 40 * time.Second
	maxEvent     = 16 << 20
)

// Events iterates over the server's events. The first is an [EventConnected]: all
// events from then on are reported. They come in the server's order, which is not
// always the order in which things happened. After a broken connection, Events
// reconnects and yields another EventConnected; it tries without a timeout, with
// the pauses of every retry. The first connection is retried for
// Options.RetryTimeout. The last thing yielded is the error that ends the loop:
// the end of ctx, an error that is not transient, such as a refusal, an event that
// cannot be parsed ([ErrBadResponse]), or one that is too large ([ErrTooLarge]).
// Ranging again opens a new connection.
func (c *Client) Events(ctx context.Context, opts *EventsOptions) iter.Seq2[Event, error] {
	var o EventsOptions
	if opts != nil {
		o = *opts
		o.Types = slices.Clone(opts.Types)
	}
	return func(yield func(Event, error) bool) {
		if err := c.check(ctx); err != nil {
			yield(Event{}, err)
			return
		}
		retries := c.t.retry.Begin()
		for {
			req := c.eventsRequest(&o)
			more, connected, err := c.connectEvents(ctx, req, &o, yield)
			if connected {
				retries = c.t.retriesFor(endless)
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

// connectEvents yields the events of one connection. connected reports whether it
// was made; more is false if the caller's loop has ended. The connection is closed
// even after a panic in the loop.
func (c *Client) connectEvents(ctx context.Context, req *request, o *EventsOptions, yield func(Event, error) bool) (more, connected bool, err error) {
	var conn *websocket.Conn
	err = c.t.onMembers(req, func() (err error) {
		conn, err = c.dialEvents(ctx, req)
		return err
	})
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
	base, err := t.address(ctx)
	if err != nil {
		return nil, err
	}
	req.base = base
	target, err := url.Parse(base + req.path)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", req.method, req.path, redact.Error(err))
	}
	header := http.Header{}
	if err := t.authorize(ctx, req, target, header); err != nil {
		return nil, err
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
			// The handshake observes deadlines, but not a cancelled ctx.
			stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
			return conn, nil
		},
	}
	if t.tls != nil {
		dialer.TLSClientConfig = t.tls.Clone()
	}
	// http://unix becomes ws://unix, https://host becomes wss://host.
	conn, res, err := dialer.DialContext(ctx, "ws"+strings.TrimPrefix(req.base, "http")+req.path+"?"+req.query.Encode(), header)
	if err == nil {
		t.keepCookies(target, res)
		return conn, nil
	}
	if res != nil {
		defer func() { _ = res.Body.Close() }()
		t.members.leaveUnavailable(base, res.StatusCode)
		if !errors.Is(err, websocket.ErrBadHandshake) {
			return nil, t.connectionError(ctx, req, err)
		}
		if t.learnsSession(ctx, req, res.StatusCode) {
			return c.dialEvents(ctx, req)
		}
		if _, aerr := t.readResponse(ctx, req, res, nil); aerr != nil {
			return nil, aerr
		}
		return nil, t.badResponse(req, res, errors.New("it is not an event stream"))
	}
	if ctx.Err() == nil {
		t.members.leave(base)
	}
	return nil, t.connectionError(ctx, req, err)
}

// readEvents yields events until the connection breaks; more is false if the
// caller's loop has ended.
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
	var sent, secrets *redact.Secrets // set at the first event, and whenever sent has changed
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
		if wanted && event.Lifecycle != nil {
			event.Lifecycle.escapes = c.escapesOf(ctx, event.Lifecycle)
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
