package imagefile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/lxdtest"
)

// compressed returns a file in each compression.
func compressed(t testing.TB, data []byte) map[imagefile.Compression][]byte {
	t.Helper()
	bzipped, err := os.ReadFile("testdata/unified.tar.bz2")
	require.NoError(t, err)
	return map[imagefile.Compression][]byte{
		imagefile.None:  data,
		imagefile.Gzip:  gzipped(t, data),
		imagefile.Bzip2: bzipped,
		imagefile.XZ:    throughXZ(t, data),
		imagefile.LZMA:  throughLZMA(t, data),
		imagefile.Zstd:  through(t, data, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
	}
}

// padded is a unified image with 100 kB that do not compress. testdata/unified.tar.bz2 is it, compressed by bzip2.
func padded() []byte { return lxdtest.UnifiedImage("padded", 100_000) }

// TestCompressions: an image is read in each compression, and one that is cut or damaged is reported as such.
func TestCompressions(t *testing.T) {
	t.Parallel()
	for compression, data := range compressed(t, padded()) {
		t.Run(string(compression), func(t *testing.T) {
			t.Parallel()
			info, err := imagefile.Inspect(t.Context(), iotest.HalfReader(bytes.NewReader(data)), nil, &imagefile.InspectOptions{Fingerprint: true})
			require.NoError(t, err)
			require.Equal(t, &imagefile.Info{
				Layout: imagefile.Unified, Type: imagefile.Container, Fingerprint: lxdtest.Fingerprint(data), Size: int64(len(data)),
				Image: imagefile.File{Size: int64(len(data)), Compression: compression, Format: imagefile.Tar},
				Metadata: &imagefile.Metadata{
					Architecture: "x86_64", CreatedAt: time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC),
					Properties: map[string]string{"architecture": "x86_64", "description": "Test image padded", "os": "lxdtest", "release": "1", "seed": "padded"},
				},
				MetadataYAML: []byte("architecture: x86_64\ncreation_date: 1704067200\nproperties:\n" +
					"  architecture: x86_64\n  description: Test image padded\n  os: lxdtest\n  release: \"1\"\n  seed: \"padded\"\n"),
			}, info)

			report, err := imagefile.Check(t.Context(), bytes.NewReader(data), nil, nil)
			require.NoError(t, err)
			require.Empty(t, report.Problems)
			require.Equal(t, info, report.Info)

			report, err = imagefile.Check(t.Context(), bytes.NewReader(data[:len(data)*2/3]), nil, nil)
			require.NoError(t, err)
			require.Len(t, report.Problems, 1)
			require.Equal(t, imagefile.Cut, report.Problems[0].Kind, report.Problems[0])

			if compression != imagefile.None && compression != imagefile.LZMA { // These have no checksum.
				damaged := bytes.Clone(data)
				damaged[len(data)/2] ^= 0x10
				report, err = imagefile.Check(t.Context(), bytes.NewReader(damaged), nil, nil)
				require.NoError(t, err)
				require.Len(t, report.Problems, 1)
				require.Equal(t, imagefile.Damaged, report.Problems[0].Kind, report.Problems[0])
			}
		})
	}
}

