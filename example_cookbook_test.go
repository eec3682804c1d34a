package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// The code of docs/cookbook.md, and the first of README.md, is in these examples:
// TestCookbook checks it.

// exampleUser is a user whose local daemon and whose remote "images" are servers of
// package lxdtest. The remote has debian/13.
func exampleUser() (images *lxdtest.Server, stop func()) {
	local, images := lxdtest.NewServer(nil), lxdtest.NewServer(nil)
	if _, err := images.AddImage(lxdtest.UnifiedImage("debian", 0), &lxdtest.AddOptions{Aliases: []string{"debian/13"}}); err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "user")
	if err != nil {
		log.Fatal(err)
	}
	config := fmt.Sprintf("remotes: {images: {addr: %q, protocol: lxd}}\n", images.Endpoint())
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o600); err != nil {
		log.Fatal(err)
	}
	environment := map[string]string{"LXD_CONF": dir, "LXD_SOCKET": strings.TrimPrefix(local.Endpoint(), "unix://")}
	restore := map[string]string{}
	for name, value := range environment {
		restore[name] = os.Getenv(name)
		_ = os.Setenv(name, value)
	}
	return images, func() {
		for name, value := range restore {
			if value == "" {
				_ = os.Unsetenv(name)
			} else {
				_ = os.Setenv(name, value)
			}
		}
		_ = os.RemoveAll(dir)
		images.Close()
		local.Close()
	}
}

// An alias of the local daemon has the image that a remote has now.
func ExampleOpenSource() {
	_, stop := exampleUser()
	defer stop()
	ctx := context.Background()

	client, err := lxd.New("", nil) // the local daemon, found as by the lxc and incus commands
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	source, err := lxd.OpenSource("images:debian/13", nil) // "images" is a remote of these commands
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()

	ensured, err := client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "web"}}})
	if err != nil {
		log.Fatal(err)
	}
	for _, change := range ensured.Changes { // none if the alias has this image already
		log.Println(change)
	}

	fmt.Println(ensured.Image.Aliases[0].Name, len(ensured.Changes))
	// Output: web 2
}

// An alias is kept up to date: the plan, then the changes.
func ExampleImages_Ensure() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()

	for _, build := range []string{"monday", "monday", "tuesday"} {
		source := lxd.FromReader(bytes.NewReader(lxdtest.UnifiedImage(build, 0)), nil) // or lxd.OpenSource, FromURL, …
		opts := &lxd.EnsureOptions{
			Aliases:        []lxd.Alias{{Name: "web"}},
			DeleteReplaced: true, // the image that the alias had before
			DryRun:         true,
		}
		plan, err := client.Images.Ensure(ctx, source, opts)
		if err != nil {
			log.Fatal(err)
		}
		for _, change := range plan.Changes {
			fmt.Println(build, "plan:", change)
		}

		opts.DryRun = false
		ensured, err := client.Images.Ensure(ctx, source, opts)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(build, "changes:", len(ensured.Changes))
	}
	// Output:
	// monday plan: create image a9d2187e1703 from a reader
	// monday plan: create alias "web" for image a9d2187e1703
	// monday changes: 2
	// monday changes: 0
	// tuesday plan: create image 9564f1ad7e5a from a reader
	// tuesday plan: update image a9d2187e1703
	// tuesday plan: move alias "web" from image a9d2187e1703 to image 9564f1ad7e5a
	// tuesday plan: delete image a9d2187e1703
	// tuesday changes: 4
}

