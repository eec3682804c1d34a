package simplestreams

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/partfile"
	"github.com/golxd/lxd/internal/pump"
)

// Publication is an image to publish: the files, and what the index says about them. Daemons show only what the index
// says, not the metadata in the image.
type Publication struct {
	// Product is the key of the product in the index; its versions are versions of the same image. The default is
	// "os:release:architecture:variant" of the values below in lower case, such as "debian:trixie:amd64:default".
	Product string

	// Version is the version's name, such as "20240101_07:42". It must begin with a date; a newer version sorts after an
	// older one. The default is CreatedAt in this form.
	Version string

	// Aliases are the names of the product, such as "debian/13". A client finds the newest version by them, also with "/"
	// and the architecture's name in the index appended. The default are those that the product has.
	Aliases []string

	// Architecture is required, in any spelling ("x86_64", "amd64"). The index gets the name that Debian has for it.
	Architecture string

	// OS, Release, ReleaseTitle, ReleaseVersion and Variant describe the product, such as "Debian", "trixie", "13", "13"
	// and "default". OS and Release are required if Product is empty. The default of ReleaseTitle is Release. The defaults
	// of the others are those that the product has.
	OS, Release, ReleaseTitle, ReleaseVersion, Variant string

	// Label describes the version, such as "release" or "daily".
	Label string

	// Requirements are what instances of the product need, such as "secureboot": "false"; nil means those that the product
	// has.
	Requirements map[string]string

	// CreatedAt is only used for Version. The default is the current time.
	CreatedAt time.Time

	// EndOfLife is the day on which support of the product ends; the zero value means the one that the product has. Daemons
	// have it as the image's expiry.
	EndOfLife time.Time

	// Properties are those of an image, as daemons have them. They fill what is empty above: architecture, os, release,
	// variant, version (ReleaseVersion), label, serial (Version), and requirements.* if Requirements is nil. The others are
	// ignored, as an index has no place for them.
	Properties map[string]string

	// Families are the daemons that can see the image. The default is both.
	Families []Family

	// Fingerprint, if it is set, is checked against the content. If the tree has an image with it already, Files is not
	// ranged over.
	Fingerprint string

	// Files are one file, a unified image; or the metadata tarball and the root filesystem: a squashfs, a tarball, or the
	// qcow2 disk of a virtual machine. The first bytes determine what a file is; what is inside, and whether daemons accept
	// it, CheckFiles of package imagefile checks. Each is read to its end before the next.
	// [FileContents] returns them from disk, and Export.Files of package lxd from a server. If the context ends while a Read
	// blocks, the Read is not waited for.
	Files iter.Seq2[io.Reader, error]
}

// PublishOptions are the options of [Tree.Publish].
type PublishOptions struct {
	// Replace allows to replace another image of the version. By default that is an [ErrExists].
	Replace bool

	// Keep removes all but the newest versions of the product, so many, and the published one. The default is to remove
	// none.
	Keep int

	// Progress is called with the number of bytes that were stored so far, by the goroutine that stores them. It may be
	// nil.
	Progress func(done int64)
}

// FileContents returns the contents of files, for [Publication.Files]. Each file is open while it is read.
func FileContents(paths ...string) iter.Seq2[io.Reader, error] {
	return func(yield func(io.Reader, error) bool) {
		for _, path := range paths {
			file, err := os.Open(path)
			if err != nil {
				yield(nil, fmt.Errorf("simplestreams: %w", err))
				return
			}
			again := yield(file, nil)
			_ = file.Close()
			if !again {
				return
			}
		}
	}
}

// Publish stores an image and lists it. The files are stored first, then the index is replaced. It returns the image as
// clients see it.
//
// A version has one container and one virtual machine for each family. They can be published one after the other, also with
// different metadata. If the version has another image of the family and the type, or the other family's root filesystem
// of the same format is another one, the error matches [ErrExists], unless Replace is set. If it has the same image, nothing
// is stored twice; the attributes are updated.
//
// What is not set in p and describes the product remains as it is. Attributes of the product apply to all its versions. The
// architecture of a product does not change, and a product of [Tree.Mirror] cannot be published to.
//
// Bad input is an [*InputError], content that is no image an [ErrBadData], content with another fingerprint a [*HashError].
// After an error, what was stored is deleted; if that fails too, one of the next calls deletes it.
func (t *Tree) Publish(ctx context.Context, p *Publication, options *PublishOptions) (*Image, error) {
	if err := t.check(ctx); err != nil {
		return nil, err
	}
	if p == nil {
		return nil, invalid("p", "is nil")
	}
	j := &publishing{tree: t, Publication: *p}
	if options != nil {
		j.options = *options
	}
	if err := j.prepare(); err != nil {
		return nil, err
	}
	found, err := j.find(ctx)
	if err == nil && !found {
		err = j.store(ctx)
	}
	var listed *listing
	if err == nil {
		err = t.update(ctx, func(l *listing) error {
			listed = l
			return j.list(l)
		})
	}
	switch {
	case err == nil && len(j.unused) > 0:
		t.abandon(ctx, j.unused...)
	case err != nil && !errors.Is(err, errUnknown) && len(j.stored) > 0:
		t.abandon(ctx, j.stored...)
	}
	if err != nil {
		return nil, err
	}

	return j.image(listed)
}

