package lxdtest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The status codes of operations.
const (
	statusRunning   = 103
	statusPending   = 105
	statusSuccess   = 200
	statusFailure   = 400
	statusCancelled = 401
)

var statusNames = map[int]string{
	statusRunning:   "Running",
	statusPending:   "Pending",
	statusSuccess:   "Success",
	statusFailure:   "Failure",
	statusCancelled: "Cancelled",
}

// operation is background work (class task) or a secret that can be used once
// (class token). The server's lock guards it.
type operation struct {
	id          string
	class       string
	description string
	project     string
	created     time.Time
	updated     time.Time
	status      int
	resources   map[string][]string
	metadata    map[string]any
	mayCancel   bool
	err         string
	errCode     int
	requestor   *requestorJSON // nil if unknown

	done    chan struct{} // closed at the end
	exited  chan struct{} // closed when its goroutine has ended; nil for a token
	cancel  context.CancelFunc
	forget  *time.Timer
	push    bool // a token that allows an upload
	dropped bool // the server has restarted; the operation must have no effect any more
}

// operationJSON is an operation on the wire.
type operationJSON struct {
	ID          string              `json:"id"`
	Class       string              `json:"class"`
	Description string              `json:"description"`
	CreatedAt   time.Time           `json:"created_at"`
	UpdatedAt   time.Time           `json:"updated_at"`
	Status      string              `json:"status"`
	StatusCode  int                 `json:"status_code"`
	Resources   map[string][]string `json:"resources"`
	Metadata    map[string]any      `json:"metadata"`
	MayCancel   bool                `json:"may_cancel"`
	Err         string              `json:"err"`
	Location    string              `json:"location"`

	// Only LXD 6.9 has these fields.
	ErrCode    *int           `json:"err_code,omitempty"`
	ChildCount *int           `json:"child_count,omitempty"`
	Requestor  *requestorJSON `json:"requestor,omitempty"`
}

// render copies the operation for the wire; the caller holds the lock.
func (s *Server) render(op *operation) operationJSON {
	resources := maps.Clone(op.resources)
	if resources == nil && s.traits.emptyResources {
		resources = map[string][]string{}
	}
	out := operationJSON{
		ID: op.id, Class: op.class, Description: op.description,
		CreatedAt: op.created, UpdatedAt: op.updated,
		Status: statusNames[op.status], StatusCode: op.status,
		Resources: resources, Metadata: maps.Clone(op.metadata),
		MayCancel: op.mayCancel, Err: op.err, Location: "none",
	}
	if out.Metadata == nil && s.traits.emptyMetadata {
		out.Metadata = map[string]any{}
	}
	if s.traits.storesOperations {
		code := op.errCode
		out.ErrCode, out.ChildCount, out.Requestor = &code, new(int), op.requestor
		out.Resources, out.MayCancel = map[string][]string{}, true
	}
	return out
}

// renderStored copies the operation for GET of it and of all; the caller holds
// the lock. LXD 6.9 reads them from its database, which has neither progress nor
// the name of a requestor on the unix socket.
func (s *Server) renderStored(op *operation) operationJSON {
	out := s.render(op)
	if !s.traits.storesOperations {
		return out
	}
	maps.DeleteFunc(out.Metadata, func(key string, _ any) bool {
		return key == "progress" || strings.HasSuffix(key, "_progress")
	})
	if out.Requestor != nil {
		out.Requestor = &requestorJSON{Protocol: out.Requestor.Protocol}
	}
	return out
}

