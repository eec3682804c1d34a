//go:build !unix

package main

import (
	"os"
	"os/exec"
)

func isolate(*exec.Cmd) {}

// forward does nothing: the daemons do not run on these systems.
func forward(*exec.Cmd, os.Signal) {}
