package imagefile_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

var day = time.Date(2026, time.March, 1, 12, 30, 0, 0, time.UTC)

// described is a metadata with each field.
func described() *imagefile.Metadata {
	return &imagefile.Metadata{
		Architecture: "amd64", CreatedAt: day, ExpiresAt: day.AddDate(90, 0, 0),
		Properties: map[string]string{"os": "Test", "release": "1", "serial": "007", "note": "a: b\n#c"},
		Templates:  map[string]imagefile.Template{"/etc/hostname": {When: []string{"create", "copy"}, CreateOnly: true, Template: "hostname.tpl", Properties: map[string]string{"a": "yes"}}},
	}
}

func withTemplates(opts imagefile.PackOptions) *imagefile.PackOptions {
	opts.TemplateFiles = map[string][]byte{"hostname.tpl": []byte("{{ container.name }}\n"), "unused.tpl": []byte("x")}
	return &opts
}

// rootTar is the tarball of a root filesystem.
func rootTar(t testing.TB) []byte {
	t.Helper()
	return tarball(t,
		entry{name: "./", kind: tar.TypeDir}, entry{name: "./etc/", kind: tar.TypeDir}, entry{name: "./etc/hostname", content: "test\n"},
		entry{name: "./etc/hostname2", kind: tar.TypeLink, link: "./etc/hostname"}, entry{name: "bin", kind: tar.TypeSymlink, link: "/usr/bin"},
		entry{name: "dev/null", kind: tar.TypeChar, major: 1}, entry{name: "run/initctl", kind: tar.TypeFifo}, entry{name: ".hidden", content: "h"},
		entry{name: "lat\xefn", content: "1"}, entry{name: strings.Repeat("long/", 60) + "name", content: "2"})
}

// names are the entries of a tarball, each with its type and link.
func names(t testing.TB, data []byte) []string {
	t.Helper()
	var list []string
	archive := tar.NewReader(bytes.NewReader(data))
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		require.NoError(t, err)
		content, err := io.ReadAll(archive)
		require.NoError(t, err)
		list = append(list, fmt.Sprintf("%c %s %s %q", header.Typeflag, header.Name, header.Linkname, content))
	}
}

// checked is what Check says of an image that Pack has written, which must be good apart from its device.
func checked(t testing.TB, info *imagefile.Info, image, rootfs []byte) {
	t.Helper()
	var second io.Reader
	if rootfs != nil {
		second = bytes.NewReader(rootfs)
	}
	report, err := imagefile.Check(t.Context(), bytes.NewReader(image), second, nil)
	require.NoError(t, err)
	report.Problems = slices.DeleteFunc(report.Problems, func(p *imagefile.Problem) bool { return p.Kind == imagefile.DeviceNode })
	require.Empty(t, report.Problems)
	require.Equal(t, report.Info, info)
}

func TestPackUnified(t *testing.T) {
	t.Parallel()
	for _, compression := range []imagefile.Compression{"", imagefile.None, imagefile.Gzip, imagefile.XZ, imagefile.Zstd} {
		t.Run(string(compression), func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			info, err := imagefile.Pack(t.Context(), &out, nil, imagefile.FromTar(bytes.NewReader(rootTar(t)), nil), described(), withTemplates(imagefile.PackOptions{Compression: compression}))
			require.NoError(t, err)
			checked(t, info, out.Bytes(), nil)
			require.Equal(t, imagefile.Unified, info.Layout)
			require.Equal(t, imagefile.Container, info.Type)
			want := described()
			want.Architecture = "x86_64"
			require.Equal(t, want, info.Metadata)
			if compression == "" {
				require.Equal(t, imagefile.Gzip, info.Image.Compression)
			} else {
				require.Equal(t, compression, info.Image.Compression)
			}
			if compression == imagefile.None {
				list := names(t, out.Bytes())
				require.Contains(t, list[0], "0 metadata.yaml")
				require.Equal(t, []string{
					`0 templates/hostname.tpl  "{{ container.name }}\n"`, `0 templates/unused.tpl  "x"`, `5 rootfs/  ""`, `5 rootfs/etc/  ""`,
					`0 rootfs/etc/hostname  "test\n"`, `1 rootfs/etc/hostname2 rootfs/etc/hostname ""`, `2 rootfs/bin /usr/bin ""`, `3 rootfs/dev/null  ""`,
					`6 rootfs/run/initctl  ""`, `0 rootfs/.hidden  "h"`, "0 rootfs/lat\xefn  \"1\"", `0 rootfs/` + strings.Repeat("long/", 60) + `name  "2"`,
				}, list[1:])
			}
		})
	}
}

