package imagefile_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

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

// exampleFile writes a temporary file and returns its name.
func exampleFile(data []byte) string {
	name := filepath.Join(os.TempDir(), fmt.Sprintf("imagefile-example-%d.tar", os.Getpid()))
	if err := os.WriteFile(name, data, 0o600); err != nil {
		log.Fatal(err)
	}
	return name
}
