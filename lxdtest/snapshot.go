package lxdtest

// Snapshot is the state of a server at one moment; see Server.Snapshot.
type Snapshot struct{}

// Snapshot returns the server's state.
func (s *Server) Snapshot() *Snapshot { return &Snapshot{} }

// Restore makes the server as it was when the snapshot was taken.
func (s *Server) Restore(*Snapshot) error { return nil }

// Reset makes the server as new.
func (s *Server) Reset() {}
