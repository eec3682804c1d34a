package imagefile_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/lxdtest"
)

// onlyReader hides that a reader is seekable.
type onlyReader struct{ io.Reader }

// convert packs an image again, as the unified image or, if split is true, the two files.
func convert(t testing.TB, root imagefile.Root, split bool, opts *imagefile.PackOptions) (info *imagefile.Info, image, rootfs []byte, err error) {
	t.Helper()
	var first, second bytes.Buffer
	if !split {
		info, err = imagefile.Pack(t.Context(), &first, nil, root, nil, opts)
		return info, first.Bytes(), nil, err
	}
	info, err = imagefile.Pack(t.Context(), &first, &second, root, nil, opts)
	return info, first.Bytes(), second.Bytes(), err
}

// TestFromImage: an image keeps all that it has in each layout and compression.
func TestFromImage(t *testing.T) {
	t.Parallel()
	var unifiedImage bytes.Buffer
	_, err := imagefile.Pack(t.Context(), &unifiedImage, nil, imagefile.FromTar(bytes.NewReader(rootTar(t)), nil), described(), withTemplates(imagefile.PackOptions{Compression: imagefile.None}))
	require.NoError(t, err)

	// To the same: the same bytes.
	info, image, _, err := convert(t, imagefile.FromImage(onlyReader{&unifiedImage}, nil, nil), false, nil)
	require.NoError(t, err)
	checked(t, info, image, nil)
	original := image
	require.Equal(t, imagefile.None, info.Image.Compression)

	// To a split one, and back.
	info, meta, root, err := convert(t, imagefile.FromImage(bytes.NewReader(original), nil, nil), true, &imagefile.PackOptions{Compression: imagefile.Zstd})
	require.NoError(t, err)
	checked(t, info, meta, root)
	require.Equal(t, imagefile.Zstd, info.Rootfs.Compression)
	_, image, _, err = convert(t, imagefile.FromImage(onlyReader{bytes.NewReader(meta)}, onlyReader{bytes.NewReader(root)}, nil), false, &imagefile.PackOptions{Compression: imagefile.None})
	require.NoError(t, err)
	require.Equal(t, names(t, original), names(t, image))
	require.Equal(t, lxdtest.Fingerprint(original), lxdtest.Fingerprint(image))

	// A split image's root filesystem remains as it is, unless options say otherwise.
	info, _, same, err := convert(t, imagefile.FromImage(bytes.NewReader(meta), bytes.NewReader(root), nil), true, nil)
	require.NoError(t, err)
	require.Equal(t, root, same)
	require.Equal(t, imagefile.Zstd, info.Rootfs.Compression)
	info, _, other, err := convert(t, imagefile.FromImage(bytes.NewReader(meta), bytes.NewReader(root), nil), true, &imagefile.PackOptions{Compression: imagefile.XZ})
	require.NoError(t, err)
	require.NotEqual(t, root, other)
	require.Equal(t, imagefile.XZ, info.Rootfs.Compression)
	info, meta2, same, err := convert(t, imagefile.FromImage(bytes.NewReader(meta), bytes.NewReader(squashfs), nil), true, nil)
	require.NoError(t, err)
	require.Equal(t, squashfs, same)
	checked(t, info, meta2, same)

	// The metadata alone.
	info, meta2, _, err = convert(t, imagefile.FromImage(bytes.NewReader(meta), nil, nil), false, nil)
	require.NoError(t, err)
	require.Equal(t, meta, meta2)
	require.Equal(t, imagefile.MetadataOnly, info.Layout)
}

