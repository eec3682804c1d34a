// Command record writes the responses of real daemons to a directory, one file
// per response, as references for tests.
//
//	go run ./internal/cmd/testdaemons -lxd 1 -incus 1 -- go run ./internal/cmd/record testdata/envelopes
//
// It uses the first daemon of each family in the environment (see package
// testdaemon), which must be new, and replaces the directory of that server's
// version, such as lxd-5.0.2. Values that depend on the machine are replaced by
// neutral ones.
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
		return errors.New("usage: record DIRECTORY")
	}
	lxd, incus, err := testdaemon.FromEnv()
	if err != nil {
		return err
	}
	if len(lxd)+len(incus) == 0 {
		return errors.New("no daemon in the environment: run it with testdaemons")
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

// recordDaemon records one daemon into its directory below parent.
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
