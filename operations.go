package lxd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/wire"
)

// The status codes of finished operations; lower ones are of unfinished ones.
const (
	statusSuccess   = 200
	statusFailure   = 400
	statusCancelled = 401
)

// Operation is work that a server does in the background. It is safe for
// concurrent use.
type Operation struct {
	client *Client
	id     string
	query  url.Values

	// settle determines the outcome after the server has forgotten the operation:
	// it returns nil if the server's state shows that the work was done, and
	// errUnsettled if it shows nothing. It may be nil.
	settle func(context.Context) error

	token   string          // the secret of a token operation
	secrets *redact.Secrets // removed from everything that is reported of the operation

	mu        sync.Mutex
	state     wire.Operation // without secrets
	cancelled bool           // the server has accepted to cancel it
}

// OperationStatus is the state of an operation.
type OperationStatus struct {
	ID          string
	Class       string // "task", "websocket" or "token"
	Description string // such as "Downloading image"
	Status      string // such as "Running" or "Success"
	StatusCode  int    // 103 running, 105 pending, 200 success, 400 failure, 401 cancelled
	Error       string // the daemon's words; empty unless it failed
	MayCancel   bool
	CreatedAt   time.Time
	UpdatedAt   time.Time
	Resources   map[string][]string
	Metadata    map[string]any
	Location    string // the cluster member
}

// Done reports whether the operation has finished, in whatever way.
func (s *OperationStatus) Done() bool { return s.StatusCode >= statusSuccess }

// operation returns an Operation of that state. secrets are those that the
// requests for it contained.
func (c *Client) operation(state wire.Operation, settle func(context.Context) error, secrets *redact.Secrets) *Operation {
	token, _ := state.Metadata["secret"].(string)
	secrets = redact.Join(secrets, ownSecrets(&state))
	return &Operation{client: c, id: state.ID, query: c.query(), settle: settle, token: token, secrets: secrets, state: without(state, secrets)}
}

// ownSecrets returns the secrets that the server creates for an operation: of a
// token operation, and of the connections of a websocket operation.
func ownSecrets(state *wire.Operation) *redact.Secrets {
	var values []string
	if token, ok := state.Metadata["secret"].(string); ok {
		values = append(values, token)
	}
	if connections, ok := state.Metadata["fds"].(map[string]any); ok {
		for _, secret := range connections {
			if text, ok := secret.(string); ok {
				values = append(values, text)
			}
		}
	}
	return redact.Hide(values...)
}

// without returns an operation's state without secrets. It keeps the fingerprint
// of an image, by which the result of the work is found.
func without(state wire.Operation, secrets *redact.Secrets) wire.Operation {
	secrets = redact.Join(secrets, ownSecrets(&state))
	state.Err, state.Description, state.Status = secrets.Text(state.Err), secrets.Text(state.Description), secrets.Text(state.Status)
	if state.Metadata == nil {
		return state
	}
	fingerprint, _ := state.Metadata["fingerprint"].(string)
	state.Metadata, _ = secrets.Value(state.Metadata).(map[string]any)
	if checkFullFingerprint("", fingerprint) == nil {
		state.Metadata["fingerprint"] = fingerprint
	}
	return state
}

// ID returns the operation's UUID.
func (o *Operation) ID() string {
	if o == nil {
		return ""
	}
	return o.id
}

