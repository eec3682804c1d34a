package imagefile_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/imagefile"
)

// TestFromFS: each file of an fs.FS is packed with its mode, time and content, and belongs to 0:0.
func TestFromFS(t *testing.T) {
	t.Parallel()
	fsys := fstest.MapFS{
		"etc/hostname": {Data: []byte("test\n"), Mode: 0o640, ModTime: day},
		"bin":          {Data: []byte("usr/bin"), Mode: fs.ModeSymlink | 0o777, ModTime: day},
		"usr/bin/su":   {Data: []byte("su"), Mode: 0o755 | fs.ModeSetuid, ModTime: day},
		"tmp":          {Mode: fs.ModeDir | fs.ModeSticky | 0o777, ModTime: day},
		"fifo":         {Mode: fs.ModeNamedPipe | 0o600},
		"socket":       {Mode: fs.ModeSocket | 0o600},
		"empty":        {},
	}
	var rootfs bytes.Buffer
	_, err := imagefile.Pack(t.Context(), io.Discard, &rootfs, imagefile.FromFS(fsys), described(), withTemplates(imagefile.PackOptions{Compression: imagefile.None}))
	require.NoError(t, err)
	require.Equal(t, []string{
		`5 ./  ""`, `2 bin usr/bin ""`, `0 empty  ""`, `5 etc/  ""`, `0 etc/hostname  "test\n"`, `6 fifo  ""`, `5 tmp/  ""`, `5 usr/  ""`, `5 usr/bin/  ""`, `0 usr/bin/su  "su"`,
	}, names(t, rootfs.Bytes()))
	modes := map[string]int64{"etc/hostname": 0o640, "usr/bin/su": 0o4755, "tmp/": 0o1777, "fifo": 0o600}
	archive := tar.NewReader(&rootfs)
	for header, err := archive.Next(); !errors.Is(err, io.EOF); header, err = archive.Next() {
		require.NoError(t, err)
		require.Zero(t, header.Uid+header.Gid)
		if mode, ok := modes[header.Name]; ok {
			require.Equal(t, mode, header.Mode, header.Name)
		}
		if header.Name == "etc/hostname" {
			require.True(t, header.ModTime.Equal(day))
		}
	}
}

// changingFS has a file of 5 bytes, whose content has others.
type changingFS struct {
	fs.FS
	content string
}

type changingFile struct {
	fs.File
	content io.Reader
}

func (f changingFile) Read(p []byte) (int, error) { return f.content.Read(p) }

func (c changingFS) Open(name string) (fs.File, error) {
	file, err := c.FS.Open(name)
	if err == nil && name == "etc/file" {
		return changingFile{file, bytes.NewReader([]byte(c.content))}, nil
	}
	return file, err
}

// TestFromFSRefuses: what cannot be packed is an error that names it.
func TestFromFSRefuses(t *testing.T) {
	t.Parallel()
	file := fstest.MapFS{"etc/file": {Data: []byte("12345")}}
	for _, c := range []struct {
		name string
		fsys fs.FS
		want error
		text string
	}{
		{"shorter", changingFS{file, "1234"}, imagefile.ErrChanged, `"etc/file": changed`},
		{"longer", changingFS{file, "123456"}, imagefile.ErrChanged, `"etc/file": changed`},
		{"device", fstest.MapFS{"dev/null": {Mode: fs.ModeDevice | fs.ModeCharDevice}}, nil, `"dev/null": is a device`},
		{"nil", nil, nil, "root has no fs.FS"},
		{"file", fstest.MapFS{".": {}}, nil, "root is not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := imagefile.Pack(t.Context(), io.Discard, nil, imagefile.FromFS(c.fsys), described(), withTemplates(imagefile.PackOptions{}))
			require.ErrorContains(t, err, c.text)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
			}
		})
	}
	_, err := imagefile.Pack(t.Context(), io.Discard, nil, imagefile.FromFS(changingFS{file, "12345"}), described(), withTemplates(imagefile.PackOptions{}))
	require.NoError(t, err)
}
