package lxd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/retry"
	"github.com/golxd/lxd/internal/wire"
)

// The status codes of operations that matter here; final from 200 on.
const (
	statusSuccess   = 200
	statusFailure   = 400
	statusCancelled = 401
)

const (
	// waitTimeout is how long the server is asked to hold one wait request.
	waitTimeout = 60 * time.Second
	// waitSlack is how much later than that an answer may come before the
	// connection is taken for dead.
	waitSlack = 15 * time.Second
	// reconnectTimeout is the retry timeout of a wait, in place of
	// Options.RetryTimeout: a daemon with many instances takes that long to
	// restart.
	reconnectTimeout = time.Minute
)

// Operation is work that a server does in the background. It is safe for
// concurrent use.
type Operation struct {
	client *Client
	id     string
	query  url.Values

	// settle decides what a server that has forgotten the operation cannot
	// tell any more: it returns nil if the work is seen to be done.
	settle func(context.Context) error

	token   string          // of a token operation: the secret that it is about
	secrets *redact.Secrets // that are in nothing which is told of it

	mu    sync.Mutex
	state wire.Operation // without secrets
}

// OperationStatus is what is known of an operation.
type OperationStatus struct {
	ID          string
	Class       string // task, websocket or token
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

// Done says whether the operation has ended.
func (s *OperationStatus) Done() bool { return s.StatusCode >= statusSuccess }

// operation returns the operation of a state. secrets are those that the server
// was given for it.
func (c *Client) operation(state wire.Operation, settle func(context.Context) error, secrets *redact.Secrets) *Operation {
	token, _ := state.Metadata["secret"].(string)
	secrets = redact.Join(secrets, ownSecrets(&state))
	return &Operation{client: c, id: state.ID, query: c.query(), settle: settle, token: token, secrets: secrets, state: without(state, secrets)}
}

// ownSecrets are those that an operation itself makes: of a token operation, and
// of the connections of a websocket operation.
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

// without is an operation's state without secrets. The fingerprint of an image
// stays: it is what the work is known by.
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

// ID is the operation's UUID.
func (o *Operation) ID() string { return o.id }

// Status is what was last seen of the operation, without asking the server.
// Secrets that the server was given for it are not in it, nor are the users and
// queries of URLs.
func (o *Operation) Status() OperationStatus {
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

// Refresh asks the server for the operation's state. It is an [ErrNotFound]
// some seconds after the operation's end, when servers forget it.
func (o *Operation) Refresh(ctx context.Context) (OperationStatus, error) {
	if err := o.read(ctx, ""); err != nil {
		return o.Status(), err
	}
	return o.Status(), nil
}

// read gets the state, from the operation itself or from one of its
// sub-resources.
func (o *Operation) read(ctx context.Context, query string) error {
	req := &request{method: http.MethodGet, path: path("operations", o.id), query: o.query, secrets: o.secrets}
	if query != "" {
		req.path = path("operations", o.id, "wait")
		req.query = url.Values{"timeout": {query}}
		for name, values := range o.query {
			req.query[name] = values
		}
		// The waiting itself retries, for longer, and has a timeout of its own.
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
	state, _, err := get(ctx, o.client.t, req, func(state *wire.Operation) error { return holdOperation(state, o.id) })
	return state, err
}

// holdOperation checks that what a server sent is an operation, and the one of
// the id that was asked for; "" is any.
func holdOperation(state *wire.Operation, asked string) error {
	switch {
	case state.ID == "":
		return errors.New("it is not an operation: it has no id")
	case asked != "" && state.ID != asked:
		return fmt.Errorf("it is operation %.80q, not %s", state.ID, asked)
	}
	return nil
}

// result gives the outcome of an operation that has ended.
func (o *Operation) result() (ended bool, err error) {
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
	if e.Message == "" {
		e.Message = strings.ToLower(s.Status)
	}
	return true, e
}

// fingerprint is that of the image which the operation says it makes; "" where
// it says nothing.
func (o *Operation) fingerprint() string {
	told, _ := o.Status().Metadata["fingerprint"].(string)
	return strings.ToLower(told)
}

// Wait returns when the operation has ended: nil if it succeeded, an
// [*OperationError] if it did not. The end of ctx ends the waiting, not the
// operation; see Cancel for that. A lost connection is not an outcome: the
// server is asked again, for up to a minute without a response whatever
// Options.RetryTimeout is, or until ctx ends; a Retry-After of more than 10 minutes
// is an error. If it has forgotten the operation by then, what the operation should have done is
// looked for on the server; where nothing tells, the error is an
// [ErrOutcomeUnknown]. Wait may be called many times, and concurrently.
func (o *Operation) Wait(ctx context.Context) error {
	if ended, err := o.result(); ended {
		return err
	}
	retries := retry.Policy{Timeout: reconnectTimeout}.Begin()
	refusals := endless.Begin()
	for {
		began := time.Now()
		err := o.read(ctx, strconv.Itoa(int(waitTimeout/time.Second)))
		if err == nil {
			if ended, err := o.result(); ended {
				return err
			}
			retries.Progress()
			refusals.Progress()
			continue
		}
		if ctx.Err() != nil {
			return o.interrupted(ctx)
		}
		series := retries
		var refused *Error
		switch {
		case errors.As(err, &refused):
			// A failed operation looks like a failed request on LXD 5.0.9 to
			// 6.x and Incus 6.0.4, of any status, and so does a wait that ran
			// out of time. Only the operation itself tells.
			again, away := o.afterRefusal(ctx, refused)
			if !again {
				return away
			}
			if away != nil {
				err = away
				break
			}
			// Most often the wait had run out of time; where it was refused
			// at once, asking must not become a busy loop.
			retries.Progress()
			if _, asked := refused.RetryAfter(); !asked && time.Since(began) > retry.MaxPause {
				refusals.Progress()
				continue
			}
			series = refusals
		case errors.Is(err, ErrUnavailable) && retry.Transient(err):
		case errors.Is(err, ErrUnavailable):
			return o.lost(err)
		default:
			return err
		}
		if err := series.Pause(ctx, err); err != nil {
			if ctx.Err() != nil {
				return o.interrupted(ctx)
			}
			return o.lost(err)
		}
	}
}

// lost is the error of a wait that the server's failure ends.
func (o *Operation) lost(err error) error {
	return fmt.Errorf("wait for operation %s, which may still be running: %w", o.id, err)
}

// afterRefusal tells a failed operation from a refused request. again says that
// the operation still runs, or, with an error, that the server is away.
func (o *Operation) afterRefusal(ctx context.Context, refused *Error) (again bool, err error) {
	switch err := o.read(ctx, ""); {
	case ctx.Err() != nil:
		return false, o.interrupted(ctx)
	case errors.Is(err, ErrNotFound):
		return false, o.forgotten(ctx)
	case errors.Is(err, ErrUnavailable):
		return true, err
	case err != nil:
		return false, refused
	}
	ended, err := o.result()
	if !ended {
		return true, nil
	}
	var failed *OperationError
	if errors.As(err, &failed) && failed.StatusCode == statusFailure && refused.StatusCode >= 400 && refused.StatusCode < 500 && refused.StatusCode != statusCancelled {
		// The wait tells the kind of failure, the operation does not.
		o.mu.Lock()
		o.state.ErrCode = refused.StatusCode
		o.mu.Unlock()
		_, err = o.result()
	}
	return false, err
}

// forgotten decides the outcome of an operation that the server does not know.
func (o *Operation) forgotten(ctx context.Context) error {
	if o.settle != nil {
		err := o.settle(ctx)
		switch {
		case err == nil:
			o.mu.Lock()
			o.state.Status, o.state.StatusCode = "Success", statusSuccess
			o.mu.Unlock()
			return nil
		case ctx.Err() != nil:
			return o.interrupted(ctx)
		case !errors.Is(err, errUnsettled):
			return err
		}
	}
	return fmt.Errorf("operation %s is not known to the server any more: %w", o.id, ErrOutcomeUnknown)
}

// errUnsettled is what settle gives where the server's state does not tell.
var errUnsettled = errors.New("not to be told")

func (o *Operation) interrupted(ctx context.Context) error {
	s := o.Status()
	what := s.Description
	if what == "" {
		what = "an operation"
	}
	return fmt.Errorf("wait for operation %s (%s), which may still be running: %w", o.id, what, ctxerr.Of(ctx))
}

// Cancel asks the server to end the operation. It is an error if the operation
// has ended, or cannot be cancelled.
func (o *Operation) Cancel(ctx context.Context) error {
	_, err := o.client.t.call(ctx, &request{method: http.MethodDelete, path: path("operations", o.id), query: o.query, secrets: o.secrets}, nil)
	if errors.Is(err, errDeletedBefore) {
		return nil
	}
	return err
}

// Operations lists the operations that the server knows, running and lately
// ended, of this client's project.
func (c *Client) Operations(ctx context.Context) ([]*Operation, error) {
	ops, _, err := c.operations(ctx)
	return ops, err
}

func (c *Client) operations(ctx context.Context) ([]*Operation, *answer, error) {
	query := url.Values{"recursion": {"1"}}
	for name, values := range c.query() {
		query[name] = values
	}
	// By status: {"running": [...], "failure": [...]}.
	req := &request{method: http.MethodGet, path: path("operations"), query: query}
	var ops []*Operation
	var state wire.Operation
	ans, err := c.t.call(ctx, req, &list{
		limit: maxList, grouped: true, size: int64(reflect.TypeFor[Operation]().Size()),
		begin: func() { ops = nil },
		element: func(dec *jsontext.Decoder) error {
			state = wire.Operation{}
			if err := wire.UnmarshalElement(dec, &state); err != nil {
				return err
			}
			if err := holdOperation(&state, ""); err != nil {
				return unfit(err)
			}
			ops = append(ops, c.operation(state, nil, nil))
			return nil
		},
	})
	if err != nil {
		return nil, nil, err
	}
	return ops, ans, nil
}

// start sends a request whose response is an operation.
func (c *Client) start(ctx context.Context, req *request, settle func(context.Context) error) (*Operation, error) {
	req.expect = expectOperation
	// Before the response comes, an event may tell of the operation.
	c.t.secrets.add(req.hidden())
	state, _, err := get(ctx, c.t, req, func(state *wire.Operation) error { return holdOperation(state, "") })
	if err != nil {
		return nil, err
	}
	return c.operation(*state, settle, req.hidden()), nil
}