// An instance is published under an alias. The image that it replaces gets another
// alias, and older ones are deleted.
func ExampleImages_Ensure_publish() {
	server := lxdtest.NewServer(nil)
	defer server.Close()
	client, err := lxd.New(server.Endpoint(), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	for _, release := range []string{"first", "second", "third"} {
		server.AddInstance("web1", &lxdtest.InstanceOptions{Content: []byte(release)}) // something was installed in it

		_, err := client.Images.Ensure(ctx, lxd.FromInstance("web1", nil), &lxd.EnsureOptions{
			Aliases:        []lxd.Alias{{Name: "web/stable"}},
			Previous:       "web/previous",
			Properties:     map[string]string{"release": release},
			DeleteReplaced: true,
		})
		if err != nil {
			log.Fatal(err)
		}
	}

	images, err := client.Images.All(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, image := range images {
		fmt.Println(image.Properties["release"], "has", image.Aliases[0].Name)
	}
	// Unordered output:
	// second has web/previous
	// third has web/stable
}

// Many workers need the same image: it is downloaded once, and they work on while the
// source is down.
func ExampleImages_Ensure_workers() {
	images, stop := exampleUser()
	defer stop()
	ctx := context.Background()
	client, err := lxd.New("", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	source, err := lxd.OpenSource("images:debian/13", &lxd.OpenSourceOptions{Options: &lxd.Options{RetryTimeout: -1}})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()

	work := func() (downloads int64) {
		var workers sync.WaitGroup
		var created atomic.Int64
		for range 32 {
			workers.Go(func() {
				ensured, err := client.Images.Ensure(ctx, source, &lxd.EnsureOptions{
					Aliases: []lxd.Alias{{Name: "worker"}},
					Policy:  lxd.EnsureMissing, // the source is asked only if there is no such alias
				})
				if err != nil {
					log.Fatal(err)
				}
				for _, change := range ensured.Changes {
					if change.Action == lxd.EnsureCreated {
						created.Add(1)
					}
				}
			})
		}
		workers.Wait()
		return created.Load()
	}
	fmt.Println("downloads:", work())
	images.Close()
	fmt.Println("downloads while the source is down:", work())

	ensured, err := client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "worker"}}})
	if lxd.IsTransient(err) && ensured.Image != nil {
		fmt.Println("not known to be the newest:", ensured.Image.Aliases[0].Name)
	}
	// Output:
	// downloads: 1
	// downloads while the source is down: 0
	// not known to be the newest: worker
}

// A web handler serves images of a remote, which it fetches when they are first asked
// for, and responds to an error with its status.
func ExampleImages_Ensure_handler() {
	images, stop := exampleUser()
	defer stop()
	client, err := lxd.New("", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	remote, err := lxd.Remote("images", &lxd.Options{RetryTimeout: -1})
	if err != nil {
		log.Fatal(err)
	}
	defer remote.Close()

	status := func(err error) int {
		switch {
		case errors.Is(err, lxd.ErrNotFound):
			return http.StatusNotFound
		case errors.Is(err, lxd.ErrInvalid):
			return http.StatusBadRequest
		case lxd.IsTransient(err):
			return http.StatusServiceUnavailable
		}
		return http.StatusInternalServerError
	}
	serve := func(w http.ResponseWriter, r *http.Request) error {
		name := r.PathValue("name")
		ensured, err := client.Images.Ensure(r.Context(), lxd.FromImage(remote, name, nil), &lxd.EnsureOptions{
			Aliases: []lxd.Alias{{Name: name}},
			Policy:  lxd.EnsureMissing,
		})
		if err != nil {
			return err
		}
		content, err := ensured.Image.Content(r.Context(), nil)
		if err != nil {
			return err
		}
		defer content.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", ensured.Image.UploadedAt, content)
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /images/{name...}", func(w http.ResponseWriter, r *http.Request) {
		if err := serve(w, r); err != nil {
			http.Error(w, err.Error(), status(err))
		}
	})

	web := httptest.NewServer(mux)
	defer web.Close()
	get := func(name string) {
		res, err := web.Client().Get(web.URL + "/images/" + name)
		if err != nil {
			log.Fatal(err)
		}
		defer res.Body.Close()
		fmt.Printf("%d %q\n", res.StatusCode, name)
	}
	get("debian/13")
	get("debian/99")
	get("")
	images.Close()
	get("debian/13")
	get("debian/99")
	// Output:
	// 200 "debian/13"
	// 404 "debian/99"
	// 400 ""
	// 200 "debian/13"
	// 503 "debian/99"
}

