package lxdtest

import "context"

// WaitRequest waits until a request with this method and path has arrived, and returns the
// oldest one that no call of WaitRequest has returned before.
func (s *Server) WaitRequest(ctx context.Context, method, pattern string) (*Request, error) {
	return nil, ctx.Err()
}

// Wait waits until the fault has fired.
func (i *Injection) Wait(ctx context.Context) error { return ctx.Err() }