// TestFromImageEdit: a property changes, and nothing else, not even what Metadata does not know.
func TestFromImageEdit(t *testing.T) {
	t.Parallel()
	source := unified(t, good+"variant: special\n# a comment\n", entry{name: "templates/a.tpl", content: "a"})
	info, image, _, err := convert(t, imagefile.FromImage(bytes.NewReader(source), nil, &imagefile.FromImageOptions{Edit: func(m *imagefile.Metadata) error {
		m.Properties["os"] = "Other"
		m.Properties["new"] = "1.0"
		return nil
	}}), false, nil)
	require.NoError(t, err)
	checked(t, info, image, nil)
	require.Equal(t, map[string]string{"os": "Other", "new": "1.0"}, info.Metadata.Properties)
	list := names(t, image)
	require.Contains(t, list[0], "variant: special")
	require.Contains(t, list[0], "# a comment")
	require.Contains(t, strings.Join(list, "\n"), `templates/a.tpl  "a"`)

	refused := errors.New("no")
	_, _, _, err = convert(t, imagefile.FromImage(bytes.NewReader(source), nil, &imagefile.FromImageOptions{Edit: func(*imagefile.Metadata) error { return refused }}), false, nil)
	require.ErrorIs(t, err, refused)
	_, _, _, err = convert(t, imagefile.FromImage(bytes.NewReader(source), nil, &imagefile.FromImageOptions{Edit: func(m *imagefile.Metadata) error {
		m.Architecture = "vax"
		return nil
	}}), false, nil)
	var input *imagefile.InputError
	require.ErrorAs(t, err, &input)
}

// TestFromImageOrder: metadata and templates that come late need a reader that is seekable, as the documentation says.
func TestFromImageOrder(t *testing.T) {
	t.Parallel()
	late := tarball(t, append(append([]entry{}, root...), entry{name: "./metadata.yaml", content: good}, entry{name: "templates/a.tpl", content: "a"})...)
	lateTemplate := unified(t, good, entry{name: "templates/a.tpl", content: "a"})
	for _, c := range []struct {
		name     string
		image    []byte
		seekable bool
		split    bool
		kind     imagefile.ProblemKind
	}{
		{"late", late, true, false, ""},
		{"late", late, true, true, ""},
		{"late", late, false, false, imagefile.NoMetadata},
		{"late", late, false, true, imagefile.NoMetadata},
		{"late template", lateTemplate, true, false, ""},
		{"late template", lateTemplate, true, true, ""},
		{"late template", lateTemplate, false, false, ""},
		{"late template", lateTemplate, false, true, imagefile.BadTemplate},
	} {
		var in io.Reader = onlyReader{bytes.NewReader(c.image)}
		if c.seekable {
			in = bytes.NewReader(c.image)
		}
		info, image, rootfs, err := convert(t, imagefile.FromImage(in, nil, nil), c.split, nil)
		if c.kind != "" {
			var problem *imagefile.Problem
			require.ErrorAs(t, err, &problem, c)
			require.Equal(t, c.kind, problem.Kind)
			continue
		}
		require.NoError(t, err)
		checked(t, info, image, rootfs)
		require.Contains(t, strings.Join(names(t, image), "\n"), `templates/a.tpl  "a"`)
	}
}

// TestFromImageDisk: the disk of a virtual machine is copied as it is.
func TestFromImageDisk(t *testing.T) {
	t.Parallel()
	meta, disk := lxdtest.VMImage("disk", 100_000)
	info, image, _, err := convert(t, imagefile.FromImage(bytes.NewReader(meta), bytes.NewReader(disk), nil), false, nil)
	require.NoError(t, err)
	checked(t, info, image, nil)
	require.Equal(t, imagefile.VirtualMachine, info.Type)
	require.Equal(t, imagefile.Unified, info.Layout)
	info, meta2, disk2, err := convert(t, imagefile.FromImage(bytes.NewReader(image), nil, nil), true, &imagefile.PackOptions{Compression: imagefile.XZ})
	require.NoError(t, err)
	checked(t, info, meta2, disk2)
	require.Equal(t, disk, disk2)
	require.Equal(t, int64(1<<20), info.Rootfs.DiskSize)
	require.Equal(t, imagefile.XZ, info.Image.Compression)

	_, _, _, err = convert(t, imagefile.FromImage(bytes.NewReader(meta), onlyReader{bytes.NewReader(disk)}, nil), false, nil)
	var input *imagefile.InputError
	require.ErrorAs(t, err, &input)
	_, _, _, err = convert(t, imagefile.FromImage(bytes.NewReader(meta), nil, nil), false, &imagefile.PackOptions{Level: 9})
	require.ErrorAs(t, err, &input)
	require.Equal(t, "Level", input.Field)
}

