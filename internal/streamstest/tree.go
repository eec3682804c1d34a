// Package streamstest makes simplestreams trees and image URLs out of bytes and serves them on loopback, in order or
// with faults by name.
package streamstest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// IndexPath is where every tree has its index.
const IndexPath = "streams/v1/index.json"

// ProductsPath is where the trees of this package have their products.
const ProductsPath = "streams/v1/images.json"

// Product is one product of a tree. Fields left empty are left out of the products file, but for Arch, which defaults
// to amd64.
type Product struct {
	Name         string
	Aliases      []string
	Arch         string
	OS           string
	Release      string
	ReleaseTitle string
	Version      string
	Variant      string
	EndOfLife    string            // such as "2029-05-31"
	Requirements map[string]string // written under both families' names
	Versions     []Version
}

// Version is one version of a product.
type Version struct {
	// Serial is the version's name, such as "20240101_07:42". It has to begin with a date.
	Serial string

	Label string

	// Family is "lxd", "incus" or "both", for the names of the metadata items; the default is "lxd".
	Family string

	// Unified is a whole image, if there is one.
	Unified []byte

	// Metadata is the metadata tarball of the split images.
	Metadata []byte

	// Roots are the root filesystems by type: "squashfs", "root.tar.xz", "disk-kvm.img", "uefi1.img", "disk1.img".
	Roots map[string][]byte
}

// combinedNames are the fields of the metadata item that hold the hash of metadata and root filesystem.
var combinedNames = map[string]string{
	"squashfs":     "combined_squashfs_sha256",
	"root.tar.xz":  "combined_rootxz_sha256",
	"disk-kvm.img": "combined_disk-kvm-img_sha256",
	"uefi1.img":    "combined_uefi1-img_sha256",
	"disk1.img":    "combined_disk1-img_sha256",
}

// Object is a JSON object.
type Object = map[string]any

// Tree returns the files of a simplestreams tree by path. Edit, if given, may change what the products file holds before
// it is written.
func Tree(products []Product, edit func(products Object)) map[string][]byte {
	files := map[string][]byte{}
	all := Object{}
	names := []string{}
	for _, product := range products {
		all[product.Name] = product.object(files)
		names = append(names, product.Name)
	}
	if edit != nil {
		edit(all)
	}
	files[ProductsPath] = encode(Object{"content_id": "images", "datatype": "image-downloads", "format": "products:1.0", "products": all})
	files[IndexPath] = encode(Object{"format": "index:1.0", "index": Object{
		"images": Object{"datatype": "image-downloads", "format": "products:1.0", "path": ProductsPath, "products": names},
	}})

	return files
}

func (p Product) object(files map[string][]byte) Object {
	arch := p.Arch
	if arch == "" {
		arch = "amd64"
	}
	versions := Object{}
	for _, version := range p.Versions {
		folder := fmt.Sprintf("images/%s/%s/", strings.ReplaceAll(p.Name, ":", "/"), version.Serial)
		versions[version.Serial] = version.object(folder, files)
	}
	object := Object{"arch": arch, "versions": versions}
	for name, value := range map[string]string{
		"aliases": strings.Join(p.Aliases, ","), "os": p.OS, "release": p.Release, "release_title": p.ReleaseTitle,
		"version": p.Version, "variant": p.Variant, "support_eol": p.EndOfLife,
	} {
		if value != "" {
			object[name] = value
		}
	}
	if p.Requirements != nil {
		object["requirements"], object["lxd_requirements"] = p.Requirements, p.Requirements
	}

	return object
}

func (v Version) object(folder string, files map[string][]byte) Object {
	items := Object{}
	add := func(name, ftype string, content []byte) Object {
		files[folder+name] = content
		item := Object{"ftype": ftype, "path": folder + name, "size": len(content), "sha256": Hash(content)}
		items[name] = item

		return item
	}
	families := []string{v.Family}
	switch v.Family {
	case "":
		families = []string{"lxd"}
	case "both":
		families = []string{"lxd", "incus"}
	}
	for _, family := range families {
		if v.Unified != nil {
			add(family+"_combined.tar.gz", family+"_combined.tar.gz", v.Unified)
		}
		if v.Metadata != nil {
			meta := add(family+".tar.xz", family+".tar.xz", v.Metadata)
			for ftype, root := range v.Roots {
				meta[combinedNames[ftype]] = Hash(v.Metadata, root)
			}
		}
	}
	for ftype, root := range v.Roots {
		add("rootfs."+ftype, ftype, root)
	}
	object := Object{"items": items}
	if v.Label != "" {
		object["label"] = v.Label
	}

	return object
}

// Hash returns the SHA-256 of the parts one after the other, which is the fingerprint of an image made of them.
func Hash(parts ...[]byte) string {
	sum := sha256.New()
	for _, part := range parts {
		sum.Write(part)
	}

	return hex.EncodeToString(sum.Sum(nil))
}

func encode(value any) []byte {
	text, err := json.MarshalIndent(value, "", " ")
	if err != nil {
		panic(err) // Only strings, numbers and maps of them come here.
	}

	return text
}
