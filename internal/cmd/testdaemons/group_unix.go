//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolate puts the command in a process group of its own, so that a signal
// reaches all that it started ("go test" passes SIGTERM on to nobody). On a
// terminal that group becomes the one in the foreground.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin := int(os.Stdin.Fd())
	if _, err := unix.IoctlGetInt(stdin, unix.TIOCGPGRP); err == nil {
		cmd.SysProcAttr.Foreground = true
		cmd.SysProcAttr.Ctty = stdin
	}
}

// forward passes a signal on to the command's process group.
func forward(cmd *exec.Cmd, s os.Signal) {
	number, ok := s.(syscall.Signal)
	if !ok {
		return
	}
	if err := syscall.Kill(-cmd.Process.Pid, number); err != nil {
		fmt.Fprintf(os.Stderr, "testdaemons: pass %v on: %v\n", s, err)
	}
}