// An instance is created from an ensured image, with a request for which this package
// has no method.
func ExampleClient_Do() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	source := lxd.FromReader(bytes.NewReader(lxdtest.UnifiedImage("example", 0)), nil)

	ensured, err := client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "web"}}})
	if err != nil {
		log.Fatal(err)
	}
	from, err := ensured.Image.InstanceSource(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	op, err := client.Do(ctx, "POST", "/1.0/instances", map[string]any{"name": "web1", "source": from}, nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := op.Wait(ctx); err != nil {
		log.Fatal(err)
	}

	instances, err := ensured.Image.UsedBy(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(instances[0].Name, instances[0].Status)
	// Output: web1 Stopped
}

// ExampleImage_Distribute brings an image to two more servers.
func ExampleImage_Distribute() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	image, err := client.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage("web", 0)), &lxd.CreateOptions{
		Aliases: []lxd.Alias{{Name: "web"}}, Wait: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	var servers []*lxd.Client
	for range 2 {
		server, stop := exampleClient()
		defer stop()
		servers = append(servers, server)
	}

	for delivery, err := range image.Distribute(ctx, servers, &lxd.DistributeOptions{
		Copy: lxd.CopyOptions{CopyAliases: true, ReuseAliases: true},
	}) {
		if err != nil {
			fmt.Println(delivery.Index, "failed:", err) // the others go on
			continue
		}
		fmt.Println(delivery.Index, "has", delivery.Image.Aliases[0].Name)
	}

	// Unordered output:
	// 0 has web
	// 1 has web
}

// Old builds are deleted: the plan, then the deletion.
func ExampleImages_Prune() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	for _, build := range []string{"build/1", "build/2", "build/3", "build/4"} {
		_, err := client.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage(build, 0)), &lxd.CreateOptions{
			Aliases: []lxd.Alias{{Name: build}}, Wait: true,
		})
		if err != nil {
			log.Fatal(err)
		}
	}

	opts := &lxd.PruneOptions{
		AliasPrefixes: []string{"build/"},
		Keep:          2,
		Protect:       []string{"build/1"},
		DryRun:        true,
	}
	plan, err := client.Images.Prune(ctx, opts)
	if err != nil {
		log.Fatal(err)
	}
	for _, image := range plan.Deleted {
		fmt.Println("would delete", image.Aliases[0].Name+":", image.Reason)
	}
	for _, image := range plan.Kept {
		fmt.Println("would keep", image.Aliases[0].Name+":", image.Reason)
	}
	opts.DryRun = false
	pruned, err := client.Images.Prune(ctx, opts)
	if err != nil {
		log.Fatal(err)
	}

	fmt.Println(len(pruned.Deleted), "deleted")
	// Output:
	// would delete build/2: not one of the newest 2 of "build/", container, x86_64
	// would keep build/1: its alias "build/1" is protected
	// would keep build/3: one of the newest 2 of "build/", container, x86_64
	// would keep build/4: one of the newest 2 of "build/", container, x86_64
	// 1 deleted
}

// A program always knows what is there.
func ExampleImages_Watch() {
	client, stop := exampleClient()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	upload := func(name string) *lxd.Image {
		image, err := client.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage(name, 0)), &lxd.CreateOptions{Wait: true})
		if err != nil {
			log.Fatal(err)
		}
		return image
	}
	upload("first")

	images := map[string]*lxd.Image{}
	for change, err := range client.Images.Watch(ctx, nil) {
		if err != nil {
			log.Fatal(err)
		}
		switch change.Kind {
		case lxd.ImagesSynced:
			fmt.Println("all are known:", len(images))
			upload("second")
			continue
		case lxd.ImageRemoved:
			delete(images, change.Former.Fingerprint)
		default: // present, added or changed
			images[change.Image.Fingerprint] = change.Image
		}
		fmt.Println(change.Kind, len(images))
		if change.Kind == lxd.ImageAdded {
			break
		}
	}

	// Output:
	// present 1
	// all are known: 1
	// added 2
}
