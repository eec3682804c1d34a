package testdaemon

import (
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

// ErrNotStarted is returned where a daemon that another process started, one
// from [FromEnv], is asked to stop or to restart.
var ErrNotStarted = errors.New("testdaemon: the daemon was started by another process")

// maxSocketPath keeps clear of the 108 bytes that the kernel allows a socket's
// path, also for sockets in folders below the daemon's own.
const maxSocketPath = 100

// Options configures [Start]. The zero value works.
type Options struct {
	// Binary is the daemon's program. The default is "lxd" in PATH, or for
	// Incus "incusd" in PATH or /usr/libexec/incus/incusd.
	Binary string

	// Parent is the folder in which the daemon's own folder is made. The
	// default is the system's folder for temporary files, or /tmp where that
	// one's path is too long for a socket.
	Parent string

	// Timeout bounds how long the daemon may take to answer after it was
	// started. The default is 60 seconds.
	Timeout time.Duration
}

// Daemon is one daemon. Its fields do not change, not by a restart either.
type Daemon struct {
	Family Family
	Dir    string // LXD_DIR or INCUS_DIR of the daemon
	Socket string // path of its unix socket
	URL    string // https address, without a path

	ServerCertificate []byte // PEM
	ClientCertificate []byte // PEM, trusted by the daemon
	ClientKey         []byte // PEM
	TrustPassword     string // empty for Incus, which has no such thing

	binary  string
	timeout time.Duration
	client  *http.Client

	mu      sync.Mutex
	process *process // nil when not running, or not ours
	owned   bool
}

// Start runs a daemon of the family in a fresh folder and returns when it is
// ready for use. The error holds the end of the daemon's log when it was the
// daemon that failed. Ending ctx ends the starting, not the daemon.
func Start(ctx context.Context, family Family, opts *Options) (*Daemon, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Timeout <= 0 {
		o.Timeout = 60 * time.Second
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
	d.binary, d.timeout, d.owned = binary, o.Timeout, true
	if err := d.setUp(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// New is [Start] for a test: it fails the test when the daemon does not start,
// and closes the daemon when the test ends.
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

// Close kills the daemon, unmounts what it mounted in its folder and removes
// the folder. It does nothing to a daemon from [FromEnv]. It may be called
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
		return errors.Join(killErr, fmt.Errorf("testdaemon: remove the daemon's folder: %w", err))
	}
	return killErr
}

// String names the daemon in test output.
func (d *Daemon) String() string { return string(d.Family) + " in " + d.Dir }

func newDaemon(family Family, dir string) *Daemon {
	d := &Daemon{Family: family, Dir: dir, Socket: filepath.Join(dir, "unix.socket")}
	d.client = socketClient(d.Socket)
	return d
}

// makeDir makes the daemon's folder. Its path has no symbolic links, because
// the paths of mounts have none either.
func makeDir(parent string, family Family) (string, error) {
	chosen := parent != ""
	if !chosen {
		parent = os.TempDir()
	}
	dir, err := os.MkdirTemp(parent, string(family)+"-")
	if err != nil {
		return "", fmt.Errorf("testdaemon: make the daemon's folder: %w", err)
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
		return "", fmt.Errorf("testdaemon: make the daemon's folder: %w", err)
	case chosen || parent == "/tmp":
		return "", fmt.Errorf("testdaemon: %s is too long a path for a socket", resolved)
	}
	return makeDir("/tmp", family)
}
