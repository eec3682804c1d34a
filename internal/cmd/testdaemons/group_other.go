//go:build !unix

package main

import (
	"os"
	"os/exec"
)

func isolate(*exec.Cmd) {}

// forward does nothing: where signals cannot be sent there are no daemons.
func forward(*exec.Cmd, os.Signal) {}
