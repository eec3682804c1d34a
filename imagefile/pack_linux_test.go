package imagefile_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/golxd/lxd/imagefile"
)

// describe is each file of a directory with all that an image has of it, and with its blocks on disk.
func describe(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, first := map[string]string{}, map[uint64]string{}
	require.NoError(t, filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		require.NoError(t, err)
		var s unix.Stat_t
		require.NoError(t, unix.Lstat(name, &s))
		relative, err := filepath.Rel(dir, name)
		require.NoError(t, err)
		text := fmt.Sprintf("mode %o owner %d:%d time %d device %#x", s.Mode, s.Uid, s.Gid, s.Mtim.Sec, s.Rdev)
		if s.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first[s.Ino] == "" {
				first[s.Ino] = relative
			}
			text += fmt.Sprintf(" size %d blocks %d links %d of %q", s.Size, s.Blocks, s.Nlink, first[s.Ino])
		}
		switch {
		case s.Mode&unix.S_IFMT == unix.S_IFLNK:
			target, err := os.Readlink(name)
			require.NoError(t, err)
			text += " to " + target
		case s.Mode&unix.S_IFMT == unix.S_IFREG && s.Size < 1<<21 && s.Mode&0o400 != 0:
			data, err := os.ReadFile(name)
			require.NoError(t, err)
			text += fmt.Sprintf(" content %x", sha256.Sum256(data))
		}
		buffer := make([]byte, 64<<10)
		n, err := unix.Llistxattr(name, buffer)
		require.NoError(t, err)
		attributes := strings.Split(strings.TrimSuffix(string(buffer[:n]), "\x00"), "\x00")
		slices.Sort(attributes)
		for _, attribute := range attributes {
			if attribute != "" && !strings.HasPrefix(attribute, "security.selinux") {
				n, err := unix.Lgetxattr(name, attribute, buffer)
				require.NoError(t, err)
				text += fmt.Sprintf(" %q=%q", attribute, buffer[:n])
			}
		}
		files[relative] = text
		return nil
	}))
	return files
}

// makeTree makes a directory with one of everything. What only root may make is left out for others.
func makeTree(t *testing.T, dir string) {
	t.Helper()
	file := func(name string) string {
		name = filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte("content of "+name[len(dir):]), 0o644))
		return name
	}
	sparse := func(name string, size int64, data ...int64) string {
		name = file(name)
		require.NoError(t, os.Truncate(name, 0))
		out, err := os.OpenFile(name, os.O_WRONLY, 0)
		require.NoError(t, err)
		for _, at := range data {
			_, err = out.WriteAt(bytes.Repeat([]byte("x"), 4096), at)
			require.NoError(t, err)
		}
		require.NoError(t, out.Truncate(size))
		require.NoError(t, out.Close())
		return name
	}
	attribute := func(file, name, value string) {
		if err := unix.Setxattr(file, name, []byte(value), 0); os.Geteuid() == 0 || strings.HasPrefix(name, "user.") {
			require.NoError(t, err)
		}
	}
	long := strings.Repeat("n", 200)
	deep := long + "/" + long + "/"
	require.NoError(t, os.Link(file(deep+strings.Repeat("m", 255)), dir+"/hard-long"))
	for _, name := range []string{"lat\xefn\nnew line \\x \"q\"", "-dash", "@at", "*star?[", "empty/file"} {
		file(name)
	}
	require.NoError(t, os.Truncate(dir+"/empty/file", 0))
	require.NoError(t, os.Mkdir(dir+"/empty/directory", 0o755))
	require.NoError(t, os.Symlink("target/"+deep, dir+"/symbolic"))
	require.NoError(t, os.Link(dir+"/symbolic", dir+"/symbolic-hard"))
	require.NoError(t, unix.Mkfifo(dir+"/fifo", 0o622))
	require.NoError(t, unix.Chmod(file("set"), 0o6755))
	require.NoError(t, os.Mkdir(dir+"/sticky", 0o755))
	require.NoError(t, unix.Chmod(dir+"/sticky", 0o1777))
	for name, value := range map[string]string{"binary": "a\x00b\n=\xff", "empty": "", "100%": "1", "a=b": "2", "a%3Db": "3", "new\nline": "4", "lat\xef": "5"} {
		attribute(file("attributes"), "user."+name, value)
	}
	sparse("hole-end", 1<<20, 0)
	sparse("hole-start", 1<<20, 1<<20-4096)
	sparse("hole-all", 1<<20)
	sparse("hole-odd", 1<<20+17, 8192)
	name := sparse(deep+strings.Repeat("s", 255), 1<<20, 4096, 65536)
	attribute(name, "user.x%", "a\x00b")
	require.NoError(t, os.Link(name, dir+"/sparse-hard"))
	for name, seconds := range map[string]int64{"1901": -1 << 31, "1969": -1, "2300": 10413792000} {
		times := []unix.Timespec{{Sec: seconds}, {Sec: seconds, Nsec: 500}}
		require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, file(name), times, 0))
	}
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(file("owner"), 4_000_000_000, 2_500_000))
		require.NoError(t, unix.Mknod(dir+"/char", unix.S_IFCHR|0o600, int(unix.Mkdev(4095, 1048575))))
		require.NoError(t, os.Link(dir+"/char", dir+"/char-hard"))
		require.NoError(t, unix.Mknod(dir+"/block", unix.S_IFBLK|0o660, int(unix.Mkdev(8, 300))))
		require.NoError(t, os.Chmod(file("unreadable/file"), 0))
		require.NoError(t, os.Chmod(dir+"/unreadable", 0))
		attribute(file("capability"), "security.capability", "\x01\x00\x00\x02\x00\x20"+strings.Repeat("\x00", 14))
		list := "\x02\x00\x00\x00"
		for _, e := range []string{"\x01\x00\x06\x00\xff\xff\xff\xff", "\x02\x00\x07\x00\xe8\x03\x00\x00", "\x04\x00\x04\x00\xff\xff\xff\xff", "\x10\x00\x07\x00\xff\xff\xff\xff", "\x20\x00\x04\x00\xff\xff\xff\xff"} {
			list += e
		}
		attribute(file("acl/file"), "system.posix_acl_access", list)
		attribute(dir+"/acl", "system.posix_acl_default", list)
	}
	require.NoError(t, os.Chtimes(dir, day, day))
}

