package simplestreams_test

import (
	"context"
	"fmt"
	"iter"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// TestMain fails if goroutines of this package or of its connections are left behind.
func TestMain(m *testing.M) {
	if job := os.Getenv(envPublish); job != "" {
		if err := publisher(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if url := os.Getenv(envDownloadTo); url != "" {
		if err := downloadToInProcess(url, os.Getenv(envDownloadTo+"_DIR")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if url := os.Getenv(envMirror); url != "" {
		if err := mirrorInProcess(url, os.Getenv(envMirror+"_DIR")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if code == 0 {
		if left := leaked(); left != "" {
			fmt.Fprintln(os.Stderr, "goroutines left behind:\n\n"+left)
			code = 1
		}
	}
	os.Exit(code)
}

// leaked returns the stacks of goroutines that do not end by themselves within three seconds.
func leaked() string {
	var left []string
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		buffer := make([]byte, 1<<20)
		left = left[:0]
		for stack := range strings.SplitSeq(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
			if strings.Contains(stack, "simplestreams.(*") || strings.Contains(stack, "net/http.(*persistConn)") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			return ""
		}
	}

	return strings.Join(left, "\n\n")
}

// products is a tree with each kind of image.
func products(family string) []streamstest.Product {
	split := func(serial string) streamstest.Version {
		return streamstest.Version{
			Serial: serial, Label: "release", Family: family, Metadata: []byte("metadata " + serial),
			Roots: map[string][]byte{"squashfs": []byte("squashfs " + serial), "root.tar.xz": []byte("tar " + serial), "disk-kvm.img": []byte("disk " + serial)},
		}
	}
	noble := streamstest.Product{
		Name: "ubuntu:noble:amd64:default", Aliases: []string{"ubuntu/noble/default", "ubuntu/noble", "ubuntu/24.04"},
		OS: "Ubuntu", Release: "noble", ReleaseTitle: "24.04 LTS", Version: "24.04", Variant: "default",
		EndOfLife: "2029-05-31", Requirements: map[string]string{"secureboot": "false"},
		Versions: []streamstest.Version{split("20240101_07:42"), split("20240201_07:42")},
	}
	nobleARM := noble
	nobleARM.Name, nobleARM.Arch = "ubuntu:noble:arm64:default", "arm64"
	nobleARM.Versions = []streamstest.Version{{
		Serial: "20240201_07:43", Family: family, Metadata: []byte("metadata arm"), Roots: map[string][]byte{"squashfs": []byte("squashfs arm")},
	}}

	return []streamstest.Product{
		noble, nobleARM,
		{
			Name: "alpine:3.20:amd64", Aliases: []string{"alpine/3.20", "alpine"}, OS: "Alpine", Release: "3.20",
			Versions: []streamstest.Version{{Serial: "20240301", Family: family, Unified: []byte("a unified image")}},
		},
		{
			Name: "appliance:amd64", Aliases: []string{"appliance"}, OS: "Appliance", Release: "1",
			Versions: []streamstest.Version{{Serial: "20240302", Family: family, Metadata: []byte("vm metadata"), Roots: map[string][]byte{"disk1.img": []byte("vm disk")}}},
		},
		{
			Name: "old:i386", Aliases: []string{"old"}, Arch: "i386", OS: "Old", Release: "1",
			Versions: []streamstest.Version{{Serial: "20200101", Family: family, Unified: []byte("an old image")}},
		},
		{
			Name: "board:armhf", Aliases: []string{"board"}, Arch: "armhf", OS: "Board", Release: "1",
			Versions: []streamstest.Version{{Serial: "20200101", Family: family, Unified: []byte("an arm image")}},
		},
	}
}

// serve starts a server of files over http.
func serve(t *testing.T, files map[string][]byte) *streamstest.Server {
	t.Helper()
	server := streamstest.NewServer(files)
	t.Cleanup(server.Close)

	return server
}

// newClient returns a client for a server of these tests.
func newClient(t *testing.T, server *streamstest.Server, change func(*simplestreams.Options)) *simplestreams.Client {
	t.Helper()
	options := &simplestreams.Options{AllowHTTP: true, RetryTimeout: -1}
	if change != nil {
		change(options)
	}
	client, err := simplestreams.New(server.URL, options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })

	return client
}

// standard serves the standard tree and returns a client for it.
func standard(t *testing.T) (*streamstest.Server, *simplestreams.Client) {
	t.Helper()
	server := serve(t, streamstest.Tree(products("lxd"), nil))

	return server, newClient(t, server, nil)
}

// all lists the images of a server.
func all(t *testing.T, lister interface {
	Images(context.Context) iter.Seq2[*simplestreams.Image, error]
}) []*simplestreams.Image {
	t.Helper()
	var images []*simplestreams.Image
	for image, err := range lister.Images(t.Context()) {
		require.NoError(t, err)
		images = append(images, image)
	}

	return images
}
