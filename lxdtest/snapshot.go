package lxdtest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Snapshot is what a server had at one moment; see Server.Snapshot. It never changes.
type Snapshot struct {
	dialect Dialect
	dir     string // of the server
	state   state
	trusted []*trust
}

// state is what a server stores, apart from its trusted certificates. The server's lock
// guards it.
type state struct {
	projects   map[string]*project
	images     map[imageKey]*image
	aliases    map[aliasKey]*alias
	instances  map[instanceKey]*instance
	registries map[string]*registry
}

// newState returns what a new daemon has.
func (t *traits) newState() state {
	p := t.defaultProject()
	return state{
		projects:   map[string]*project{p.name: p},
		images:     map[imageKey]*image{},
		aliases:    map[aliasKey]*alias{},
		instances:  map[instanceKey]*instance{},
		registries: map[string]*registry{},
	}
}

// clone returns a copy that shares only what never changes; the caller holds the lock of
// the server that the state is of.
func (st *state) clone() state {
	out := state{
		projects:   make(map[string]*project, len(st.projects)),
		images:     make(map[imageKey]*image, len(st.images)),
		aliases:    make(map[aliasKey]*alias, len(st.aliases)),
		instances:  maps.Clone(st.instances),
		registries: maps.Clone(st.registries),
	}
	for name, p := range st.projects {
		c := *p
		c.profiles = maps.Clone(p.profiles)
		out.projects[name] = &c
	}
	for key, img := range st.images {
		out.images[key] = new(*img)
	}
	for key, a := range st.aliases {
		out.aliases[key] = new(*a)
	}
	return out
}

// paths returns the paths of the files of an image.
func (img *image) paths() []string {
	if img.rootfs == "" {
		return []string{img.metadata}
	}
	return []string{img.metadata, img.rootfs}
}

// Snapshot returns what the server has: images, aliases, projects, profiles, instances,
// registries and trusted certificates, but no operations and so no secrets. It copies no
// image: those in a snapshot are kept in the server's directory until Close, even if a
// client deletes them. To take a snapshot of 1,000 images takes about a millisecond.
func (s *Server) Snapshot() *Snapshot {
	snap := &Snapshot{dialect: s.opts.Dialect, dir: s.dir}
	s.mu.Lock()
	snap.state = s.state.clone()
	for _, img := range snap.state.images {
		s.use(img)
	}
	s.mu.Unlock()
	s.trustMu.Lock()
	snap.trusted = slices.Clone(s.trusted)
	s.trustMu.Unlock()
	return snap
}

// Restore does what Reset does, and gives the server what a snapshot has. The snapshot may
// be that of another server of the same dialect, which must not be closed yet: image
// files are linked, or copied where the system cannot link them. A snapshot can be restored
// any number of times. If there is an error, the server is as before.
func (s *Server) Restore(snap *Snapshot) error {
	switch {
	case s.ctx.Err() != nil:
		return fmt.Errorf("lxdtest: restore: %w", errClosed)
	case snap.dialect != s.opts.Dialect:
		return fmt.Errorf("lxdtest: restore: the snapshot is that of %s, the server is %s", snap.dialect, s.opts.Dialect)
	}
	st := snap.state.clone()
	if snap.dir != s.dir {
		if err := s.linkFiles(&st, snap.dir); err != nil {
			return fmt.Errorf("lxdtest: restore: %w; the server that the snapshot is of must not be closed before", err)
		}
	}
	if err := s.load(st, snap.trusted); err != nil {
		return fmt.Errorf("lxdtest: restore: %w", err)
	}
	return nil
}

// linkFiles replaces the files of the images, which are in another server's directory, by
// links in this one's.
func (s *Server) linkFiles(st *state, dir string) (err error) {
	links := map[string]string{}
	defer func() {
		if err != nil {
			for _, link := range links {
				_ = os.Remove(link)
			}
		}
	}()
	link := func(path string) string {
		if filepath.Dir(path) != dir || err != nil {
			return path
		}
		if links[path] == "" {
			target := s.newPath()
			if err = linkOrCopy(path, target); err == nil {
				links[path] = target
			}
		}
		return links[path]
	}
	for _, img := range st.images {
		img.metadata = link(img.metadata)
		if img.rootfs != "" {
			img.rootfs = link(img.rootfs)
		}
	}
	return err
}

