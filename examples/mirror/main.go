// Command mirror keeps a directory that any web server can serve to LXD and Incus as an
// image server: it has the chosen images of other image servers.
//
//	mirror [-n] [-q] FILE
//
// The file says what is mirrored:
//
//	directory: /srv/images
//	grace: 24h # how long the files of an old version remain; the default
//	parallel: 4 # downloads at once; the default
//	signing_key: mirror.key # an OpenPGP key, if the index is to be signed
//	upstreams:
//	  - url: https://images.example.net
//	    certificate: images.crt # if the system does not trust the server's
//	    keyring: images.gpg # if the server's index is to be verified by an OpenPGP key
//	    allow_http: true # if the url is not https; then nothing but a keyring makes sure whose images these are
//	    images: # the default is everything
//	      - aliases: [debian/13, ubuntu/*] # or products: ["debian:13:*"]
//	        architectures: [amd64, arm64] # the default is all
//	        types: [container, virtual-machine] # the default is both
//	        versions: 2 # the newest two of each; the default is one
//
// Paths are relative to the directory of the file. A signing key has no passphrase. An
// image must match all lines of one of the entries of images; an entry that matches none
// is reported, and the others are mirrored.
//
// It is made to be run by cron or a systemd timer: it prints a line for each image that
// came or went, and nothing if there was none. -n prints the lines and changes nothing,
// -q prints errors only. On a terminal there is a progress bar. The exit code is 0 if the
// directory has what the file says, 1 if something could not be mirrored (what could be,
// was), and 2 if the command line or the file is wrong. Two runs at once do no harm.
//
// It is a separate module, so that package lxd does not require the progress bar, and is
// built in a clone of the repository:
//
//	cd examples/mirror && go build
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/golxd/lxd/simplestreams"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// The exit codes.
const (
	done = iota
	failed
	misused
)

func run(ctx context.Context, args []string, out io.Writer, log *os.File) int {
	flags := flag.NewFlagSet("mirror", flag.ContinueOnError)
	flags.SetOutput(log)
	dryRun := flags.Bool("n", false, "print what would change, and change nothing")
	quiet := flags.Bool("q", false, "print errors only")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return done
	case err != nil:
		return misused
	case flags.NArg() != 1:
		fmt.Fprintln(log, "usage: mirror [-n] [-q] FILE")
		return misused
	}
	m, err := load(flags.Arg(0))
	if err != nil {
		fmt.Fprintln(log, "mirror:", err)
		return misused
	}
	defer m.close()
	if *quiet {
		out = io.Discard
	}
	options := &simplestreams.MirrorOptions{Parallel: m.parallel, DryRun: *dryRun}
	if !*quiet && !*dryRun && term.IsTerminal(int(log.Fd())) {
		bar := newBar(log)
		defer bar.end()
		options.Progress = bar.show
	}
	report, err := m.tree.Mirror(ctx, m.upstreams, options)
	if report != nil {
		write(out, report)
	}
	switch {
	case errors.Is(err, simplestreams.ErrInvalid):
		fmt.Fprintf(log, "mirror: %s: %v\n", flags.Arg(0), err)
		return misused
	case err != nil:
		fmt.Fprintln(log, "mirror:", err)
		return failed
	}
	return done
}