func TestPackSplit(t *testing.T) {
	t.Parallel()
	var image, rootfs bytes.Buffer
	info, err := imagefile.Pack(t.Context(), &image, &rootfs, imagefile.FromTar(bytes.NewReader(gzipped(t, rootTar(t))), nil), described(), withTemplates(imagefile.PackOptions{Compression: imagefile.None}))
	require.NoError(t, err)
	checked(t, info, image.Bytes(), rootfs.Bytes())
	require.Equal(t, imagefile.Split, info.Layout)
	require.Len(t, names(t, image.Bytes()), 3)
	list := names(t, rootfs.Bytes())
	require.Equal(t, []string{`5 ./  ""`, `5 etc/  ""`, `0 etc/hostname  "test\n"`, `1 etc/hostname2 etc/hostname ""`}, list[:4])
}

// TestPackIsReproducible: the number of processors and the sizes of reads do not matter.
func TestPackIsReproducible(t *testing.T) {
	for _, compression := range []imagefile.Compression{imagefile.None, imagefile.Gzip, imagefile.XZ, imagefile.Zstd} {
		repeats := 50_000 // several blocks of the parallel compressors
		if compression == imagefile.XZ {
			repeats = 2_000 // It is slow, and not parallel.
		}
		large := tarball(t, entry{name: "a", content: strings.Repeat("some text that can be compressed ", repeats)}, entry{name: "b", content: strings.Repeat("\x00\x01", 20*repeats)})
		pack := func(in io.Reader) string {
			info, err := imagefile.Pack(t.Context(), io.Discard, nil, imagefile.FromTar(in, nil), described(), withTemplates(imagefile.PackOptions{Compression: compression}))
			require.NoError(t, err)
			return info.Fingerprint
		}
		want := pack(bytes.NewReader(large))
		before := runtime.GOMAXPROCS(1)
		one := pack(iotest.HalfReader(bytes.NewReader(large)))
		runtime.GOMAXPROCS(before + 3)
		more := pack(bytes.NewReader(large))
		runtime.GOMAXPROCS(before)
		require.Equal(t, want, one, compression)
		require.Equal(t, want, more, compression)
	}
}

// TestPackTimes: what is newer than ModTime, or SOURCE_DATE_EPOCH, has that time, and CreatedAt is it by default.
func TestPackTimes(t *testing.T) {
	data := tarball(t, entry{name: "a"})
	times := func(opts *imagefile.PackOptions) (created, modified time.Time) {
		var out bytes.Buffer
		info, err := imagefile.Pack(t.Context(), &out, nil, imagefile.FromTar(bytes.NewReader(data), nil), &imagefile.Metadata{Architecture: "x86_64"}, opts)
		require.NoError(t, err)
		in, err := gzip.NewReader(&out)
		require.NoError(t, err)
		archive := tar.NewReader(in)
		header, err := archive.Next()
		require.NoError(t, err)
		require.Equal(t, info.Metadata.CreatedAt.Unix(), header.ModTime.Unix())
		header, err = archive.Next()
		require.NoError(t, err)
		return info.Metadata.CreatedAt, header.ModTime.UTC()
	}
	made := time.Unix(1704067200, 0).UTC() // of the entries of tarball
	created, modified := times(nil)
	require.WithinDuration(t, time.Now(), created, time.Minute)
	require.Equal(t, made, modified)
	earlier := made.Add(-time.Hour)
	created, modified = times(&imagefile.PackOptions{ModTime: earlier})
	require.Equal(t, []time.Time{earlier, earlier}, []time.Time{created, modified})
	t.Setenv("SOURCE_DATE_EPOCH", fmt.Sprint(earlier.Unix()-60))
	created, modified = times(nil)
	require.Equal(t, []time.Time{earlier.Add(-time.Minute), earlier.Add(-time.Minute)}, []time.Time{created, modified})
	created, _ = times(&imagefile.PackOptions{ModTime: earlier})
	require.Equal(t, earlier, created)
	t.Setenv("SOURCE_DATE_EPOCH", "today")
	_, err := imagefile.Pack(t.Context(), io.Discard, nil, imagefile.FromTar(bytes.NewReader(data), nil), described(), withTemplates(imagefile.PackOptions{}))
	var input *imagefile.InputError
	require.ErrorAs(t, err, &input)
	require.Equal(t, "SOURCE_DATE_EPOCH", input.Field)
}

// neverWritten fails the test if something is written.
type neverWritten struct{ t testing.TB }

