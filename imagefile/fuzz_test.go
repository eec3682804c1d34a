package imagefile_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/lxdtest"
)

// FuzzCheck: whatever the files are, Check and Inspect return without an error but problems, and agree.
func FuzzCheck(f *testing.F) {
	for _, c := range imageCases(f) {
		if len(c.image)+len(c.rootfs) < 64<<10 { // The fuzzer is slow with larger ones.
			f.Add(c.image, c.rootfs)
		}
	}
	for compression, data := range compressed(f, lxdtest.UnifiedImage("fuzz", 0)) {
		if compression != imagefile.Bzip2 { // That is a larger image.
			f.Add(data, []byte(nil))
		}
	}
	f.Add(hugeXZ(), []byte(nil))
	f.Fuzz(func(t *testing.T, image, rootfs []byte) {
		const maxSize = 4 << 20
		if len(rootfs) == 0 {
			rootfs = nil // A unified image.
		}
		report, err := imagefile.Check(t.Context(), bytes.NewReader(image), second(rootfs), &imagefile.CheckOptions{MaxSize: maxSize})
		require.NoError(t, err)
		require.LessOrEqual(t, len(report.Problems), 100)
		for _, p := range report.Problems {
			require.NotEmpty(t, p.Message)
			require.Less(t, len(p.Error()), 4000)
		}
		if report.Info.Fingerprint != "" {
			files := [][]byte{image}
			if rootfs != nil {
				files = append(files, rootfs)
			}
			require.Equal(t, lxdtest.Fingerprint(files...), report.Info.Fingerprint)
		}
		info, err := imagefile.Inspect(t.Context(), iotest.HalfReader(bytes.NewReader(image)), second(rootfs), &imagefile.InspectOptions{Fingerprint: true, MaxSize: maxSize})
		if err != nil {
			var p *imagefile.Problem
			require.True(t, errors.As(err, &p), "%v", err)
			require.NotEmpty(t, report.Problems, "%v", err)
			return
		}
		require.Equal(t, lxdtest.Fingerprint(image, rootfs), info.Fingerprint)
		if len(report.Problems) == 0 {
			require.Equal(t, report.Info, info)
		}
	})
}

// FuzzFromImage: whatever an image is, it is packed again or refused. The result is an image that can be read, and packed
// again is itself.
func FuzzFromImage(f *testing.F) {
	for _, c := range imageCases(f) {
		if len(c.image)+len(c.rootfs) < 64<<10 {
			f.Add(c.image, c.rootfs)
		}
	}
	f.Add(unified(f, good, entry{name: "templates/a.tpl", content: "a"}, entry{name: "rootfs/dev/null", kind: tar.TypeChar, major: 1}), []byte(nil))
	f.Fuzz(func(t *testing.T, image, rootfs []byte) {
		const maxSize = 4 << 20
		if len(rootfs) == 0 {
			rootfs = nil
		}
		opts := &imagefile.PackOptions{Compression: imagefile.None}
		var packed, packedRootfs bytes.Buffer
		var out io.Writer
		if rootfs != nil {
			out = &packedRootfs
		}
		_, err := imagefile.Pack(t.Context(), &packed, out, imagefile.FromImage(bytes.NewReader(image), second(rootfs), &imagefile.FromImageOptions{MaxSize: maxSize}), nil, opts)
		var input *imagefile.InputError
		if err != nil {
			var problem *imagefile.Problem
			require.True(t, errors.As(err, &problem) || errors.As(err, &input), "%v", err)
			return
		}
		var again, againRootfs bytes.Buffer
		in := io.Reader(nil)
		if rootfs != nil {
			in, out = bytes.NewReader(packedRootfs.Bytes()), &againRootfs
		}
		_, err = imagefile.Pack(t.Context(), &again, out, imagefile.FromImage(bytes.NewReader(packed.Bytes()), in, nil), nil, opts)
		require.NoError(t, err)
		require.Equal(t, packed.Bytes(), again.Bytes())
		require.Equal(t, packedRootfs.Bytes(), againRootfs.Bytes())
	})
}

// FuzzFromTar: whatever a tarball is, it is packed or refused, and what was packed is packed again as itself.
func FuzzFromTar(f *testing.F) {
	f.Add(rootTar(f))
	f.Add(gzipped(f, rootTar(f)))
	f.Add(tarball(f, entry{name: "/a"}, entry{name: "b", kind: tar.TypeLink, link: "../c"}))
	f.Add(append(append(block("/GlobalHead", 'g', 14, nil), append([]byte("14 comment=xx\n"), make([]byte, 498)...)...), rootTar(f)...))
	for _, kind := range []byte("012345678AKLMSVgx") {
		f.Add(append(block("name", kind, 0, func(b []byte) { copy(b[157:], "name") }), make([]byte, 1024)...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		metadata := &imagefile.Metadata{Architecture: "x86_64", CreatedAt: day}
		pack := func(data []byte) ([]byte, error) {
			var rootfs bytes.Buffer
			_, err := imagefile.Pack(t.Context(), io.Discard, &rootfs, imagefile.FromTar(bytes.NewReader(data), &imagefile.FromTarOptions{MaxSize: 4 << 20}), metadata, &imagefile.PackOptions{Compression: imagefile.None})
			return rootfs.Bytes(), err
		}
		packed, err := pack(data)
		if err != nil {
			var problem *imagefile.Problem
			var input *imagefile.InputError
			require.True(t, errors.As(err, &problem) || errors.As(err, &input), "%v", err)
			return
		}
		again, err := pack(packed)
		require.NoError(t, err)
		require.True(t, bytes.Equal(packed, again))
	})
}

// FuzzMetadata: whatever metadata.yaml is, it is read in the same way by Check and Inspect.
func FuzzMetadata(f *testing.F) {
	for _, text := range []string{
		good, "", "a: &a [*a]", "architecture: amd64\ncreation_date: 1e9\nexpiry_date: 0x10\n", "[[[", "? a\n: b", "<<: {architecture: x}\n",
		good + "templates:\n  /a: {when: [start], template: a.tpl, create_only: true, properties: {a: b}}\n  b: null\n",
		"creation_date: .inf\n", "creation_date: .nan\n", "creation_date: 99999999999999999999\n", "properties: {? [a] : b}\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		image := unified(t, text)
		report, err := imagefile.Check(t.Context(), bytes.NewReader(image), nil, nil)
		require.NoError(t, err)
		info, err := imagefile.Inspect(t.Context(), bytes.NewReader(image), nil, nil)
		if err != nil {
			require.Error(t, report.Err())
			return
		}
		require.Equal(t, report.Info.Metadata, info.Metadata)
	})
}
