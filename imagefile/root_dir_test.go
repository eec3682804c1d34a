package imagefile

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// walked is an entry and its content.
type walked struct {
	tar.Header
	content string
	data    []piece
}

// tryWalk returns what a root has, up to the first error.
func tryWalk(ctx context.Context, root Root) (list []walked, err error) {
	err = root.walk(ctx, func(e *entry) error {
		w := walked{Header: e.Header, data: e.data}
		if e.content != nil {
			content, err := io.ReadAll(e.content)
			if err != nil {
				return err
			}
			w.content = string(content)
		}
		list = append(list, w)
		return nil
	})
	return list, err
}

// walk returns what a root has by name.
func walk(t *testing.T, root Root) map[string]walked {
	t.Helper()
	require.NoError(t, root.check())
	list, err := tryWalk(t.Context(), root)
	require.NoError(t, err)
	byName := map[string]walked{}
	for _, w := range list {
		require.NotContains(t, byName, w.Name)
		byName[w.Name] = w
		size := w.Size
		if w.data != nil {
			size = 0
			for _, p := range w.data {
				size += p.size
			}
		}
		require.Len(t, w.content, int(size), w.Name)
	}
	return byName
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(content), 0o644))
}

func TestFromDirCheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "file"), "x")
	require.NoError(t, FromDir(dir, nil).check())
	require.Equal(t, dir, FromDir(dir, nil).String())
	for name, problem := range map[string]string{
		filepath.Join(dir, "none"): "none",
		filepath.Join(dir, "file"): "is not a directory: " + filepath.Join(dir, "file"),
		"":                         "an empty name",
	} {
		var input *InputError
		require.ErrorAs(t, FromDir(name, nil).check(), &input)
		require.Equal(t, "root", input.Field)
		require.Contains(t, input.Problem, problem)
	}
	_, err := tryWalk(t.Context(), FromDir(filepath.Join(dir, "none"), nil))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NotErrorIs(t, err, ErrChanged)
}

// TestFromDirOrder: a directory comes before what is in it, and siblings are in the order of their bytes, whatever the order on
// disk.
func TestFromDirOrder(t *testing.T) {
	t.Parallel()
	want := []string{".", "A", "a", "a/b", "a/b/c", "a/d", "a.txt", "a0", "ä"}
	for _, seed := range []int{0, 1, 2, 3} {
		dir := t.TempDir()
		shuffled := slices.Clone(want[1:])
		if seed%2 == 1 {
			slices.Reverse(shuffled)
		}
		for _, name := range append(shuffled[seed:], shuffled[:seed]...) {
			if name != "a" && name != "a/b" {
				writeFile(t, filepath.Join(dir, name), name)
			}
		}
		list, err := tryWalk(t.Context(), FromDir(dir, nil))
		require.NoError(t, err)
		var got []string
		for _, w := range list {
			got = append(got, w.Name)
			require.Equal(t, map[bool]string{true: w.Name}[w.Typeflag == tar.TypeReg], w.content)
		}
		require.Equal(t, want, got)
	}
}

func TestFromDirOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "file"), "x")
	list, err := tryWalk(t.Context(), FromDir(dir, &FromDirOptions{Owner: func(uid, gid int) (int, int) { return uid + 100000, gid + 200000 }}))
	require.NoError(t, err)
	onDisk := walk(t, FromDir(dir, nil))
	require.Len(t, list, 2)
	for _, w := range list {
		require.Equal(t, onDisk[w.Name].Uid+100000, w.Uid)
		require.Equal(t, onDisk[w.Name].Gid+200000, w.Gid)
	}
	for _, ids := range [][2]int{{-1, 0}, {0, -1}, {1<<32 - 1, 0}, {0, 1<<32 - 1}} {
		_, err := tryWalk(t.Context(), FromDir(dir, &FromDirOptions{Owner: func(int, int) (int, int) { return ids[0], ids[1] }}))
		var input *InputError
		require.ErrorAs(t, err, &input)
		require.Equal(t, "FromDirOptions.Owner", input.Field)
		require.Contains(t, input.Problem, fmt.Sprintf("returns %d:%d for ", ids[0], ids[1]))
	}
	list, err = tryWalk(t.Context(), FromDir(dir, &FromDirOptions{Owner: func(int, int) (int, int) { return 1<<32 - 2, 0 }}))
	require.NoError(t, err)
	require.Equal(t, 1<<32-2, list[0].Uid)
}

