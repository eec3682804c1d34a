package imagefile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// kinds is a squashfs with files of all kinds, made by mksquashfs 4.5.1 -comp xz -mkfs-time 0.
const kinds = "testdata/kinds.squashfs"

// requireProgram says whether a program is installed. If it is not, err must say what to install.
func requireProgram(t *testing.T, p program, err error) bool {
	t.Helper()
	if _, missing := exec.LookPath(p.name); missing == nil {
		require.NoError(t, err)
		return true
	}
	var failed *ProgramError
	require.ErrorAs(t, err, &failed)
	require.ErrorIs(t, err, exec.ErrNotFound)
	require.Equal(t, [2]string{p.name, p.pkg}, [2]string{failed.Program, failed.Package})
	require.ErrorContains(t, err, "install the package "+p.pkg)
	return false
}

// TestProgramMissing: without the programs, there is an error that says what to install, and nothing is written.
func TestProgramMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	raw := filepath.Join(t.TempDir(), "raw")
	require.NoError(t, os.WriteFile(raw, bootRecord(), 0o600))
	_, _, open := diskRoot(raw).open(t.Context())
	var out bytes.Buffer
	_, writer := newSquashfsWriter(t.Context(), &out, XZ, time.Unix(0, 0))
	for _, test := range []struct {
		err error
		program
	}{
		{squashfsAvailable(), tar2sqfs},
		{writer, tar2sqfs},
		{FromSquashfs(kinds).check(), sqfs2tar},
		{FromSquashfs(kinds).walk(t.Context(), nil), sqfs2tar},
		{FromDisk(raw).check(), qemuImg},
		{open, qemuImg},
	} {
		require.False(t, requireProgram(t, test.program, test.err))
	}
	require.Empty(t, out.Bytes())
}

// describe returns a line for each file of a root filesystem.
func describe(t *testing.T, root Root) []string {
	t.Helper()
	var lines []string
	require.NoError(t, root.walk(t.Context(), func(e *entry) error {
		line := fmt.Sprintf("%c %q %o %d/%d %d", e.Typeflag, e.Name, e.Mode, e.Uid, e.Gid, e.ModTime.Unix())
		if e.Linkname != "" {
			line += fmt.Sprintf(" -> %q", e.Linkname)
		}
		if e.Devmajor != 0 {
			line += fmt.Sprintf(" %d,%d", e.Devmajor, e.Devminor)
		}
		require.Equal(t, e.Size > 0, e.content != nil, e.Name)
		if e.content != nil {
			sum := sha256.New()
			n, err := io.Copy(sum, e.content)
			require.NoError(t, err)
			require.Equal(t, e.Size, n)
			line += fmt.Sprintf(" %d %s", n, hex.EncodeToString(sum.Sum(nil)[:4]))
		}
		for _, name := range []string{"user.a", "user.b", "user.c", "user.root", "security.capability"} {
			if value, ok := e.PAXRecords["SCHILY.xattr."+name]; ok {
				line += fmt.Sprintf(" %s=%q", name, value)
			}
		}
		lines = append(lines, line)
		return nil
	}))
	return lines
}

