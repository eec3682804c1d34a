package simplestreams

import (
	"context"
	"iter"
	"maps"
	"path"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// ImageType is the type of the instances that an image is for.
type ImageType string

// The image types.
const (
	Container      ImageType = "container"
	VirtualMachine ImageType = "virtual-machine"
)

// Image is an image of a simplestreams server, with the values that LXD and Incus show once they have imported it. It
// belongs to the caller, who may change it.
type Image struct {
	// Fingerprint is the SHA-256, in lower-case hexadecimal, of the file, or of the metadata followed by the root
	// filesystem.
	Fingerprint string

	// Product and Version are the keys under which the server lists the image. A newer version sorts after an older one.
	Product string
	Version string

	// Aliases are the names that resolve to this image, if it is the newest version of its product: the product's
	// aliases, which resolve to it on a host of its architecture, and the same with "/" and the index's name for the
	// architecture.
	Aliases []string

	// Architecture is the daemons' name, such as "x86_64". The index's name is in the property "architecture".
	Architecture string

	Type ImageType

	// Filename is the name of the image file or of the metadata file, without directories.
	Filename string

	// Size is the sum in bytes of the files' sizes in the index; 0 if the index has none.
	Size int64

	// Properties are those that daemons set on the image: architecture, description, label, os, release, serial, type,
	// variant, version and requirements.*, each only if it is not empty.
	Properties map[string]string

	// CreatedAt is the date at the beginning of the version's name, in UTC.
	CreatedAt time.Time

	// ExpiresAt is the end of support, or the zero time if the index has none.
	ExpiresAt time.Time

	// Files are the one file of a unified image, or the metadata and the root filesystem, in this order, of a split one.
	Files []File
}

// File is one file of an image.
type File struct {
	// Type is the index's name for the type of file, such as "lxd.tar.xz" or "squashfs".
	Type string

	// Path is relative to the server's address, with "/" as separator. It comes from the server: do not use it as a path
	// on the local disk.
	Path string

	// Size is the size in bytes; 0 if the index has none.
	Size int64

	// SHA256 is the hash in lower-case hexadecimal, or empty if the index has none: then only the combined hash is checked.
	SHA256 string
}

// Split reports whether the image consists of metadata and a separate root filesystem.
func (i *Image) Split() bool { return i != nil && len(i.Files) > 1 }

// Images lists the images of the server, the newest version of each product first, in the order in which LXD and Incus
// list them: by operating system, release, variant, version and architecture. The index is read when the sequence is
// ranged over, which can be repeated. An error ends the sequence.
//
// Entries that daemons do not list are left out: those of an unknown architecture, a version whose name does not begin
// with a date, items without a combined hash. So are entries that cannot be downloaded, such as one with a path not below
// the server's address; resolving one of those returns an error that says what is wrong with it.
func (c *Client) Images(ctx context.Context) iter.Seq2[*Image, error] {
	return func(yield func(*Image, error) bool) {
		index, err := c.load(ctx, false)
		if err != nil {
			yield(nil, err)
			return
		}
		for i := range index.entries {
			e := &index.entries[i]
			if err := ctxerr.Of(ctx); err != nil {
				yield(nil, err)
				return
			}
			if e.broken == nil && !yield(e.image(), nil) {
				return
			}
		}
	}
}

// image returns the entry as an Image.
func (e *listEntry) image() *Image {
	p := e.product
	day, _ := created(e.serial)
	image := &Image{
		Fingerprint:  e.fingerprint.String(),
		Product:      p.name,
		Version:      e.serial,
		Aliases:      e.names(),
		Architecture: p.architecture,
		Type:         e.kind(),
		Filename:     path.Base(e.meta.path),
		Size:         e.meta.size + e.root.size,
		Properties:   e.properties(),
		CreatedAt:    day,
		Files:        []File{e.meta.file(e.metaType())},
	}
	if end, err := time.Parse(time.DateOnly, p.endOfLife); err == nil {
		image.ExpiresAt = end
	}
	if e.rootType != rootUnified {
		image.Files = append(image.Files, e.root.file(e.rootType.String()))
	}

	return image
}

func (e *entry) kind() ImageType {
	if e.rootType.virtualMachine() {
		return VirtualMachine
	}

	return Container
}

func (e *entry) metaType() string {
	if e.rootType == rootUnified {
		return string(e.rules.family) + "_combined.tar.gz"
	}

	return string(e.rules.family) + ".tar.xz"
}

func (p part) file(ftype string) File {
	file := File{Type: ftype, Path: p.path, Size: p.size}
	if p.sha256 != (digest{}) {
		file.SHA256 = p.sha256.String()
	}

	return file
}

// properties returns what the daemons set on import.
func (e *entry) properties() map[string]string {
	p := e.product
	description := p.os + " " + p.releaseTitle + " " + p.arch
	if e.rules.variant && p.variant != "" && p.variant != "default" {
		description += " (" + p.variant + ")"
	}
	if e.label != "" {
		description += " (" + e.label + ")"
	}
	all := map[string]string{
		"architecture": p.arch,
		"description":  description + " (" + e.serial + ")",
		"label":        e.label,
		"os":           p.os,
		"release":      p.release,
		"serial":       e.serial,
		"type":         e.rootType.String(),
		"variant":      p.variant,
		"version":      p.version,
	}
	requirements := p.requirements
	if e.rules.family == LXD && (p.lxdRequires != nil || !e.rules.sharedRequirements) {
		requirements = p.lxdRequires
	}
	for _, each := range requirements {
		all["requirements."+each.key] = each.value
	}
	maps.DeleteFunc(all, func(_, value string) bool { return value == "" })

	return all
}
