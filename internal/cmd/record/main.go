// Command record writes the answers of real daemons to a folder, one file an
// answer, for tests that need to know what the daemons really say.
//
//	go run ./internal/cmd/testdaemons -lxd 1 -incus 1 -- go run ./internal/cmd/record testdata/envelopes
//
// It takes the first daemon of each family that the environment names (see
// package testdaemon), which has to be fresh, and replaces the folder of that
// server's version, such as lxd-5.0.2. What is told of this machine is
// replaced by neutral values.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/golxd/lxd/internal/testdaemon"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: record FOLDER")
	}
	lxd, incus, err := testdaemon.FromEnv()
	if err != nil {
		return err
	}
	if len(lxd)+len(incus) == 0 {
		return errors.New("the environment names no daemon: run it through testdaemons")
	}
	for _, daemons := range [][]*testdaemon.Daemon{lxd, incus} {
		if len(daemons) == 0 {
			continue
		}
		if err := recordDaemon(ctx, daemons[0], args[0]); err != nil {
			return fmt.Errorf("%s: %w", daemons[0].Family, err)
		}
	}
	return nil
}

// recordDaemon records one daemon into its folder below parent.
func recordDaemon(ctx context.Context, d *testdaemon.Daemon, parent string) error {
	var info struct {
		Environment struct {
			ServerVersion string `json:"server_version"`
		} `json:"environment"`
	}
	if err := d.Do(ctx, "GET", "/1.0", nil, &info); err != nil {
		return err
	}
	dir := filepath.Join(parent, string(d.Family)+"-"+info.Environment.ServerVersion)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r, err := newRecorder(d, dir)
	if err != nil {
		return err
	}
	if err := r.recordAll(ctx); err != nil {
		return err
	}
	return r.writeIndex()
}
