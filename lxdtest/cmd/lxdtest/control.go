package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/unixsock"
	"github.com/golxd/lxd/lxdtest"
)

// control is the HTTP server of the control socket.
type control struct {
	server  *http.Server
	serving sync.WaitGroup
	fleet   *fleet
	stop    func()

	mu        sync.Mutex // guards snapshots
	snapshots map[int]*lxdtest.Snapshot
}

// startControl starts the control socket. stop ends the command.
func startControl(ctx context.Context, stop func(), f *fleet, s *settings, d *directory) (*control, error) {
	c := &control{fleet: f, stop: stop, snapshots: map[int]*lxdtest.Snapshot{}}
	l, err := c.listen(ctx, cmp.Or(s.control, d.join(controlSocket)))
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	c.server = &http.Server{
		Handler:           c,
		ReadHeaderTimeout: time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	c.serving.Go(func() { _ = c.server.Serve(l) })
	return c, nil
}

// listen listens at an address or on a unix socket, and tells which, before a call can ask
// for it.
func (c *control) listen(ctx context.Context, at string) (net.Listener, error) {
	if !isAddress(at) {
		c.fleet.Control = address{Socket: at}
		return unixsock.Listen(at)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", at)
	if err == nil {
		c.fleet.Control = address{URL: "http://" + l.Addr().String()}
	}
	return l, err
}

// isAddress reports whether a text is host:port and not a path.
func isAddress(text string) bool {
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	return err == nil
}

// close ends the control socket; calls that wait have ended with the context.
func (c *control) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if c.server.Shutdown(ctx) != nil {
		_ = c.server.Close()
	}
	c.serving.Wait()
}

// callError is an error of a call with its HTTP status.
type callError struct {
	status int
	text   string
}

func (e *callError) Error() string { return e.text }

func badRequest(format string, args ...any) error {
	return &callError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &callError{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

// calls are the calls of one server, by method and the last segment of the path.
var calls = map[string]func(*control, *server, *http.Request) (any, error){
	"GET ":            (*control).status,
	"POST inject":     (*control).inject,
	"POST release":    (*control).release,
	"POST remove":     (*control).removeFault,
	"GET fired":       (*control).fired,
	"GET requests":    (*control).requests,
	"DELETE requests": (*control).forgetRequests,
	"GET wait":        (*control).wait,
	"GET images":      (*control).images,
	"POST images":     (*control).addImage,
	"GET tokens":      (*control).tokens,
	"POST tokens":     (*control).newToken,
	"POST restart":    (*control).restart,
	"POST shutdown":   (*control).shutdown,
	"POST reset":      (*control).reset,
	"POST snapshot":   (*control).snapshot,
	"POST restore":    (*control).restore,
}

// ServeHTTP handles a call, and responds with JSON.
func (c *control) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out, err := c.handle(r)
	status := http.StatusOK
	if err != nil {
		status = http.StatusInternalServerError
		var refused *callError
		if errors.As(err, &refused) {
			status = refused.status
		}
		out = map[string]string{"error": plain(err)}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The only failure is that the client is gone.
	_ = json.NewEncoder(w).Encode(out)
}

// handle finds the call and calls it.
func (c *control) handle(r *http.Request) (out any, err error) {
	defer func() {
		// Package lxdtest panics if a server cannot listen again at its address.
		if failure := recover(); failure != nil {
			err = fmt.Errorf("%v", failure)
		}
	}()
	switch r.Method + " " + r.URL.Path {
	case "GET /servers":
		return c.fleet, checkQuery(r)
	case "POST /stop":
		if err := read(r, &struct{}{}); err != nil {
			return nil, err
		}
		c.stop() // closing waits for the response
		return struct{}{}, nil
	}
	name, action, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	n := slices.IndexFunc(c.fleet.Servers, func(s *server) bool { return s.Name == name })
	if n < 0 {
		names := make([]string, len(c.fleet.Servers))
		for n, s := range c.fleet.Servers {
			names[n] = s.Name
		}
		return nil, notFound("no server %q; there are %s, and the calls GET /servers and POST /stop", name, strings.Join(names, ", "))
	}
	call := calls[r.Method+" "+action]
	if call == nil {
		var there []string
		for _, call := range slices.Sorted(maps.Keys(calls)) {
			method, action, _ := strings.Cut(call, " ")
			there = append(there, method+" "+strings.TrimSuffix("/"+name+"/"+action, "/"))
		}
		return nil, notFound("no call %s %s; there are %s", r.Method, r.URL.Path, strings.Join(there, ", "))
	}
	return call(c, c.fleet.Servers[n], r)
}

// maxBody is the largest body of a call, in bytes.
const maxBody = 1 << 20

// read decodes the JSON body of a call, which may be empty.
func read(r *http.Request, into any) error {
	if err := checkQuery(r); err != nil {
		return err
	}
	decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	switch err := decoder.Decode(into); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return badRequest("body: %v", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return badRequest("body: it has more than one JSON value")
	}
	return nil
}

// checkQuery refuses parameters other than those.
func checkQuery(r *http.Request, names ...string) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("parameters: %v", err)
	}
	for name, values := range query {
		switch {
		case !slices.Contains(names, name) && len(names) == 0:
			return badRequest("unknown parameter %q; the call has none", name)
		case !slices.Contains(names, name):
			return badRequest("unknown parameter %q; there are %s", name, strings.Join(names, ", "))
		case len(values) > 1:
			return badRequest("parameter %q is there twice", name)
		}
	}
	return nil
}

// statusJSON is the state of a server.
type statusJSON struct {
	*server
	Crashed  string   `json:"crashed,omitempty"`
	Running  []string `json:"running"`
	Accepted int      `json:"accepted"`
	Open     int      `json:"open"`
}

func (c *control) status(s *server, r *http.Request) (any, error) {
	out := statusJSON{server: s, Running: list(s.fake.Running()), Accepted: s.fake.Accepted(), Open: s.fake.Open()}
	if crash := s.fake.Crashed(); crash != nil {
		out.Crashed = crash.Reason
	}
	return out, checkQuery(r)
}

// list returns a list that is never null in JSON.
func list[T any](values []T) []T {
	if values == nil {
		return []T{}
	}
	return values
}

func (c *control) restart(s *server, r *http.Request) (any, error) {
	if err := read(r, &struct{}{}); err != nil {
		return nil, err
	}
	s.fake.Restart()
	return struct{}{}, nil
}

func (c *control) shutdown(s *server, r *http.Request) (any, error) {
	if err := read(r, &struct{}{}); err != nil {
		return nil, err
	}
	s.fake.Shutdown()
	return struct{}{}, nil
}

func (c *control) reset(s *server, r *http.Request) (any, error) {
	if err := read(r, &struct{}{}); err != nil {
		return nil, err
	}
	return struct{}{}, s.restore(s.initial, s.setting.faults...)
}

// idJSON names a fault or a snapshot.
type idJSON struct {
	ID int `json:"id"`
}

func (c *control) snapshot(s *server, r *http.Request) (any, error) {
	if err := read(r, &struct{}{}); err != nil {
		return nil, err
	}
	id := c.fleet.nextID()
	state := s.fake.Snapshot()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snapshots[id] = state
	return idJSON{id}, nil
}

func (c *control) restore(s *server, r *http.Request) (any, error) {
	var in idJSON
	if err := read(r, &in); err != nil {
		return nil, err
	}
	c.mu.Lock()
	state := c.snapshots[in.ID]
	c.mu.Unlock()
	if state == nil {
		return nil, notFound("no snapshot %d", in.ID)
	}
	if err := s.restore(state); err != nil {
		return nil, badRequest("%v", err)
	}
	return struct{}{}, nil
}
