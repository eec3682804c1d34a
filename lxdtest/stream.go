package lxdtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/simplestreams"
)

// These types are the part of the simplestreams format that the daemons read.
type (
	streamIndex struct {
		Index map[string]struct {
			Datatype string   `json:"datatype"`
			Path     string   `json:"path"`
			Products []string `json:"products"`
		} `json:"index"`
	}
	streamProducts struct {
		Products map[string]streamProduct `json:"products"`
	}
	streamProduct struct {
		Aliases      string `json:"aliases"`
		Arch         string `json:"arch"`
		OS           string `json:"os"`
		Release      string `json:"release"`
		ReleaseTitle string `json:"release_title"`
		Version      string `json:"version"`
		Variant      string `json:"variant"`
		EndOfLife    string `json:"support_eol"`
		// Incus reads Requirements, LXD reads LXDRequirements.
		Requirements    map[string]string        `json:"requirements"`
		LXDRequirements map[string]string        `json:"lxd_requirements"`
		Versions        map[string]streamVersion `json:"versions"`
	}
	streamVersion struct {
		Label string                `json:"label"`
		Items map[string]streamItem `json:"items"`
	}
	streamItem struct {
		Ftype            string `json:"ftype"`
		Path             string `json:"path"`
		SHA256           string `json:"sha256"`
		Size             int64  `json:"size"`
		CombinedSquashfs string `json:"combined_squashfs_sha256"`
		CombinedRootxz   string `json:"combined_rootxz_sha256"`
		CombinedDisk     string `json:"combined_disk-kvm-img_sha256"`
		CombinedSHA256   string `json:"combined_sha256"`
	}
)

// streamImage is one image that a simplestreams server offers.
type streamImage struct {
	product     string
	serial      string
	kind        string
	arch        string // as in the product
	fingerprint string
	metadata    streamItem
	rootfs      *streamItem
	info        imageJSON
	names       []string
}

// streamCacheTime is how long the daemons keep what they read from a simplestreams
// server.
const streamCacheTime = time.Hour

// cachedStream is what a simplestreams server offered at a time.
type cachedStream struct {
	images []streamImage
	at     time.Time
}

// readStream returns the images that a simplestreams server offers, or with
// CacheStreams those that it offered within the last hour.
func (s *Server) readStream(ctx context.Context, client *http.Client, base string) ([]streamImage, error) {
	s.mu.Lock()
	cached, ok := s.streams[base]
	hit := ok && s.now().Sub(cached.at) < streamCacheTime && s.fire(kindCacheStreams)
	s.mu.Unlock()
	if hit {
		return cached.images, nil
	}
	images, err := s.fetchIndex(ctx, client, base)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.faults, func(i *Injection) bool { return i.fault.kind == kindCacheStreams }) {
		s.streams[base] = cachedStream{images, s.now()}
	}
	return images, nil
}

// fetchIndex reads the images that a simplestreams server offers, the newest
// version of each product first.
func (s *Server) fetchIndex(ctx context.Context, client *http.Client, base string) ([]streamImage, error) {
	var index streamIndex
	if err := s.getStreamFile(ctx, client, base+"/streams/v1/index.json", &index); err != nil {
		return nil, err
	}
	var images []streamImage
	for _, name := range slices.Sorted(maps.Keys(index.Index)) {
		entry := index.Index[name]
		if entry.Datatype != "image-downloads" {
			continue
		}
		var products streamProducts
		if err := s.getStreamFile(ctx, client, base+"/"+entry.Path, &products); err != nil {
			return nil, err
		}
		for _, id := range slices.Sorted(maps.Keys(products.Products)) {
			images = append(images, productImages(s.traits.family, id, products.Products[id])...)
		}
	}
	return images, nil
}

