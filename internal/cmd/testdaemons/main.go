// Command testdaemons runs a command with real LXD and Incus daemons.
//
//	testdaemons [-lxd N[=BINARY]]… [-incus N[=BINARY]]… -- command [argument…]
//
// A flag may be repeated, for daemons of several versions. It starts N daemons of each in new directories, runs the command with
// these directories in LXD_TEST_LXD_DIRS and LXD_TEST_INCUS_DIRS (see package
// testdaemon), kills the daemons, removes their directories and exits with the
// command's code. SIGINT and SIGTERM are forwarded to the command; the daemons
// are killed after it has exited. It needs Linux, root and the daemons'
// packages.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/golxd/lxd/internal/testdaemon"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testdaemons:", err)
	}
	os.Exit(code)
}

// daemons are the options of the daemons to start.
type daemons struct {
	families []testdaemon.Family
	options  []*testdaemon.Options
}

// flag returns what the flag of a family does with its value: "2", or
// "2=/path/of/incusd".
func (d *daemons) flag(family testdaemon.Family) func(string) error {
	return func(value string) error {
		count, binary, _ := strings.Cut(value, "=")
		n, err := strconv.Atoi(count)
		if err != nil || n < 0 || n > maxDaemons {
			return fmt.Errorf("%q is not a number of daemons from 0 to %d", count, maxDaemons)
		}
		for range n {
			d.families = append(d.families, family)
			d.options = append(d.options, &testdaemon.Options{Binary: binary})
		}
		return nil
	}
}

// maxDaemons bounds the value of a flag.
const maxDaemons = 16

func run() (code int, err error) {
	var wanted daemons
	flags := flag.NewFlagSet("testdaemons", flag.ContinueOnError)
	flags.Func("lxd", "number of LXD daemons to start, `N[=BINARY]`; may be repeated", wanted.flag(testdaemon.LXD))
	flags.Func("incus", "number of Incus daemons to start, `N[=BINARY]`; may be repeated", wanted.flag(testdaemon.Incus))
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: testdaemons [-lxd N[=BINARY]]… [-incus N[=BINARY]]… -- command [argument…]")
		flags.PrintDefaults()
	}
	if err := flags.Parse(os.Args[1:]); err != nil {
		return 2, nil //nolint:nilerr // the flag set has printed it
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return 2, nil
	}

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan struct{})
	go func() {
		select {
		case <-signals:
			cancel()
		case <-started:
		}
	}()

	daemons, err := startAll(ctx, &wanted)
	defer func() {
		if closeErr := closeAll(daemons); closeErr != nil {
			err = errors.Join(err, closeErr)
			code = max(code, 1)
		}
	}()
	close(started)
	if err != nil {
		return 1, err
	}
	for _, d := range daemons {
		fmt.Fprintf(os.Stderr, "testdaemons: %s at %s, pid %d\n", d, d.URL, d.PID())
	}
	return runCommand(signals, flags.Args(), testdaemon.Environ(daemons...))
}

// startAll starts the daemons concurrently. On an error it also returns those
// that did start.
func startAll(ctx context.Context, wanted *daemons) ([]*testdaemon.Daemon, error) {
	started := make([]*testdaemon.Daemon, len(wanted.families))
	errs := make([]error, len(wanted.families))
	var group sync.WaitGroup
	for i, family := range wanted.families {
		group.Go(func() { started[i], errs[i] = testdaemon.Start(ctx, family, wanted.options[i]) })
	}
	group.Wait()
	var daemons []*testdaemon.Daemon
	for _, d := range started {
		if d != nil {
			daemons = append(daemons, d)
		}
	}
	return daemons, errors.Join(errs...)
}

// closeAll closes the daemons concurrently.
func closeAll(daemons []*testdaemon.Daemon) error {
	errs := make([]error, len(daemons))
	var group sync.WaitGroup
	for i, d := range daemons {
		group.Go(func() { errs[i] = d.Close() })
	}
	group.Wait()
	return errors.Join(errs...)
}

// runCommand runs the command, forwards signals to it, and returns its exit
// code.
func runCommand(signals <-chan os.Signal, args, env []string) (int, error) {
	//nolint:noctx // It is stopped by signals, so that it can clean up.
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	isolate(cmd)
	if err := cmd.Start(); err != nil {
		return 127, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			forward(cmd, s)
		case err := <-done:
			return exitCode(cmd.ProcessState, err)
		}
	}
}

// exitCode returns the command's exit code, or as in a shell 128 plus the signal
// that killed it.
func exitCode(state *os.ProcessState, err error) (int, error) {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, err
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return state.ExitCode(), nil
}