func (n neverWritten) Write([]byte) (int, error) {
	n.t.Error("something was written")
	return 0, errors.New("never")
}

// TestPackRefuses: bad arguments are refused before anything is written.
func TestPackRefuses(t *testing.T) {
	t.Parallel()
	good := func() *imagefile.Metadata { return described() }
	changed := func(change func(m *imagefile.Metadata)) *imagefile.Metadata {
		m := described()
		change(m)
		return m
	}
	for _, c := range []struct {
		field, problem string
		metadata       *imagefile.Metadata
		opts           imagefile.PackOptions
	}{
		{"metadata", "is nil", nil, imagefile.PackOptions{}},
		{"metadata", `has no Architecture`, &imagefile.Metadata{}, imagefile.PackOptions{}},
		{"metadata", `the architecture "vax"`, changed(func(m *imagefile.Metadata) { m.Architecture = "vax" }), imagefile.PackOptions{}},
		{"metadata", "before 1970", changed(func(m *imagefile.Metadata) { m.CreatedAt = time.Unix(-5, 0) }), imagefile.PackOptions{}},
		{"metadata", "after the year 9999", changed(func(m *imagefile.Metadata) { m.ExpiresAt = time.Unix(1e12, 0) }), imagefile.PackOptions{}},
		{"metadata", "not UTF-8", changed(func(m *imagefile.Metadata) { m.Properties["x"] = "\xff" }), imagefile.PackOptions{}},
		{"metadata", "not absolute", changed(func(m *imagefile.Metadata) { m.Templates["etc/x"] = m.Templates["/etc/hostname"] }), imagefile.PackOptions{}},
		{"metadata", "never written at", changed(func(m *imagefile.Metadata) {
			m.Templates["/x"] = imagefile.Template{When: []string{"boot"}, Template: "hostname.tpl"}
		}), imagefile.PackOptions{}},
		{"TemplateFiles", `does not have "other.tpl"`, changed(func(m *imagefile.Metadata) {
			m.Templates["/x"] = imagefile.Template{When: []string{"create"}, Template: "other.tpl"}
		}), imagefile.PackOptions{}},
		{"TemplateFiles", `has "a\x00b"`, good(), imagefile.PackOptions{TemplateFiles: map[string][]byte{"a\x00b": nil}}},
		{"TemplateFiles", `has "../x"`, good(), imagefile.PackOptions{TemplateFiles: map[string][]byte{"../x": nil}}},
		{"Compression", "is only read", good(), imagefile.PackOptions{Compression: imagefile.Bzip2}},
		{"Compression", "zip", good(), imagefile.PackOptions{Compression: "zip"}},
		{"Level", "gzip has 1 to 9", good(), imagefile.PackOptions{Level: 10}},
		{"Level", "xz has no levels", good(), imagefile.PackOptions{Level: 1, Compression: imagefile.XZ}},
		{"Format", "qcow2", good(), imagefile.PackOptions{Format: imagefile.Qcow2}},
		{"ModTime", "between 1970 and 9999", good(), imagefile.PackOptions{ModTime: time.Unix(-1, 0)}},
	} {
		t.Run(c.field+" "+c.problem, func(t *testing.T) {
			t.Parallel()
			opts := &c.opts
			if opts.TemplateFiles == nil {
				opts = withTemplates(c.opts)
			}
			_, err := imagefile.Pack(t.Context(), neverWritten{t}, nil, imagefile.FromTar(bytes.NewReader(rootTar(t)), nil), c.metadata, opts)
			var input *imagefile.InputError
			require.ErrorAs(t, err, &input)
			require.Equal(t, c.field, input.Field)
			require.Contains(t, input.Problem, c.problem)
		})
	}
	for field, pack := range map[string]func() error{
		"root": func() error {
			_, err := imagefile.Pack(t.Context(), neverWritten{t}, nil, nil, described(), nil)
			return err
		},
		"image": func() error {
			_, err := imagefile.Pack(t.Context(), nil, nil, imagefile.FromTar(bytes.NewReader(rootTar(t)), nil), described(), withTemplates(imagefile.PackOptions{}))
			return err
		},
		"metadata": func() error {
			_, err := imagefile.Pack(t.Context(), neverWritten{t}, nil, imagefile.FromImage(bytes.NewReader(nil), nil, nil), described(), withTemplates(imagefile.PackOptions{}))
			return err
		},
	} {
		var input *imagefile.InputError
		require.ErrorAs(t, pack(), &input, field)
		require.Equal(t, field, input.Field)
	}
}

