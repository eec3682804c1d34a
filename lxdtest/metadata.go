package lxdtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/simplestreams"
)

// imageMetadata is the metadata in an image's tarball.
type imageMetadata struct {
	kind         string // container, virtual-machine, or "" without a root file system
	architecture string
	created      time.Time
	expires      time.Time
	properties   map[string]string
	noProperties bool   // metadata.yaml has no properties field
	suffix       string // the file name extension, such as ".tar.gz"
}

// suffixes are the file name extensions of compressed files, whatever their content is.
var suffixes = map[imagefile.Compression]string{
	imagefile.Gzip: ".tar.gz", imagefile.Bzip2: ".tar.bz2", imagefile.XZ: ".tar.xz", imagefile.LZMA: ".tar.lzma", imagefile.Zstd: ".tar.zst",
}

// suffix returns the extension with which a file is exported, or "".
func suffix(file imagefile.File) string {
	switch file.Format {
	case imagefile.Tar, imagefile.Squashfs, imagefile.Qcow2:
		if file.Compression == imagefile.None {
			return "." + string(file.Format)
		}
	}
	return suffixes[file.Compression]
}

// suffixOf returns the extension with which the root file system of a split image is exported, or "".
func suffixOf(ctx context.Context, rootfs io.ReaderAt) string {
	// An error is that the rest is missing.
	info, _ := imagefile.Inspect(ctx, io.NewSectionReader(rootfs, 0, 512), nil, nil)
	if info == nil {
		return ""
	}
	return suffix(info.Image)
}

// readMetadata reads the metadata of an image from its tarball. Like the daemons it stops once it has found the metadata
// and the root file system, and so accepts a file that is cut after these.
func (t *traits) readMetadata(ctx context.Context, name, fingerprint string) (*imageMetadata, error) {
	info, err := imagefile.InspectFiles(ctx, name, "", nil)
	if info == nil {
		return nil, err
	}
	var fields yamlFields
	if info.MetadataYAML != nil {
		if err := t.decodeYAML(info.MetadataYAML, &fields); err != nil {
			return nil, err
		}
	}
	var problem *imagefile.Problem
	if errors.As(err, &problem) && problem.Kind != imagefile.BadMetadata {
		return nil, refusal(info, problem)
	}
	switch {
	case info.MetadataYAML != nil:
	case info.Image.Format == imagefile.Raw && info.Image.Compression == imagefile.None:
		return nil, errCompression
	case info.Image.Format != imagefile.Tar && info.Image.Compression != imagefile.None:
		return nil, tar.ErrHeader
	default:
		return nil, errNoMetadata
	}
	architecture, known := simplestreams.ArchitectureName(fields.Architecture)
	switch {
	case !known, architecture == "loongarch64" && t.family == "lxd":
		return nil, daemonErrorf("Architecture isn't supported: %s", fields.Architecture)
	case fields.created == 0:
		return nil, daemonErrorf("Missing creation date")
	}
	found := &imageMetadata{
		kind: string(info.Type), architecture: architecture, created: time.Unix(fields.created, 0).UTC(),
		properties: fields.Properties, noProperties: fields.Properties == nil, suffix: suffix(info.Image),
	}
	if found.created.Unix() < 0 && t.family == "incus" {
		found.created = time.Time{}
	}
	if fields.expires > 0 {
		found.expires = time.Unix(fields.expires, 0).UTC()
	}
	if found.noProperties {
		found.properties = map[string]string{}
	}
	for _, date := range []time.Time{found.created, found.expires} {
		if date.Year() > 9999 {
			// The daemons store the image, and then cannot read it.
			_, err := time.Parse(time.DateOnly, date.Format("2006-01-02 15:04:05-07:00"))
			return nil, daemonErrorf("Fetch image %q: Failed to fetch images: Failed to fetch images: %w", fingerprint, err)
		}
	}
	return found, nil
}

var (
	errNoMetadata  = daemonErrorf("Metadata tarball is missing metadata.yaml")
	errCompression = daemonErrorf("Unsupported compression")
)

// refusal returns the daemons' error for a file that cannot be read to its metadata. A compressed file is decompressed
// by a command, whose failure they do not notice: they read what it wrote before.
func refusal(info *imagefile.Info, p *imagefile.Problem) error {
	compressed := info.Image.Compression != imagefile.None
	switch {
	case p.Kind == imagefile.Empty:
		return io.EOF
	case p.Kind == imagefile.UnknownFormat && !compressed:
		return errCompression
	case p.Kind == imagefile.UnknownFormat, compressed && p.Offset == 0:
		return errNoMetadata
	case errors.Is(p, tar.ErrHeader):
		return tar.ErrHeader
	case p.Kind == imagefile.TooLarge:
		return p
	case path.Clean(p.Entry) == "metadata.yaml" && info.MetadataYAML == nil:
		return fmt.Errorf("yaml: input error: %w", io.ErrUnexpectedEOF)
	}
	return io.ErrUnexpectedEOF
}

// yamlFields are the fields of a metadata.yaml.
type yamlFields struct {
	Architecture string            `yaml:"architecture"`
	CreationDate yaml.Node         `yaml:"creation_date"`
	ExpiryDate   yaml.Node         `yaml:"expiry_date"`
	Properties   map[string]string `yaml:"properties"`

	created, expires int64
}

// decodeYAML reads a metadata.yaml as the daemon does.
func (t *traits) decodeYAML(data []byte, fields *yamlFields) error {
	var document yaml.Node
	err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&document)
	if err != nil {
		return err
	}
	if !t.strictYAML {
		dropDuplicates(&document)
	}
	if err = document.Decode(fields); err == nil {
		if fields.created, err = t.decodeDate(&fields.CreationDate); err == nil {
			fields.expires, err = t.decodeDate(&fields.ExpiryDate)
		}
	}
	if err == nil {
		return nil
	}
	text := strings.ReplaceAll(err.Error(), "lxdtest.yamlFields", "api.ImageMetadata")
	if t.strictYAML {
		text = strings.ReplaceAll(strings.ReplaceAll(text, "unmarshal errors:\n  ", "construct errors: "), "cannot unmarshal", "cannot construct")
	}
	return errors.New(text)
}

// decodeDate reads a date, which is 0 if the field is missing.
func (t *traits) decodeDate(field *yaml.Node) (seconds int64, err error) {
	if exact := 0.0; t.strictYAML && field.Decode(&exact) == nil && exact != math.Trunc(exact) {
		return 0, &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: cannot unmarshal !!float `%.7s...` into int64", field.Line, field.Value)}}
	}
	err = field.Decode(&seconds)
	return seconds, err
}

// dropDuplicates removes the keys of mappings that are there again, of which the last counts.
func dropDuplicates(node *yaml.Node) {
	if node.Kind == yaml.MappingNode {
		last := map[string]int{}
		for n := 0; n < len(node.Content); n += 2 {
			last[node.Content[n].Value] = n
		}
		var kept []*yaml.Node
		for n := 0; n < len(node.Content); n += 2 {
			if last[node.Content[n].Value] == n {
				kept = append(kept, node.Content[n:n+2]...)
			}
		}
		node.Content = kept
	}
	for _, child := range node.Content {
		dropDuplicates(child)
	}
}