// publishing is one call of Publish.
type publishing struct {
	tree *Tree
	Publication
	options     PublishOptions
	fingerprint digest // zero if it is not known yet
	rootType    rootType
	parts       []part // the files of the image
	stored      []part // what this call has reserved
	unused      []part // those that were in the tree already
	done        int64
}

// indexArchitectures are the names that an index has for the daemons' architectures, where they differ: those of Debian.
var indexArchitectures = map[string]string{
	"x86_64": "amd64", "i686": "i386", "aarch64": "arm64", "armv7l": "armhf", "armv6l": "armel", "ppc": "powerpc", "ppc64le": "ppc64el",
}

// prepare checks the publication and sets its defaults.
func (j *publishing) prepare() error {
	var requirements map[string]string
	for key, value := range j.Properties {
		if name, ok := strings.CutPrefix(key, "requirements."); ok {
			if requirements == nil {
				requirements = map[string]string{}
			}
			requirements[name] = value
		}
	}
	if j.Requirements == nil {
		j.Requirements = requirements
	}
	for key, field := range map[string]*string{
		"architecture": &j.Architecture, "os": &j.OS, "release": &j.Release, "variant": &j.Variant, "version": &j.ReleaseVersion,
		"label": &j.Label, "serial": &j.Version,
	} {
		*field = cmp.Or(*field, j.Properties[key])
	}

	daemon, ok := ArchitectureName(j.Architecture)
	if !ok {
		return invalid("Publication.Architecture", "%.80q is not the name of an architecture, such as \"amd64\"", j.Architecture)
	}
	j.Architecture = cmp.Or(indexArchitectures[daemon], daemon)
	if j.Product == "" {
		if j.OS == "" || j.Release == "" {
			return invalid("Publication.Product", "is empty: set it, or OS and Release")
		}
		j.Product = strings.ToLower(strings.Join([]string{j.OS, j.Release, j.Architecture, cmp.Or(j.Variant, "default")}, ":"))
	}
	if j.CreatedAt.IsZero() {
		j.CreatedAt = j.tree.now()
	}
	j.Version = cmp.Or(j.Version, j.CreatedAt.UTC().Format("20060102_15:04"))
	if _, ok := created(j.Version); !ok {
		return invalid("Publication.Version", "%.80q does not begin with a date such as 20240131", j.Version)
	}
	for field, value := range map[string]string{
		"Product": j.Product, "Version": j.Version, "OS": j.OS, "Release": j.Release, "ReleaseTitle": j.ReleaseTitle,
		"ReleaseVersion": j.ReleaseVersion, "Variant": j.Variant, "Label": j.Label,
	} {
		if !plain(value) {
			return invalid("Publication."+field, "%.80q contains a control character, or is not UTF-8", value)
		}
	}
	for key, value := range j.Requirements {
		if key == "" || !plain(key) || !plain(value) {
			return invalid("Publication.Requirements", "contains %.80q: %.80q", key, value)
		}
	}
	for _, alias := range j.Aliases {
		if alias == "" || !plain(alias) || strings.Contains(alias, ",") || strings.TrimSpace(alias) != alias {
			return invalid("Publication.Aliases", "contains %.80q: an alias must not be empty, and not contain a comma or control character", alias)
		}
	}
	if len(j.Families) == 0 {
		j.Families = []Family{LXD, Incus}
	}
	for _, family := range j.Families {
		if family != LXD && family != Incus {
			return invalid("Publication.Families", "contains %.80q, not %q or %q", family, LXD, Incus)
		}
	}
	if j.Fingerprint != "" {
		var ok bool
		if j.fingerprint, ok = parseDigest(j.Fingerprint); !ok {
			return invalid("Publication.Fingerprint", "%.80q is not a SHA-256 hash", j.Fingerprint)
		}
	}
	if j.Files == nil {
		return invalid("Publication.Files", "is nil")
	}
	if j.options.Keep < 0 {
		return invalid("PublishOptions.Keep", "is %d", j.options.Keep)
	}

	return nil
}