// TestPackHostileTar: what cannot be a root filesystem is a problem.
func TestPackHostileTar(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		data []byte
		kind imagefile.ProblemKind
	}{
		{"absolute", tarball(t, entry{name: "/etc/passwd"}), imagefile.EscapingPath},
		{"above", tarball(t, entry{name: "a/../../b"}), imagefile.EscapingPath},
		{"link above", tarball(t, entry{name: "a", kind: tar.TypeLink, link: "../b"}), imagefile.EscapingLink},
		{"root is a file", tarball(t, entry{name: "./."}), imagefile.NoRootfs},
		{"empty", nil, imagefile.Empty},
		{"no files", append(block("/GlobalHead", 'g', 0, nil), make([]byte, 1024)...), imagefile.NoRootfs},
		{"text", bytes.Repeat([]byte("text "), 1000), imagefile.UnknownFormat},
		{"cut", rootTar(t)[:3000], imagefile.Cut},
		{"cut gzip", gzipped(t, rootTar(t))[:100], imagefile.Cut},
		{"owner", append(block("a", '0', 0, func(b []byte) { copy(b[108:], "\xff\xff\xff\xff\xff\xff\xff\xff") }), make([]byte, 1024)...), imagefile.Damaged},
		{"device", append(block("a", '3', 0, func(b []byte) { copy(b[329:], "\x80\x00\x00\x00\xff\xff\xff\xff") }), make([]byte, 1024)...), imagefile.Damaged},
		{"large", tarball(t, entry{name: "a", content: strings.Repeat("a", 70_000)}), imagefile.TooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			name := filepath.Join(t.TempDir(), "image.tar")
			_, err := imagefile.PackFiles(t.Context(), name, "", imagefile.FromTar(bytes.NewReader(c.data), &imagefile.FromTarOptions{MaxSize: 65_536}), described(), withTemplates(imagefile.PackOptions{}))
			var problem *imagefile.Problem
			require.ErrorAs(t, err, &problem)
			require.Equal(t, c.kind, problem.Kind)
			left, err := os.ReadDir(filepath.Dir(name))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// TestPackReaders: readers deliver what Pack writes, and end when they are closed or the context ends.
func TestPackReaders(t *testing.T) {
	t.Parallel()
	data := rootTar(t)
	root := func() imagefile.Root { return imagefile.FromTar(bytes.NewReader(data), nil) }
	opts := withTemplates(imagefile.PackOptions{Compression: imagefile.Zstd})
	var image, rootfs bytes.Buffer
	_, err := imagefile.Pack(t.Context(), &image, nil, root(), described(), opts)
	require.NoError(t, err)
	reader := imagefile.NewReader(t.Context(), root(), described(), opts)
	got, err := io.ReadAll(reader)
	require.NoError(t, err)
	require.Equal(t, image.Bytes(), got)
	require.NoError(t, reader.Close())

	image.Reset()
	_, err = imagefile.Pack(t.Context(), &image, &rootfs, root(), described(), opts)
	require.NoError(t, err)
	first, second := imagefile.NewReaders(t.Context(), root(), described(), opts)
	got, err = io.ReadAll(first)
	require.NoError(t, err)
	require.Equal(t, image.Bytes(), got)
	require.NoError(t, first.Close())
	got, err = io.ReadAll(second)
	require.NoError(t, err)
	require.Equal(t, rootfs.Bytes(), got)
	require.NoError(t, second.Close())

	first, second = imagefile.NewReaders(t.Context(), root(), described(), opts)
	got, err = io.ReadAll(second) // before the first
	require.NoError(t, err)
	require.Equal(t, rootfs.Bytes(), got)
	got, err = io.ReadAll(first)
	require.NoError(t, err)
	require.Equal(t, image.Bytes(), got)
	first, second = imagefile.NewReaders(t.Context(), root(), described(), opts)
	_, err = io.ReadAll(second)
	require.NoError(t, err)
	require.NoError(t, first.Close()) // unread

	ctx, cancel := context.WithCancel(t.Context())
	first, second = imagefile.NewReaders(ctx, imagefile.FromTar(&endlessTar{}, nil), described(), opts)
	_, err = io.ReadAll(first)
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, second, 1000)
	require.NoError(t, err)
	cancel()
	_, err = io.Copy(io.Discard, second)
	require.ErrorIs(t, err, context.Canceled)

	reader = imagefile.NewReader(t.Context(), imagefile.FromTar(&endlessTar{}, nil), described(), opts)
	_, err = io.CopyN(io.Discard, reader, 1000)
	require.NoError(t, err)
	require.NoError(t, reader.Close())
	_, err = reader.Read(make([]byte, 1))
	require.Error(t, err)

	first, second = imagefile.NewReaders(t.Context(), root(), described(), opts) // never read
	require.NoError(t, second.Close())
	_, err = first.Read(make([]byte, 1))
	require.Error(t, err)

	// Close of one that was not read to its end ends the other in another goroutine.
	first, second = imagefile.NewReaders(t.Context(), imagefile.FromTar(&endlessTar{}, nil), described(), opts)
	ended := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, second)
		ended <- err
	}()
	_, err = first.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.ErrorIs(t, <-ended, io.ErrClosedPipe)
	require.NoError(t, first.Close())
	require.NoError(t, second.Close())

	reader = imagefile.NewReader(t.Context(), root(), nil, nil)
	_, err = reader.Read(make([]byte, 1))
	var input *imagefile.InputError
	require.ErrorAs(t, err, &input)
	require.Equal(t, "metadata", input.Field)
	require.NoError(t, reader.Close())
}

