// Command quickstart shows the main calls of the package with one small image, and
// prints what it does: upload, alias, list, export and verify, delete.
//
// It uses the local LXD or Incus daemon if there is one that it may use, else a
// server of package lxdtest in this process. -endpoint selects another server.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

func main() {
	endpoint := flag.String("endpoint", "", `server: a unix socket, or "embedded" for one in this process (default: the local daemon, else embedded)`)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *endpoint); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, endpoint string) error {
	client, stop, err := connect(ctx, out, endpoint)
	if err != nil {
		return err
	}
	defer stop()
	defer func() { _ = client.Close() }()

	content := lxdtest.UnifiedImage(rand.Text(), 64<<10)
	image, err := client.Images.Create(ctx, bytes.NewReader(content), &lxd.CreateOptions{
		Properties: map[string]string{"description": "created by the quickstart"},
		Wait:       true,
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Uploaded an image of %d bytes: %s\n", image.Size, image.Fingerprint)
	// Delete the image even if a later call fails.
	defer func() {
		if err := image.Delete(context.WithoutCancel(ctx), &lxd.DeleteOptions{Wait: true}); err != nil {
			fmt.Fprintln(out, "Could not delete the image:", err)
			return
		}
		fmt.Fprintln(out, "Deleted the image.")
	}()

	alias := "quickstart-" + strings.ToLower(rand.Text()[:6])
	if err := image.AddAlias(ctx, alias, "created by the quickstart"); err != nil {
		return err
	}
	fmt.Fprintf(out, "Added the alias %q.\n", alias)

	images, err := client.Images.All(ctx, &lxd.ListOptions{Properties: map[string]string{"description": "created by the quickstart"}})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Found it in the list, which has %d such image(s).\n", len(images))

	found, err := client.Images.GetByAlias(ctx, alias)
	if err != nil {
		return err
	}
	export, err := found.Export(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = export.Close() }()
	n, err := io.Copy(io.Discard, export) // an error if the content does not match the fingerprint
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Exported %d bytes and verified them against the fingerprint.\n", n)
	return nil
}

// connect returns a client for the endpoint, for the local daemon, or for a server
// in this process.
func connect(ctx context.Context, out io.Writer, endpoint string) (client *lxd.Client, stop func(), err error) {
	if endpoint != "embedded" {
		client, err := lxd.New(endpoint, nil)
		if err != nil {
			return nil, nil, err
		}
		server, err := client.Server(ctx)
		if err == nil {
			fmt.Fprintf(out, "Using %s %s at %s.\n", server.Family, server.Version, client.Endpoint())
			return client, func() {}, nil
		}
		_ = client.Close()
		if endpoint != "" || !errors.Is(err, lxd.ErrUnavailable) {
			return nil, nil, err
		}
		fmt.Fprintf(out, "There is no local daemon to use (%v).\n", err)
	}
	embedded := lxdtest.NewServer(nil)
	client, err = lxd.New(embedded.Endpoint(), nil)
	if err != nil {
		embedded.Close()
		return nil, nil, err
	}
	fmt.Fprintf(out, "Using a server of package lxdtest in this process, which imitates %s.\n", embedded.Dialect())
	return client, embedded.Close, nil
}
