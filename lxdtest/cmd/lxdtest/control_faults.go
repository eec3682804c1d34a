package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/golxd/lxd/lxdtest"
)

// inject injects a fault, and returns its id.
func (s *server) inject(fault lxdtest.Fault) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(fault)
}

// add does the work of inject; the caller holds the lock.
func (s *server) add(fault lxdtest.Fault) int {
	id := s.fleet.nextID()
	s.faults = append(s.faults, &injected{id, fault, s.fake.Inject(fault)})
	return id
}

// injected returns the fault with that id.
func (s *server) injected(id int) (*injected, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.faults {
		if i.id == id {
			return i, nil
		}
	}
	return nil, notFound("server %s has no fault %d", s.Name, id)
}

func (c *control) inject(s *server, r *http.Request) (any, error) {
	var fault lxdtest.Fault
	if err := read(r, &fault); err != nil {
		return nil, err
	}
	if fault.String() == "" {
		return nil, badRequest(`body: there is no fault, such as {"fault": "reset"}`)
	}
	return idJSON{s.inject(fault)}, nil
}

// readFault returns the fault that a body names.
func readFault(s *server, r *http.Request) (*injected, error) {
	var in idJSON
	if err := read(r, &in); err != nil {
		return nil, err
	}
	return s.injected(in.ID)
}

func (c *control) release(s *server, r *http.Request) (any, error) {
	i, err := readFault(s, r)
	if err != nil {
		return nil, err
	}
	i.Release()
	return struct{}{}, nil
}

func (c *control) removeFault(s *server, r *http.Request) (any, error) {
	i, err := readFault(s, r)
	if err != nil {
		return nil, err
	}
	// It stays in the list, which tells how often it has fired.
	i.Remove()
	return struct{}{}, nil
}

// firedJSON is a fault and how often it has fired.
type firedJSON struct {
	ID    int           `json:"id"`
	Fault lxdtest.Fault `json:"fault"`
	Fired int           `json:"fired"`
}

func (c *control) fired(s *server, r *http.Request) (any, error) {
	if err := checkQuery(r, "id", "timeout"); err != nil {
		return nil, err
	}
	query := r.URL.Query()
	if query.Has("id") {
		id, err := strconv.Atoi(query.Get("id"))
		if err != nil {
			return nil, badRequest("id %q is not a number", query.Get("id"))
		}
		i, err := s.injected(id)
		if err != nil {
			return nil, err
		}
		if query.Has("timeout") {
			once := func(ctx context.Context) error { return i.Wait(ctx, 1) }
			if err := within(r, query.Get("timeout"), once); err != nil {
				return nil, err
			}
		}
		return firedJSON{i.id, i.fault, i.Fired()}, nil
	}
	if query.Has("timeout") {
		return nil, badRequest("timeout needs the id of a fault")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []firedJSON{}
	for _, i := range s.faults {
		out = append(out, firedJSON{i.id, i.fault, i.Fired()})
	}
	return out, nil
}

// within calls wait with the context of a call, which ends after a timeout.
func within(r *http.Request, timeout string, wait func(context.Context) error) error {
	limit, err := time.ParseDuration(timeout)
	if err != nil || limit <= 0 {
		return badRequest("timeout %q is not a duration such as 30s", timeout)
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	switch err := wait(ctx); {
	case errors.Is(err, context.DeadlineExceeded):
		return &callError{http.StatusRequestTimeout, fmt.Sprintf("after %s: %v", timeout, err)}
	case err != nil && r.Context().Err() == nil:
		return badRequest("%v", err)
	default:
		return err
	}
}
