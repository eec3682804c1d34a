// Package unixsock has what the unix sockets of package lxdtest and of its command need.
package unixsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// MaxPath is the longest path of a unix socket, in bytes, that all systems accept.
const MaxPath = 100

// TempDir creates a directory in which a socket can have that name: in parent, or if that
// is empty in the system's directory for temporary files.
func TempDir(parent, socket string) (string, error) {
	dir, err := os.MkdirTemp(parent, "lxdtest")
	if err != nil || parent != "" || len(filepath.Join(dir, socket)) <= MaxPath {
		return dir, err
	}
	// macOS has a long $TMPDIR; /tmp is short enough.
	if err := os.Remove(dir); err != nil {
		return "", err
	}
	return os.MkdirTemp("/tmp", "lxdtest")
}

// Listen listens on a unix socket. It replaces the socket of a process that was killed, but
// no socket at which somebody listens, and no other file.
func Listen(path string) (*net.UnixListener, error) {
	at := &net.UnixAddr{Name: path, Net: "unix"}
	if err := removeStale(at); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", at)
	if err != nil && len(path) > MaxPath {
		err = fmt.Errorf("%w: the path has %d bytes, and some systems accept no more than %d: use a shorter one", err, len(path), MaxPath)
	}
	return l, err
}

func removeStale(at *net.UnixAddr) error {
	path := at.Name
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	// Connecting to a unix socket does not wait.
	if c, err := net.DialUnix("unix", nil, at); err == nil {
		_ = c.Close()
		return fmt.Errorf("%s is the socket of a server that is running", path)
	}
	return os.Remove(path)
}
