package main

import (
	"context"
	"os"

	"golang.org/x/sys/windows"
)

// parentInterval is how often, in milliseconds, the context is looked at.
const parentInterval = 200

// watchParent calls ended when the parent process is gone, unless ctx ends before.
func watchParent(ctx context.Context, ended func()) error {
	parent, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(os.Getppid()))
	if err != nil {
		return err
	}
	go func() {
		defer func() { _ = windows.CloseHandle(parent) }()
		for ctx.Err() == nil {
			event, err := windows.WaitForSingleObject(parent, parentInterval)
			if err != nil || event == windows.WAIT_OBJECT_0 {
				ended()
				return
			}
		}
	}()
	return nil
}
