package lxdtest

import (
	"context"
	"crypto/rand"
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

// operation is work in the background (class task) or a secret that waits to
// be used (class token). The server's lock guards it.
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

	done    chan struct{} // closed at the end
	cancel  context.CancelFunc
	forget  *time.Timer
	push    bool // a token for an upload
	dropped bool // the server has restarted: nothing it does counts any more
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
}

// render copies the operation for the wire; the caller holds the lock.
func (s *Server) render(op *operation) operationJSON {
	resources := maps.Clone(op.resources)
	if resources == nil && s.traits.emptyResources {
		resources = map[string][]string{}
	}
	return operationJSON{
		ID: op.id, Class: op.class, Description: op.description,
		CreatedAt: op.created, UpdatedAt: op.updated,
		Status: statusNames[op.status], StatusCode: op.status,
		Resources: resources, Metadata: maps.Clone(op.metadata),
		MayCancel: op.mayCancel, Err: op.err, Location: "none",
	}
}

// uuid returns a random identifier in the usual form.
func uuid() string {
	var b [16]byte
	// The system's random source does not fail.
	_, _ = rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newSecret returns a secret as long as those of the daemons.
func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// errRestarted ends the work of an operation of an earlier life.
var errRestarted = errors.New("the server was restarted")

// addOperation registers a running operation; the caller holds the lock.
func (s *Server) addOperation(class, description, project string, resources map[string][]string, metadata map[string]any) *operation {
	now := s.now()
	op := &operation{
		id: uuid(), class: class, description: description, project: project,
		created: now, updated: now, status: statusRunning,
		resources: resources, metadata: metadata, done: make(chan struct{}),
	}
	s.operations[op.id] = op
	// Listeners are told of it twice, as the daemons do.
	op.status = statusPending
	s.publishOperation(op)
	op.status = statusRunning
	s.publishOperation(op)
	return op
}

// startTask runs work in the background as an operation and answers with it.
// The work's context ends when the operation is cancelled and when the server
// ends or restarts. Its error makes the operation a failure.
func (s *Server) startTask(w http.ResponseWriter, task task) {
	s.mu.Lock()
	op := s.addOperation("task", task.description, task.project, task.resources, task.metadata)
	ctx, cancel := context.WithCancel(s.runCtx)
	op.cancel = cancel
	op.mayCancel = task.mayCancel
	response := s.render(op)
	stall := s.fireFault(kindStallOperation)
	started := make(chan struct{})
	s.tasks.Go(func() {
		defer cancel()
		// The daemons answer with an operation that has just begun.
		<-started
		if stall != nil {
			select {
			case <-stall.released:
			case <-ctx.Done():
			}
		}
		err := task.run(ctx, op)
		s.finish(op, err)
	})
	s.mu.Unlock()
	defer close(started) // also where a fault breaks the response off
	writeOperation(w, response)
}

// task is what startTask needs to know.
type task struct {
	description string
	project     string
	resources   map[string][]string
	metadata    map[string]any
	mayCancel   bool
	run         func(ctx context.Context, op *operation) error
}

// writeOperation answers that an operation was created.
func writeOperation(w http.ResponseWriter, op operationJSON) {
	url := "/1.0/operations/" + op.ID
	w.Header().Set("Location", url)
	writeJSON(w, http.StatusAccepted, envelope{
		Type: "async", Status: "Operation created", StatusCode: 100, Operation: url, Metadata: op,
	})
}

// setMetadata adds to the metadata of an operation and tells the listeners.
func (s *Server) setMetadata(op *operation, metadata map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op == nil || op.dropped || op.status != statusRunning {
		return
	}
	// A map that was handed out is never changed.
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
// the secret of an upload stays.
func (s *Server) setFinal(op *operation, metadata map[string]any) {
	if op == nil {
		return
	}
	s.mu.Lock()
	if secret, ok := op.metadata["secret"]; ok {
		metadata["secret"] = secret
	}
	op.metadata = nil
	s.mu.Unlock()
	s.setMetadata(op, metadata)
}

// finish ends an operation with the outcome of its work.
func (s *Server) finish(op *operation, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case op.dropped || op.status != statusRunning:
		return
	case err == nil:
		s.end(op, statusSuccess)
	default:
		op.err = err.Error()
		op.errCode = errorEnvelope(err).ErrorCode
		s.end(op, statusFailure)
	}
}

// end gives an operation its final status; the caller holds the lock.
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
	op.forget = time.AfterFunc(s.opts.ForgetAfter, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.operations, op.id)
	})
}

// drop ends an operation whose server has gone; the caller holds the lock.
func (op *operation) drop() {
	op.dropped = true
	if op.cancel != nil {
		op.cancel()
	}
	if op.forget != nil {
		op.forget.Stop()
	}
}

// consumeToken cancels a token that is used; the caller holds the lock.
func (s *Server) consumeToken(op *operation) {
	if op.status == statusRunning {
		s.cancelOperation(op)
	}
}

// cancelOperation ends a running operation; the caller holds the lock.
func (s *Server) cancelOperation(op *operation) {
	if op.cancel != nil {
		op.cancel()
	}
	s.end(op, statusCancelled)
}

// findToken returns the token operation with this secret. One that was used or
// cancelled is still found until it is forgotten, and still opens: so do the
// daemons. The caller holds the lock.
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

// serveOperations lists the operations of a project by status.
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
			groups[status] = append(groups[status], s.render(op))
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

// serveOperation answers GET of one operation.
func (s *Server) serveOperation(w http.ResponseWriter, _ *http.Request, id string) error {
	op, err := s.findOperation(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	response := s.render(op)
	s.mu.Unlock()
	if s.traits.hidesProgress {
		for key := range response.Metadata {
			if key == "progress" || strings.HasSuffix(key, "_progress") {
				delete(response.Metadata, key)
			}
		}
	}
	writeSync(w, response)
	return nil
}

// serveCancel answers DELETE of one operation.
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

// serveWait answers when an operation has ended or the timeout has passed, in
// the shape of the dialect.
func (s *Server) serveWait(w http.ResponseWriter, r *http.Request, id string) error {
	timeout := -1
	if text := r.URL.Query().Get("timeout"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return statusErrorf(http.StatusBadRequest, "strconv.Atoi: parsing %q: invalid syntax", text)
		}
		timeout = n
	}
	op, err := s.findOperation(id)
	if err != nil {
		return err
	}
	if !s.trusts(r) {
		// Who uploaded with a token knows the secret of the operation.
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
		}
	}
	s.mu.Unlock()
	writeJSON(bodyWriter{w, s.traits.waitFlushesHeaders}, http.StatusOK, response)
	return nil
}

// bodyWriter is a response whose header may be out already.
type bodyWriter struct {
	http.ResponseWriter
	out bool
}

// Header returns a header that no longer matters once it is out.
func (f bodyWriter) Header() http.Header {
	if f.out {
		return http.Header{}
	}
	return f.ResponseWriter.Header()
}

// WriteHeader does nothing once the header is out.
func (f bodyWriter) WriteHeader(code int) {
	if !f.out {
		f.ResponseWriter.WriteHeader(code)
	}
}
