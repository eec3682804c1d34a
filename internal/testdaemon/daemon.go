package testdaemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Family is the kind of a daemon.
type Family string

// The two families of daemons.
const (
	LXD   Family = "lxd"
	Incus Family = "incus"
)

// ErrNotStarted is returned by stopping, killing or restarting a daemon from
// [FromEnv], which another process started.
var ErrNotStarted = errors.New("testdaemon: the daemon was started by another process")

// maxSocketPath is less than the kernel's limit of 108 bytes for the path of a
// socket, to allow for sockets in subdirectories of the daemon's directory.
const maxSocketPath = 100

// Options configures [Start]. The zero value works.
type Options struct {
	// Binary is the daemon's executable. The default is "lxd" in PATH, or for
	// Incus "incusd" in PATH or /usr/libexec/incus/incusd.
	Binary string

	// Parent is the directory in which the daemon's directory is created. The
	// default is the system's directory for temporary files, or /tmp if its
	// path is too long for a socket.
	Parent string

	// Timeout is the longest time from the daemon's start to its first
	// response. The default is 60 seconds.
	Timeout time.Duration

	host string // that it listens on; 127.0.0.1 if empty
}

// Daemon is a daemon. Its fields do not change, even by a restart.
type Daemon struct {
	Family  Family
	Version string // that the daemon reports, such as "5.0.2"
	Binary  string // its executable; empty if that is not known
	Dir     string // LXD_DIR or INCUS_DIR of the daemon
	Socket  string // path of its unix socket
	URL     string // https address, without a path

	ServerCertificate []byte // PEM
	ClientCertificate []byte // PEM, trusted by the daemon
	ClientKey         []byte // PEM
	TrustPassword     string // empty where there are none: Incus, LXD 6

	host    string
	members []string // the names of all members of its cluster; none without one
	timeout time.Duration
	client  *http.Client

	mu      sync.Mutex
	process *process // nil if not running or not started by this process
	owned   bool
}

// Start starts a daemon of the family in a new directory and returns when it is
// ready for use. If the daemon fails, the error includes the end of its log. ctx
// applies to Start only, not to the running daemon.
func Start(ctx context.Context, family Family, opts *Options) (*Daemon, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Timeout <= 0 {
		o.Timeout = 180 * time.Second
	}
	binary, err := findBinary(family, o.Binary)
	if err != nil {
		return nil, err
	}
	dir, err := makeDir(o.Parent, family)
	if err != nil {
		return nil, err
	}
	d := newDaemon(family, dir)
	d.Binary, d.host, d.timeout, d.owned = binary, cmp.Or(o.host, "127.0.0.1"), o.Timeout, true
	if err := d.setUp(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// New is like [Start], but fails the test if the daemon does not start, and
// closes the daemon when the test ends.
func New(tb testing.TB, family Family, opts *Options) *Daemon {
	tb.Helper()
	d, err := Start(tb.Context(), family, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

// Close kills the daemon, unmounts everything below its directory and removes
// the directory. It does nothing to a daemon from [FromEnv]. It may be called
// more than once.
func (d *Daemon) Close() error {
	if !d.owned {
		return nil
	}
	killErr := d.Kill()
	if err := unmountBelow(d.Dir); err != nil {
		return errors.Join(killErr, err)
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		return errors.Join(killErr, fmt.Errorf("testdaemon: remove the daemon's directory: %w", err))
	}
	return killErr
}

// Name returns the family and version, such as "LXD 5.0.2".
func (d *Daemon) Name() string {
	if d.Family == LXD {
		return "LXD " + d.Version
	}
	return "Incus " + d.Version
}

// String returns the family, version and directory of the daemon.
func (d *Daemon) String() string { return d.Name() + " in " + d.Dir }

func newDaemon(family Family, dir string) *Daemon {
	d := &Daemon{Family: family, Dir: dir, Socket: filepath.Join(dir, "unix.socket")}
	d.client = socketClient(d.Socket)
	return d
}

// makeDir creates the daemon's directory. Its path has no symbolic links, so
// that it can be compared with the paths of mounts.
func makeDir(parent string, family Family) (string, error) {
	chosen := parent != ""
	if !chosen {
		parent = os.TempDir()
	}
	dir, err := os.MkdirTemp(parent, string(family)+"-")
	if err != nil {
		return "", fmt.Errorf("testdaemon: create the daemon's directory: %w", err)
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err == nil && len(filepath.Join(resolved, "unix.socket")) < maxSocketPath {
		return resolved, nil
	}
	if removeErr := os.Remove(dir); removeErr != nil {
		return "", fmt.Errorf("testdaemon: %w", removeErr)
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("testdaemon: create the daemon's directory: %w", err)
	case chosen || parent == "/tmp":
		return "", fmt.Errorf("testdaemon: path %s is too long for a socket", resolved)
	}
	return makeDir("/tmp", family)
}
