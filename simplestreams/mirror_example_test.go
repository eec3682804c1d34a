package simplestreams_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

func ExampleTree_Mirror() {
	server := streamstest.NewServer(mirrorFiles()) // images.example.net
	defer server.Close()
	dir, err := os.MkdirTemp("", "mirror")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	upstream, err := simplestreams.New(server.URL, &simplestreams.Options{AllowHTTP: true})
	if err != nil {
		log.Fatal(err)
	}
	defer upstream.Close()
	store, err := simplestreams.NewDirStore(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	tree, err := simplestreams.NewTree(store, nil)
	if err != nil {
		log.Fatal(err)
	}

	upstreams := []simplestreams.Upstream{{
		Client: upstream,
		Select: []simplestreams.Selection{{Aliases: []string{"ubuntu/*", "alpine"}, Architectures: []string{"amd64"}}},
	}}
	for range 2 {
		report, err := tree.Mirror(ctx, upstreams, nil)
		if err != nil {
			log.Fatal(err) // Each failure names the product, the version and the file.
		}
		for _, added := range report.Added {
			fmt.Println("added", added.Product, added.Version, added.Bytes, "bytes")
		}
		fmt.Println(report.Files, "files downloaded, unmodified:", report.Unmodified)
	}
	// Output:
	// added alpine:3.20:amd64 20240301 30 bytes
	// added ubuntu:noble:amd64:default 20240201_07:42 88 bytes
	// 4 files downloaded, unmodified: false
	// 0 files downloaded, unmodified: true
}