// TestFromDirChanged changes the tree while the entry of "d/file" is added: before its content is read, or after.
func TestFromDirChanged(t *testing.T) {
	t.Parallel()
	past := time.Now().Add(-time.Hour)
	for name, test := range map[string]struct {
		change func(t *testing.T, dir string)
		path   string
	}{
		"grows":                    {func(t *testing.T, dir string) { writeFile(t, dir+"/d/file", strings.Repeat("y", 300_001)) }, "d/file"},
		"shrinks":                  {func(t *testing.T, dir string) { require.NoError(t, os.Truncate(dir+"/d/file", 200_000)) }, "d/file"},
		"is empty":                 {func(t *testing.T, dir string) { require.NoError(t, os.Truncate(dir+"/d/file", 0)) }, "d/file"},
		"written":                  {func(t *testing.T, dir string) { writeFile(t, dir+"/d/file", strings.Repeat("y", 300_000)) }, "d/file"},
		"mode":                     {func(t *testing.T, dir string) { require.NoError(t, os.Chmod(dir+"/d/file", 0o600)) }, "d/file"},
		"sibling vanishes":         {func(t *testing.T, dir string) { require.NoError(t, os.Remove(dir+"/d/g")) }, "d/g"},
		"directory vanishes":       {func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(dir+"/d/sub")) }, "d/sub"},
		"file is new":              {func(t *testing.T, dir string) { writeFile(t, dir+"/d/new", "") }, "d"},
		"earlier sibling vanishes": {func(t *testing.T, dir string) { require.NoError(t, os.Remove(dir+"/d/a")) }, "d"},
		"top":                      {func(t *testing.T, dir string) { writeFile(t, dir+"/new", "") }, ""},
	} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", after), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				writeFile(t, dir+"/d/a", "a")
				writeFile(t, dir+"/d/file", strings.Repeat("x", 300_000))
				writeFile(t, dir+"/d/g", "g")
				writeFile(t, dir+"/d/sub/h", "h")
				// The clock of a filesystem may be coarse: a change in the same tick would not be noticed.
				for _, name := range []string{"d/a", "d/file", "d/g", "d/sub/h", "d/sub", "d", "."} {
					require.NoError(t, os.Chtimes(filepath.Join(dir, name), past, past))
				}
				err := FromDir(dir, nil).walk(t.Context(), func(e *entry) error {
					if e.Name == "d/file" && !after {
						test.change(t, dir)
					}
					if e.content != nil {
						content, err := io.ReadAll(e.content)
						if err != nil {
							return fmt.Errorf("wrapped: %w", err)
						}
						require.Len(t, content, int(e.Size))
					}
					if e.Name == "d/file" && after {
						test.change(t, dir)
					}
					return nil
				})
				require.ErrorIs(t, err, ErrChanged)
				require.Contains(t, err.Error(), "changed while it was packed; pack a directory that nobody writes to")
				require.Contains(t, err.Error(), fmt.Sprintf("%q:", strings.TrimSuffix(dir+"/"+test.path, "/")))
			})
		}
	}
}