// TestLayouts: the parts of images are recognized, alone and together.
func TestLayouts(t *testing.T) {
	t.Parallel()
	metadata, root := lxdtest.SplitImage("layouts", 1000)
	_, disk := lxdtest.VMImage("layouts", 0)
	for _, c := range []struct {
		name          string
		image, rootfs []byte
		layout        imagefile.Layout
		kind          imagefile.ImageType
		format        imagefile.Format // of the last file
	}{
		{"unified", padded(), nil, imagefile.Unified, imagefile.Container, imagefile.Tar},
		{"unified vm", tarball(t, entry{name: "metadata.yaml", content: good}, entry{name: "rootfs.img", content: string(disk)}), nil, imagefile.Unified, imagefile.VirtualMachine, imagefile.Tar},
		{"metadata", metadata, nil, imagefile.MetadataOnly, "", imagefile.Tar},
		{"rootfs", root, nil, imagefile.RootfsOnly, imagefile.Container, imagefile.Tar},
		{"squashfs", squashfs, nil, imagefile.RootfsOnly, imagefile.Container, imagefile.Squashfs},
		{"qcow2", disk, nil, imagefile.RootfsOnly, imagefile.VirtualMachine, imagefile.Qcow2},
		{"raw", rawDisk(), nil, imagefile.RootfsOnly, imagefile.VirtualMachine, imagefile.Raw},
		{"split tar", metadata, gzipped(t, root), imagefile.Split, imagefile.Container, imagefile.Tar},
		{"split squashfs", metadata, squashfs, imagefile.Split, imagefile.Container, imagefile.Squashfs},
		{"split vm", metadata, disk, imagefile.Split, imagefile.VirtualMachine, imagefile.Qcow2},
		{"split raw", metadata, rawDisk(), imagefile.Split, imagefile.VirtualMachine, imagefile.Raw},
	} {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, whole), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				names := [2]string{filepath.Join(dir, "image")}
				files := [][]byte{c.image}
				require.NoError(t, os.WriteFile(names[0], c.image, 0o600))
				if c.rootfs != nil {
					names[1] = filepath.Join(dir, "rootfs")
					files = append(files, c.rootfs)
					require.NoError(t, os.WriteFile(names[1], c.rootfs, 0o600))
				}
				info, err := imagefile.InspectFiles(t.Context(), names[0], names[1], &imagefile.InspectOptions{Fingerprint: whole})
				require.NoError(t, err)
				require.Equal(t, c.layout, info.Layout)
				require.Equal(t, c.kind, info.Type)
				require.EqualValues(t, len(c.image)+len(c.rootfs), info.Size)
				last := info.Image
				if c.rootfs != nil {
					last = *info.Rootfs
				}
				require.Equal(t, c.format, last.Format)
				if c.format == imagefile.Qcow2 {
					require.EqualValues(t, 1<<20, last.DiskSize)
				}
				require.Equal(t, c.layout != imagefile.RootfsOnly, info.Metadata != nil)
				want := ""
				if whole {
					want = lxdtest.Fingerprint(files...)
				}
				require.Equal(t, want, info.Fingerprint)
			})
		}
	}
}