// TestFromImageBothRoots: the first root filesystem counts, as for the daemons.
func TestFromImageBothRoots(t *testing.T) {
	t.Parallel()
	info, image, _, err := convert(t, imagefile.FromImage(bytes.NewReader(unified(t, good, entry{name: "rootfs.img", content: "disk"})), nil, nil), false, nil)
	require.NoError(t, err)
	require.Equal(t, imagefile.Container, info.Type)
	require.NotContains(t, strings.Join(names(t, image), "\n"), "rootfs.img")
}

// TestFromImageRefuses: an image that is none is a problem, with nothing written for it to be mistaken for one.
func TestFromImageRefuses(t *testing.T) {
	t.Parallel()
	meta := tarball(t, entry{name: "metadata.yaml", content: good})
	for _, c := range []struct {
		name          string
		image, rootfs []byte
		split         bool
		kind          imagefile.ProblemKind
	}{
		{"text", bytes.Repeat([]byte("text "), 1000), nil, false, imagefile.UnknownFormat},
		{"no metadata", tarball(t, root...), nil, false, imagefile.NoMetadata},
		{"no metadata", tarball(t, entry{name: "x"}), nil, false, imagefile.NoMetadata},
		{"bad metadata", unified(t, "x"), nil, false, imagefile.BadMetadata},
		{"no rootfs", meta, nil, true, imagefile.NoRootfs},
		{"cut", unified(t, good)[:3000], nil, false, imagefile.Cut},
		{"cut rootfs", meta, gzipped(t, rootTar(t))[:50], false, imagefile.Cut},
		{"text rootfs", meta, bytes.Repeat([]byte("text "), 1000), false, imagefile.UnknownFormat},
		{"escaping", unified(t, good, entry{name: "rootfs/../../x"}), nil, false, imagefile.EscapingPath},
		{"escaping link", unified(t, good, entry{name: "rootfs/x", kind: tar.TypeLink, link: "metadata.yaml"}), nil, false, imagefile.EscapingLink},
		{"text rootfs", meta, bytes.Repeat([]byte("text "), 1000), true, imagefile.UnknownFormat},
		{"empty rootfs", meta, []byte{}, true, imagefile.Empty},
		{"large rootfs", meta, tarball(t, entry{name: "a", content: strings.Repeat("a", 2<<20)}), true, imagefile.TooLarge},
		{"template outside", unified(t, good, entry{name: "templates/../x"}), nil, false, imagefile.EscapingPath},
		{"template is a hard link", unified(t, good, entry{name: "templates/x", kind: tar.TypeLink, link: "templates/y"}), nil, false, imagefile.BadTemplate},
		{"template is a link", unified(t, good, entry{name: "templates/x", kind: tar.TypeSymlink, link: "y"}), nil, false, imagefile.BadTemplate},
		{"two disks", tarball(t, entry{name: "metadata.yaml", content: good}, entry{name: "rootfs.img", content: "1"}, entry{name: "./rootfs.img", content: "2"}), nil, true, imagefile.AmbiguousRootfs},
		{"disk is a link", tarball(t, entry{name: "metadata.yaml", content: good}, entry{name: "rootfs.img", kind: tar.TypeSymlink, link: "y"}), nil, true, imagefile.NoRootfs},
		{"templates", tarball(t, entry{name: "metadata.yaml", content: good}, entry{name: "templates/a", content: strings.Repeat("a", 17<<20)}), nil, false, imagefile.TooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var second io.Reader
			if c.rootfs != nil {
				second = bytes.NewReader(c.rootfs)
			}
			_, _, _, err := convert(t, imagefile.FromImage(bytes.NewReader(c.image), second, &imagefile.FromImageOptions{MaxSize: map[bool]int64{true: 1 << 20}[c.name == "large rootfs"]}), c.split, nil)
			var problem *imagefile.Problem
			require.ErrorAs(t, err, &problem)
			require.Equal(t, c.kind, problem.Kind)
		})
	}
}

