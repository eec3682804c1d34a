package simplestreams

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// treeImage is an image of a version, for one family.
type treeImage struct {
	family      Family
	rootType    rootType
	fingerprint digest
	meta, root  part // root is the zero part for a unified image
}

func (i *treeImage) virtualMachine() bool { return i.rootType.virtualMachine() }

// images returns the images that the items of the version make up.
func (v *treeVersion) images() []treeImage {
	var all []treeImage
	for m := range v.items {
		meta := &v.items[m]
		switch {
		case meta.family == "":
			continue
		case meta.unified:
			all = append(all, treeImage{family: meta.family, rootType: rootUnified, fingerprint: meta.sha256, meta: meta.part})
			continue
		}
		for r := range v.items {
			root := &v.items[r]
			if root.family != "" {
				continue
			}
			fingerprint := meta.combined[root.rootType]
			if root.rootType == rootTarXZ && fingerprint == (digest{}) {
				fingerprint = meta.combined[rootUnified]
			}
			if fingerprint != (digest{}) {
				all = append(all, treeImage{meta.family, root.rootType, fingerprint, meta.part, root.part})
			}
		}
	}

	return all
}

// setImages replaces the items by those that make up the images. No two of them may have different root filesystems of the
// same type: daemons combine each metadata item with each root filesystem.
func (v *treeVersion) setImages(images []treeImage) {
	images = slices.Clone(images)
	slices.SortStableFunc(images, func(a, b treeImage) int {
		return cmp.Or(strings.Compare(string(a.family), string(b.family)), cmp.Compare(a.rootType, b.rootType))
	})
	items := map[string]*item{}
	for _, image := range images {
		meta := &item{part: image.meta, family: image.family, unified: image.rootType == rootUnified}
		meta.id = meta.ftype()
		for n := 2; items[meta.id] != nil && items[meta.id].sha256 != meta.sha256; n++ {
			// Other metadata of another kind of image: each has only the hashes with its own root filesystem.
			meta.id = fmt.Sprintf("%s-%d.tar.xz", meta.family, n)
		}
		if known := items[meta.id]; known != nil {
			meta = known
		}
		items[meta.id] = meta
		if meta.unified {
			continue
		}
		meta.combined[image.rootType] = image.fingerprint
		if image.rootType == rootTarXZ {
			meta.combined[rootUnified] = image.fingerprint
		}
		root := &item{part: image.root, rootType: image.rootType, id: image.rootType.String()}
		items[root.id] = root
	}
	v.items = v.items[:0:0]
	for _, it := range items {
		v.items = append(v.items, *it)
	}
	slices.SortFunc(v.items, func(a, b item) int { return strings.Compare(a.id, b.id) })
}

// addImage adds an image, or reports one that is in its way: another one of the family and the kind, or one with another root
// filesystem of the same type. With replace set, it takes the place of those.
func addImage(images []treeImage, image treeImage, replace bool) (result []treeImage, inTheWay *treeImage) {
	for n := range images {
		other := &images[n]
		same := other.family == image.family && other.virtualMachine() == image.virtualMachine()
		switch {
		case same && other.fingerprint == image.fingerprint && other.rootType == image.rootType:
			return images, nil
		case same, other.rootType == image.rootType && image.rootType != rootUnified && other.root.sha256 != image.root.sha256:
			if !replace {
				return images, other
			}
		default:
			result = append(result, *other)
		}
	}

	return append(result, image), nil
}
