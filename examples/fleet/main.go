// Command fleet keeps images in step on many LXD and Incus servers:
//
//	fleet [-once | -dry-run] [-listen ADDRESS] FILE
//
// The file lists the servers, and the aliases that each of them is to have:
//
//	interval: 15m # how often the sources are asked; the default
//	servers:
//	  - name: host1
//	    remote: host1 # of the lxc or incus command line
//	  - name: host2
//	    url: https://10.0.0.2:8443 # or unix:///var/lib/incus/unix.socket
//	    server_certificate: host2.crt # these paths are relative to the file
//	    client_certificate: client.crt
//	    client_key: client.key
//	    project: web
//	aliases:
//	  - name: web
//	    source: images:debian/13 # or the path of a file with a slash, or a URL
//	    public: true
//	    properties: {team: web}
//	    keep: 2 # how many of the images that were brought for it remain; the default is all
//
// For each alias, one server gets the image of the source (Images.Ensure) and the others
// get it from there and from each other (Image.Distribute); then old images are deleted
// (Images.Prune). After that, each server is watched (Images.Watch), and an alias that
// somebody else has moved or deleted is repaired. A server that is down is retried, and
// catches up when it returns; a source that cannot be read changes nothing.
//
// With -once, one pass is made, and the exit code is 1 if something failed. With -dry-run,
// the changes of such a pass are printed and not made; what becomes old only by them, and
// is deleted then, is not printed. -listen serves metrics for
// Prometheus at /metrics. docs/fleet.md describes the operation.
//
// It is a separate module, so that package lxd does not require the metrics library.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "fleet:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("fleet", flag.ContinueOnError)
	flags.SetOutput(log)
	once := flags.Bool("once", false, "make one pass; the exit code is 1 if something failed")
	dryRun := flags.Bool("dry-run", false, "print what a pass would change, and change nothing")
	listen := flags.String("listen", "", "`address` that serves /metrics, such as :9090")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || *once && *dryRun {
		return errors.New("usage: fleet [-once | -dry-run] [-listen ADDRESS] FILE")
	}
	conf, err := load(flags.Arg(0))
	if err != nil {
		return err
	}
	defer conf.close()
	c := newController(conf, slog.New(slog.NewTextHandler(log, nil)))
	if *listen != "" {
		stop, err := c.serve(*listen)
		if err != nil {
			return err
		}
		defer stop()
	}
	switch {
	case *dryRun:
		err = c.plan(ctx, out)
	case *once:
		err = c.pass(ctx, true)
	default:
		c.run(ctx)
		return nil
	}
	if err != nil {
		return errors.New("failed; the log says why")
	}
	return nil
}

// serve serves the metrics until stop is called.
func (c *controller) serve(address string) (stop func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	c.log.Info("serving metrics", "url", fmt.Sprintf("http://%s/metrics", listener.Addr()))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", c.metrics.handler())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // until it is closed
	}()
	return func() { server.Close(); <-done }, nil
}
