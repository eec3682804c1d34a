package lxd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// The examples run against a server of package lxdtest. A program would use
// lxd.New("", nil), or another endpoint.
func exampleClient() (*lxd.Client, func()) {
	server := lxdtest.NewServer(nil)
	client, err := lxd.New(server.Endpoint(), nil)
	if err != nil {
		log.Fatal(err)
	}
	return client, func() { _ = client.Close(); server.Close() }
}

func ExampleImages_Create() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()

	file := bytes.NewReader(lxdtest.UnifiedImage("example", 0)) // or an *os.File
	image, err := client.Images.Create(ctx, file, &lxd.CreateOptions{
		Public:     true,
		Properties: map[string]string{"os": "example"},
		Aliases:    []lxd.Alias{{Name: "example/1", Description: "the first"}},
		Wait:       true,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Type, image.Architecture, image.Properties["os"], image.Aliases[0].Name)
	// Output: container x86_64 example example/1
}

func ExampleImages_Create_split() {
	client, stop := exampleClient()
	defer stop()

	metadata, rootfs := lxdtest.SplitImage("example", 0)
	image, err := client.Images.Create(context.Background(), bytes.NewReader(metadata), &lxd.CreateOptions{
		Rootfs: bytes.NewReader(rootfs),
		Wait:   true,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Size == int64(len(metadata)+len(rootfs)))
	// Output: true
}

func ExampleImages_Each() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	for _, name := range []string{"a", "b"} {
		if _, err := client.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage(name, 0)), &lxd.CreateOptions{Wait: true, Public: name == "b"}); err != nil {
			log.Fatal(err)
		}
	}

	public := true
	for image, err := range client.Images.Each(ctx, &lxd.ListOptions{Public: &public}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(image.Properties["seed"])
	}
	// Output: b
}

func ExampleImage_Update() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	image, err := client.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage("example", 0)), &lxd.CreateOptions{Wait: true})
	if err != nil {
		log.Fatal(err)
	}

	image.Public = true
	image.Properties["stage"] = "tested"
	switch err := image.Update(ctx, nil); {
	case errors.Is(err, lxd.ErrConflict):
		fmt.Println("somebody else has changed it: read it again")
	case err != nil:
		log.Fatal(err)
	}
	fmt.Println(image.Public, image.Properties["stage"])
	// Output: true tested
}

func ExampleImage_Export() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	content := lxdtest.UnifiedImage("example", 0)
	image, err := client.Images.Create(ctx, bytes.NewReader(content), &lxd.CreateOptions{Wait: true})
	if err != nil {
		log.Fatal(err)
	}

	export, err := image.Export(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = export.Close() }()
	var copied bytes.Buffer
	if _, err := io.Copy(&copied, export); err != nil {
		log.Fatal(err) // a *lxd.FingerprintError if the content is not the image's
	}
	fmt.Println(bytes.Equal(content, copied.Bytes()))
	// Output: true
}

// Files are handed on one after the other, to whatever takes one or two readers.
func ExampleExport_Files() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	metadata, rootfs := lxdtest.SplitImage("example", 1<<20)
	image, err := client.Images.Create(ctx, bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(rootfs), Wait: true})
	if err != nil {
		log.Fatal(err)
	}

	export, err := image.Export(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = export.Close() }()
	for file, err := range export.Files() {
		if err != nil {
			log.Fatal(err)
		}
		hash := sha256.New()
		n, err := io.Copy(hash, file)
		if err != nil {
			log.Fatal(err) // a *lxd.FingerprintError if the content is not the image's
		}
		fmt.Println(n == int64(len(metadata)), n == int64(len(rootfs)))
	}
	// Output:
	// true false
	// false true
}

// An image is served over HTTP, with ranges.
func ExampleImage_Content() {
	client, stop := exampleClient()
	defer stop()
	image, err := client.Images.Create(context.Background(), bytes.NewReader(lxdtest.UnifiedImage("example", 0)), &lxd.CreateOptions{Wait: true})
	if err != nil {
		log.Fatal(err)
	}

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, err := image.Content(r.Context(), nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer func() { _ = content.Close() }()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("ETag", `"`+image.Fingerprint+`"`) // for If-Range and If-None-Match
		http.ServeContent(w, r, "", image.UploadedAt, content)
	}))
	defer server.Close()

	req, err := http.NewRequest(http.MethodGet, server.URL, nil)
	if err != nil {
		log.Fatal(err)
	}
	req.Header.Set("Range", "bytes=100-199")
	res, err := server.Client().Do(req)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	part, err := io.ReadAll(res.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(res.Status, len(part))
	// Output: 206 Partial Content 100
}

func ExampleImage_ExportTo() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "images")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	image, err := client.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage("example", 0)), &lxd.CreateOptions{Wait: true})
	if err != nil {
		log.Fatal(err)
	}

	files, err := image.ExportTo(ctx, dir, &lxd.ExportToOptions{Name: "example"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(filepath.Base(files.Image))
	// Output: example.tar
}

func ExampleImage_Copy() {
	source, stopSource := exampleClient()
	defer stopSource()
	target, stopTarget := exampleClient()
	defer stopTarget()
	ctx := context.Background()
	image, err := source.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage("example", 0)), &lxd.CreateOptions{Wait: true})
	if err != nil {
		log.Fatal(err)
	}

	copied, err := image.Copy(ctx, target, &lxd.CopyOptions{Wait: true})
	if err != nil {
		log.Fatal(err)
	}
	// Neither server listens on the network, so this client has carried it.
	fmt.Println(copied.Mode, copied.Fingerprint == image.Fingerprint)
	// Output: relay true
}

func ExampleError() {
	client, stop := exampleClient()
	defer stop()

	_, err := client.Images.GetByAlias(context.Background(), "debian/13")
	var refused *lxd.Error
	fmt.Println(errors.Is(err, lxd.ErrNotFound), errors.As(err, &refused))
	fmt.Println(refused.StatusCode, refused.Path)
	// Output:
	// true true
	// 404 /1.0/images/aliases/debian%2F13
}

func ExampleClient_Events() {
	client, stop := exampleClient()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	for event, err := range client.Events(ctx, &lxd.EventsOptions{Types: []lxd.EventType{lxd.EventLifecycle}, ImagesOnly: true}) {
		switch {
		case err != nil:
			log.Fatal(err)
		case event.Type == lxd.EventConnected:
			// The events from here on are received.
			if _, err := client.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage("example", 0)), nil); err != nil {
				log.Fatal(err)
			}
			continue
		}
		fmt.Println(event.Lifecycle.Action)
		break
	}
	// Output: image-created
}

func ExampleImageSet() {
	client, stop := exampleClient()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := client.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage("example", 0)), &lxd.CreateOptions{
		Aliases: []lxd.Alias{{Name: "web"}}, Properties: map[string]string{"os": "debian"}, Wait: true,
	})
	if err != nil {
		log.Fatal(err)
	}

	var set lxd.ImageSet // other goroutines may use it meanwhile
	for change, err := range client.Images.Watch(ctx, nil) {
		if err != nil {
			log.Fatal(err)
		}
		if set.Apply(change); set.Synced() {
			break
		}
	}
	debian := set.Find(func(i *lxd.Image) bool { return i.Properties["os"] == "debian" })
	fmt.Println(len(debian), set.GetByAlias("", "web").Fingerprint == debian[0].Fingerprint)
	// Output: 1 true
}
