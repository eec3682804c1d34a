package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/golxd/lxd/lxdtest"
)

// fleet are the servers of the command. As JSON it is the line that says that they serve.
type fleet struct {
	Servers []*server `json:"servers"`
	Control address   `json:"control"`
	Dir     string    `json:"dir"`
	PID     int       `json:"pid"`

	lastID atomic.Int64
}

// nextID returns the id of a new fault or snapshot.
func (f *fleet) nextID() int { return int(f.lastID.Add(1)) }

// address is where something listens.
type address struct {
	Socket string `json:"socket,omitempty"` // a path
	URL    string `json:"url,omitempty"`
}

// server is one of the servers.
type server struct {
	Name              string `json:"name"`
	Dialect           string `json:"dialect"`
	Family            string `json:"family"`
	Version           string `json:"version"`
	Socket            string `json:"socket"`
	URL               string `json:"url,omitempty"`
	ServerCertificate string `json:"server_certificate,omitempty"` // paths
	ClientCertificate string `json:"client_certificate"`
	ClientKey         string `json:"client_key"`
	Conf              string `json:"conf"`

	fleet   *fleet
	fake    *lxdtest.Server
	setting serverSetting
	initial *lxdtest.Snapshot // what the flags put on it

	mu     sync.Mutex // guards faults
	faults []*injected
}

// injected is an injected fault.
type injected struct {
	id    int
	fault lxdtest.Fault
	*lxdtest.Injection
}

// startFleet starts the servers with what the flags put on them.
func startFleet(s *settings, d *directory, stderr io.Writer) (*fleet, error) {
	f := &fleet{Dir: d.path, PID: os.Getpid()}
	var logger *slog.Logger
	if s.log {
		logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	for n := range s.servers {
		started, err := f.startServer(s, &s.servers[n], d, logger)
		if err != nil {
			f.close()
			return nil, fmt.Errorf("server %s: %w", s.servers[n].name, err)
		}
		f.Servers = append(f.Servers, started)
	}
	if err := f.prepare(d); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// startServer starts one server.
func (f *fleet) startServer(s *settings, setting *serverSetting, d *directory, logger *slog.Logger) (*server, error) {
	opts := &lxdtest.Options{
		Dialect: setting.dialect, Socket: s.socket, TLS: s.tls != "", Address: s.tls,
		TrustPassword: s.trustPassword, Directory: d.join(setting.name),
	}
	if opts.Socket == "" {
		opts.Socket = d.join(setting.name, serverSocket)
	}
	if logger != nil {
		opts.OnRequest = logRequest(logger.With("server", setting.name))
	}
	if err := os.Mkdir(opts.Directory, 0o700); err != nil {
		return nil, err
	}
	fake, err := lxdtest.Start(opts)
	if err != nil {
		return nil, err
	}
	return &server{
		Name: setting.name, Dialect: setting.dialect.String(), Family: setting.dialect.Family(), Version: setting.dialect.Version(),
		Socket: fake.Socket(), URL: fake.URL(), fleet: f, fake: fake, setting: *setting,
	}, nil
}

// prepare writes the configuration of the clients, and then sets the servers up: all of
// them trust the same client.
func (f *fleet) prepare(d *directory) error {
	cert, key := f.Servers[0].fake.ClientCertificate()
	for _, s := range f.Servers[1:] {
		if err := s.fake.Trust("lxdtest", cert); err != nil {
			return err
		}
	}
	if err := f.writeConf(d, cert, key); err != nil {
		return err
	}
	for _, s := range f.Servers {
		if err := s.setUp(); err != nil {
			return fmt.Errorf("server %s: %w", s.Name, err)
		}
	}
	return nil
}

// setUp adds to a new server what the flags say.
func (s *server) setUp() error {
	for _, name := range s.setting.projects {
		s.fake.AddProject(name, true)
	}
	for _, name := range s.setting.profiles {
		s.fake.AddProfile(name)
	}
	for n := range s.setting.images {
		image := &s.setting.images[n]
		if _, err := image.add(s.fake); err != nil {
			return fmt.Errorf("image %q: %w", image.opts.Aliases, err)
		}
	}
	s.initial = s.fake.Snapshot()
	for _, fault := range s.setting.faults {
		s.inject(fault)
	}
	return nil
}

// restore makes the server as it was at a snapshot. It has only those faults then: the lock
// is held all the time, so that no call injects another one meanwhile.
func (s *server) restore(state *lxdtest.Snapshot, faults ...lxdtest.Fault) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fake.Restore(state); err != nil {
		return err
	}
	s.faults = nil
	for _, fault := range faults {
		s.add(fault)
	}
	return nil
}

// close ends the servers.
func (f *fleet) close() {
	for _, s := range f.Servers {
		s.fake.Close()
	}
}
