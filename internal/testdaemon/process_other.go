//go:build !linux

package testdaemon

import (
	"errors"
	"os/exec"
)

var errLinuxOnly = errors.New("LXD and Incus run on Linux only")

type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func startProcess(*exec.Cmd) (*process, error) { return nil, errLinuxOnly }
func (p *process) terminate() error            { return errLinuxOnly }
func (p *process) kill() error                 { return errLinuxOnly }
func unmountBelow(string) error                { return nil }
