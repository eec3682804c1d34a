package lxdtest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// imageMetadata is the metadata in an image's tarball.
type imageMetadata struct {
	kind         string // container, virtual-machine, or "" without a root file system
	architecture string
	created      time.Time
	expires      time.Time
	properties   map[string]string
	noProperties bool   // metadata.yaml was read and has no properties field
	suffix       string // the file name extension, such as ".tar.gz"
}

// format is a file format, recognized by its first bytes.
type format struct {
	suffix string
	magic  string
	at     int
	open   func(io.Reader) (io.Reader, error) // nil if it cannot be read here
}

var formats = []format{
	{suffix: ".tar.gz", magic: "\x1f\x8b", open: func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{suffix: ".tar.bz2", magic: "BZh", open: func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{suffix: ".tar", magic: "ustar", at: 257, open: func(r io.Reader) (io.Reader, error) { return r, nil }},
	{suffix: ".tar.xz", magic: "\xfd7zXZ\x00"},
	{suffix: ".tar.lzma", magic: "]\x00\x00"},
	{suffix: ".tar.zst", magic: "\x28\xb5\x2f\xfd"},
	{suffix: ".squashfs", magic: "hsqs"},
	{suffix: ".qcow2", magic: "QFI\xfb"},
}

// detectFormat returns the format of a file.
func detectFormat(head []byte) (*format, error) {
	if len(head) == 0 {
		return nil, io.EOF
	}
	for i, f := range formats {
		if len(head) >= f.at+len(f.magic) && string(head[f.at:f.at+len(f.magic)]) == f.magic {
			return &formats[i], nil
		}
	}
	return nil, daemonErrorf("Unsupported compression")
}

// suffixOf returns the extension with which a file is exported, or "".
func suffixOf(path string) string {
	head, err := readHead(path)
	if err != nil {
		return ""
	}
	f, err := detectFormat(head)
	if err != nil {
		return ""
	}
	return f.suffix
}

func readHead(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	head, err := io.ReadAll(io.LimitReader(file, 512))
	return head, err
}

// readMetadata reads the metadata of an image from its tarball. It stops once it
// has found the metadata and the root file system. A format that the standard
// library cannot decompress, such as xz, is only recognized: the image is then
// reported as a container for x86_64 with properties.
func readMetadata(path string, now time.Time) (*imageMetadata, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	in := bufio.NewReaderSize(file, 64<<10)
	head, err := in.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	f, err := detectFormat(head)
	if err != nil {
		return nil, err
	}
	found := &imageMetadata{suffix: f.suffix, properties: map[string]string{}}
	if f.open == nil {
		if f.suffix == ".qcow2" {
			return nil, errNoMetadata
		}
		found.kind, found.architecture, found.created = "container", "x86_64", now.Truncate(time.Second)
		return found, nil
	}
	unpacked, err := f.open(in)
	if err != nil {
		return nil, err
	}
	var metadata []byte
	archive := tar.NewReader(unpacked)
	for metadata == nil || found.kind == "" {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(header.Name, "./")
		switch {
		case name == "metadata.yaml":
			metadata, err = io.ReadAll(io.LimitReader(archive, 1<<20))
			if err != nil {
				return nil, err
			}
		case name == "rootfs" || strings.HasPrefix(name, "rootfs/"):
			found.kind = "container"
		case name == "rootfs.img":
			found.kind = "virtual-machine"
		}
	}
	if metadata == nil {
		return nil, errNoMetadata
	}
	return found, found.parse(metadata)
}

var errNoMetadata = daemonErrorf("Metadata tarball is missing metadata.yaml")

// parse reads a metadata.yaml.
func (c *imageMetadata) parse(data []byte) error {
	var fields struct {
		Architecture string            `yaml:"architecture"`
		CreationDate int64             `yaml:"creation_date"`
		ExpiryDate   int64             `yaml:"expiry_date"`
		Properties   map[string]string `yaml:"properties"`
	}
	if err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&fields); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !knownArchitecture(fields.Architecture) {
		return daemonErrorf("Architecture isn't supported: %s", fields.Architecture)
	}
	if fields.CreationDate == 0 {
		return daemonErrorf("Missing creation date")
	}
	c.architecture = fields.Architecture
	c.created = time.Unix(fields.CreationDate, 0).UTC()
	if fields.ExpiryDate > 0 {
		c.expires = time.Unix(fields.ExpiryDate, 0).UTC()
	}
	c.noProperties = fields.Properties == nil
	if !c.noProperties {
		c.properties = fields.Properties
	}
	return nil
}

// knownArchitecture reports whether the daemons support an architecture, by its
// name or by an alias.
func knownArchitecture(name string) bool {
	switch name {
	case "i686", "x86_64", "armv6l", "armv7l", "armv8l", "aarch64", "ppc", "ppc64", "ppc64le", "s390x",
		"mips", "mips64", "riscv32", "riscv64", "loongarch64",
		"i386", "amd64", "armhf", "armel", "arm64", "powerpc", "ppc64el", "generic_64":
		return true
	}
	return false
}
