package lxd_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestNothingIsSentTwice sends no content that the server has.
func TestNothingIsSentTwice(t *testing.T) {
	f, target := testkit.StartFake(t), testkit.StartFake(t)
	data := testkit.Unified(t, 1<<20)
	image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	_, err = target.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	f.ForgetRequests()
	target.ForgetRequests()

	_, err = f.Client.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true, Fingerprint: lxdtest.Fingerprint(data)})
	require.NoError(t, err)
	_, err = f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Dedupe: true})
	require.NoError(t, err)
	copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true})
	require.NoError(t, err)
	require.Empty(t, copied.Mode)
	for _, r := range append(f.Requests(), target.Requests()...) {
		require.Equal(t, http.MethodGet, r.Method, r.Path)
		require.NotContains(t, r.Path, "/export")
	}
}

// readFunc is an io.Reader.
type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// TestReaderThatBreaksIsNotAtItsEnd has a reader fail with an error that wraps io.EOF, as
// errors of net/http do.
func TestReaderThatBreaksIsNotAtItsEnd(t *testing.T) {
	t.Parallel()
	server := testkit.StartFake(t)
	broken := errors.New("the source broke")
	for _, opts := range []*lxd.CreateOptions{nil, {Wait: true}, {Wait: true, Verify: true}} {
		half := bytes.NewReader(lxdtest.UnifiedImage("half", 2<<20)[:1<<20])
		_, err := server.Client.Images.Create(t.Context(), readFunc(func(p []byte) (int, error) {
			n, err := half.Read(p)
			if err == io.EOF {
				err = fmt.Errorf("%w: %w", broken, io.EOF)
			}
			return n, err
		}), opts)
		require.ErrorIs(t, err, broken)
		require.Empty(t, server.Images())
	}
}

func TestSplitImageHasTheSizeOfItsFiles(t *testing.T) {
	t.Parallel()
	server := testkit.StartFake(t)
	metadata, rootfs := lxdtest.SplitImage("size", 1<<20)
	image, err := server.Client.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(rootfs)})
	require.NoError(t, err)
	require.EqualValues(t, len(metadata)+len(rootfs), image.Size)
	require.NoError(t, image.Wait(t.Context()))
	require.EqualValues(t, len(metadata)+len(rootfs), image.Size)
}

// TestDedupeObeysContext has a seekable reader that blocks.
func TestDedupeObeysContext(t *testing.T) {
	t.Parallel()
	s := lxdtest.NewServer(nil)
	t.Cleanup(s.Close)
	client := testkit.NewClient(t, s.Endpoint(), nil)
	r := newWatchedReader(0)
	defer close(r.proceed)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-r.blocked
		cancel()
	}()
	ended := make(chan error, 1)
	go func() {
		_, err := client.Images.Create(ctx, seekableReader{r}, &lxd.CreateOptions{Dedupe: true})
		ended <- err
	}()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(patience):
		t.Fatal("it waits for the reader")
	}
	require.Empty(t, s.Requests())
}

// seekableReader has one MiB.
type seekableReader struct{ io.Reader }

func (seekableReader) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return 1<<20 + offset, nil
	}
	return offset, nil
}

// tarball returns a tar archive of files with these names and contents. A name that
// ends with a slash is a directory.
func tarball(t *testing.T, namesAndContents ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	out := tar.NewWriter(&buf)
	for n := 0; n < len(namesAndContents); n += 2 {
		name, content := namesAndContents[n], namesAndContents[n+1]
		require.NoError(t, out.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Format: tar.FormatUSTAR}))
		_, err := io.WriteString(out, content)
		require.NoError(t, err)
	}
	require.NoError(t, out.Close())
	return buf.Bytes()
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	out := gzip.NewWriter(&buf)
	_, err := out.Write(data)
	require.NoError(t, err)
	require.NoError(t, out.Close())
	return buf.Bytes()
}

