//go:build unix

package main

import (
	"context"
	"os"
	"time"
)

// parentInterval is how often the parent process is looked for.
const parentInterval = 200 * time.Millisecond

// watchParent calls ended when the parent process is gone, unless ctx ends before.
func watchParent(ctx context.Context, ended func()) error {
	parent := os.Getppid()
	go func() {
		ticker := time.NewTicker(parentInterval)
		defer ticker.Stop()
		// An orphan gets another parent.
		for os.Getppid() == parent {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
		ended()
	}()
	return nil
}