// TestFromTarHeaders: a header has nothing that its type does not have, a contiguous file is a file, and a header of all files
// is none.
func TestFromTarHeaders(t *testing.T) {
	t.Parallel()
	data := append(append(block("/GlobalHead", 'g', 14, nil), append([]byte("14 comment=xx\n"), make([]byte, 498)...)...), block("a", '7', 3, func(b []byte) {
		copy(b[100:], "\x80\x00\x00\x00\xff\xff\x8f\xff") // more than permissions
		copy(b[329:], "\x80\x00\x00\x00\xff\xff\xff\xff")
	})...)
	data = append(append(data, "abc"...), make([]byte, 509+1024)...)
	var rootfs bytes.Buffer
	root := imagefile.FromTar(bytes.NewReader(data), &imagefile.FromTarOptions{Owner: func(uid, gid int) (int, int) { return uid + 1, gid + 2 }})
	_, err := imagefile.Pack(t.Context(), io.Discard, &rootfs, root, described(), withTemplates(imagefile.PackOptions{Compression: imagefile.None}))
	require.NoError(t, err)
	archive := tar.NewReader(bytes.NewReader(rootfs.Bytes()))
	header, err := archive.Next()
	require.NoError(t, err)
	require.Equal(t, "a", header.Name)
	require.Equal(t, []int64{tar.TypeReg, 0o7777, 1, 2, 0, 3}, []int64{int64(header.Typeflag), header.Mode, int64(header.Uid), int64(header.Gid), header.Devmajor, header.Size})

	for _, id := range []int{-1, 1<<32 - 1} {
		root := imagefile.FromTar(bytes.NewReader(rootTar(t)), &imagefile.FromTarOptions{Owner: func(int, int) (int, int) { return 0, id }})
		_, err := imagefile.Pack(t.Context(), io.Discard, nil, root, described(), withTemplates(imagefile.PackOptions{}))
		var input *imagefile.InputError
		require.ErrorAs(t, err, &input)
		require.Equal(t, "FromTarOptions.Owner", input.Field)
	}
}

// TestFromTarSame: names of owners, fractions of seconds and times but that of modification make no other image.
func TestFromTarSame(t *testing.T) {
	t.Parallel()
	pack := func(header *tar.Header) string {
		var data bytes.Buffer
		out := tar.NewWriter(&data)
		header.Name, header.Typeflag, header.Format = "file", tar.TypeReg, tar.FormatPAX
		require.NoError(t, out.WriteHeader(header))
		require.NoError(t, out.Close())
		info, err := imagefile.Pack(t.Context(), io.Discard, nil, imagefile.FromTar(&data, nil), described(), withTemplates(imagefile.PackOptions{}))
		require.NoError(t, err)
		return info.Fingerprint
	}
	want := pack(&tar.Header{ModTime: day})
	require.Equal(t, want, pack(&tar.Header{ModTime: day, Uname: "user", Gname: "group"}))
	require.Equal(t, want, pack(&tar.Header{ModTime: day, AccessTime: day, ChangeTime: day}))
	require.Equal(t, want, pack(&tar.Header{ModTime: day.Add(999 * time.Millisecond)}))
}