// uuid returns a random UUID of version 4 or, as LXD 6.9 has them for
// operations, one of version 7, which begins with the time.
func (s *Server) uuid() string {
	var b [16]byte
	// The system's random source does not fail.
	_, _ = rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	if s.traits.storesOperations {
		b[6] = b[6]&0x0f | 0x70
		milliseconds := binary.BigEndian.AppendUint64(nil, uint64(s.now().UnixMilli()))
		copy(b[:6], milliseconds[2:])
	}
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newSecret returns a secret as long as those of the daemons.
func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// errRestarted ends the work of an operation from before a restart.
var errRestarted = errors.New("the server was restarted")

// addOperation registers a running operation; the caller holds the lock.
// r may be nil.
func (s *Server) addOperation(class string, task task, r *http.Request) *operation {
	now := s.now()
	op := &operation{
		id: s.uuid(), class: class, description: task.description, project: task.project,
		created: now, updated: now, resources: task.resources, mayCancel: task.mayCancel,
		metadata: task.metadata, done: make(chan struct{}),
	}
	if s.traits.storesOperations && task.entity != "" {
		op.metadata = maps.Clone(op.metadata)
		if op.metadata == nil {
			op.metadata = map[string]any{}
		}
		op.metadata["entity_url"] = task.entity
	}
	if r != nil {
		op.requestor = requestorOf(r)
	}
	s.operations[op.id] = op
	if !s.traits.storesOperations {
		op.status = statusPending
		s.publishOperation(op)
	}
	op.status = statusRunning
	s.publishOperation(op)
	return op
}

// startTask runs a task in the background as an operation and responds with it.
// The task's context ends when the operation is cancelled and when the
// server stops or restarts. If the task returns an error, the operation fails.
func (s *Server) startTask(w http.ResponseWriter, r *http.Request, task task) {
	s.mu.Lock()
	if task.entity == "" {
		task.entity = projectURL(task.project)
	}
	op := s.addOperation("task", task, r)
	ctx, cancel := context.WithCancel(s.runCtx)
	op.cancel, op.exited = cancel, make(chan struct{})
	response := s.render(op)
	stall := s.fireFault(kindStallOperation)
	started := make(chan struct{})
	s.tasks.Go(func() {
		defer close(op.exited)
		defer cancel()
		// The daemons' response has the state before the work.
		<-started
		if stall != nil {
			stall.wait(ctx)
		}
		err := task.run(ctx, op)
		s.finish(op, err)
	})
	s.mu.Unlock()
	defer close(started) // deferred: a fault may panic while the response is written
	writeOperation(w, response)
}

// task is the work of an operation.
type task struct {
	description string
	project     string
	resources   map[string][]string
	entity      string // the entity_url; the default is the project's
	metadata    map[string]any
	mayCancel   bool
	run         func(ctx context.Context, op *operation) error
}

// writeOperation responds that an operation was created.
func writeOperation(w http.ResponseWriter, op operationJSON) {
	url := "/1.0/operations/" + op.ID
	w.Header().Set("Location", url)
	writeJSON(w, http.StatusAccepted, envelope{
		Type: "async", Status: "Operation created", StatusCode: 100, Operation: url, Metadata: op,
	})
}

// setMetadata adds to the metadata of an operation and publishes an event.
func (s *Server) setMetadata(op *operation, metadata map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op == nil || op.dropped || op.status != statusRunning {
		return
	}
	// The old map may be in use; it must not be changed.
	merged := maps.Clone(op.metadata)
	if merged == nil {
		merged = map[string]any{}
	}
	maps.Copy(merged, metadata)
	op.metadata = merged
	op.updated = s.now()
	s.publishOperation(op)
}

// setFinal replaces the metadata of an operation, its progress included. Only
// the secret of an upload is kept.
func (s *Server) setFinal(op *operation, metadata map[string]any) {
	if op == nil {
		return
	}
	s.mu.Lock()
	for _, kept := range []string{"secret", "entity_url"} {
		if value, ok := op.metadata[kept]; ok {
			metadata[kept] = value
		}
	}
	op.metadata = nil
	s.mu.Unlock()
	s.setMetadata(op, metadata)
}

// finish ends an operation with the result of its task.
func (s *Server) finish(op *operation, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case op.status == statusCancelled && !op.dropped && errors.Is(err, context.Canceled) && !s.traits.storesOperations:
		// LXD 5.0.2, Incus 6.0.4 and 7.0.2.
		op.status, op.err, op.errCode = statusFailure, context.Canceled.Error(), http.StatusBadRequest
		s.publishOperation(op)
	case op.dropped || op.status != statusRunning:
		return
	case err == nil:
		s.end(op, statusSuccess)
	default:
		err = s.traits.refusal(err)
		op.err = err.Error()
		op.errCode = errorEnvelope(err).ErrorCode
		s.end(op, statusFailure)
	}
}

// end sets the final status of an operation; the caller holds the lock.
func (s *Server) end(op *operation, status int) {
	op.status = status
	op.updated = s.now()
	if op.class == "task" {
		op.mayCancel = false
	}
	close(op.done)
	s.publishOperation(op)
	if s.opts.ForgetAfter < 0 || s.fire(kindForget) {
		delete(s.operations, op.id)
		return
	}
	if s.opts.ForgetAfter == 0 {
		return
	}
	op.forget = time.AfterFunc(s.opts.ForgetAfter, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.operations, op.id)
	})
}

// drop ends an operation when the server stops; the caller holds the lock.
func (op *operation) drop() {
	op.dropped = true
	if op.cancel != nil {
		op.cancel()
	}
	if op.forget != nil {
		op.forget.Stop()
	}
}

// consumeToken cancels a token once it is used; the caller holds the lock.
func (s *Server) consumeToken(op *operation) {
	if op.status == statusRunning {
		s.cancelOperation(op)
	}
}

// cancelOperation cancels a running operation; the caller holds the lock.
func (s *Server) cancelOperation(op *operation) {
	if op.cancel != nil {
		op.cancel()
	}
	s.end(op, statusCancelled)
}

