package lxd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// localSocket is a socket on which a local daemon may listen: its path, and that
// of the socket for users who may not use the first; "" if there is none.
type localSocket struct{ path, forUsers string }

// localSockets returns the sockets of the local daemon in the order of the
// search.
func localSockets(family Family) []localSocket {
	in := func(dir string) string { return filepath.Join(dir, "unix.socket") }
	lxdSockets := func() ([]localSocket, bool) {
		if s := os.Getenv("LXD_SOCKET"); s != "" {
			return []localSocket{{path: s}}, true
		}
		if dir := os.Getenv("LXD_DIR"); dir != "" {
			return []localSocket{{path: in(dir)}}, true
		}
		return []localSocket{{path: in("/var/snap/lxd/common/lxd")}, {path: in("/var/lib/lxd")}}, false
	}
	incusSockets := func() ([]localSocket, bool) {
		of := func(dir string) localSocket { return localSocket{in(dir), in(dir) + ".user"} }
		if s := os.Getenv("INCUS_SOCKET"); s != "" {
			return []localSocket{{path: s}}, true
		}
		if dir := os.Getenv("INCUS_DIR"); dir != "" {
			return []localSocket{of(dir)}, true
		}
		return []localSocket{of("/run/incus"), of("/var/lib/incus")}, false
	}
	l, lxdSet := lxdSockets()
	i, incusSet := incusSockets()
	switch {
	case family == LXD, family == "" && lxdSet:
		return l
	case family == Incus, family == "" && incusSet:
		return i
	}
	return slices.Concat(l, i)
}

// localDaemon connects to the local daemon. The first connection decides which
// one that is: a client must not switch to another daemon because its own is down
// for a moment.
type localDaemon struct {
	dial    dialFunc
	sockets []localSocket

	mu   sync.Mutex
	path string // of the first connection's socket; "" before that
}

func (d *localDaemon) connect(ctx context.Context, _, _ string) (net.Conn, error) {
	if path := d.known(); path != "" {
		return d.dial(ctx, "unix", path)
	}
	c, path, err := d.first(ctx)
	if err != nil {
		return nil, err
	}
	if known := d.keep(path); known != path {
		// Another goroutine was faster, and found another daemon.
		_ = c.Close()
		return d.dial(ctx, "unix", known)
	}
	return c, nil
}

func (d *localDaemon) known() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.path
}

// keep makes path the daemon's, unless there is one, and returns the daemon's.
func (d *localDaemon) keep(path string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.path == "" {
		d.path = path
	}
	return d.path
}

// first connects to the first socket that exists.
func (d *localDaemon) first(ctx context.Context) (c net.Conn, path string, err error) {
	var tried []string
	for _, socket := range d.sockets {
		c, err := d.dial(ctx, "unix", socket.path)
		if err == nil {
			return c, socket.path, nil
		}
		denied, missing := errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist)
		if (denied || missing) && socket.forUsers != "" {
			c, uerr := d.dial(ctx, "unix", socket.forUsers)
			if uerr == nil {
				return c, socket.forUsers, nil
			}
			if missing && !errors.Is(uerr, fs.ErrNotExist) {
				return nil, "", uerr
			}
		}
		if !missing || len(d.sockets) == 1 {
			return nil, "", err
		}
		tried = append(tried, socket.path)
	}
	return nil, "", fmt.Errorf("none of %s: %w", strings.Join(tried, ", "), fs.ErrNotExist)
}
