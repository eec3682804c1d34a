package imagefile

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// tarOf writes a root filesystem as a tarball, with padding after its end.
func tarOf(t *testing.T, root Root) []byte {
	t.Helper()
	var buf bytes.Buffer
	out := tar.NewWriter(&buf)
	require.NoError(t, root.walk(t.Context(), func(e *entry) error {
		header := e.Header
		header.Format = tar.FormatPAX
		require.NoError(t, out.WriteHeader(&header))
		if e.content == nil {
			return nil
		}
		_, err := io.Copy(out, e.content)
		return err
	}))
	require.NoError(t, out.Close())
	return append(buf.Bytes(), make([]byte, 1<<20)...)
}

// writeSquashfs returns the squashfs of a tarball.
func writeSquashfs(t *testing.T, tarball []byte, compression Compression, created time.Time) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := newSquashfsWriter(t.Context(), &out, compression, created)
	require.NoError(t, err)
	defer w.discard()
	_, err = io.Copy(w, bytes.NewReader(tarball))
	require.NoError(t, err)
	require.Zero(t, out.Len(), "written before Close")
	require.NoError(t, w.Close())
	return out.Bytes()
}

// TestSquashfsWriter: all kinds of files survive, with what belongs to them, and the same tarball becomes the same bytes.
func TestSquashfsWriter(t *testing.T) {
	t.Parallel()
	if !requireProgram(t, tar2sqfs, squashfsAvailable()) {
		return
	}
	tarball := tarOf(t, FromSquashfs(kinds))
	created := time.Unix(1234567890, 0)
	ids := map[Compression]byte{Gzip: 1, "": 4, Zstd: 6} // as the header of a squashfs has them
	for compression, id := range ids {
		content := writeSquashfs(t, tarball, compression, created)
		require.Equal(t, content, writeSquashfs(t, tarball, compression, created))
		require.Equal(t, id, content[20])
		require.Equal(t, []byte{0xd2, 0x02, 0x96, 0x49}, content[8:12], "the time")
		file := filepath.Join(t.TempDir(), "rootfs.squashfs")
		require.NoError(t, os.WriteFile(file, content, 0o600))
		require.Equal(t, wantKinds(), describe(t, FromSquashfs(file)))
	}
}

// TestSquashfsWriterSparse: the holes of a sparse file need no place.
func TestSquashfsWriterSparse(t *testing.T) {
	t.Parallel()
	if !requireProgram(t, tar2sqfs, squashfsAvailable()) {
		return
	}
	var buf bytes.Buffer
	out, err := newTarball(&buf, None, 0)
	require.NoError(t, err)
	sparse := &entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "sparse", Mode: 0o644, Size: 8 << 20}, content: strings.NewReader("data"), data: []piece{{1000000, 4}}}
	require.NoError(t, out.add(sparse, func(to io.Writer, from io.Reader, size int64) error {
		_, err := io.CopyN(to, from, size)
		return err
	}))
	require.NoError(t, out.close())
	content := writeSquashfs(t, buf.Bytes(), Gzip, time.Unix(0, 0))
	require.Less(t, len(content), 64<<10)
	file := filepath.Join(t.TempDir(), "rootfs.squashfs")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	found := false
	require.NoError(t, FromSquashfs(file).walk(t.Context(), func(e *entry) error {
		if e.Name != "sparse" {
			return nil
		}
		found = true
		require.EqualValues(t, 8<<20, e.Size)
		part := make([]byte, 1000004)
		_, err := io.ReadFull(e.content, part)
		require.NoError(t, err)
		require.Equal(t, append(make([]byte, 1000000), "data"...), part)
		return nil
	}))
	require.True(t, found)
}

// TestSquashfsWriterBad: what a squashfs cannot have is refused, and the program's error tells what is wrong.
func TestSquashfsWriterBad(t *testing.T) {
	t.Parallel()
	for field, err := range map[string]error{
		"Compression": second(newSquashfsWriter(t.Context(), io.Discard, Bzip2, time.Unix(0, 0))),
		"metadata":    second(newSquashfsWriter(t.Context(), io.Discard, XZ, time.Unix(-1, 0))),
	} {
		var input *InputError
		require.ErrorAs(t, err, &input)
		require.Equal(t, field, input.Field)
	}
	if !requireProgram(t, tar2sqfs, squashfsAvailable()) {
		return
	}
	var out bytes.Buffer
	w, err := newSquashfsWriter(t.Context(), &out, XZ, time.Unix(0, 0))
	require.NoError(t, err)
	defer w.discard()
	tarball := bytes.Repeat([]byte("this is not a tarball\n"), 100000)
	_, err = io.Copy(w, bytes.NewReader(tarball))
	closed := w.Close()
	if err == nil {
		err = closed
	}
	var failed *ProgramError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, "tar2sqfs", failed.Program)
	require.NotEmpty(t, failed.Stderr)
	require.ErrorAs(t, closed, &failed, "Close succeeds after a Write that failed")
	require.Zero(t, out.Len())

	full := errors.New("full")
	w, err = newSquashfsWriter(t.Context(), writerFunc(func([]byte) (int, error) { return 0, full }), XZ, time.Unix(0, 0))
	require.NoError(t, err)
	require.NoError(t, tar.NewWriter(w).Close())
	require.ErrorIs(t, w.Close(), full)
	require.NoDirExists(t, w.dir)
}

func second[T any](_ T, err error) error { return err }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestSquashfsWriterEnd: the end of the context and discard end the program, and remove its file.
func TestSquashfsWriterEnd(t *testing.T) {
	t.Parallel()
	if !requireProgram(t, tar2sqfs, squashfsAvailable()) {
		return
	}
	for _, end := range []string{"context", "discard"} {
		var out bytes.Buffer
		ctx, cancel := context.WithCancelCause(t.Context())
		w, err := newSquashfsWriter(ctx, &out, XZ, time.Unix(0, 0))
		require.NoError(t, err)
		require.DirExists(t, w.dir)
		stop := errors.New("stop")
		begin := time.Now()
		if end == "context" {
			cancel(stop)
		} else {
			w.discard()
			cancel(nil)
		}
		// The program reads endlessly unless it has ended: zeros of a file of 8 GiB.
		in := tar.NewWriter(w)
		err = in.WriteHeader(&tar.Header{Name: "zeros", Size: 8 << 30, Mode: 0o644, Typeflag: tar.TypeReg})
		for block := make([]byte, 1<<20); err == nil; {
			_, err = in.Write(block)
		}
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, w.Close(), context.Canceled)
		if end == "context" {
			require.ErrorIs(t, err, stop)
		}
		require.Less(t, time.Since(begin), 20*time.Second)
		require.Zero(t, out.Len())
		require.NoDirExists(t, w.dir)
		require.NotNil(t, w.proc.ProcessState, "the program runs")
	}
}
