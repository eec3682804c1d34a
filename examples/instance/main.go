// Command instance runs an instance of an ensured image: instance images:alpine/3.20
package main

import (
	"context"
	"errors"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

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
	if err := errors.Join(run(ctx, client, source, "example", nil), client.Close(), source.Close()); err != nil {
		log.Fatal(err)
	}
}

// run ensures the image, and creates, starts, stops and deletes an instance of it.
func run(ctx context.Context, client *lxd.Client, source lxd.Source, name string, devices map[string]any) error {
	ensured, err := client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "example"}}})
	if err != nil {
		return err
	}
	from, err := ensured.Image.InstanceSource(ctx, nil)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // an interrupt leaves no instance behind
	do := func(method, path string, in any) error {
		log.Println(method, path)
		op, err := client.Do(ctx, method, path, in, nil)
		if err != nil {
			return err
		}
		return op.Wait(ctx)
	}
	if err := do("POST", "/1.0/instances", map[string]any{"name": name, "source": from, "devices": devices}); err != nil {
		return err
	}
	if err = do("PUT", "/1.0/instances/"+name+"/state", map[string]any{"action": "start"}); err == nil {
		err = do("PUT", "/1.0/instances/"+name+"/state", map[string]any{"action": "stop", "force": true})
	}
	deleted := do("DELETE", "/1.0/instances/"+name, nil)
	for n := 0; deleted != nil && n < 60; deleted, n = do("DELETE", "/1.0/instances/"+name, nil), n+1 {
		<-time.After(time.Second) // after a failed start, the daemon is busy for some time
	}
	return errors.Join(err, deleted)
}