// TestPackErrors: an error of a reader or writer is wrapped, with the package and what is packed once before it.
func TestPackErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	opts := withTemplates(imagefile.PackOptions{})
	in := func() io.Reader { return io.MultiReader(bytes.NewReader(rootTar(t)[:3000]), iotest.ErrReader(broken)) }
	_, err := imagefile.Pack(t.Context(), io.Discard, nil, imagefile.FromTar(in(), nil), described(), opts)
	require.ErrorIs(t, err, broken)
	require.EqualError(t, err, "imagefile: pack the tarball: read the rootfs: broken")
	meta := unified(t, good)
	for _, compression := range []imagefile.Compression{"", imagefile.Zstd} {
		_, err = imagefile.Pack(t.Context(), io.Discard, io.Discard, imagefile.FromImage(bytes.NewReader(meta), in(), nil), nil, &imagefile.PackOptions{Compression: compression})
		require.ErrorIs(t, err, broken)
		require.EqualError(t, err, "imagefile: pack the image: read the rootfs: broken")
	}
	_, err = imagefile.Pack(t.Context(), io.Discard, nil, imagefile.FromImage(iotest.ErrReader(broken), nil, nil), nil, nil)
	require.EqualError(t, err, "imagefile: pack the image: read the image: broken")
	for _, compression := range []imagefile.Compression{imagefile.None, imagefile.Gzip, imagefile.XZ, imagefile.Zstd} {
		in, out := io.Pipe()
		require.NoError(t, in.CloseWithError(broken))
		_, err = imagefile.Pack(t.Context(), out, nil, imagefile.FromTar(&endlessTar{}, nil), described(), withTemplates(imagefile.PackOptions{Compression: compression}))
		require.ErrorIs(t, err, broken)
		require.EqualError(t, err, "imagefile: pack the tarball: broken", compression)
	}
	_, err = imagefile.Pack(t.Context(), shortWriter{}, nil, imagefile.FromTar(bytes.NewReader(rootTar(t)), nil), described(), opts)
	require.ErrorIs(t, err, io.ErrShortWrite)
}

// TestPackFiles: both files are replaced when they are complete, and nothing else is left, whatever ends the packing.
func TestPackFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image, rootfs := filepath.Join(dir, strings.Repeat("i", 255)), filepath.Join(dir, "rootfs")
	require.NoError(t, os.WriteFile(image, []byte("old"), 0o600))
	require.NoError(t, os.Symlink("dangling", rootfs))
	left := func() []string {
		list, err := filepath.Glob(dir + "/*")
		require.NoError(t, err)
		hidden, err := filepath.Glob(dir + "/.*")
		require.NoError(t, err)
		return append(list, hidden...)
	}
	root := func() imagefile.Root { return imagefile.FromTar(bytes.NewReader(rootTar(t)), nil) }
	opts := withTemplates(imagefile.PackOptions{})

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := imagefile.PackFiles(ctx, image, rootfs, imagefile.FromTar(&endlessTar{}, nil), described(), opts)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = imagefile.PackFiles(t.Context(), image, rootfs, imagefile.FromTar(iotest.ErrReader(io.ErrNoProgress), nil), described(), opts)
	require.ErrorIs(t, err, io.ErrNoProgress)
	require.Equal(t, []string{image, rootfs}, left())
	old, err := os.ReadFile(image)
	require.NoError(t, err)
	require.Equal(t, "old", string(old))

	info, err := imagefile.PackFiles(t.Context(), image, rootfs, root(), described(), opts)
	require.NoError(t, err)
	require.Equal(t, []string{image, rootfs}, left())
	first, err := os.ReadFile(image)
	require.NoError(t, err)
	second, err := os.ReadFile(rootfs)
	require.NoError(t, err)
	checked(t, info, first, second)

	require.NoError(t, os.MkdirAll(dir+"/packed/sub", 0o755))
	require.NoError(t, os.Symlink("packed", dir+"/link"))
	for field, names := range map[string][2]string{
		"rootfs is the same file":        {dir + "/packed/x", dir + "/link/x"},
		"image is a directory":           {dir + "/packed", ""},
		"rootfs is a directory":          {dir + "/x", dir + "/link"},
		"image cannot be created":        {dir + "/none/x", ""},
		"image is empty":                 {"", ""},
		"link/x is in the directory":     {dir + "/link/x", ""},
		"link/sub/x is in the directory": {dir + "/link/sub/x", ""},
	} {
		root := root()
		if strings.Contains(field, "in the directory") {
			root = imagefile.FromDir(dir+"/packed", nil)
		}
		_, err := imagefile.PackFiles(t.Context(), names[0], names[1], root, described(), opts)
		var input *imagefile.InputError
		require.ErrorAs(t, err, &input, field)
		require.ErrorContains(t, err, field)
	}
	require.Equal(t, []string{image, dir + "/link", dir + "/packed", rootfs}, left())
}