// countingReader counts what is read.
type countingReader struct {
	io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// TestInspectReadsTheBeginning: without a fingerprint, no more than one block is read of an image that begins with its
// metadata; the rest may not even exist yet.
func TestInspectReadsTheBeginning(t *testing.T) {
	t.Parallel()
	in := &countingReader{Reader: io.MultiReader(bytes.NewReader(lxdtest.UnifiedImage("beginning", 1<<20)), iotest.ErrReader(errors.New("too far")))}
	info, err := imagefile.Inspect(t.Context(), in, nil, nil)
	require.NoError(t, err)
	require.Equal(t, imagefile.Unified, info.Layout)
	require.EqualValues(t, -1, info.Size)
	require.LessOrEqual(t, in.n, int64(128<<10))

	// An error that comes with the last bytes that are needed does not matter.
	_, err = imagefile.Inspect(t.Context(), iotest.DataErrReader(io.MultiReader(bytes.NewReader(padded()[:20_000]), iotest.ErrReader(errors.New("too far")))), nil, nil)
	require.NoError(t, err)
}

// TestInspectErrors: what cannot be read is an error that says why.
func TestInspectErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken disk")
	inspect := func(image, rootfs io.Reader, opts *imagefile.InspectOptions) error {
		_, err := imagefile.Inspect(t.Context(), image, rootfs, opts)
		return err
	}
	problem := func(kind imagefile.ProblemKind, err error) {
		t.Helper()
		var p *imagefile.Problem
		require.ErrorAs(t, err, &p)
		require.Equal(t, kind, p.Kind, err)
	}
	metadata, _ := lxdtest.SplitImage("errors", 0)
	problem(imagefile.Empty, inspect(bytes.NewReader(nil), nil, nil))
	problem(imagefile.Empty, inspect(bytes.NewReader(metadata), bytes.NewReader(nil), nil))
	problem(imagefile.UnknownFormat, inspect(bytes.NewReader([]byte("this is a text")), nil, nil))
	problem(imagefile.BadMetadata, inspect(bytes.NewReader(unified(t, "architecture: [")), nil, nil))
	problem(imagefile.Cut, inspect(bytes.NewReader(metadata[:600]), nil, nil))
	for image, rootfs := range map[string]io.Reader{"architecture: [": nil, "- list": bytes.NewReader(squashfs), good: bytes.NewReader(nil)} {
		files := unified(t, image)
		info, err := imagefile.Inspect(t.Context(), bytes.NewReader(files), rootfs, &imagefile.InspectOptions{Fingerprint: true})
		require.Error(t, err)
		require.Equal(t, image, string(info.MetadataYAML), "what was read before is returned")
		require.Equal(t, imagefile.File{Size: int64(len(files)), Compression: imagefile.None, Format: imagefile.Tar}, info.Image)
		if rootfs == nil {
			require.Equal(t, lxdtest.Fingerprint(files), info.Fingerprint)
		} else if image != good {
			require.Empty(t, info.Fingerprint, "the second file was not read")
			require.EqualValues(t, -1, info.Size)
		}
	}
	problem(imagefile.TooLarge, inspect(bytes.NewReader(padded()), nil, &imagefile.InspectOptions{Fingerprint: true, MaxSize: 50_000}))
	require.ErrorIs(t, inspect(silent{}, nil, nil), io.ErrNoProgress)
	require.ErrorIs(t, inspect(iotest.ErrReader(broken), nil, nil), broken)
	require.ErrorIs(t, inspect(io.MultiReader(bytes.NewReader(padded()[:1000]), iotest.ErrReader(broken)), nil, nil), broken)
	require.ErrorIs(t, inspect(bytes.NewReader(metadata), iotest.ErrReader(broken), nil), broken)

	var input *imagefile.InputError
	require.ErrorAs(t, inspect(nil, nil, nil), &input)
	require.ErrorAs(t, inspect(bytes.NewReader(nil), nil, &imagefile.InspectOptions{MaxSize: -1}), &input)
	require.Equal(t, "MaxSize", input.Field)
	_, err := imagefile.InspectFiles(t.Context(), t.TempDir(), "", nil)
	require.ErrorAs(t, err, &input)
	_, err = imagefile.InspectFiles(t.Context(), filepath.Join(t.TempDir(), "absent"), "", nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = imagefile.Check(t.Context(), bytes.NewReader(nil), nil, &imagefile.CheckOptions{Type: "vm"})
	require.ErrorAs(t, err, &input)
}

// silent returns neither bytes nor an error.
type silent struct{}

func (silent) Read([]byte) (int, error) { return 0, nil }

// TestContext: a context that ends is obeyed while a reader blocks, and while an archive bomb is unpacked.
func TestContext(t *testing.T) {
	t.Parallel()
	big := tarball(t, entry{name: "rootfs/zeros", content: string(make([]byte, 1<<20))})
	for name, data := range map[string][]byte{"silent": padded()[:1000], "endless": gzipped(t, big), "stored": big, "bomb": append(tarZstd(t, block("rootfs/zeros", '0', 1<<32, nil)), bytes.Repeat(zeros(), 20)...)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			in, out := io.Pipe()
			written := make(chan struct{})
			go func() {
				defer close(written)
				for { // a pipe that never ends
					if _, err := out.Write(data); err != nil {
						return
					}
					if name == "silent" {
						cancel()
						return
					}
					time.AfterFunc(10*time.Millisecond, cancel)
				}
			}()
			start := time.Now()
			_, err := imagefile.Check(ctx, in, nil, nil)
			require.ErrorIs(t, err, context.Canceled)
			require.Less(t, time.Since(start), 20*time.Second)
			require.NoError(t, in.Close())
			<-written
		})
	}
}
