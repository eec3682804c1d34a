package imagefile_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/lxdtest"
)

// What is in this file?
func ExampleInspectFiles() {
	name := exampleFile(lxdtest.UnifiedImage("example", 0))
	defer os.Remove(name)

	info, err := imagefile.InspectFiles(context.Background(), name, "", &imagefile.InspectOptions{Fingerprint: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("a", info.Layout, "image of a", info.Type)
	fmt.Println("files:", info.Image.Format, "compressed by", info.Image.Compression)
	fmt.Println("for", info.Metadata.Architecture, "created on", info.Metadata.CreatedAt.Format("2006-01-02"))
	fmt.Println("system:", info.Metadata.Properties["os"], info.Metadata.Properties["release"])
	fmt.Println("fingerprint:", info.Fingerprint[:12])
	// Output:
	// a unified image of a container
	// files: tar compressed by none
	// for x86_64 created on 2024-01-01
	// system: lxdtest 1
	// fingerprint: 544a495f5af0
}

// Would a server accept this file?
func ExampleCheckFiles() {
	metadata, _ := lxdtest.SplitImage("example", 0)
	name := exampleFile(metadata)
	defer os.Remove(name)

	report, err := imagefile.CheckFiles(context.Background(), name, "", nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range report.Problems {
		fmt.Printf("%s (%s): %s\n", p.Kind, p.Severity, p.Message)
	}
	// Output:
	// no rootfs (refused): the root filesystem is missing; add a directory rootfs (of a virtual machine: rootfs.img), or give the second file
}

// A directory becomes an image on a server. It is packed while it is sent.
func ExampleNewReader() {
	dir := exampleRoot()
	defer os.RemoveAll(dir)
	server, client := exampleServer()
	defer server.Close()

	ctx := context.Background()
	root := imagefile.FromDir(dir, &imagefile.FromDirOptions{
		Owner: func(int, int) (int, int) { return 0, 0 }, // all files belong to root
	})
	packed := imagefile.NewReader(ctx, root, &imagefile.Metadata{
		Architecture: "x86_64",
		Properties:   map[string]string{"os": "Example", "description": "Example, made of a directory"},
	}, nil)
	defer packed.Close()

	image, err := client.Images.Create(ctx, packed, &lxd.CreateOptions{
		Aliases: []lxd.Alias{{Name: "example"}},
		Wait:    true,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Type, image.Properties["description"])
	// Output:
	// container Example, made of a directory
}

// The disk of a virtual machine becomes an image on a server, with its metadata.
func ExampleNewReaders() {
	_, content := lxdtest.VMImage("example", 0)
	disk := exampleFile(content)
	defer os.Remove(disk)
	server, client := exampleServer()
	defer server.Close()

	ctx := context.Background()
	metadata, rootfs := imagefile.NewReaders(ctx, imagefile.FromDisk(disk), &imagefile.Metadata{Architecture: "x86_64"}, nil)
	defer metadata.Close()
	defer rootfs.Close()

	image, err := client.Images.Create(ctx, metadata, &lxd.CreateOptions{Rootfs: rootfs, Wait: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Type)
	// Output:
	// virtual-machine
}

// The same image in two files, made again at any time with the same fingerprint.
func ExamplePackFiles() {
	dir := exampleRoot()
	defer os.RemoveAll(dir)

	root := imagefile.FromDir(dir, &imagefile.FromDirOptions{
		Owner: func(int, int) (int, int) { return 0, 0 },
	})
	metadata := &imagefile.Metadata{
		Architecture: "x86_64",
		Properties:   map[string]string{"os": "Example"},
		Templates: map[string]imagefile.Template{
			"/etc/hostname": {When: []string{"create", "copy"}, Template: "hostname.tpl"},
		},
	}
	info, err := imagefile.PackFiles(context.Background(), dir+".metadata.tar", dir+".rootfs.tar", root, metadata, &imagefile.PackOptions{
		Compression:   imagefile.None,
		TemplateFiles: map[string][]byte{"hostname.tpl": []byte("{{ container.name }}\n")},
		ModTime:       time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC),
	})
	defer os.Remove(dir + ".metadata.tar")
	defer os.Remove(dir + ".rootfs.tar")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("a", info.Layout, "image of", info.Metadata.CreatedAt.Format("2006-01-02"))
	fmt.Println("fingerprint:", info.Fingerprint[:12])
	// Output:
	// a split image of 2026-01-01
	// fingerprint: 652d1b96467d
}

// An image with another property, and as a unified image compressed by zstd.
func ExampleFromImage() {
	metadata, rootfs := lxdtest.SplitImage("example", 0)

	root := imagefile.FromImage(bytes.NewReader(metadata), bytes.NewReader(rootfs), &imagefile.FromImageOptions{
		Edit: func(m *imagefile.Metadata) error {
			m.Properties["description"] = "Renamed"
			return nil
		},
	})
	var image bytes.Buffer
	info, err := imagefile.Pack(context.Background(), &image, nil, root, nil, &imagefile.PackOptions{Compression: imagefile.Zstd})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Layout, info.Image.Compression, info.Metadata.Properties["description"])
	// Output:
	// unified zstd Renamed
}

// exampleRoot returns a directory with a file.
func exampleRoot() string {
	dir, err := os.MkdirTemp("", "imagefile-example-")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		log.Fatal(err)
	}
	motd := filepath.Join(dir, "motd")
	if err := os.WriteFile(motd, []byte("Welcome\n"), 0o644); err != nil {
		log.Fatal(err)
	}
	if err := os.Chmod(motd, 0o644); err != nil { // whatever the umask is
		log.Fatal(err)
	}
	return dir
}

// exampleServer returns a server and its client.
func exampleServer() (*lxdtest.Server, *lxd.Client) {
	server := lxdtest.NewServer(nil)
	client, err := lxd.New(server.Endpoint(), nil)
	if err != nil {
		log.Fatal(err)
	}
	return server, client
}

// exampleFile writes a temporary file and returns its name.
func exampleFile(data []byte) string {
	name := filepath.Join(os.TempDir(), fmt.Sprintf("imagefile-example-%d.tar", os.Getpid()))
	if err := os.WriteFile(name, data, 0o600); err != nil {
		log.Fatal(err)
	}
	return name
}
