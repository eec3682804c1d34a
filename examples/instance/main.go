// Command instance ensures an image on the local daemon, then creates, starts, stops and
// deletes an instance of it: instance images:alpine/3.20
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
	context.AfterFunc(ctx, stop) // the second interrupt ends the program at once
	source, sourceErr := lxd.OpenSource(strings.Join(os.Args[1:], " "), nil)
	client, clientErr := lxd.New("", nil)
	if err := errors.Join(sourceErr, clientErr); err != nil {
		log.Fatal(err)
	}
	err := run(ctx, os.Stdout, client, source, map[string]any{"name": "example"})
	if err = errors.Join(err, client.Close(), source.Close()); err != nil {
		log.Fatal(err)
	}
}

// run creates an instance with these settings from the image of a source.
func run(ctx context.Context, out io.Writer, client *lxd.Client, source lxd.Source, settings map[string]any) error {
	ensured, err := client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "example"}}})
	if err != nil {
		return err
	}
	if settings["source"], err = ensured.Image.InstanceSource(ctx, nil); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // an interrupt leaves no instance behind
	do := func(method, path string, in any) error {
		fmt.Fprintln(out, method, path)
		op, err := client.Do(ctx, method, path, in, nil)
		if err != nil {
			return err
		}
		return op.Wait(ctx)
	}
	if err := do("POST", "/1.0/instances", settings); err != nil {
		return err
	}
	path := fmt.Sprint("/1.0/instances/", settings["name"])
	if err = do("PUT", path+"/state", map[string]any{"action": "start"}); err == nil {
		err = do("PUT", path+"/state", map[string]any{"action": "stop", "force": true})
	}
	return errors.Join(err, do("DELETE", path, nil))
}
