package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/golxd/lxd/internal/unixsock"
)

const (
	// marker is a file in the directory with the names of this command's files in it,
	// one per line.
	marker = ".lxdtest"
	// controlSocket and serverSocket are the sockets' names in the directory and in that
	// of a server.
	controlSocket = "control.socket"
	serverSocket  = "unix.socket"
)

// directory is where everything is that the servers and the clients need.
type directory struct {
	path    string
	made    bool     // by this process
	entries []string // the names of this command's files in it
	unlock  func()   // see lockDir
}

// openDir makes the directory ready. What an earlier process that was killed has left in
// it is removed.
func openDir(s *settings) (*directory, error) {
	d := &directory{unlock: func() {}, entries: []string{marker, controlSocket, commandOf("lxd"), commandOf("incus")}}
	socket := controlSocket
	for _, server := range s.servers {
		d.entries = append(d.entries, server.name)
		if name := filepath.Join(server.name, serverSocket); len(name) > len(socket) {
			socket = name
		}
	}
	if err := d.open(s.dir, socket); err != nil {
		d.unlock()
		return nil, err
	}
	if err := os.WriteFile(d.join(marker), []byte(strings.Join(d.entries, "\n")), 0o600); err != nil {
		return nil, errors.Join(err, d.remove())
	}
	return d, nil
}

// open creates the directory, or takes the one that exists; "" is a temporary one. Its
// longest socket has that name.
func (d *directory) open(dir, socket string) (err error) {
	if dir == "" {
		d.path, err = unixsock.TempDir("", socket)
		d.made = true
		return err
	}
	if d.path, err = filepath.Abs(dir); err != nil {
		return err
	}
	if path := d.join(socket); len(path) > unixsock.MaxPath {
		return fmt.Errorf("-dir %s is too long: %s has %d bytes, the path of a socket at most %d", dir, path, len(path), unixsock.MaxPath)
	}
	if _, err := os.Stat(d.path); errors.Is(err, fs.ErrNotExist) {
		d.made = true
		if err := os.MkdirAll(d.path, 0o700); err != nil {
			return err
		}
	}
	unlock, err := lockDir(d.path)
	if err != nil {
		return fmt.Errorf("-dir: %w", err)
	}
	d.unlock = unlock
	return d.takeOver()
}

// takeOver removes what an earlier process has left in the directory. It refuses a
// directory in use, and one in which other files have the names that are needed.
func (d *directory) takeOver() error {
	var left []string
	switch data, err := os.ReadFile(d.join(marker)); {
	case err == nil:
		left = append(left, marker)
		for name := range strings.SplitSeq(string(data), "\n") {
			if name == controlSocket || validName.MatchString(name) {
				left = append(left, name)
			}
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("-dir: %w", err)
	}
	for _, name := range slices.Concat(d.entries, left) {
		if _, err := os.Lstat(d.join(name)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !slices.Contains(left, name) {
			return fmt.Errorf("-dir %s has a file %q of something else; name a new directory", d.path, name)
		}
		for _, socket := range []string{d.join(name), d.join(name, serverSocket)} {
			if c, err := net.Dial("unix", socket); err == nil {
				_ = c.Close()
				return fmt.Errorf("-dir %s is in use: a process listens on %s", d.path, socket)
			}
		}
	}
	return d.clear(left)
}

// clear removes files of the directory.
func (d *directory) clear(names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, os.RemoveAll(d.join(name)))
	}
	return errors.Join(errs...)
}

// remove removes this command's files, and the directory if this process has made it
// and it has no others.
func (d *directory) remove() error {
	err := d.clear(d.entries)
	if d.made {
		_ = os.Remove(d.path)
	}
	d.unlock()
	return err
}

// join returns the path of a file in the directory.
func (d *directory) join(names ...string) string {
	return filepath.Join(append([]string{d.path}, names...)...)
}
