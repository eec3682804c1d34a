// Command progress uploads a file as an image, or exports an image to a
// directory, with a progress bar.
//
//	progress upload FILE
//	progress export ALIAS-OR-FINGERPRINT DIRECTORY
//
// It uses the local LXD or Incus daemon. It is a separate module, so that
// package lxd does not require the progress bar.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/schollz/progressbar/v3"

	"github.com/golxd/lxd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "progress:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	client, err := lxd.New("", nil)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	switch {
	case len(args) == 2 && args[0] == "upload":
		return upload(ctx, client, args[1])
	case len(args) == 3 && args[0] == "export":
		return export(ctx, client, args[1], args[2])
	}
	return errors.New("usage: progress upload FILE | progress export ALIAS-OR-FINGERPRINT DIRECTORY")
}

func upload(ctx context.Context, client *lxd.Client, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	bar := newBar()
	image, err := client.Images.Create(ctx, f, &lxd.CreateOptions{Wait: true, Progress: bar.show})
	bar.end()
	if err != nil {
		return err
	}
	fmt.Println(image.Fingerprint)
	return nil
}

func export(ctx context.Context, client *lxd.Client, name, dir string) error {
	image, err := client.Images.GetByAlias(ctx, name)
	if errors.Is(err, lxd.ErrNotFound) {
		image, err = client.Images.Get(ctx, name)
	}
	if err != nil {
		return err
	}
	bar := newBar()
	files, err := image.ExportTo(ctx, dir, &lxd.ExportToOptions{Progress: bar.show})
	bar.end()
	if err != nil {
		return err
	}
	for _, path := range []string{files.Image, files.Metadata, files.Rootfs} {
		if path != "" {
			fmt.Println(path)
		}
	}
	return nil
}

// bar displays the phases of a transfer, one after another.
type bar struct {
	*progressbar.ProgressBar
	phase string
}

func newBar() *bar {
	return &bar{ProgressBar: progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionShowBytes(true),
		progressbar.OptionSetWidth(30),
		progressbar.OptionUseANSICodes(true),
	)}
}

// show is called by one goroutine at a time, and at most ten times a second. It
// ignores errors: a bar that cannot be drawn must not end the transfer.
func (b *bar) show(p lxd.Progress) {
	if p.Phase != b.phase {
		b.phase = p.Phase
		b.Reset()
		b.Describe(fmt.Sprintf("%-8s", p.Phase))
	}
	b.ChangeMax64(p.Total)
	_ = b.Set64(max(p.Done, 0))
}

func (b *bar) end() { fmt.Fprintln(os.Stderr) }