// TestMetadataTarballAlone refuses, before anything is sent, a metadata tarball without a
// root filesystem if it is certain that it is one; every daemon refuses those that it is
// not certain of when it has them.
func TestMetadataTarballAlone(t *testing.T) {
	t.Parallel()
	metadata := "architecture: x86_64\ncreation_date: 1704067200\n"
	alone := func() []byte {
		return tarball(t, "metadata.yaml", metadata, "templates/", "", "templates/"+testkit.Unique("t"), "text")
	}
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			c := s.Client(t)
			for name, data := range map[string][]byte{
				"plain":   alone(),
				"gzip":    gzipped(t, alone()),
				"dot":     tarball(t, "./", "", "./metadata.yaml", metadata),
				"no end":  alone()[:1536],
				"64 KiB":  append(alone(), make([]byte, 64<<10-len(alone()))...),
				"lxdtest": func() []byte { m, _ := lxdtest.SplitImage("alone", 0); return m }(),
			} {
				path := filepath.Join(t.TempDir(), "metadata.tar")
				require.NoError(t, os.WriteFile(path, data, 0o600))
				file, err := os.Open(path)
				require.NoError(t, err)
				for _, r := range []io.Reader{bytes.NewReader(data), file} {
					_, err = c.Images.Create(t.Context(), r, &lxd.CreateOptions{Wait: true})
					refused := testkit.ErrOf[*lxd.InputError](t, err)
					require.Equal(t, "image", refused.Field, name)
					require.Contains(t, refused.Problem, "CreateOptions.Rootfs", name)
				}
				require.NoError(t, file.Close())
			}

			for name, data := range map[string][]byte{
				"cut gzip":     gzipped(t, alone())[:150],
				"longer":       append(alone(), make([]byte, 64<<10)...),
				"longer, gzip": gzipped(t, tarball(t, "metadata.yaml", metadata, "x", strings.Repeat("x", 1<<20))),
			} {
				_, err := c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
				require.NotErrorIs(t, err, lxd.ErrInvalid, name)
				_, err = c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(alone())}, &lxd.CreateOptions{Wait: true, Size: int64(len(alone()))})
				require.NotErrorIs(t, err, lxd.ErrInvalid, name)
			}

			for name, files := range map[string][]string{
				"container":       {"metadata.yaml", metadata, "rootfs/", "", "rootfs/seed", testkit.Unique("x")},
				"the other order": {"rootfs/", "", "rootfs/seed", testkit.Unique("x"), "metadata.yaml", metadata},
				"dots":            {"./metadata.yaml", metadata, "./rootfs/", "", "./rootfs/seed", testkit.Unique("x")},
				"after 1 MiB":     {"metadata.yaml", metadata, "x", strings.Repeat("x", 1<<20-3*512), "rootfs/", "", "rootfs/seed", testkit.Unique("x")},
				"virtual machine": {"metadata.yaml", metadata, "rootfs.img", "QFI\xfb" + testkit.Unique("x")},
			} {
				for _, data := range [][]byte{tarball(t, files...), gzipped(t, tarball(t, files...))} {
					image, err := c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
					require.NoError(t, err, name)
					testkit.DeleteAfter(t, image)
				}
			}
		})
	}
}

// squashfs returns a squashfs of length bytes, whose superblock says that it has size.
func squashfs(length, size int) []byte {
	data := make([]byte, max(length, 96))
	copy(data, "hsqs")
	data[28] = 4 // the version
	binary.LittleEndian.PutUint64(data[40:], uint64(size))
	return data[:length]
}

// TestNoMetadata: a small tarball without metadata.yaml is refused before anything is sent. Every daemon refuses it when
// it has it, and accepts the other spelling.
func TestNoMetadata(t *testing.T) {
	t.Parallel()
	const metadata = "architecture: x86_64\ncreation_date: 1704067200\n"
	rootfs := tarball(t, "./", "", "./etc/", "", "./etc/hostname", "web\n")
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			c := s.Client(t)
			for name, data := range map[string][]byte{
				"root filesystem": rootfs,
				"gzip":            gzipped(t, rootfs),
				"unified":         tarball(t, "rootfs/", "", "rootfs/etc/hostname", "web\n"),
				"in a directory":  tarball(t, "image/metadata.yaml", metadata, "image/rootfs/", ""),
				"absolute":        tarball(t, "/metadata.yaml", metadata, "rootfs/", ""),
			} {
				for _, o := range []lxd.CreateOptions{{Wait: true}, {Wait: true, Rootfs: bytes.NewReader(rootfs)}} {
					_, err := c.Images.Create(t.Context(), bytes.NewReader(data), &o)
					refused := testkit.ErrOf[*lxd.InputError](t, err)
					require.Equal(t, "image", refused.Field, name)
					require.Contains(t, refused.Problem, "without metadata.yaml", name)
				}
				_, err := c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true})
				require.ErrorContains(t, err, "missing metadata.yaml", name)
				require.NotErrorIs(t, err, lxd.ErrInvalid, name)
			}
			image, err := c.Images.Create(t.Context(), bytes.NewReader(tarball(t, "./metadata.yaml", metadata)), &lxd.CreateOptions{
				Wait: true, Rootfs: bytes.NewReader(gzipped(t, tarball(t, "etc/hostname", testkit.Unique("web")))),
			})
			require.NoError(t, err)
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		})
	}
}

