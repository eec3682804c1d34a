package simplestreams_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/simplestreams"
)

// inExampleDir runs an example in a directory with the files of an image.
func inExampleDir() (leave func()) {
	before, err := os.Getwd()
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tree")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.Chdir(dir); err != nil {
		log.Fatal(err)
	}
	for name, content := range map[string]string{"metadata.tar.xz": xzMagic + "metadata", "rootfs.squashfs": squashfsMagic + "root filesystem"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			log.Fatal(err)
		}
	}

	return func() {
		_ = os.Chdir(before)
		_ = os.RemoveAll(dir)
	}
}

func ExampleTree_Publish() {
	defer inExampleDir()()
	ctx := context.Background()

	store, err := simplestreams.NewDirStore("images.example.net")
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	tree, err := simplestreams.NewTree(store, nil)
	if err != nil {
		log.Fatal(err)
	}

	image, err := tree.Publish(ctx, &simplestreams.Publication{
		Aliases:      []string{"debian/13", "debian/trixie"},
		OS:           "Debian",
		Release:      "trixie",
		ReleaseTitle: "13",
		Architecture: "amd64",
		Version:      "20260101_07:42",
		Files:        simplestreams.FileContents("metadata.tar.xz", "rootfs.squashfs"),
	}, &simplestreams.PublishOptions{Keep: 3})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Product, image.Version, image.Type)
	fmt.Println(image.Properties["description"])
	// Output:
	// debian:trixie:amd64:default 20260101_07:42 container
	// Debian 13 amd64 (20260101_07:42)
}

func ExampleNewHandler() {
	defer inExampleDir()()
	ctx := context.Background()
	store, err := simplestreams.NewDirStore("images.example.net")
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	tree, err := simplestreams.NewTree(store, nil)
	if err != nil {
		log.Fatal(err)
	}
	_, err = tree.Publish(ctx, &simplestreams.Publication{
		Aliases: []string{"debian/13"}, OS: "Debian", Release: "trixie", Architecture: "amd64", Version: "20260101",
		Files: simplestreams.FileContents("metadata.tar.xz", "rootfs.squashfs"),
	}, nil)
	if err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.Handle("/", simplestreams.NewHandler(store.FS()))
	server := httptest.NewServer(mux) // or http.ListenAndServeTLS(":443", "server.crt", "server.key", mux)
	defer server.Close()

	client, err := simplestreams.New(server.URL, &simplestreams.Options{AllowHTTP: true})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	image, err := client.Resolve(ctx, "debian/13", nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Version, image.Size)
	// Output: 20260101 33
}

// The image of a server, which may be a new one of an instance, is published without a temporary file.
func ExampleTree_Publish_server() {
	defer inExampleDir()()
	ctx := context.Background()
	server := lxdtest.NewServer(nil)
	defer server.Close()
	unified := lxdtest.UnifiedImage("web", 10_000)
	_, err := server.AddImage(unified, &lxdtest.AddOptions{
		Aliases: []string{"web"}, Properties: map[string]string{"os": "Web", "release": "1.4", "serial": "20260101_07:42"},
	})
	if err != nil {
		log.Fatal(err)
	}
	client, err := lxd.New(server.Socket(), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	store, err := simplestreams.NewDirStore("images.example.net")
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	tree, err := simplestreams.NewTree(store, nil)
	if err != nil {
		log.Fatal(err)
	}

	image, err := client.Images.GetByAlias(ctx, "web")
	if err != nil {
		log.Fatal(err)
	}
	export, err := image.Export(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer export.Close()
	published, err := tree.Publish(ctx, &simplestreams.Publication{
		Aliases:      []string{"web"},
		Architecture: image.Architecture,
		Properties:   image.Properties,
		CreatedAt:    image.CreatedAt,
		Fingerprint:  image.Fingerprint,
		Files:        export.Files(),
	}, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(published.Product, published.Version, published.Fingerprint == image.Fingerprint)
	// Output: web:1.4:amd64:default 20260101_07:42 true
}

func ExampleTree_Prune() {
	defer inExampleDir()()
	ctx := context.Background()
	store, err := simplestreams.NewDirStore("images.example.net")
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	tree, err := simplestreams.NewTree(store, &simplestreams.TreeOptions{Grace: 48 * time.Hour})
	if err != nil {
		log.Fatal(err)
	}
	for _, version := range []string{"20260101", "20260102", "20260103"} {
		_, err := tree.Publish(ctx, &simplestreams.Publication{
			Aliases: []string{"debian/13"}, OS: "Debian", Release: "trixie", Architecture: "amd64", Version: version,
			Files: simplestreams.FileContents("metadata.tar.xz", "rootfs.squashfs"),
		}, nil)
		if err != nil {
			log.Fatal(err)
		}
	}

	report, err := tree.Prune(ctx, &simplestreams.PruneOptions{Keep: 2})
	if err != nil {
		log.Fatal(err)
	}
	for _, removed := range report.Removed {
		fmt.Println("removed", removed.Product, removed.Version)
	}
	for image, err := range tree.Images(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("listed", image.Version)
	}
	// Output:
	// removed debian:trixie:amd64:default 20260101
	// listed 20260103
	// listed 20260102
}