// TestPackUnpack: what a directory has is there again when tar, with the options of the daemons, has unpacked its image: as it
// was packed, as a split image that was made of that, and by GNU tar in each of its formats for sparse files before that.
func TestPackUnpack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeTree(t, dir)
	want := describe(t, dir)
	same := func(name string, archive []byte, below string) {
		to := t.TempDir()
		command := exec.CommandContext(t.Context(), "tar", "--restrict", "--force-local", "-C", to, "--numeric-owner", "--xattrs-include=*", "-xpf", "-")
		command.Stdin = bytes.NewReader(archive)
		out, err := command.CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
		require.Equal(t, want, describe(t, to+below), name)
		require.NoError(t, os.Chmod(to+below, 0o755)) // for its removal
	}
	metadata := func() *imagefile.Metadata { return &imagefile.Metadata{Architecture: "x86_64", CreatedAt: day} }
	var image, first, second, again bytes.Buffer
	_, err := imagefile.Pack(t.Context(), &image, nil, imagefile.FromDir(dir, nil), metadata(), &imagefile.PackOptions{Compression: imagefile.None})
	require.NoError(t, err)
	same("packed", image.Bytes(), "/rootfs")
	_, err = imagefile.Pack(t.Context(), &first, &second, imagefile.FromImage(bytes.NewReader(image.Bytes()), nil, nil), nil, nil)
	require.NoError(t, err)
	same("split", second.Bytes(), "")
	_, err = imagefile.Pack(t.Context(), &again, nil, imagefile.FromImage(&first, &second, nil), nil, nil)
	require.NoError(t, err)
	require.True(t, bytes.Equal(image.Bytes(), again.Bytes()))

	// GNU tar does not know that a device has several links.
	if os.Geteuid() == 0 {
		require.NoError(t, os.Remove(dir+"/char-hard"))
		require.NoError(t, os.Chtimes(dir, day, day))
	}
	want = describe(t, dir)
	for _, format := range []string{"--sparse-version=1.0", "--sparse-version=0.1", "--sparse-version=0.0", "--pax-option=comment=x"} {
		command := exec.CommandContext(t.Context(), "tar", "--format=posix", format, "-S", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", dir, "-cf", "-", ".")
		archive, err := command.Output()
		require.NoError(t, err, format)
		var rootfs bytes.Buffer
		_, err = imagefile.Pack(t.Context(), io.Discard, &rootfs, imagefile.FromTar(bytes.NewReader(archive), nil), metadata(), &imagefile.PackOptions{Compression: imagefile.None})
		require.NoError(t, err, format)
		same(format, rootfs.Bytes(), "")
		report, err := imagefile.Check(t.Context(), bytes.NewReader(unified(t, good)), bytes.NewReader(archive), nil)
		require.NoError(t, err)
		for _, problem := range report.Problems {
			require.NotEqual(t, imagefile.EscapingPath, problem.Kind, "%s: %s", format, problem)
		}
	}
}

// TestPackLargeSparse: a sparse file of more than 8 GiB takes no time, and keeps its holes.
func TestPackLargeSparse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const size = 9 << 30
	require.NoError(t, os.WriteFile(dir+"/file", []byte("begin"), 0o644))
	require.NoError(t, os.Truncate(dir+"/file", size))
	out, err := os.OpenFile(dir+"/file", os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = out.WriteAt([]byte("end"), size-3)
	require.NoError(t, err)
	require.NoError(t, out.Close())
	require.NoError(t, os.Chtimes(dir, day, day))
	want := describe(t, dir)
	var image, rootfs bytes.Buffer
	_, err = imagefile.Pack(t.Context(), &image, &rootfs, imagefile.FromDir(dir, nil), &imagefile.Metadata{Architecture: "x86_64"}, nil)
	require.NoError(t, err)
	require.Less(t, rootfs.Len(), 2000)
	to := t.TempDir()
	command := exec.CommandContext(t.Context(), "tar", "--numeric-owner", "-C", to, "-xzpf", "-")
	command.Stdin = &rootfs
	text, err := command.CombinedOutput()
	require.NoError(t, err, "%s", text)
	require.Equal(t, want, describe(t, to))
	unpacked, err := os.Open(to + "/file")
	require.NoError(t, err)
	defer unpacked.Close()
	end := make([]byte, 4)
	_, err = unpacked.ReadAt(end, size-4)
	require.NoError(t, err)
	require.Equal(t, "\x00end", string(end))
}