// plain reports whether a text is fit for an index.
func plain(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

// find looks for the image in the tree by its fingerprint. It also checks that it can be listed, before anything is read.
func (j *publishing) find(ctx context.Context) (bool, error) {
	_, l, err := j.tree.current(ctx)
	if err != nil {
		return false, err
	}
	if product := l.products[j.Product]; product != nil {
		if err := j.checkProduct(product); err != nil {
			return false, err
		}
	}
	if j.fingerprint == (digest{}) {
		return false, nil
	}
	for _, product := range l.products {
		for _, version := range product.versions {
			for _, image := range version.images() {
				if image.fingerprint != j.fingerprint {
					continue
				}
				parts := []part{image.meta}
				if image.rootType != rootUnified {
					parts = append(parts, image.root)
				}
				if err := j.tree.reuse(ctx, parts...); errors.Is(err, errDeleted) {
					continue
				} else if err != nil {
					return false, err
				}
				j.parts, j.rootType = parts, image.rootType

				return true, nil
			}
		}
	}

	return false, nil
}

// store stores the files.
func (j *publishing) store(ctx context.Context) error {
	combined := sha256.New()
	for content, err := range j.Files {
		if err != nil {
			return err
		}
		if len(j.parts) == 2 {
			return invalid("Publication.Files", "has more than two files")
		}
		if content == nil {
			return invalid("Publication.Files", "has a reader that is nil")
		}
		if len(j.parts) == 1 && strings.HasSuffix(j.parts[0].path, ".squashfs") {
			return badDataf("product %q, version %q: file 1 is a squashfs: of two files the metadata tarball comes first", j.Product, j.Version)
		}
		file, err := j.storeFile(ctx, content, combined)
		if err != nil {
			return err
		}
		j.parts = append(j.parts, file)
	}
	if len(j.parts) == 0 {
		return invalid("Publication.Files", "has no file")
	}
	fingerprint := digest(combined.Sum(nil))
	if j.fingerprint != (digest{}) && j.fingerprint != fingerprint {
		return &HashError{File: fmt.Sprintf("product %q, version %q", j.Product, j.Version), Expected: j.fingerprint.String(), Actual: fingerprint.String()}
	}
	j.fingerprint = fingerprint

	_, l, err := j.tree.current(ctx)
	if err != nil {
		return err
	}
	copies := l.copies()
	for n, file := range j.parts {
		same, ok := copies[file.sha256]
		if !ok {
			continue
		}
		if err := j.tree.reuse(ctx, same); errors.Is(err, errDeleted) {
			continue
		} else if err != nil {
			return err
		}
		j.parts[n], j.unused = same, append(j.unused, file)
	}

	return nil
}

// storeFile stores the first or the second file.
func (j *publishing) storeFile(ctx context.Context, content io.Reader, combined hash.Hash) (part, error) {
	t := j.tree
	own := combined // The hash of the first file is the combined one so far.
	hashes := combined
	if len(j.parts) > 0 {
		own = sha256.New()
		hashes = bothHashes{own, combined}
	}
	source := pump.Start(content, hashes, nil, nil)
	defer source.Close()
	defer context.AfterFunc(ctx, source.Close)()
	reader := &publishReader{ctx: ctx, job: j, source: source}

	head := make([]byte, partfile.HeadSize)
	n, err := io.ReadFull(reader, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return part{}, err
	}
	head = head[:n]
	number, name := len(j.parts)+1, "image"
	ext := partfile.Extension(head)
	j.rootType = rootUnified
	switch {
	case ext == ".img" || ext == ".qcow2" && number == 1:
		return part{}, badDataf("product %q, version %q: file %d is no tarball, squashfs or qcow2 disk of an image", j.Product, j.Version, number)
	case number == 1:
	case ext == ".squashfs":
		name, j.rootType = "rootfs", rootSquashfs
	case ext == ".qcow2":
		name, j.rootType = "disk", rootDiskKVM
	default:
		name, j.rootType = "rootfs", rootTarXZ
	}

	file := part{path: newPath(name + ext)}
	if err := t.reserve(ctx, file); err != nil {
		return part{}, err
	}
	j.stored = append(j.stored, file)
	reader.reserved = t.now()
	if err := t.store.Put(ctx, file.path, io.MultiReader(bytes.NewReader(head), reader)); err != nil {
		return part{}, treeError(file.path, err)
	}
	if !reader.ended {
		return part{}, treeError(file.path, errors.New("the store has not read the content to its end"))
	}
	file.size, file.sha256 = reader.size, digest(own.Sum(nil))
	t.options.Logger.DebugContext(ctx, "stored a file of the tree", "path", file.path, "size", file.size)

	return file, nil
}

// bothHashes writes to two hashes.
type bothHashes struct {
	hash.Hash
	second hash.Hash
}

func (b bothHashes) Write(p []byte) (int, error) {
	_, _ = b.second.Write(p)
	return b.Hash.Write(p)
}

// publishReader reads a file that is published.
type publishReader struct {
	ctx      context.Context
	job      *publishing
	source   io.Reader
	size     int64
	ended    bool
	reserved time.Time // zero before the file is reserved
}

func (r *publishReader) Read(p []byte) (int, error) {
	n, err := r.source.Read(p)
	if ended := ctxerr.Of(r.ctx); ended != nil {
		return 0, ended
	}
	r.size += int64(n)
	r.job.done += int64(n)
	if r.job.options.Progress != nil && n > 0 {
		r.job.options.Progress(r.job.done)
	}
	r.ended = err == io.EOF
	if now := r.job.tree.now(); err == nil && !r.reserved.IsZero() && now.Sub(r.reserved) > reserveFor/4 {
		r.reserved = now
		err = r.job.tree.reserve(r.ctx, r.job.stored...)
	}

	return n, err
}

// checkProduct returns an error if the image cannot be a version of the product.
func (j *publishing) checkProduct(product *treeProduct) error {
	attributes, err := product.text("arch", mirrorAttribute)
	if err != nil {
		return err
	}
	switch {
	case attributes[mirrorAttribute] != "":
		return invalid("Publication.Product", "%q is a mirror of %s, which would be replaced by the next call of Mirror", j.Product, attributes[mirrorAttribute])
	case attributes["arch"] != "" && attributes["arch"] != j.Architecture:
		return invalid("Publication.Architecture", "is %q, but product %q is for %q", j.Architecture, j.Product, attributes["arch"])
	}

	return nil
}

// list lists the image.
func (j *publishing) list(l *listing) error {
	product := l.products[j.Product]
	if product == nil {
		product = &treeProduct{versions: map[string]*treeVersion{}}
	}
	if err := j.checkProduct(product); err != nil {
		return err
	}
	version := product.versions[j.Version]
	if version == nil {
		version = &treeVersion{}
	}
	images := version.images()
	for _, family := range j.Families {
		image := treeImage{family: family, rootType: j.rootType, fingerprint: j.fingerprint, meta: j.parts[0]}
		if len(j.parts) > 1 {
			image.root = j.parts[1]
		}
		var other *treeImage
		if images, other = addImage(images, image, j.options.Replace); other != nil {
			return fmt.Errorf("simplestreams: product %q, version %q: %s image %s for %s %w; set PublishOptions.Replace, or publish another version",
				j.Product, j.Version, other.rootType, other.fingerprint, other.family, ErrExists)
		}
	}
	version.setImages(images)

	var err error
	if product.attributes, err = j.productAttributes(product); err != nil {
		return err
	}
	if j.Label != "" {
		if version.attributes, err = setMembers(version.attributes, []member{{"label", quoted(j.Label)}}); err != nil {
			return err
		}
	}
	l.products[j.Product] = product
	product.versions[j.Version] = version
	if j.options.Keep > 0 {
		for _, old := range product.older(j.options.Keep) {
			if old != j.Version {
				delete(product.versions, old)
			}
		}
	}

	return nil
}

// productAttributes returns the attributes of the product with those of the publication.
func (j *publishing) productAttributes(product *treeProduct) (jsontext.Value, error) {
	var set []member
	text := func(name, value string) {
		if value != "" {
			set = append(set, member{name, quoted(value)})
		}
	}
	text("aliases", strings.Join(j.Aliases, ","))
	text("arch", j.Architecture)
	text("os", j.OS)
	text("release", j.Release)
	text("release_title", cmp.Or(j.ReleaseTitle, j.Release))
	text("version", j.ReleaseVersion)
	text("variant", j.Variant)
	if !j.EndOfLife.IsZero() {
		text("support_eol", j.EndOfLife.UTC().Format(time.DateOnly))
	}
	if j.Requirements != nil {
		var members []member
		for _, key := range slices.Sorted(maps.Keys(j.Requirements)) {
			members = append(members, member{key, quoted(j.Requirements[key])})
		}
		// LXD 5.0.2 reads only the second, Incus only the first.
		requirements, err := setMembers(nil, members)
		if err != nil {
			return nil, err
		}
		set = append(set, member{"requirements", requirements}, member{"lxd_requirements", requirements})
	}

	return setMembers(product.attributes, set)
}

// image returns the published image.
func (j *publishing) image(l *listing) (*Image, error) {
	options := &Options{}
	if len(j.Families) == 1 {
		options.Family = j.Families[0]
	}
	images, err := l.catalog(options)
	if err != nil {
		return nil, fmt.Errorf("simplestreams: %w", err)
	}
	for i := range images.entries {
		e := &images.entries[i]
		if e.product.name == j.Product && e.serial == j.Version && e.fingerprint == j.fingerprint && e.rootType == j.rootType {
			return e.image(), nil
		}
	}

	return nil, fmt.Errorf("simplestreams: product %q, version %q: clients do not see the image: %w", j.Product, j.Version, ErrBadData)
}