// linkOrCopy makes a hard link of a file, or a copy if that is not possible.
func linkOrCopy(path, target string) (err error) {
	if os.Link(path, target) == nil {
		return nil
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Close()); err != nil {
		_ = os.Remove(target)
	}
	return err
}

// Reset makes the server as new. Faults are removed, requests forgotten, operations
// cancelled and forgotten, event sockets closed, and images, aliases, projects, profiles,
// instances, registries and trusted certificates removed, except for the certificate that
// ClientCertificate has returned. A server that has crashed or was shut down is started.
//
// Nothing that a client did before has an effect after Reset has returned: it waits for
// requests in progress, whose connections are reset if they take more than 100 ms. Other
// connections stay open; addresses and certificates stay the same. Reset must not be
// called by a Call or by Options.OnRequest, which it would wait for.
func (s *Server) Reset() {
	if err := s.load(s.traits.newState(), nil); err != nil {
		panic(fmt.Sprintf("lxdtest: reset: %v", err))
	}
}

// resetPatience is how long requests in progress may take to end when the server is reset.
// A response can be complete for its client before the server has finished with it, and its
// connection must not be reset.
const resetPatience = 100 * time.Millisecond

// load replaces what the server has, once everything in progress has ended. An error means
// that a server that was stopped could not be started again.
func (s *Server) load(st state, trusted []*trust) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	if err := s.start(); err != nil {
		return err
	}
	// Before the faults are removed, which lets the operations go on that they have stalled.
	s.endOperations()
	s.mu.Lock()
	faults, serving := slices.Clone(s.faults), slices.Collect(maps.Keys(s.serving))
	s.mu.Unlock()
	for _, fault := range faults {
		fault.Remove()
	}
	s.hub.reset()
	s.endRequests(serving)
	// Those that these requests have begun.
	s.endOperations()
	// One of them may have crashed the server.
	if err := s.start(); err != nil {
		return err
	}

	s.mu.Lock()
	old := s.state
	s.state = st
	for _, img := range st.images {
		s.use(img)
		for _, path := range img.paths() {
			if filepath.Dir(path) != s.dir {
				s.uses[path]++ // See AddImageFile.
			}
		}
	}
	for _, img := range old.images {
		s.release(img)
	}
	s.requests, s.crash = nil, nil
	clear(s.streams)
	s.mu.Unlock()

	s.trustMu.Lock()
	s.trusted, s.sessions = slices.Clone(trusted), nil
	clear(s.identities)
	if s.client != nil {
		// The error means that it is trusted already.
		_ = s.trust(newTrust(clientName, s.client.tls.Leaf, nil))
	}
	s.trustMu.Unlock()
	return nil
}

// endRequests waits for requests to end, and after resetPatience makes them end.
func (s *Server) endRequests(serving []*Request) {
	timer := time.NewTimer(resetPatience)
	defer timer.Stop()
	for _, r := range serving {
		select {
		case <-r.finished:
			continue
		case <-timer.C:
		}
		for _, r := range serving {
			if !r.Done() && r.conn != nil {
				r.conn.reset()
			}
		}
		break
	}
	for _, r := range serving {
		<-r.finished
	}
}

// endOperations cancels and forgets all operations and waits until they have ended.
func (s *Server) endOperations() {
	s.mu.Lock()
	operations := slices.Collect(maps.Values(s.operations))
	for _, op := range operations {
		if op.status == statusRunning {
			s.cancelOperation(op) // which ends the requests that wait for it
		}
		op.drop()
	}
	clear(s.operations)
	s.mu.Unlock()
	for _, op := range operations {
		if op.exited != nil {
			<-op.exited
		}
	}
}

// use counts an image, or a copy of it in a snapshot, as a user of its files; the caller
// holds the lock.
func (s *Server) use(img *image) {
	for _, path := range img.paths() {
		s.uses[path]++
	}
}

// release removes the files of an image that nothing else uses; exports in progress can
// still read them. The caller holds the lock.
func (s *Server) release(img *image) {
	for _, path := range img.paths() {
		if s.uses[path]--; s.uses[path] > 0 {
			continue
		}
		delete(s.uses, path)
		// On Windows this fails for an open file, which Close removes.
		_ = os.Remove(path)
	}
}
