package imagefile

import (
	"time"

	"github.com/golxd/lxd/simplestreams"
)

// ImageType is the type of the instances that an image is for. It is the type of package lxd.
type ImageType = simplestreams.ImageType

// The image types.
const (
	Container      = simplestreams.Container
	VirtualMachine = simplestreams.VirtualMachine
)

// Layout says which parts of an image the files are.
type Layout string

// The layouts.
const (
	Unified      Layout = "unified"  // one file with metadata and root filesystem
	Split        Layout = "split"    // two files
	MetadataOnly Layout = "metadata" // the first file of a split image
	RootfsOnly   Layout = "rootfs"   // the second file of a split image, or a tarball without metadata.yaml
)

// Compression is the compression of a file as a whole. A squashfs or qcow2 may compress its blocks itself; that is not
// meant.
type Compression string

// The compressions.
const (
	None  Compression = "none"
	Gzip  Compression = "gzip"
	Bzip2 Compression = "bzip2"
	XZ    Compression = "xz"
	LZMA  Compression = "lzma"
	Zstd  Compression = "zstd"
)

// Format is the format of a file, below its compression.
type Format string

// The formats.
const (
	Tar      Format = "tar"
	Squashfs Format = "squashfs"
	Qcow2    Format = "qcow2"
	Raw      Format = "raw" // a disk that begins with a boot record
)

// Info describes the files of an image.
type Info struct {
	Layout Layout
	// Type is Container for a directory rootfs, a tarball or a squashfs, and VirtualMachine for a disk. It is empty for
	// MetadataOnly, as the metadata does not say it.
	Type ImageType
	// Metadata is nil for RootfsOnly.
	Metadata *Metadata
	// MetadataYAML is the content of metadata.yaml as it is, which may have fields that Metadata does not have. It is nil
	// if there is none.
	MetadataYAML []byte
	// Fingerprint is the SHA-256 of the file, or of the first file followed by the second, in lower-case hexadecimal. The
	// daemons name the image by it. It is empty if the files were not read to their ends.
	Fingerprint string
	// Size is the sum of the files' sizes in bytes, -1 if it is unknown.
	Size int64

	Image  File  // the first or only file
	Rootfs *File // the second file; nil if none was given
}

// File describes one file.
type File struct {
	// Size is in bytes, -1 if it is unknown, as the file was not read to its end.
	Size        int64
	Compression Compression
	Format      Format
	// DiskSize is the size in bytes of the disk that a guest sees, of an uncompressed qcow2; otherwise 0.
	DiskSize int64
}

// Metadata is the content of metadata.yaml.
type Metadata struct {
	// Architecture is the daemons' name, such as "x86_64" for "amd64". A name that they do not know remains as it is.
	Architecture string
	CreatedAt    time.Time // zero: missing, which the daemons refuse
	ExpiresAt    time.Time // zero: never
	Properties   map[string]string
	// Templates are the files that the daemon writes in instances, by their absolute path in the instance.
	Templates map[string]Template
}

// Template is a file that the daemon writes in instances of the image.
type Template struct {
	When       []string          `yaml:"when"`                  // of "create", "copy", "start" and "rename"
	CreateOnly bool              `yaml:"create_only,omitempty"` // do not overwrite a file
	Template   string            `yaml:"template"`              // the file's name in the directory templates of the image
	Properties map[string]string `yaml:"properties,omitempty"`  // for the template's use
}