// TestFromDirContext: a context that ends is obeyed before the next entry and within a file, and an error of add is returned
// at once.
func TestFromDirContext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, dir+"/a", strings.Repeat("x", 1<<20))
	writeFile(t, dir+"/b", "b")
	cause := errors.New("enough")
	for _, root := range []Root{FromDir(dir, nil), FromFS(os.DirFS(dir))} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		list, err := tryWalk(ctx, root)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, err, cause)
		require.Empty(t, list)

		ctx, cancel = context.WithCancelCause(t.Context())
		var names []string
		err = root.walk(ctx, func(e *entry) error {
			if names = append(names, e.Name); e.Name == "a" {
				cancel(cause)
			}
			return nil
		})
		require.ErrorIs(t, err, cause)
		require.Equal(t, []string{".", "a"}, names)

		ctx, cancel = context.WithCancelCause(t.Context())
		err = root.walk(ctx, func(e *entry) error {
			if e.content == nil {
				return nil
			}
			p := make([]byte, 1000)
			_, err := io.ReadFull(e.content, p)
			require.NoError(t, err)
			cancel(cause)
			_, err = e.content.Read(p)
			require.ErrorIs(t, err, cause)
			return err
		})
		require.ErrorIs(t, err, context.Canceled)

		calls := 0
		err = root.walk(t.Context(), func(*entry) error { calls++; return cause })
		require.Equal(t, cause, err)
		require.Equal(t, 1, calls)
	}
}

// TestPieceList: with too many pieces the blocks become larger, as if they had been so from the beginning.
func TestPieceList(t *testing.T) {
	restore := maxPieces
	defer func() { maxPieces = restore }()
	for _, test := range []struct {
		limit  int
		blocks string // one is data
		size   int64
		want   []piece // nil: only compared with larger blocks
	}{
		{4, "1010101", 7, []piece{{0, 1}, {2, 1}, {4, 1}, {6, 1}}},
		{3, "1010101", 7, []piece{{0, 7}}},
		{3, "1000100010011000", 16, nil},
		{3, "10001000100000001", 17, nil},
		{2, "1010000010000000", 16, []piece{{0, 4}, {8, 2}}},
		{2, "1000100010000000", 16, []piece{{0, 12}}},
	} {
		maxPieces = test.limit
		list := pieceList{block: 1, size: test.size}
		for n, c := range test.blocks {
			if c == '1' {
				list.add(int64(n), int64(n)+1)
			}
		}
		// What blocks of the final size say from the beginning.
		var want []piece
		for at := int64(0); at < test.size; at += list.block {
			end := min(at+list.block, test.size)
			switch n := len(want); {
			case !strings.Contains(test.blocks[at:end], "1"):
			case n > 0 && want[n-1].offset+want[n-1].size == at:
				want[n-1].size = end - want[n-1].offset
			default:
				want = append(want, piece{at, end - at})
			}
		}
		require.Equal(t, want, list.pieces, test.blocks)
		require.LessOrEqual(t, len(want), test.limit)
		if test.want != nil {
			require.Equal(t, test.want, list.pieces, test.blocks)
		}
	}
}

// TestMaxPieces: the largest list of pieces of a file can be read again.
func TestMaxPieces(t *testing.T) {
	pieces := make([]piece, maxPieces)
	for n := range pieces {
		pieces[n] = piece{1<<49 + int64(n)*8192, 1}
	}
	e := &entry{content: strings.NewReader(strings.Repeat("x", maxPieces)), data: pieces}
	e.Name, e.Typeflag, e.Size = "file", tar.TypeReg, 1<<50
	var out bytes.Buffer
	archive, err := newTarball(&out, None, 0)
	require.NoError(t, err)
	require.NoError(t, archive.add(e, func(to io.Writer, from io.Reader, size int64) error {
		_, err := io.CopyN(to, from, size)
		return err
	}))
	require.NoError(t, archive.close())
	report, err := Check(t.Context(), &out, nil, nil)
	require.NoError(t, err)
	require.Len(t, report.Problems, 1)
	require.Equal(t, NoMetadata, report.Problems[0].Kind, report.Problems[0])
}