// shortWriter writes less than it is given, without an error.
type shortWriter struct{}

func (shortWriter) Write(p []byte) (int, error) { return len(p) / 2, nil }

// gatedWriter blocks from its second Write on until it is freed.
type gatedWriter struct {
	writes        int
	blocked, free chan struct{}
}

func (g *gatedWriter) Write(p []byte) (int, error) {
	if g.writes++; g.writes == 2 {
		close(g.blocked)
	}
	if g.writes >= 2 {
		<-g.free
	}
	return len(p), nil
}

// TestPackContext: the context ends Pack while it writes and while it reads, with its own error, after which nothing is
// written.
func TestPackContext(t *testing.T) {
	t.Parallel()
	for _, compression := range []imagefile.Compression{imagefile.None, imagefile.Gzip, imagefile.XZ, imagefile.Zstd} {
		t.Run(string(compression), func(t *testing.T) {
			t.Parallel()
			opts := withTemplates(imagefile.PackOptions{Compression: compression})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := &gatedWriter{blocked: make(chan struct{}), free: make(chan struct{})}
			ended := make(chan error)
			go func() {
				_, err := imagefile.Pack(ctx, out, nil, imagefile.FromTar(&endlessTar{}, nil), described(), opts)
				ended <- err
			}()
			<-out.blocked
			cancel()
			close(out.free)
			require.ErrorIs(t, <-ended, context.Canceled)

			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			in, writer := io.Pipe()
			defer writer.Close()
			_, err := imagefile.Pack(ctx, io.Discard, nil, imagefile.FromTar(in, nil), described(), opts)
			require.EqualError(t, err, "imagefile: pack the tarball: context deadline exceeded")
			require.ErrorIs(t, err, context.DeadlineExceeded)
		})
	}
}

// endlessTar is a tarball without an end, of random files.
type endlessTar struct {
	pending bytes.Buffer
	n       int
}

func (e *endlessTar) Read(p []byte) (int, error) {
	for e.pending.Len() == 0 {
		e.n++
		out := tar.NewWriter(&e.pending)
		header := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("file", e.n), Size: 8192}
		if err := out.WriteHeader(header); err != nil {
			return 0, err
		}
		content := make([]byte, 8192)
		for n := range content {
			content[n] = byte(e.n * (n + 7) * 2654435761 >> 5)
		}
		if _, err := out.Write(content); err != nil {
			return 0, err
		}
	}
	return e.pending.Read(p)
}

