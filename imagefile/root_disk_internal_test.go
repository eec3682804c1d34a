package imagefile

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bootRecord is a raw disk with a boot record and some data. qemu-img takes it for a VMDK unless it is told what it is.
func bootRecord() []byte {
	disk := make([]byte, 1<<20)
	copy(disk, "KDMV")
	disk[510], disk[511] = 0x55, 0xaa
	copy(disk[700000:], "data")
	return disk
}

// qcow2Head is the header of a qcow2, as qemu-img 7.2 writes it.
func qcow2Head() []byte {
	head := make([]byte, 512)
	copy(head, "QFI\xfb")
	binary.BigEndian.PutUint32(head[4:], 3)
	binary.BigEndian.PutUint32(head[20:], 16)
	binary.BigEndian.PutUint64(head[24:], 10<<20)
	binary.BigEndian.PutUint32(head[60:], 3) // internal snapshots
	binary.BigEndian.PutUint32(head[100:], 104)
	return head
}

func writeTempFile(t *testing.T, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	return file
}

// TestFromDisk: a qcow2 is packed as it is.
func TestFromDisk(t *testing.T) {
	t.Parallel()
	head := qcow2Head()
	old := qcow2Head()
	binary.BigEndian.PutUint32(old[4:], 2)
	copy(old[72:], strings.Repeat("\xff", 32)) // version 2 has no features: what follows the header is anything
	zstd := qcow2Head()
	zstd[79] = 8 | 16
	for _, content := range [][]byte{head, old, zstd} {
		root := diskRoot(writeTempFile(t, content))
		require.NoError(t, root.check())
		in, size, err := root.open(t.Context())
		require.NoError(t, err)
		got, err := io.ReadAll(in)
		require.NoError(t, err)
		require.NoError(t, in.Close())
		require.Equal(t, content, got)
		require.EqualValues(t, len(content), size)
		require.FileExists(t, string(root))
		require.ErrorContains(t, root.walk(t.Context(), nil), "is a disk")
	}
}

// TestFromDiskBad: a disk that is none, or that a daemon cannot use alone, is refused by check and open.
func TestFromDiskBad(t *testing.T) {
	t.Parallel()
	change := func(offset int, value byte) []byte {
		head := qcow2Head()
		head[offset] = value
		return head
	}
	for problem, content := range map[string][]byte{
		"with a backing file":         change(15, 200),
		"with a backing file; ":       change(19, 8),
		"an encrypted qcow2":          change(35, 2),
		"data is in another file":     change(79, 4),
		"not closed cleanly":          change(79, 1),
		"marked as corrupt":           change(79, 2),
		"unknown features: 0x20":      change(79, 32),
		"version 4":                   change(7, 4),
		"version 1":                   change(7, 1),
		"a cut qcow2":                 qcow2Head()[:100],
		"neither a qcow2 nor a disk":  []byte("text"),
		"neither a qcow2 nor a disk ": nil,
		"compressed with xz":          []byte("\xfd7zXZ\x00 and so on"),
		"neither a qcow2 nor a":       []byte("hsqs"),
	} {
		root := diskRoot(writeTempFile(t, content))
		_, _, opened := root.open(t.Context())
		for _, err := range []error{root.check(), opened} {
			var input *InputError
			require.ErrorAs(t, err, &input, problem)
			require.Equal(t, "root", input.Field)
			require.Contains(t, input.Problem, strings.TrimSpace(problem))
			require.Contains(t, input.Problem, string(root))
		}
	}
	require.ErrorContains(t, FromDisk(t.TempDir()).check(), "is not a regular file")
}

// TestFromDiskQemu: what qemu-img makes is taken or refused by what it is.
func TestFromDiskQemu(t *testing.T) {
	t.Parallel()
	raw := diskRoot(writeTempFile(t, bootRecord()))
	if !requireProgram(t, qemuImg, raw.check()) {
		return
	}
	dir := t.TempDir()
	create := func(name string, args ...string) diskRoot {
		file := filepath.Join(dir, name)
		out, err := exec.CommandContext(t.Context(), "qemu-img", append([]string{"create", "-f", "qcow2"}, append(args, file, "1M")...)...).CombinedOutput()
		require.NoError(t, err, string(out))
		return diskRoot(file)
	}
	require.NoError(t, create("plain").check())
	require.NoError(t, create("old", "-o", "compat=0.10").check())
	require.NoError(t, create("zstd", "-o", "compression_type=zstd,extended_l2=on").check())
	require.ErrorContains(t, create("backed", "-F", "raw", "-b", string(raw)).check(), "backing file")
	require.ErrorContains(t, create("external", "-o", "data_file="+filepath.Join(dir, "data")).check(), "another file")
	require.ErrorContains(t, create("encrypted", "--object", "secret,id=s,data=password", "-o", "encrypt.format=aes,encrypt.key-secret=s").check(), "encrypted")
}

// TestFromDiskRaw: a raw disk is converted, always to the same bytes, and nothing is left behind.
func TestFromDiskRaw(t *testing.T) {
	t.Parallel()
	raw := diskRoot(writeTempFile(t, bootRecord()))
	if !requireProgram(t, qemuImg, raw.check()) {
		return
	}
	var first []byte
	for range 2 {
		in, size, err := raw.open(t.Context())
		require.NoError(t, err)
		temporary := in.(*diskReader).path
		got, err := io.ReadAll(in)
		require.NoError(t, err)
		require.FileExists(t, temporary)
		require.NoError(t, in.Close())
		require.NoDirExists(t, filepath.Dir(temporary))
		require.EqualValues(t, len(got), size)
		if first == nil {
			first = got
		}
		require.Equal(t, first, got)
	}
	back := filepath.Join(t.TempDir(), "back")
	out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-f", "qcow2", "-O", "raw", writeTempFile(t, first), back).CombinedOutput()
	require.NoError(t, err, string(out))
	got, err := os.ReadFile(back)
	require.NoError(t, err)
	require.Equal(t, bootRecord(), got)

	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	_, _, err = raw.open(ctx)
	require.ErrorIs(t, err, stop)
}

// TestFromDiskChanged: a disk that changes while it is read is an error, and never longer than its size.
func TestFromDiskChanged(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(file string) error{
		"grown":   func(file string) error { return os.Truncate(file, 1<<20) },
		"cut":     func(file string) error { return os.Truncate(file, 300) },
		"written": func(file string) error { return os.Chtimes(file, time.Time{}, time.Unix(1, 0)) },
		"replaced": func(file string) error {
			return errors.Join(os.Rename(file, file+".old"), os.WriteFile(file, qcow2Head(), 0o600))
		},
	} {
		root := diskRoot(writeTempFile(t, qcow2Head()))
		in, size, err := root.open(t.Context())
		require.NoError(t, err)
		require.NoError(t, change(string(root)))
		got, err := io.ReadAll(in)
		require.ErrorContains(t, err, "changed while it was packed", name)
		require.LessOrEqual(t, int64(len(got)), size, name)
		require.NoError(t, in.Close())
	}
}