// TestCutContent: a file that is cut is refused before anything is sent, where that is cheap to see and certain. What
// the daemons can use is not refused.
func TestCutContent(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	out, err := xz.NewWriter(&packed)
	require.NoError(t, err)
	_, err = out.Write(lxdtest.UnifiedImage("xz", 100_000))
	require.NoError(t, err)
	require.NoError(t, out.Close())
	stream := packed.Bytes()
	metadata, _ := lxdtest.SplitImage("cut", 0)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	zeros := func(n int) []byte { return make([]byte, n) }
	otherVersion := squashfs(200, 1000)
	otherVersion[28] = 3
	for _, test := range []struct {
		name          string
		image, rootfs []byte
		refused       string // a part of the message; empty if it is accepted
	}{
		{"squashfs", metadata, squashfs(1000, 1000), ""},
		{"padded squashfs", metadata, squashfs(4096, 1000), ""},
		{"cut squashfs", metadata, squashfs(999, 1000), "has 999 bytes and should have 1000"},
		{"cut superblock", metadata, squashfs(95, 0), "has 95 bytes and should have 96"},
		{"start of a squashfs", metadata, squashfs(6, 0), "has 6 bytes and should have 96"},
		{"huge squashfs", metadata, squashfs(1000, -1), "should have 18446744073709551615"},
		{"squashfs of another version", metadata, otherVersion, ""},
		{"disk", metadata, []byte("QFI\xfb\x00\x00\x00\x03"), ""},
		{"xz", stream, nil, ""},
		{"xz and zeros", join(stream, zeros(8)), nil, ""},
		{"xz and many zeros", join(stream, zeros(10_000)), nil, ""},
		{"two xz streams", join(stream, stream), nil, ""},
		{"cut xz", stream[:len(stream)-1], nil, "do not end as one"},
		{"half of an xz", stream[:len(stream)/2], nil, "do not end as one"},
		{"start of an xz", stream[:6], nil, "do not end as one"},
		{"xz and three zeros", join(stream, zeros(3)), nil, "do not end as one"},
		{"xz and a line end", join(stream, []byte("\n")), nil, "do not end as one"},
		{"cut metadata", stream[:len(stream)-4], squashfs(96, 96), "do not end as one"},
		{"rootfs in xz", metadata, stream, ""},
		{"cut rootfs in xz", metadata, stream[:len(stream)-2], "do not end as one"},
		{"cut gzip", gzipped(t, lxdtest.UnifiedImage("gzip", 100_000))[:90_000], nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFake(t)
			field := "image"
			if test.rootfs != nil && !strings.Contains(test.name, "metadata") {
				field = "CreateOptions.Rootfs"
			}
			check := func(err error) {
				t.Helper()
				if test.refused == "" {
					require.NoError(t, err)
					return
				}
				refused := testkit.ErrOf[*lxd.InputError](t, err)
				require.Equal(t, field, refused.Field)
				require.Contains(t, refused.Problem, test.refused)
				require.Contains(t, refused.Problem, "copy or create it again")
				for _, r := range f.Requests() { // Ensure reads the server's extensions.
					require.Equal(t, http.MethodGet, r.Method, "nothing is sent")
				}
			}
			for _, wrap := range []func([]byte) io.Reader{
				func(data []byte) io.Reader { return bytes.NewReader(data) },
				func(data []byte) io.Reader { return &onlySeeker{r: bytes.NewReader(data)} },
			} {
				skipped := []byte("skipped")
				image := wrap(join(skipped, test.image)).(io.ReadSeeker)
				_, err := image.Seek(int64(len(skipped)), io.SeekStart)
				require.NoError(t, err)
				o := lxd.CreateOptions{Wait: true}
				if test.rootfs != nil {
					o.Rootfs = wrap(test.rootfs)
				}
				_, err = f.Client.Images.Create(t.Context(), image, &o)
				check(err)
				if err != nil {
					position, err := image.Seek(0, io.SeekCurrent)
					require.NoError(t, err)
					require.EqualValues(t, len(skipped), position, "the reader is where it was")
				}
			}

			names := [2]string{filepath.Join(t.TempDir(), "image")}
			require.NoError(t, os.WriteFile(names[0], test.image, 0o600))
			if test.rootfs != nil {
				names[1] = filepath.Join(t.TempDir(), "rootfs")
				require.NoError(t, os.WriteFile(names[1], test.rootfs, 0o600))
			}
			source := lxd.FromFile(names[0], &lxd.FromFileOptions{Rootfs: names[1]})
			_, err := f.Client.Images.CreateFrom(t.Context(), source, &lxd.CreateFromOptions{Wait: true})
			check(err)
			_, err = source.Resolve(t.Context(), f.Client)
			check(err)
			_, err = f.Client.Images.Ensure(t.Context(), source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "ensured"}}})
			check(err)

			o := lxd.CreateOptions{Wait: true}
			if test.rootfs != nil {
				o.Rootfs = testkit.OneShotReader{Reader: bytes.NewReader(test.rootfs)}
			}
			_, err = f.Client.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(test.image)}, &o)
			require.NotErrorIs(t, err, lxd.ErrInvalid, "the end of a reader that cannot seek is not known")
			if test.rootfs != nil {
				o.Rootfs, o.RootfsSize = testkit.OneShotReader{Reader: bytes.NewReader(test.rootfs)}, int64(len(test.rootfs))
				_, err = f.Client.Images.Create(t.Context(), bytes.NewReader(metadata), &o)
				require.Equal(t, strings.Contains(test.refused, "should have"), errors.Is(err, lxd.ErrInvalid), err)
			}
		})
	}
}

// onlySeeker hides ReadAt.
type onlySeeker struct{ r io.ReadSeeker }

func (o *onlySeeker) Read(p []byte) (int, error)                   { return o.r.Read(p) }
func (o *onlySeeker) Seek(offset int64, whence int) (int64, error) { return o.r.Seek(offset, whence) }
