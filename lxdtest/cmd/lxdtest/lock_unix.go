//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lockDir makes a directory this process's, until it calls unlock or ends. Sockets cannot tell
// that: a process that starts has none yet, and they may be elsewhere.
func lockDir(path string) (unlock func(), err error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	// Some file systems have no locks; sockets are looked at too.
	if errors.Is(unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK) {
		_ = dir.Close()
		return nil, fmt.Errorf("%s is in use by another process", path)
	}
	return func() { _ = dir.Close() }, nil
}
