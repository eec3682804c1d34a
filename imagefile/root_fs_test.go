package imagefile

import (
	"archive/tar"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
)

// plainFS hides that an fs.FS has symbolic links.
type plainFS struct{ fs.FS }

func TestFromFSFiles(t *testing.T) {
	t.Parallel()
	when := time.Unix(1_000_000_000, 5)
	got := walk(t, FromFS(fstest.MapFS{
		"d":         {Mode: fs.ModeDir | fs.ModeSticky | 0o777, ModTime: when},
		"d/set":     {Data: []byte("content"), Mode: fs.ModeSetuid | fs.ModeSetgid | 0o751, ModTime: when},
		"d/empty":   {Mode: 0o600},
		"made/file": {Data: []byte("x"), Mode: 0o644},
		"link":      {Data: []byte("/etc/passwd"), Mode: fs.ModeSymlink | 0o777},
		"fifo":      {Mode: fs.ModeNamedPipe | 0o640},
		"socket":    {Mode: fs.ModeSocket | 0o640},
	}))
	require.Equal(t, map[string]walked{
		".":         {Header: tar.Header{Name: ".", Typeflag: tar.TypeDir, Mode: 0o555}},
		"d":         {Header: tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o1777, ModTime: when}},
		"d/empty":   {Header: tar.Header{Name: "d/empty", Typeflag: tar.TypeReg, Mode: 0o600}},
		"d/set":     {Header: tar.Header{Name: "d/set", Typeflag: tar.TypeReg, Mode: 0o6751, Size: 7, ModTime: when}, content: "content"},
		"fifo":      {Header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o640}},
		"link":      {Header: tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "/etc/passwd"}},
		"made":      {Header: tar.Header{Name: "made", Typeflag: tar.TypeDir, Mode: 0o555}},
		"made/file": {Header: tar.Header{Name: "made/file", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1}, content: "x"},
	}, got)
}

// TestFromFSOfDir: a directory as an fs.FS is what it is as a directory, of 0:0.
func TestFromFSOfDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"b", "a/b", "a.txt", "c/d/e"} {
		writeFile(t, filepath.Join(dir, name), name)
	}
	require.NoError(t, os.Symlink("../outside", filepath.Join(dir, "link")))
	want := walk(t, FromDir(dir, &FromDirOptions{Owner: func(int, int) (int, int) { return 0, 0 }}))
	require.Equal(t, want, walk(t, FromFS(os.DirFS(dir))))

	_, err := tryWalk(t.Context(), FromFS(plainFS{os.DirFS(dir)}))
	require.ErrorContains(t, err, `"link": `)
	require.NotErrorIs(t, err, ErrChanged)
}

func TestFromFSRefused(t *testing.T) {
	t.Parallel()
	for problem, fsys := range map[string]fs.FS{
		"has no fs.FS":   nil,
		"cannot be read": os.DirFS(filepath.Join(t.TempDir(), "none")),
	} {
		var input *InputError
		require.ErrorAs(t, FromFS(fsys).check(), &input)
		require.Equal(t, "root", input.Field)
		require.Contains(t, input.Problem, problem)
	}
	for _, mode := range []fs.FileMode{fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice} {
		_, err := tryWalk(t.Context(), FromFS(fstest.MapFS{"null": {Mode: mode}}))
		require.ErrorContains(t, err, `"null": is a device`)
	}
	_, err := tryWalk(t.Context(), FromFS(fstest.MapFS{"odd": {Mode: fs.ModeIrregular}}))
	require.ErrorContains(t, err, `"odd": `)
}

// sizedFS says that its files have a size that they do not have.
type sizedFS struct {
	fstest.MapFS
	size int64
}

func (f sizedFS) Open(name string) (fs.File, error) {
	file, err := f.MapFS.Open(name)
	return sizedFile{file, f.size}, err
}

func (f sizedFS) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := f.MapFS.ReadDir(name)
	for n := range list {
		list[n] = sizedEntry{list[n], f.size}
	}
	return list, err
}

type (
	sizedFile struct {
		fs.File
		size int64
	}
	sizedEntry struct {
		fs.DirEntry
		size int64
	}
	sizedInfo struct {
		fs.FileInfo
		size int64
	}
)

func (f sizedFile) Stat() (fs.FileInfo, error) {
	info, err := f.File.Stat()
	return sizedInfo{info, f.size}, err
}

func (e sizedEntry) Info() (fs.FileInfo, error) {
	info, err := e.DirEntry.Info()
	return sizedInfo{info, e.size}, err
}

func (i sizedInfo) Size() int64 { return i.size }

// TestFromFSChanged: a file with more or less than its size, or that is another when it is opened or afterwards.
func TestFromFSChanged(t *testing.T) {
	t.Parallel()
	tree := fstest.MapFS{"file": {Data: []byte("12345"), Mode: 0o644}}
	for _, size := range []int64{0, 4, 6} {
		_, err := tryWalk(t.Context(), FromFS(sizedFS{tree, size}))
		require.ErrorIs(t, err, ErrChanged, size)
		require.ErrorContains(t, err, `"file": `)
	}
	list, err := tryWalk(t.Context(), FromFS(sizedFS{tree, 5}))
	require.NoError(t, err)
	require.Equal(t, "12345", list[1].content)

	past := time.Now().Add(-time.Hour)
	for name, change := range map[string]func(t *testing.T, name string){
		"written":  func(t *testing.T, name string) { writeFile(t, name, "y") },
		"longer":   func(t *testing.T, name string) { writeFile(t, name, "longer") },
		"touched":  func(t *testing.T, name string) { require.NoError(t, os.Chtimes(name, time.Time{}, past.Add(1))) },
		"mode":     func(t *testing.T, name string) { require.NoError(t, os.Chmod(name, 0o600)) },
		"vanished": func(t *testing.T, name string) { require.NoError(t, os.Remove(filepath.Join(filepath.Dir(name), "z"))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, name := range []string{"file", "z"} {
				writeFile(t, filepath.Join(dir, name), "x")
				require.NoError(t, os.Chtimes(filepath.Join(dir, name), past, past))
			}
			err := FromFS(os.DirFS(dir)).walk(t.Context(), func(e *entry) error {
				if e.content != nil {
					if _, err := io.ReadAll(e.content); err != nil {
						return err
					}
				}
				if e.Name == "file" {
					change(t, filepath.Join(dir, "file"))
				}
				return nil
			})
			require.ErrorIs(t, err, ErrChanged)
		})
	}
}
