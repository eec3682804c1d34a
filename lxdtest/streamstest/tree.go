// Package streamstest generates simplestreams trees and image URLs and serves them on loopback, optionally with faults.
package streamstest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// IndexPath is the path of a tree's index.
const IndexPath = "streams/v1/index.json"

// ProductsPath is the path of the products file in the trees of this package.
const ProductsPath = "streams/v1/images.json"

// Product is a product of a tree. Empty fields are omitted from the products file, except Arch, which defaults to amd64.
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
	Requirements map[string]string // written under the field names of both families
	Versions     []Version
}

// Version is a version of a product.
type Version struct {
	// Serial is the version's name, such as "20240101_07:42". It must begin with a date.
	Serial string

	Label string

	// Family is "lxd", "incus" or "both", for the names of the metadata items; the default is "lxd".
	Family string

	// Unified is a unified image. The default is none.
	Unified []byte

	// Metadata is the metadata tarball of the split images. The default is none.
	Metadata []byte

	// Roots are the root file systems by type: "squashfs", "root.tar.xz", "disk-kvm.img", "uefi1.img", "disk1.img".
	Roots map[string][]byte
}

// combinedNames are the fields of the metadata item for the hash of metadata and root file system, by type.
var combinedNames = map[string]string{
	"squashfs":     "combined_squashfs_sha256",
	"root.tar.xz":  "combined_rootxz_sha256",
	"disk-kvm.img": "combined_disk-kvm-img_sha256",
	"uefi1.img":    "combined_uefi1-img_sha256",
	"disk1.img":    "combined_disk1-img_sha256",
}

// Object is a JSON object.
type Object = map[string]any

// Tree returns the files of a simplestreams tree by path. If edit is not nil, it may modify the products before the
// products file is written.
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
		dir := fmt.Sprintf("images/%s/%s/", strings.ReplaceAll(p.Name, ":", "/"), version.Serial)
		versions[version.Serial] = version.object(dir, files)
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

func (v Version) object(dir string, files map[string][]byte) Object {
	items := Object{}
	add := func(name, ftype string, content []byte) Object {
		files[dir+name] = content
		item := Object{"ftype": ftype, "path": dir + name, "size": len(content), "sha256": Hash(content)}
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

// Hash returns the SHA-256 of the concatenated parts, which is the fingerprint of an image that consists of them.
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
		panic(err) // Cannot happen: there are only strings, numbers and maps of them.
	}

	return text
}
