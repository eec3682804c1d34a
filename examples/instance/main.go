// Command instance ensures an image on the local daemon, and creates, starts, stops and
// deletes an instance of it:
//
//	instance images:alpine/3.20
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"

	"github.com/golxd/lxd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, strings.Join(os.Args[1:], " "))
	if stop(); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer, image string) error {
	source, err := lxd.OpenSource(image, nil)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	client, err := lxd.New("", nil)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	return use(ctx, out, client, source, map[string]any{"name": "example"})
}

// use creates an instance with these settings from the image of a source.
func use(ctx context.Context, out io.Writer, client *lxd.Client, source lxd.Source, instance map[string]any) error {
	ensured, err := client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "example"}}})
	if err != nil {
		return err
	}
	if instance["source"], err = ensured.Image.InstanceSource(ctx, nil); err != nil {
		return err
	}
	do := func(method, path string, in any) error {
		fmt.Fprintln(out, method, path)
		op, err := client.Do(ctx, method, path, in, nil)
		if err != nil {
			return err
		}
		return op.Wait(ctx)
	}
	if err := do("POST", "/1.0/instances", instance); err != nil {
		return err
	}
	at := fmt.Sprint("/1.0/instances/", instance["name"])
	if err = do("PUT", at+"/state", map[string]any{"action": "start", "timeout": 30}); err == nil {
		err = do("PUT", at+"/state", map[string]any{"action": "stop", "timeout": 30, "force": true})
	}
	return errors.Join(err, do("DELETE", at, nil))
}
