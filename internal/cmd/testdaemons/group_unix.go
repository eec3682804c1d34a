//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolate runs the command in a new process group, so that a signal reaches all
// its child processes ("go test" does not forward SIGTERM). On a terminal that
// group becomes the foreground group.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin := int(os.Stdin.Fd())
	if _, err := unix.IoctlGetInt(stdin, unix.TIOCGPGRP); err == nil {
		cmd.SysProcAttr.Foreground = true
		cmd.SysProcAttr.Ctty = stdin
	}
}

// forward forwards a signal to the command's process group.
func forward(cmd *exec.Cmd, s os.Signal) {
	number, ok := s.(syscall.Signal)
	if !ok {
		return
	}
	if err := syscall.Kill(-cmd.Process.Pid, number); err != nil {
		fmt.Fprintf(os.Stderr, "testdaemons: forward %v: %v\n", s, err)
	}
}