// findToken returns the token operation with this secret. As in the daemons,
// one that was used or cancelled is found, and valid, until it is forgotten.
// The caller holds the lock.
func (s *Server) findToken(secret string) *operation {
	if secret == "" {
		return nil
	}
	for _, op := range s.operations {
		if op.class == "token" && op.metadata["secret"] == secret {
			return op
		}
	}
	return nil
}

// serveOperations handles GET of the operations of a project, by status.
func (s *Server) serveOperations(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	project := projectParam(r)
	all := query.Get("all-projects") == "true"
	s.mu.Lock()
	list := slices.SortedFunc(maps.Values(s.operations), func(a, b *operation) int {
		return strings.Compare(a.created.Format(time.RFC3339Nano)+a.id, b.created.Format(time.RFC3339Nano)+b.id)
	})
	full := query.Get("recursion") == "1"
	groups := map[string][]any{}
	for _, op := range list {
		if !all && op.project != project {
			continue
		}
		status := strings.ToLower(statusNames[op.status])
		if full {
			groups[status] = append(groups[status], s.renderStored(op))
		} else {
			groups[status] = append(groups[status], "/1.0/operations/"+op.id)
		}
	}
	s.mu.Unlock()
	writeSync(w, groups)
	return nil
}

var errNoOperation = statusErrorf(http.StatusNotFound, "Operation not found")

// findOperation returns an operation by its id.
func (s *Server) findOperation(id string) (*operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := s.operations[id]
	if op == nil {
		return nil, errNoOperation
	}
	return op, nil
}

// serveOperation handles GET of one operation.
func (s *Server) serveOperation(w http.ResponseWriter, _ *http.Request, id string) error {
	op, err := s.findOperation(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	response := s.renderStored(op)
	s.mu.Unlock()
	writeSync(w, response)
	return nil
}

// serveCancel handles DELETE of one operation.
func (s *Server) serveCancel(w http.ResponseWriter, _ *http.Request, id string) error {
	err := s.withLock(func() error {
		op := s.operations[id]
		switch {
		case op == nil:
			return errNoOperation
		case op.status != statusRunning:
			return statusErrorf(http.StatusBadRequest, "Only running operations can be cancelled")
		case !op.mayCancel:
			return statusErrorf(http.StatusBadRequest, "This operation can't be cancelled")
		}
		s.cancelOperation(op)
		return nil
	})
	if err != nil {
		return err
	}
	writeEmpty(w)
	return nil
}

// serveWait responds when an operation has ended or the timeout has passed, in
// the form of the dialect.
func (s *Server) serveWait(w http.ResponseWriter, r *http.Request, id string) error {
	timeout := -1
	if text := r.URL.Query().Get("timeout"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return daemonErrorf("strconv.Atoi: parsing %q: invalid syntax", text)
		}
		timeout = n
	}
	op, err := s.findOperation(id)
	if err != nil {
		return err
	}
	if !s.trusts(r) {
		// A client that uploaded with a token got the secret of the operation.
		s.mu.Lock()
		known := op.metadata["secret"]
		s.mu.Unlock()
		if secret := r.URL.Query().Get("secret"); secret == "" || secret != known {
			return errForbidden
		}
	}
	if s.traits.waitFlushesHeaders {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Connection", "keep-alive")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
	}
	var expired <-chan time.Time
	if timeout >= 0 {
		timer := time.NewTimer(time.Duration(timeout) * time.Second)
		defer timer.Stop()
		expired = timer.C
	}
	ended := true
	select {
	case <-op.done:
	case <-expired:
		ended = false
	case <-r.Context().Done():
		return nil
	}
	s.mu.Lock()
	response := syncEnvelope(s.render(op))
	if s.traits.waitFailsAsError {
		switch {
		case !ended:
			response = errorEnvelope(context.DeadlineExceeded)
		case op.status == statusFailure:
			response = errorEnvelope(statusErrorf(op.errCode, "%s", op.err))
		case op.status == statusCancelled && s.traits.storesOperations:
			response = errorEnvelope(context.Canceled)
		}
	}
	s.mu.Unlock()
	writeJSON(bodyWriter{w, s.traits.waitFlushesHeaders}, http.StatusOK, response)
	return nil
}

// bodyWriter is a response writer that ignores the header if headerSent.
type bodyWriter struct {
	http.ResponseWriter
	headerSent bool
}

// Header returns the header, or one that is discarded if headerSent.
func (w bodyWriter) Header() http.Header {
	if w.headerSent {
		return http.Header{}
	}
	return w.ResponseWriter.Header()
}

// WriteHeader does nothing if headerSent.
func (w bodyWriter) WriteHeader(code int) {
	if !w.headerSent {
		w.ResponseWriter.WriteHeader(code)
	}
}
