package formname

import (
	"bytes"
	"io"
	"mime/multipart"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func form(t *testing.T, metadata, rootfs []byte) (string, []byte) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for name, data := range map[string][]byte{"metadata": metadata} {
		part, err := w.CreateFormFile(name, "old-"+name)
		require.NoError(t, err)
		_, err = part.Write(data)
		require.NoError(t, err)
	}
	part, err := w.CreateFormFile("rootfs.img", "old-rootfs")
	require.NoError(t, err)
	_, err = part.Write(rootfs)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return w.Boundary(), b.Bytes()
}

func TestRename(t *testing.T) {
	for _, size := range []int{0, 1, 100, window - 1, window, 3 * window} {
		metadata, rootfs := bytes.Repeat([]byte("m\r\n"), size/3+1), bytes.Repeat([]byte("--r"), size)
		boundary, whole := form(t, metadata, rootfs)
		for name, reader := range map[string]io.Reader{
			"plain":    bytes.NewReader(whole),
			"one byte": iotest.OneByteReader(bytes.NewReader(whole)),
			"data err": iotest.DataErrReader(bytes.NewReader(whole)),
		} {
			parsed := multipart.NewReader(Rename(reader, boundary, `new "name".ü`), boundary)
			first, err := parsed.NextPart()
			require.NoError(t, err, name)
			got, err := io.ReadAll(first)
			require.NoError(t, err)
			require.Equal(t, "old-metadata", first.FileName())
			require.True(t, bytes.Equal(metadata, got))
			second, err := parsed.NextPart()
			require.NoError(t, err)
			require.Equal(t, "rootfs.img", second.FormName())
			require.Equal(t, `new "name".ü`, second.FileName())
			got, err = io.ReadAll(second)
			require.NoError(t, err)
			require.True(t, bytes.Equal(rootfs, got))
			_, err = parsed.NextPart()
			require.ErrorIs(t, err, io.EOF)
		}
	}
}

func TestRenameKeepsWhatItDoesNotKnow(t *testing.T) {
	boundary, whole := form(t, []byte("m"), []byte("r"))
	for n := range whole {
		got, err := io.ReadAll(Rename(bytes.NewReader(whole[:n]), boundary, "old-rootfs"))
		require.NoError(t, err)
		require.LessOrEqual(t, len(got), len(whole))
		require.Equal(t, whole[:min(n, 40)], got[:min(n, 40)])
	}
	got, err := io.ReadAll(Rename(bytes.NewReader([]byte("no form at all")), "b", "x"))
	require.NoError(t, err)
	require.Equal(t, "no form at all", string(got))
	_, err = io.ReadAll(Rename(iotest.ErrReader(io.ErrClosedPipe), "b", "x"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
}