// TestPackSquashfs: the root filesystem of a split image is a squashfs, and becomes the same files again in a unified image.
// Without the programs, the error says what to install, and nothing is written.
func TestPackSquashfs(t *testing.T) {
	t.Parallel()
	pack := func(image, rootfs string) (*imagefile.Info, error) {
		return imagefile.PackFiles(t.Context(), image, rootfs, imagefile.FromTar(bytes.NewReader(rootTar(t)), nil), described(), withTemplates(imagefile.PackOptions{Format: imagefile.Squashfs}))
	}
	late := described()
	late.CreatedAt = time.Date(2200, time.January, 1, 0, 0, 0, 0, time.UTC)
	_, err := imagefile.Pack(t.Context(), neverWritten{t}, neverWritten{t}, imagefile.FromTar(bytes.NewReader(rootTar(t)), nil), late, withTemplates(imagefile.PackOptions{Format: imagefile.Squashfs}))
	var input *imagefile.InputError
	require.ErrorAs(t, err, &input)
	require.Equal(t, "metadata", input.Field)

	dir := t.TempDir()
	image, rootfs := filepath.Join(dir, "image"), filepath.Join(dir, "rootfs")
	info, err := pack(image, rootfs)
	if _, missing := exec.LookPath("tar2sqfs"); missing != nil {
		var program *imagefile.ProgramError
		require.ErrorAs(t, err, &program)
		require.Equal(t, "squashfs-tools-ng", program.Package)
		require.Empty(t, testkit.FilesIn(t, dir))
		return
	}
	require.NoError(t, err)
	require.Equal(t, imagefile.Squashfs, info.Rootfs.Format)
	checkedInfo, err := imagefile.InspectFiles(t.Context(), image, rootfs, &imagefile.InspectOptions{Fingerprint: true})
	require.NoError(t, err)
	require.Equal(t, checkedInfo, info)

	again, err := pack(image+"2", rootfs+"2")
	require.NoError(t, err)
	require.Equal(t, info.Fingerprint, again.Fingerprint)

	first, err := os.Open(image)
	require.NoError(t, err)
	defer first.Close()
	second, err := os.Open(rootfs)
	require.NoError(t, err)
	defer second.Close()
	_, unified, _, err := convert(t, imagefile.FromImage(first, second, nil), false, &imagefile.PackOptions{Compression: imagefile.None})
	require.NoError(t, err)
	var direct bytes.Buffer
	_, err = imagefile.Pack(t.Context(), &direct, nil, imagefile.FromTar(bytes.NewReader(rootTar(t)), nil), described(), withTemplates(imagefile.PackOptions{Compression: imagefile.None}))
	require.NoError(t, err)
	want, got := names(t, direct.Bytes()), names(t, unified)
	slices.Sort(want)
	slices.Sort(got)
	for _, name := range want {
		if !strings.HasPrefix(name, "5 ") { // Directories that the tarball does not have are in a squashfs.
			require.Contains(t, got, name)
		}
	}

	info, _, _, err = convert(t, imagefile.FromImage(bytes.NewReader(unified), nil, nil), true, &imagefile.PackOptions{Format: imagefile.Squashfs})
	require.NoError(t, err)
	require.Equal(t, []imagefile.Compression{imagefile.None, imagefile.None}, []imagefile.Compression{info.Image.Compression, info.Rootfs.Compression})

	// From a squashfs to a tarball and to another squashfs.
	for _, opts := range []*imagefile.PackOptions{{Format: imagefile.Tar}, {Compression: imagefile.Zstd}} {
		_, err = first.Seek(0, io.SeekStart)
		require.NoError(t, err)
		_, err = second.Seek(0, io.SeekStart)
		require.NoError(t, err)
		info, meta, root, err := convert(t, imagefile.FromImage(first, second, nil), true, opts)
		require.NoError(t, err)
		checked(t, info, meta, root)
		if opts.Format == "" {
			require.Equal(t, imagefile.Squashfs, info.Rootfs.Format)
		} else {
			require.Equal(t, imagefile.Tar, info.Rootfs.Format)
		}
	}
}

// TestPackDisk: a disk becomes an image of a virtual machine, in one file or two.
func TestPackDisk(t *testing.T) {
	t.Parallel()
	_, disk := lxdtest.VMImage("disk", 100_000)
	name := filepath.Join(t.TempDir(), "disk.qcow2")
	require.NoError(t, os.WriteFile(name, disk, 0o600))
	var image, rootfs bytes.Buffer
	info, err := imagefile.Pack(t.Context(), &image, nil, imagefile.FromDisk(name), described(), withTemplates(imagefile.PackOptions{}))
	require.NoError(t, err)
	checked(t, info, image.Bytes(), nil)
	require.Equal(t, imagefile.VirtualMachine, info.Type)
	image.Reset()
	info, err = imagefile.Pack(t.Context(), &image, &rootfs, imagefile.FromDisk(name), described(), withTemplates(imagefile.PackOptions{}))
	require.NoError(t, err)
	checked(t, info, image.Bytes(), rootfs.Bytes())
	require.Equal(t, disk, rootfs.Bytes())

	require.NoError(t, os.WriteFile(name+".cut", disk[:1600], 0o600))
	_, err = imagefile.Pack(t.Context(), neverWritten{t}, nil, imagefile.FromDisk(name+".cut"), described(), withTemplates(imagefile.PackOptions{}))
	var cut *imagefile.InputError
	require.ErrorAs(t, err, &cut)
	require.Contains(t, cut.Problem, "is a cut qcow2")

	for _, split := range []io.Writer{nil, neverWritten{t}} {
		_, err = imagefile.Pack(t.Context(), neverWritten{t}, split, imagefile.FromDisk(name), described(), withTemplates(imagefile.PackOptions{Format: imagefile.Tar}))
		var input *imagefile.InputError
		require.ErrorAs(t, err, &input)
		require.Equal(t, "Format", input.Field)
	}
}

// TestFromTarOfAnImage: an image is no root filesystem, which would become a root in a root.
func TestFromTarOfAnImage(t *testing.T) {
	t.Parallel()
	_, err := imagefile.Pack(t.Context(), io.Discard, nil, imagefile.FromTar(bytes.NewReader(unified(t, good)), nil), described(), withTemplates(imagefile.PackOptions{}))
	var problem *imagefile.Problem
	require.ErrorAs(t, err, &problem)
	require.Equal(t, imagefile.Swapped, problem.Kind)
	require.Contains(t, problem.Message, "use FromImage")
}
