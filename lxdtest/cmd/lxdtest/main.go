package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as with nohup
		signals = append(signals, syscall.SIGHUP)
	}
	// Whoever reads the output may be gone: writing is an error then, not the end of a
	// process that has files to remove.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// The exit codes.
const (
	exitEnded  = 0 // it was told to end
	exitFailed = 1
	exitUsage  = 2
)

// run serves until ctx ends, the control socket says so or, with -with-parent, the
// parent process is gone. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	s, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitEnded
	case err != nil:
		fmt.Fprintf(stderr, "lxdtest: %s\n(lxdtest -help lists the flags)\n", plain(err))
		return exitUsage
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.withParent {
		if err := watchParent(ctx, cancel); err != nil {
			fmt.Fprintf(stderr, "lxdtest: -with-parent: %v\n", err)
			return exitFailed
		}
	}
	if err := serve(ctx, cancel, s, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "lxdtest: %s\n", plain(err))
		return exitFailed
	}
	return exitEnded
}

// plain returns the text of an error without the prefix of package lxdtest, which is also
// that of this command. It is not what a path may end with, such as that of the marker.
func plain(err error) string {
	text := strings.TrimPrefix(err.Error(), "lxdtest: ")
	return strings.NewReplacer(": lxdtest: ", ": ", "\nlxdtest: ", "\n").Replace(text)
}

// serve starts the servers, prints the line that says so, and closes the servers
// when ctx has ended. stop ends ctx.
func serve(ctx context.Context, stop func(), s *settings, stdout, stderr io.Writer) (err error) {
	d, err := openDir(s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	f, err := startFleet(s, d, stderr)
	if err != nil {
		return err
	}
	defer f.close()
	c, err := startControl(ctx, stop, f, s, d)
	if err != nil {
		return err
	}
	defer c.close()
	line, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(stdout, "%s\n", line); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	<-ctx.Done()
	return nil
}
