package lxdtest

import (
	"context"
	"fmt"
	"path"
	"slices"
)

// requestWaiter is a call of WaitRequest that waits.
type requestWaiter struct {
	method, pattern string
	found           chan *Request // has room for one
}

// WaitRequest waits until a request with this method and path has arrived, as in Fault.On,
// and returns it. It returns each request once, in order of arrival, those that arrived
// before the call too: two calls return two requests, and ForgetRequests forgets what is
// not to be waited for. The faults that match the request have fired already. The body
// need not have arrived, and the response is not sent: Request.Wait waits for that.
//
// WaitRequest does not poll, so that it also works in a testing/synctest bubble. It returns
// an error that wraps that of ctx when ctx ends, and an error if the server is closed or
// the pattern is malformed.
func (s *Server) WaitRequest(ctx context.Context, method, pattern string) (*Request, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("lxdtest: wait for a request: path %q: %w", pattern, err)
	}
	w := &requestWaiter{method, pattern, make(chan *Request, 1)}
	s.mu.Lock()
	at := slices.IndexFunc(s.requests, func(r *Request) bool { return !r.waited && w.matches(r) })
	if at >= 0 {
		found := s.requests[at]
		found.waited = true
		s.mu.Unlock()
		return found, nil
	}
	s.waiters = append(s.waiters, w)
	s.mu.Unlock()

	var err error
	select {
	case found := <-w.found:
		return found, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.ctx.Done():
		err = errClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiters = slices.DeleteFunc(s.waiters, func(other *requestWaiter) bool { return other == w })
	select {
	case found := <-w.found:
		return found, nil
	default:
	}
	last := "none has arrived"
	if n := len(s.requests); n > 0 {
		last = fmt.Sprintf("%d have arrived, the last is %s %s", n, s.requests[n-1].Method, s.requests[n-1].Path)
	}
	return nil, fmt.Errorf("lxdtest: wait for a request %q %q: %w; %s", method, pattern, err, last)
}

func (w *requestWaiter) matches(r *Request) bool {
	return matchRequest(w.method, w.pattern, r.Method, r.Path)
}

// deliver hands a request that has arrived to the first call of WaitRequest that waits for
// it; the caller holds the lock.
func (s *Server) deliver(r *Request) {
	for n, w := range s.waiters {
		if w.matches(r) {
			r.waited = true
			w.found <- r
			s.waiters = slices.Delete(s.waiters, n, n+1)
			return
		}
	}
}

// Wait waits until the server has finished with the request, by a response or by breaking
// the connection. It returns an error that wraps that of ctx when ctx ends.
func (r *Request) Wait(ctx context.Context) error {
	select {
	case <-r.finished:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("lxdtest: wait for the end of %s %s: %w", r.Method, r.Path, ctx.Err())
	}
}

// firingWaiter is a call of Injection.Wait.
type firingWaiter struct {
	times int
	fired chan struct{} // closed when the fault has fired so often
}

// Wait waits until the fault has fired n times in all. It does not poll. It returns an
// error that wraps that of ctx when ctx ends, and an error if the server is closed.
func (i *Injection) Wait(ctx context.Context, n int) error {
	w := &firingWaiter{n, make(chan struct{})}
	s := i.server
	s.mu.Lock()
	if i.fired >= n {
		s.mu.Unlock()
		return nil
	}
	i.waiters = append(i.waiters, w)
	s.mu.Unlock()
	var err error
	select {
	case <-w.fired:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.ctx.Done():
		err = errClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i.waiters = slices.DeleteFunc(i.waiters, func(other *firingWaiter) bool { return other == w })
	if i.fired >= n {
		return nil
	}
	return fmt.Errorf("lxdtest: wait for the fault %q: %w; it has fired %d times of %d", i.fault, err, i.fired, n)
}

// count counts n firings; the caller holds the lock.
func (i *Injection) count(n int) {
	i.fired += n
	i.waiters = slices.DeleteFunc(i.waiters, func(w *firingWaiter) bool {
		if i.fired < w.times {
			return false
		}
		close(w.fired)
		return true
	})
}