// TestFromImageEditKeeps: Edit has maps to write to, and what it does not change remains as it is written. A template that
// it adds must have a file, and what it cannot see is not lost.
func TestFromImageEditKeeps(t *testing.T) {
	t.Parallel()
	const bare = "architecture: x86_64\ncreation_date: 1704067200\n"
	const templates = "templates:\n    /a: {when: [create], template: a.tpl, mode: 0600} # once\n"
	set := func(m *imagefile.Metadata) { m.Properties["new"] = "1" }
	add := func(m *imagefile.Metadata) {
		m.Templates["/b"] = imagefile.Template{When: []string{"start"}, Template: "b.tpl"}
	}
	change := func(m *imagefile.Metadata) { m.Templates["/a"].When[0] = "copy" }
	for _, c := range []struct {
		name, metadata string
		edit           func(*imagefile.Metadata)
		files          map[string][]byte
		want           string // in metadata.yaml
		problem        string // otherwise
	}{
		{"no properties", bare, set, nil, "properties:\n    new: \"1\"\n", ""},
		{"unknown field of a template", bare + templates, set, nil, templates, ""},
		{"property's spelling", good + "  version: 024.10 # a number\n", add, map[string][]byte{"b.tpl": nil}, "version: 024.10 # a number\n", ""},
		{"number", bare + "properties: {version: 24.10}\n", set, nil, `version: "24.10"`, ""},
		{"template", good, add, map[string][]byte{"b.tpl": []byte("b")}, "template: b.tpl", ""},
		{"template in place", bare + templates, change, nil, "- copy\n", ""},
		{"template without file", good, add, nil, "", `TemplateFiles does not have "b.tpl", which the template of /b needs, and nor has the image`},
		{"template was without file", bare + "templates:\n    /b: {when: [create], template: b.tpl}\n", set, nil, "b.tpl", ""},
		{"merged", "base: &b {architecture: amd64, creation_date: 1704067200}\n<<: *b\n", set, nil, "architecture: x86_64\n", ""},
		{"alias", bare + "other: &p {os: Test}\nproperties: *p\n", set, nil, "other: &p {os: Test}\n", ""},
		{"anchor", bare + "properties: &p {os: Test}\nother: *p\n", set, nil, "", "has an anchor"},
		{"json", `{"architecture": "x86_64", "creation_date": 1704067200, "other": [1, {"a": null}]}`, set, nil, `"other": [1, {"a": null}]`, ""},
		{"unreadable property", bare + "properties: {a: [1], os: Test}\n", set, nil, "", "properties is not a mapping of texts"},
		{"twice", good + "architecture: x86_64\n", set, nil, "", "each field once"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			edit := func(m *imagefile.Metadata) error { c.edit(m); return nil }
			image := tarball(t, append([]entry{{name: "metadata.yaml", content: c.metadata}, {name: "templates/a.tpl"}}, root...)...)
			info, _, _, err := convert(t, imagefile.FromImage(bytes.NewReader(image), nil, &imagefile.FromImageOptions{Edit: edit}), false, &imagefile.PackOptions{TemplateFiles: c.files})
			if c.problem != "" {
				require.ErrorContains(t, err, c.problem)
				return
			}
			require.NoError(t, err)
			require.Contains(t, string(info.MetadataYAML), c.want)
		})
	}
}