// getStreamFile downloads and decodes a JSON file of a simplestreams server.
func (s *Server) getStreamFile(ctx context.Context, client *http.Client, at string, value any) error {
	res, err := s.request(ctx, client, http.MethodGet, at, nil, nil)
	if err != nil {
		return daemonErrorf("Failed parsing stream: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return daemonErrorf("Failed parsing stream: Unable to fetch %s: %s", at, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 256<<20)).Decode(value); err != nil {
		return daemonErrorf("Failed parsing stream: %w", err)
	}
	return nil
}

// productImages returns the images of a product, newest first. LXD uses only
// items named lxd, Incus 6.0.4 only those named incus.
func productImages(family, id string, product streamProduct) []streamImage {
	var images []streamImage
	serials := slices.Sorted(maps.Keys(product.Versions))
	slices.Reverse(serials)
	for _, serial := range serials {
		version := product.Versions[serial]
		for _, key := range slices.Sorted(maps.Keys(version.Items)) {
			item := version.Items[key]
			switch item.Ftype {
			case family + "_combined.tar.gz":
				images = append(images, newStreamImage(id, product, serial, version, item, nil, item.SHA256))
			case family + ".tar.xz":
				images = append(images, splitImages(id, product, serial, version, item)...)
			}
		}
	}
	requirements := product.Requirements
	if family == "lxd" {
		requirements = product.LXDRequirements
	}
	for i := range images {
		if family != "lxd" {
			images[i].info.Filename = "" // Incus 6.0.4 does not store it.
		}
		for name, value := range requirements {
			images[i].info.Properties["requirements."+name] = value
		}
		if images[i].serial == serials[0] {
			images[i].names = aliasNames(product)
		}
	}
	return images
}

// splitImages returns the images that share one metadata item: a container, a
// virtual machine or both.
func splitImages(id string, product streamProduct, serial string, version streamVersion, metadata streamItem) []streamImage {
	var images []streamImage
	container := false
	for _, ftype := range []string{"squashfs", "root.tar.xz", "disk-kvm.img"} {
		combined := metadata.CombinedDisk
		switch ftype {
		case "squashfs":
			combined = metadata.CombinedSquashfs
			if combined == "" {
				combined = metadata.CombinedSHA256
			}
		case "root.tar.xz":
			combined = metadata.CombinedRootxz
		}
		if combined == "" || container && ftype != "disk-kvm.img" {
			continue
		}
		for _, item := range version.Items {
			if item.Ftype == ftype {
				container = container || ftype != "disk-kvm.img"
				images = append(images, newStreamImage(id, product, serial, version, metadata, &item, combined))
				break
			}
		}
	}
	return images
}

// newStreamImage returns one image with the properties that the daemons derive
// from its product.
func newStreamImage(id string, product streamProduct, serial string, version streamVersion, metadata streamItem, rootfs *streamItem, fingerprint string) streamImage {
	img := streamImage{product: id, serial: serial, kind: "container", arch: product.Arch, fingerprint: fingerprint, metadata: metadata, rootfs: rootfs}
	filetype := "tar.gz"
	if rootfs != nil {
		filetype = rootfs.Ftype
		if filetype == "disk-kvm.img" {
			img.kind = "virtual-machine"
		}
	}
	description := fmt.Sprintf("%s %s %s", product.OS, product.ReleaseTitle, product.Arch)
	if version.Label != "" {
		description += " (" + version.Label + ")"
	}
	img.info.Properties = map[string]string{
		"architecture": product.Arch, "description": description + " (" + serial + ")", "os": product.OS,
		"release": product.Release, "version": product.Version, "serial": serial, "label": version.Label, "type": filetype,
	}
	if product.Variant != "" {
		img.info.Properties["variant"] = product.Variant
	}
	maps.DeleteFunc(img.info.Properties, func(_, value string) bool { return value == "" })
	if date, err := time.Parse(time.DateOnly, product.EndOfLife); err == nil {
		img.info.ExpiresAt = date
	}
	img.info.Filename = path.Base(metadata.Path)
	img.info.Fingerprint = fingerprint
	return img
}

// aliasNames returns the names of a product: each alias, with its architecture and without.
func aliasNames(product streamProduct) []string {
	var names []string
	for alias := range strings.SplitSeq(product.Aliases, ",") {
		if alias = strings.TrimSpace(alias); alias == "" {
			continue
		}
		names = append(names, alias+"/"+product.Arch, alias)
	}
	return names
}

// foreignness ranks the architecture of an image for a host of x86_64: its own, one that it
// also runs, others.
func (img *streamImage) foreignness() int {
	switch name, _ := simplestreams.ArchitectureName(img.arch); name {
	case "x86_64", "":
		return 0
	case "i686":
		return 1
	}
	return 2
}

// resolve returns the image with an alias, a fingerprint or a fingerprint prefix. Of several
// with an alias it is a container if the request says no type, and then one that the host
// runs: a container for another architecture comes before a virtual machine for the host's
// (LXD 5.0.2, Incus 6.0.4 and 7.0.2).
func resolve(images []streamImage, source imagesSource) (*streamImage, error) {
	name := source.Alias
	if name == "" {
		name = source.Fingerprint
	}
	var found *streamImage
	rank := func(img *streamImage) int {
		if img.kind == "virtual-machine" {
			return 3 + img.foreignness()
		}
		return img.foreignness()
	}
	for i, img := range images {
		if (source.ImageType == "" || img.kind == source.ImageType) && slices.Contains(img.names, name) && (found == nil || rank(&img) < rank(found)) {
			found = &images[i]
		}
	}
	if found != nil {
		return found, nil
	}
	for i, img := range images {
		if img.fingerprint == name {
			return &images[i], nil
		}
		if name == "" || !strings.HasPrefix(img.fingerprint, name) {
			continue
		}
		if found != nil && found.fingerprint != img.fingerprint {
			return nil, daemonErrorf("More than one match for the provided partial fingerprint")
		}
		found = &images[i]
	}
	if found == nil {
		return nil, daemonErrorf("The requested image couldn't be found")
	}
	return found, nil
}

// importStream creates an image from a simplestreams server.
func (s *Server) importStream(ctx context.Context, r *http.Request, op *operation, project string, post imagesPost, source imagesSource) (*image, error) {
	client, err := s.httpClient(source.Certificate)
	if err != nil {
		return nil, err
	}
	base := strings.TrimSuffix(source.Server, "/")
	images, err := s.readStream(ctx, client, base)
	var chosen *streamImage
	if err == nil {
		chosen, err = resolve(images, source)
	}
	if err != nil {
		return nil, daemonErrorf("Failed getting remote image info: Failed getting image: %w", err)
	}
	unlock, err := s.lockDownload(ctx, chosen.fingerprint)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if img := s.existing(project, chosen.fingerprint); img != nil {
		return s.useExisting(op, img, post)
	}
	u, err := s.fetchStream(ctx, op, client, base, chosen)
	if err != nil {
		return nil, err
	}
	info := chosen.info
	alias := source.Alias
	if alias == "" {
		alias = source.Fingerprint
	}
	if alias != chosen.fingerprint {
		info.UpdateSource = s.newUpdateSource(source, alias, chosen.kind)
	}
	img, err := s.storeDownload(ctx, r, op, u, project, post, &info)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if date, err := time.Parse("20060102", chosen.serial[:min(8, len(chosen.serial))]); err == nil {
		img.created = date
	}
	return img, nil
}

// fetchStream downloads and verifies the files of an image.
func (s *Server) fetchStream(ctx context.Context, op *operation, client *http.Client, base string, img *streamImage) (*upload, error) {
	get := func(item streamItem, what string) (*upload, error) {
		at := base + "/" + (&url.URL{Path: item.Path}).EscapedPath()
		u, err := s.fetch(ctx, op, client, at, what)
		if err != nil {
			return nil, err
		}
		if u.fingerprint != item.SHA256 {
			u.discard()
			return nil, daemonErrorf("Hash mismatch for %q: %s != %s", at, u.fingerprint, item.SHA256)
		}
		return u, nil
	}
	u, err := get(img.metadata, "metadata")
	if err != nil || img.rootfs == nil {
		return u, err
	}
	rootfs, err := get(*img.rootfs, "rootfs")
	if err != nil {
		u.discard()
		return nil, err
	}
	u.rootfs, u.kind = rootfs.metadata, img.kind
	u.size += rootfs.size
	u.fingerprint, err = fileFingerprint(u.metadata, u.rootfs)
	if err == nil && u.fingerprint != img.fingerprint {
		err = daemonErrorf("Image fingerprint doesn't match. Got %s expected %s", u.fingerprint, img.fingerprint)
	}
	if err != nil {
		u.discard()
		return nil, err
	}
	return u, nil
}