// wantKinds is what is in kinds.
func wantKinds() []string {
	deep := strings.Repeat("n", 200)
	want := []string{
		`5 "." 750 5/6 1704067200 user.root="r"`,
		`0 "attributes" 644 0/0 1704067200 2 73cb3858 user.a="1" user.b="\x00\xff\n=\"" user.c="three"`,
		`4 "b" 644 0/0 1704067200 8,300`,
		`3 "c" 644 0/0 1704067200 1,3`,
		`5 "d" 755 0/0 1704067200`,
		`0 "d/hard2" 644 0/0 1704067200 3 98ea6e4f`,
		`0 "empty" 644 0/0 1704067200`,
		`6 "fifo" 644 0/0 1704067200`,
		`1 "hard1" 644 0/0 1704067200 -> "d/hard2"`,
		`0 "large" 644 0/0 1704067200 228890 bc7fcf79`,
		`5 "many" 755 0/0 1704067200`,
	}
	for i := range 300 {
		want = append(want, fmt.Sprintf(`0 "many/%03d" 644 0/0 1704067200`, i))
	}
	return append(want,
		`5 "`+deep+`" 755 0/0 1704067200`,
		`5 "`+deep+"/"+strings.Repeat("m", 100)+`" 755 0/0 1704067200`,
		`1 "`+deep+"/"+strings.Repeat("m", 100)+`/link" 644 0/0 1704067200 -> "d/hard2"`,
		`0 "non\xffutf8\nline" 644 0/0 1704067200 1 1b16b1df`,
		`0 "owner" 644 4000000000/3000000 1704067200 2 7427d152`,
		`1 "reg" 644 0/0 1704067200 -> "d/hard2"`,
		`5 "sticky" 1777 0/0 1704067200`,
		`0 "suid" 6755 0/0 1704067200 2 cbc80bb5 security.capability="\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"`,
		`2 "sym" 777 0/0 1704067200 -> "reg"`,
	)
}

// TestFromSquashfs: all kinds of files are read, with what belongs to them, except sockets.
func TestFromSquashfs(t *testing.T) {
	t.Parallel()
	root := FromSquashfs(kinds)
	require.Equal(t, kinds, root.String())
	if !requireProgram(t, sqfs2tar, root.check()) {
		return
	}
	require.Equal(t, wantKinds(), describe(t, root))
}

// TestFromSquashfsBad: what is no squashfs is refused, and a damaged one is an error of the program.
func TestFromSquashfsBad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(text, []byte("text"), 0o600))
	for name, problem := range map[string]string{text: "is not a squashfs", dir: "is not a regular file", filepath.Join(dir, "none"): "no such file"} {
		for _, root := range []Root{FromSquashfs(name)} {
			var input *InputError
			require.ErrorAs(t, root.check(), &input)
			require.Equal(t, "root", input.Field)
			require.Contains(t, input.Problem, problem)
		}
	}

	content, err := os.ReadFile(kinds)
	require.NoError(t, err)
	damaged := bytes.Clone(content)
	copy(damaged[150:], "damaged") // the data of a file
	for name, content := range map[string][]byte{"cut": content[:5000], "-damaged": damaged} {
		root := FromSquashfs(filepath.Join(dir, name))
		require.NoError(t, os.WriteFile(root.String(), content, 0o600))
		if !requireProgram(t, sqfs2tar, root.check()) {
			return
		}
		err := root.walk(t.Context(), func(e *entry) error {
			if e.content == nil {
				return nil
			}
			_, err := io.Copy(io.Discard, e.content)
			return err
		})
		var failed *ProgramError
		require.ErrorAs(t, err, &failed, name)
		require.NotEmpty(t, failed.Stderr)
	}
}

// TestFromSquashfsEnd: an error of add and the end of the context end the program.
func TestFromSquashfsEnd(t *testing.T) {
	t.Parallel()
	if !requireProgram(t, sqfs2tar, FromSquashfs(kinds).check()) {
		return
	}
	full := errors.New("full")
	require.ErrorIs(t, FromSquashfs(kinds).walk(t.Context(), func(*entry) error { return full }), full)
	ctx, cancel := context.WithCancelCause(t.Context())
	count := 0
	err := FromSquashfs(kinds).walk(ctx, func(*entry) error {
		count++
		cancel(full)
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, full)
	require.Equal(t, 1, count)
}

// TestLocalName: names of a hostile squashfs do not leave the root filesystem.
func TestLocalName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"./": ".", ".": ".", "./a/": "a", "a": "a", "./a/b": "a/b", "./..a": "..a"} {
		got, err := localName(name)
		require.NoError(t, err, name)
		require.Equal(t, want, got)
	}
	for _, name := range []string{"./../a", "/a", ".//a", "a/../b", "./a/..", ".."} {
		_, err := localName(name)
		require.Error(t, err, name)
	}
}
