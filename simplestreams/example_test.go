package simplestreams_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// exampleServer stands in for a public image server.
func exampleServer() *streamstest.Server {
	return streamstest.NewTLSServer(streamstest.Tree([]streamstest.Product{
		{
			Name: "alpine:3.20:amd64", Aliases: []string{"alpine/3.20"}, OS: "Alpine", Release: "3.20", ReleaseTitle: "3.20",
			Versions: []streamstest.Version{{Serial: "20240301", Unified: []byte("an image in one file")}},
		},
		{
			Name: "debian:12:amd64", Aliases: []string{"debian/12"}, OS: "Debian", Release: "bookworm", ReleaseTitle: "12",
			Versions: []streamstest.Version{
				{Serial: "20240101", Metadata: []byte("metadata"), Roots: map[string][]byte{"squashfs": []byte("root filesystem")}},
				{Serial: "20240201", Metadata: []byte("metadata"), Roots: map[string][]byte{"squashfs": []byte("newer root filesystem")}},
			},
		},
	}, nil))
}

func Example() {
	server := exampleServer()
	defer server.Close()
	ctx := context.Background()

	client, err := simplestreams.New(server.URL, &simplestreams.Options{Certificate: server.CA})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	image, err := client.Resolve(ctx, "debian/12", &simplestreams.ResolveOptions{Architecture: "amd64"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Properties["description"])

	download, err := client.Open(ctx, image, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer download.Close()
	fmt.Println(download.Size, "bytes")
	for _, file := range []*simplestreams.FileReader{download.Metadata, download.Rootfs} {
		fmt.Print(file.Name(), ": ")
		if _, err := io.Copy(os.Stdout, file); err != nil {
			log.Fatal(err)
		}
		fmt.Println()
	}
	// Output:
	// Debian 12 amd64 (20240201)
	// 29 bytes
	// lxd.tar.xz: metadata
	// rootfs.squashfs: newer root filesystem
}

func ExampleClient_Images() {
	server := exampleServer()
	defer server.Close()
	client, err := simplestreams.New(server.URL, &simplestreams.Options{Certificate: server.CA})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for image, err := range client.Images(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(image.Properties["os"], image.Version, image.Type, image.Architecture, image.Aliases)
	}
	// Output:
	// Alpine 20240301 container x86_64 [alpine/3.20 alpine/3.20/amd64]
	// Debian 20240201 container x86_64 [debian/12 debian/12/amd64]
	// Debian 20240101 container x86_64 []
}

func ExampleClient_Resolve() {
	server := exampleServer()
	defer server.Close()
	client, err := simplestreams.New(server.URL, &simplestreams.Options{Certificate: server.CA})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for _, options := range []*simplestreams.ResolveOptions{
		{Architecture: "amd64"},
		{Architecture: "amd64", Version: "20240101"},
		{Architecture: "arm64"},
	} {
		image, err := client.Resolve(context.Background(), "debian/12", options)
		switch {
		case errors.Is(err, simplestreams.ErrNotFound):
			fmt.Println(err)
		case err != nil:
			log.Fatal(err)
		default:
			fmt.Println(image.Version, image.Fingerprint[:12])
		}
	}
	// Output:
	// 20240201 04cd3cddf71e
	// 20240101 cd3602449602
	// simplestreams: image "debian/12": not found with architecture arm64: the server has container x86_64 20240201, container x86_64 20240101
}

func ExampleHashError() {
	server := exampleServer()
	defer server.Close()
	ctx := context.Background()
	client, err := simplestreams.New(server.URL, &simplestreams.Options{Certificate: server.CA})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	image, err := client.Resolve(ctx, "alpine/3.20", nil)
	if err != nil {
		log.Fatal(err)
	}
	server.Fault(image.Files[0].Path, streamstest.Corrupt(3))

	download, err := client.Open(ctx, image, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer download.Close()
	_, err = io.Copy(io.Discard, download.Metadata)
	var corrupt *simplestreams.HashError
	fmt.Println(errors.As(err, &corrupt), errors.Is(err, io.EOF))
	// Output: true false
}

// An image is written to files, which a later call finds or completes.
func ExampleClient_DownloadTo() {
	server := exampleServer()
	defer server.Close()
	ctx := context.Background()
	client, err := simplestreams.New(server.URL, &simplestreams.Options{Certificate: server.CA})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	image, err := client.Resolve(ctx, "debian/12", &simplestreams.ResolveOptions{Architecture: "amd64"})
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "images")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	files, err := client.DownloadTo(ctx, image, dir, &simplestreams.DownloadToOptions{Name: "debian"})
	if err != nil {
		log.Fatal(err) // call it again, from another process if need be, to resume the download
	}
	fmt.Println(filepath.Base(files.Metadata), filepath.Base(files.Rootfs))
	// Output: debian.meta.img debian.img
}