// Status returns the last known state of the operation, without a request. It
// contains no secrets, neither of the requests for it nor its own, and no user
// names and queries of URLs.
func (o *Operation) Status() OperationStatus {
	if o == nil {
		return OperationStatus{}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return statusOf(&o.state)
}

func statusOf(s *wire.Operation) OperationStatus {
	return OperationStatus{
		ID: s.ID, Class: s.Class, Description: s.Description, Status: s.Status, StatusCode: s.StatusCode, Error: s.Err,
		MayCancel: s.MayCancel, CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt,
		Resources: maps.Clone(s.Resources), Metadata: maps.Clone(s.Metadata), Location: s.Location,
	}
}

// Refresh reads the operation's state from the server. Servers forget an operation
// some seconds after it has finished; the error then matches [ErrNotFound].
func (o *Operation) Refresh(ctx context.Context) (OperationStatus, error) {
	if err := o.check(ctx); err != nil {
		return OperationStatus{}, err
	}
	if err := o.read(ctx, ""); err != nil {
		return o.Status(), err
	}
	return o.Status(), nil
}

// read updates the state. With a timeout, in seconds, the server responds when the
// operation has finished or the timeout is over; with "", at once.
func (o *Operation) read(ctx context.Context, timeout string) error {
	req := &request{method: http.MethodGet, path: path("operations", o.id), query: o.query, secrets: o.secrets}
	if timeout != "" {
		req.path = path("operations", o.id, "wait")
		req.query = url.Values{"timeout": {timeout}}
		for name, values := range o.query {
			req.query[name] = values
		}
		// Wait has its own retries, for longer, and its own timeout.
		req.noRetry, req.silence = true, waitTimeout+waitSlack
	}
	state, err := o.get(ctx, req)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.state = without(*state, req.hidden())
	return nil
}

// get reads the state without keeping it.
func (o *Operation) get(ctx context.Context, req *request) (*wire.Operation, error) {
	state, _, err := get(ctx, o.client.t, req, func(state *wire.Operation) error { return checkOperation(state, o.id) })
	return state, err
}

// checkOperation checks that a response is an operation, and has the requested ID;
// "" allows any.
func checkOperation(state *wire.Operation, want string) error {
	switch {
	case state.ID == "":
		return errors.New("it is not an operation: it has no id")
	case want != "" && state.ID != want:
		return fmt.Errorf("it is operation %.80q, not %s", state.ID, want)
	}
	return nil
}

// result returns the outcome of a finished operation.
func (o *Operation) result() (finished bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &o.state
	switch {
	case s.StatusCode < statusSuccess:
		return false, nil
	case s.StatusCode == statusSuccess:
		return true, nil
	}
	e := &OperationError{ID: s.ID, Description: s.Description, StatusCode: s.StatusCode, Message: s.Err}
	if s.StatusCode == statusFailure && s.ErrCode != 0 {
		e.StatusCode = s.ErrCode
	}
	if s.StatusCode == statusFailure && (o.cancelled || strings.HasSuffix(s.Err, context.Canceled.Error())) {
		// A cancelled import fails moments later: its status is then that of a failure, and
		// its text that of Go's error for a cancelled context (LXD 5.0.2, Incus 6.0.4 and
		// 7.0.2).
		e.StatusCode = statusCancelled
	}
	if e.Message == "" {
		e.Message = strings.ToLower(s.Status)
	}
	if e.StatusCode != statusCancelled {
		e.Hint = operationHint(e.Message)
	}
	return true, e
}

// fingerprint returns the fingerprint of the image that the operation creates,
// according to its metadata; "" if that has none.
func (o *Operation) fingerprint() string {
	fingerprint, _ := o.Status().Metadata["fingerprint"].(string)
	return strings.ToLower(fingerprint)
}

// Cancel asks the server to cancel the operation. It fails if the operation has
// finished in another way, or cannot be cancelled. To cancel it again is no error.
func (o *Operation) Cancel(ctx context.Context) error {
	if err := o.check(ctx); err != nil {
		return err
	}
	_, err := o.client.t.call(ctx, &request{method: http.MethodDelete, path: path("operations", o.id), query: o.query, secrets: o.secrets}, nil)
	if err != nil && !errors.Is(err, errDeletedBefore) {
		var refused *Error
		if !errors.As(err, &refused) {
			return err
		}
		// If it was cancelled before, the server refuses or has forgotten it.
		if rerr := o.read(ctx, ""); rerr != nil && !errors.Is(rerr, ErrNotFound) {
			return err
		}
		if _, outcome := o.result(); !errors.Is(outcome, ErrCancelled) {
			return err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cancelled = true
	return nil
}

// Operations returns the operations of this client's project that the server
// knows: the running ones and those that finished in the last seconds.
func (c *Client) Operations(ctx context.Context) ([]*Operation, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	ops, _, err := c.operations(ctx)
	return ops, err
}

func (c *Client) operations(ctx context.Context) ([]*Operation, *response, error) {
	query := url.Values{"recursion": {"1"}}
	for name, values := range c.query() {
		query[name] = values
	}
	// The list is grouped by status: {"running": [...], "failure": [...]}.
	req := &request{method: http.MethodGet, path: path("operations"), query: query}
	var ops []*Operation
	var state wire.Operation
	resp, err := c.t.call(ctx, req, &list{
		limit: maxList, grouped: true, size: int64(reflect.TypeFor[Operation]().Size()),
		begin: func() { ops = nil },
		element: func(dec *jsontext.Decoder) error {
			state = wire.Operation{}
			if err := wire.UnmarshalElement(dec, &state); err != nil {
				return err
			}
			if err := checkOperation(&state, ""); err != nil {
				return badElement(err)
			}
			ops = append(ops, c.operation(state, nil, nil))
			return nil
		},
	})
	if err != nil {
		return nil, nil, err
	}
	return ops, resp, nil
}

// start sends a request whose response is an operation.
func (c *Client) start(ctx context.Context, req *request, settle func(context.Context) error) (*Operation, error) {
	req.expect = expectOperation
	// An event may report the operation before the response arrives.
	c.t.secrets.add(req.hidden())
	state, _, err := get(ctx, c.t, req, func(state *wire.Operation) error { return checkOperation(state, "") })
	if err != nil {
		return nil, err
	}
	return c.operation(*state, settle, req.hidden()), nil
}
