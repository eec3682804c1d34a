package imagefile

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestFromDirFiles: every type of file, compared with what the system says of it. Without root, devices and other owners cannot
// be made; the rest is compared.
func TestFromDirFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	long := strings.Repeat("n", 255)
	for _, name := range []string{"file", "empty", "d/e/f", "set", "\xff\xfe not UTF-8", "new\nline", "-rf", " ", `back\slash`, long} {
		writeFile(t, dir+"/"+name, "content of "+name)
	}
	require.NoError(t, os.Truncate(dir+"/empty", 0))
	require.NoError(t, unix.Chmod(dir+"/set", 0o6751))
	require.NoError(t, unix.Chmod(dir+"/d", 0o1777))
	require.NoError(t, unix.Chmod(dir+"/d/e", 0o2750))
	links := map[string]string{
		"absolute": "/etc/passwd", "relative": "../../outside", "dangling": "none\xff", "loop": "loop", "to-dir": "d",
		"long": strings.Repeat("x/", 2000),
	}
	for name, target := range links {
		require.NoError(t, os.Symlink(target, dir+"/"+name))
	}
	require.NoError(t, os.Link(dir+"/file", dir+"/d/hard"))
	require.NoError(t, os.Link(dir+"/file", dir+"/z-hard"))
	require.NoError(t, os.Link(dir+"/loop", dir+"/z-loop"))
	require.NoError(t, unix.Mkfifo(dir+"/fifo", 0o640))
	require.NoError(t, os.Link(dir+"/fifo", dir+"/z-fifo"))
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer unix.Close(socket)
	bound, err := os.Open(dir)
	require.NoError(t, err)
	defer bound.Close()
	require.NoError(t, unix.Bind(socket, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/socket", bound.Fd())}))
	devices := map[string]uint32{"char": unix.S_IFCHR, "block": unix.S_IFBLK}
	for name, kind := range devices {
		if err := unix.Mknod(dir+"/"+name, kind|0o600, int(unix.Mkdev(259, 70000))); err != nil {
			require.ErrorIs(t, err, unix.EPERM)
			delete(devices, name)
		}
	}
	if err := os.Lchown(dir+"/d/e/f", 12345, 4294967294); err != nil {
		require.ErrorIs(t, err, unix.EPERM)
	}
	if err := os.Lchown(dir+"/relative", 70000, 70001); err != nil {
		require.ErrorIs(t, err, unix.EPERM)
	}
	when := unix.Timespec{Sec: 1_000_000_000, Nsec: 123_456_789}
	for _, name := range []string{"file", "loop", "d/e"} {
		require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/"+name, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW))
	}

	got := walk(t, FromDir(dir, nil))
	require.NotContains(t, got, "socket")
	seen := 0
	require.NoError(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		relative, err := filepath.Rel(dir, name)
		require.NoError(t, err)
		if relative == "socket" {
			return nil
		}
		seen++
		require.Contains(t, got, relative)
		w := got[relative]
		var stat unix.Stat_t
		require.NoError(t, unix.Lstat(name, &stat))
		require.Equal(t, int64(stat.Mode&0o7777), w.Mode, name)
		require.Equal(t, []int{int(stat.Uid), int(stat.Gid)}, []int{w.Uid, w.Gid}, name)
		require.True(t, time.Unix(stat.Mtim.Unix()).Equal(w.ModTime), name)
		require.Nil(t, w.data)
		if first := map[string]string{"file": "d/hard", "z-hard": "d/hard", "z-loop": "loop", "z-fifo": "fifo"}[relative]; first != "" {
			require.Equal(t, []any{byte(tar.TypeLink), first, int64(0)}, []any{w.Typeflag, w.Linkname, w.Size}, name)
			return nil
		}
		kind := map[fs.FileMode]byte{
			0: tar.TypeReg, fs.ModeDir: tar.TypeDir, fs.ModeSymlink: tar.TypeSymlink, fs.ModeNamedPipe: tar.TypeFifo,
			fs.ModeDevice: tar.TypeBlock, fs.ModeDevice | fs.ModeCharDevice: tar.TypeChar,
		}[d.Type()]
		require.Equal(t, kind, w.Typeflag, name)
		require.Equal(t, links[relative], w.Linkname)
		if kind == tar.TypeReg {
			content, err := os.ReadFile(name)
			require.NoError(t, err)
			require.Equal(t, string(content), w.content, name)
			require.Equal(t, int64(len(content)), w.Size, name)
		} else {
			require.Zero(t, w.Size, name)
		}
		return nil
	}))
	require.Len(t, got, seen)
	for name := range devices {
		require.Equal(t, []int64{259, 70000}, []int64{got[name].Devmajor, got[name].Devminor})
	}
	require.Equal(t, time.Unix(1_000_000_000, 123_456_789), got["d/hard"].ModTime)
	require.Equal(t, int64(0o6751), got["set"].Mode)
}

// TestFromDirSymlink: the directory may be a symbolic link to one.
func TestFromDirSymlink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, dir+"/d/file", "x")
	require.NoError(t, os.Symlink("d", dir+"/link"))
	require.Equal(t, walk(t, FromDir(dir+"/d", nil)), walk(t, FromDir(dir+"/link", nil)))
}

// acl is the access control list of a file with mode 0754 that user 1000 may read.
func acl() string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, 1<<32 - 1}, {2, 4, 1000}, {4, 5, 1<<32 - 1}, {16, 5, 1<<32 - 1}, {32, 4, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// TestFromDirAttributes: what the filesystem and the user allow to be set is packed, without the host's own.
func TestFromDirAttributes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, dir+"/file", "x")
	writeFile(t, dir+"/none", "x")
	writeFile(t, dir+"/d/file", "x")
	require.NoError(t, os.Symlink("file", dir+"/link"))
	require.NoError(t, unix.Mkfifo(dir+"/fifo", 0o754))
	require.NoError(t, os.Link(dir+"/file", dir+"/hard"))
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service=ep
	want := map[string]map[string]string{}
	for _, a := range []struct{ file, name, value string }{
		{"file", "user.binary", "\x00\n=\xff\x00"},
		{"file", "user.empty", ""},
		{"file", "user.long", strings.Repeat("v", 2000)},
		{"file", "user.näme%=\n", "x"},
		{"file", "security.capability", capability},
		{"file", "system.posix_acl_access", acl()},
		{"file", "trusted.host", "x"},
		{"file", "security.host", "x"},
		{"d", "user.d", "of a directory"},
		{"d", "system.posix_acl_default", acl()},
		{"fifo", "system.posix_acl_access", acl()},
		{".", "user.top", "x"},
		{"link", "trusted.host", "x"},
	} {
		if err := unix.Lsetxattr(dir+"/"+a.file, a.name, []byte(a.value), 0); err != nil {
			require.True(t, errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP), "%s of %s: %v", a.name, a.file, err)
			continue
		}
		if strings.HasSuffix(a.name, ".host") {
			continue
		}
		if want[a.file] == nil {
			want[a.file] = map[string]string{}
		}
		// As GNU tar 1.34 writes it.
		want[a.file]["SCHILY.xattr."+strings.ReplaceAll(strings.ReplaceAll(a.name, "%", "%25"), "=", "%3D")] = a.value
	}
	t.Logf("%d files with attributes", len(want))
	for name, w := range walk(t, FromDir(dir, nil)) {
		if name == "hard" {
			require.Equal(t, tar.TypeLink, rune(w.Typeflag))
			require.Empty(t, w.PAXRecords)
			continue
		}
		require.Equal(t, want[name], w.PAXRecords, name)
	}
}

// TestFromDirSparse: the pieces of a file with a hole are the blocks with content, whatever zeros were written, and nothing
// else is read.
func TestFromDirSparse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var want []*[]piece // by file, nil for one that is not sparse
	content := map[string]string{}
	for n := range 60 {
		name := fmt.Sprint("file", n)
		file, err := os.Create(dir + "/" + name)
		require.NoError(t, err)
		blocks := 1 + random.IntN(100)
		size := blocks*sparseBlock - random.IntN(2)*random.IntN(sparseBlock)
		model := make([]byte, size)
		require.NoError(t, file.Truncate(int64(size)))
		for b := range blocks {
			at := b * sparseBlock
			end := min(at+sparseBlock, size)
			switch random.IntN(4) {
			case 0: // zeros on disk
				_, err = file.WriteAt(model[at:end], int64(at))
			case 1: // one byte
				model[at+random.IntN(end-at)] = 1
				_, err = file.WriteAt(model[at:end], int64(at))
			}
			require.NoError(t, err)
		}
		hole, err := unix.Seek(int(file.Fd()), 0, unix.SEEK_HOLE)
		require.NoError(t, err)
		require.NoError(t, file.Close())
		pieces, packed := []piece{}, ""
		for at := 0; at < size; at += sparseBlock {
			end := min(at+sparseBlock, size)
			switch last := len(pieces) - 1; {
			case strings.Trim(string(model[at:end]), "\x00") == "":
				continue
			case last >= 0 && pieces[last].offset+pieces[last].size == int64(at):
				pieces[last].size += int64(end - at)
			default:
				pieces = append(pieces, piece{int64(at), int64(end - at)})
			}
			packed += string(model[at:end])
		}
		if hole >= int64(size) || len(packed) == size {
			want, content[name] = append(want, nil), string(model)
		} else {
			want, content[name] = append(want, &pieces), packed
		}
	}
	require.NoError(t, os.WriteFile(dir+"/hole", nil, 0o644))
	require.NoError(t, os.Truncate(dir+"/hole", 1<<40))
	writeFile(t, dir+"/far", "x")
	file, err := os.OpenFile(dir+"/far", os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.WriteAt([]byte("end"), 1<<40-3)
	require.NoError(t, err)
	require.NoError(t, file.Close())

	start := time.Now()
	got := walk(t, FromDir(dir, nil))
	require.Less(t, time.Since(start), time.Minute)
	for n, pieces := range want {
		name := fmt.Sprint("file", n)
		w := got[name]
		if pieces == nil {
			require.Nil(t, w.data, name)
		} else {
			require.Equal(t, *pieces, w.data, name)
			require.NotNil(t, w.data)
		}
		require.Equal(t, content[name], w.content, name)
		stat, err := os.Stat(dir + "/" + name)
		require.NoError(t, err)
		require.Equal(t, stat.Size(), w.Size)
	}
	require.Equal(t, []piece{}, got["hole"].data)
	require.Equal(t, int64(1<<40), got["hole"].Size)
	require.Equal(t, []piece{{0, sparseBlock}, {1<<40 - sparseBlock, sparseBlock}}, got["far"].data)
	require.Equal(t, int64(1<<40), got["far"].Size)
	require.Equal(t, "x"+strings.Repeat("\x00", 2*sparseBlock-4)+"end", got["far"].content)
}

// TestFromDirReplaced: a file that is replaced between the look at it and its opening is neither followed nor waited for.
func TestFromDirReplaced(t *testing.T) {
	t.Parallel()
	secret := t.TempDir()
	writeFile(t, secret+"/secret", "x")
	replacements := map[string]func(name string) error{
		"none":         func(string) error { return nil },
		"link":         func(name string) error { return os.Symlink(secret+"/secret", name) },
		"link to dir":  func(name string) error { return os.Symlink(secret, name) },
		"FIFO":         func(name string) error { return unix.Mkfifo(name, 0o644) },
		"directory":    func(name string) error { return os.Mkdir(name, 0o755) },
		"another file": func(name string) error { return os.WriteFile(name, []byte("y"), 0o644) },
	}
	for kind, create := range map[string]func(name string) error{
		"file":      func(name string) error { return os.WriteFile(name, []byte("x"), 0o644) },
		"directory": func(name string) error { return os.Mkdir(name, 0o755) },
		"link":      func(name string) error { return os.Symlink("target", name) },
		"FIFO":      func(name string) error { return unix.Mkfifo(name, 0o644) },
	} {
		for replacement, replace := range replacements {
			t.Run(kind+" by "+replacement, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				require.NoError(t, create(dir+"/victim"))
				top, err := openTop(dir)
				require.NoError(t, err)
				defer top.close()
				stat, err := top.lstat("victim")
				require.NoError(t, err)
				require.NoError(t, os.Rename(dir+"/victim", dir+"/away")) // its inode is not free for the replacement
				require.NoError(t, replace(dir+"/victim"))

				w := &dirWalk{
					dirRoot: FromDir(dir, nil).(*dirRoot), ctx: t.Context(), path: []byte("victim"), buffer: make([]byte, blockSize),
					add: func(e *entry) error { return fmt.Errorf("is packed: %+v", e) },
				}
				switch kind {
				case "file":
					err = w.regular(top, "victim", stat)
				case "directory":
					err = w.subdirectory(top, "victim", stat, 0)
				case "link":
					err = w.symlink(top, "victim", stat)
				default:
					err = w.special(top, "victim", stat)
				}
				require.ErrorIs(t, err, ErrChanged)
				require.Contains(t, err.Error(), dir+"/victim")
			})
		}
	}
}

// TestFromDirRestless walks a tree that others change all the time. What comes of it is what was in the tree, or ErrChanged.
func TestFromDirRestless(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	parent := t.TempDir()
	dir := parent + "/tree"
	writeFile(t, parent+"/outside/secret", "SECRET")
	names := []string{"a", "b", "c", "d/a", "d/b", "d/e/a", "d/e/b"}
	for _, name := range names {
		writeFile(t, dir+"/"+name, strings.Repeat("0", 10_000))
	}
	stop := make(chan struct{})
	var mutators sync.WaitGroup
	defer mutators.Wait()
	defer close(stop)
	for n := range uint64(2) {
		mutators.Go(func() {
			random := rand.New(rand.NewPCG(seed, n))
			fresh := fmt.Sprint(parent, "/fresh", n)
			for {
				select {
				case <-stop:
					return
				default:
				}
				// Errors are of no interest: the other one has been faster.
				name := dir + "/" + names[random.IntN(len(names))]
				switch random.IntN(8) {
				case 0:
					os.RemoveAll(name)
				case 1:
					os.RemoveAll(name)
					os.Symlink("../../../outside/secret", name)
				case 2:
					os.RemoveAll(name)
					unix.Mkfifo(name, 0o644)
				case 3: // the directory becomes a link to one
					os.Rename(dir+"/d", fresh+".d")
					os.Symlink("../outside", dir+"/d")
				case 4: // and a directory again
					os.Remove(dir + "/d")
					os.MkdirAll(dir+"/d/e", 0o755)
				case 5:
					os.RemoveAll(fresh + ".d")
				default:
					os.WriteFile(fresh, []byte(strings.Repeat(string(rune('1'+random.IntN(9))), 10_000)), 0o644)
					os.RemoveAll(name)
					os.Rename(fresh, name)
				}
				if random.IntN(50) == 0 {
					select { // let a walk get through
					case <-stop:
						return
					case <-time.After(2 * time.Millisecond):
					}
				}
			}
		})
	}
	results := map[bool]int{}
	for start := time.Now(); time.Since(start) < time.Second || results[true] == 0 || results[false] == 0; {
		require.Less(t, time.Since(start), time.Minute, results)
		list, err := tryWalk(t.Context(), FromDir(dir, nil))
		if results[err == nil]++; err != nil {
			require.ErrorIs(t, err, ErrChanged)
		}
		for _, w := range list {
			require.NotContains(t, w.content, "SECRET")
			require.NotContains(t, w.Name, "secret")
			if w.content != "" {
				require.Equal(t, strings.Repeat(w.content[:1], 10_000), w.content)
			}
		}
	}
	t.Logf("%d walks, %d ErrChanged", results[true], results[false])
}

// makeDeep makes directories that are nested depth deep, and removes them after the test: os.RemoveAll needs a descriptor for
// each.
func makeDeep(t *testing.T, dir, name string, depth int) {
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	move := func(to string) {
		next, err := unix.Openat(fd, to, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		unix.Close(fd)
		fd = next
	}
	for range depth {
		require.NoError(t, unix.Mkdirat(fd, name, 0o755))
		move(name)
	}
	file, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	require.NoError(t, err)
	_, err = unix.Write(file, []byte("deep"))
	require.NoError(t, err)
	unix.Close(file)
	t.Cleanup(func() {
		require.NoError(t, unix.Unlinkat(fd, "file", 0))
		for range depth {
			move("..")
			require.NoError(t, unix.Unlinkat(fd, name, unix.AT_REMOVEDIR))
		}
		unix.Close(fd)
	})
}

// TestFromDirDeep: depth needs neither descriptors nor paths that the system accepts.
func TestFromDirDeep(t *testing.T) {
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(list)
	}
	dir := t.TempDir()
	const depth = 500
	makeDeep(t, dir, "directory", depth)
	before, most, n, last := descriptors(), 0, 0, ""
	require.NoError(t, FromDir(dir, nil).walk(t.Context(), func(e *entry) error {
		if n++; n%100 == 0 {
			most = max(most, descriptors())
		}
		last = e.Name
		return nil
	}))
	require.Equal(t, depth+2, n)
	require.Equal(t, strings.Repeat("directory/", depth)+"file", last)
	require.LessOrEqual(t, most, before+maxOpenDirs+3)
	require.Equal(t, before, descriptors())

	require.Equal(t, 10000, maxDepth)
	defer func(before int) { maxDepth = before }(maxDepth)
	maxDepth = 600
	tooDeep := t.TempDir()
	makeDeep(t, tooDeep, strings.Repeat("d", 9), maxDepth+1)
	_, err := tryWalk(t.Context(), FromDir(tooDeep, nil))
	require.ErrorContains(t, err, "is nested more than 600 deep")
	require.Less(t, len(err.Error()), 2000)
	require.Equal(t, before+1, descriptors(), "that of makeDeep")
}

// TestFromDirDeepSiblings: after a deep directory, the walk goes on in those above it.
func TestFromDirDeepSiblings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := []string{"."}
	name := ""
	for range maxOpenDirs + 10 {
		name = path.Join(name, "d")
		writeFile(t, dir+"/"+name+"/a", name)
		writeFile(t, dir+"/"+name+"/z/empty/file", name)
		want = append(want, name, name+"/a", name+"/z", name+"/z/empty", name+"/z/empty/file")
	}
	got := walk(t, FromDir(dir, nil))
	require.Len(t, got, len(want))
	for _, name := range want {
		require.Contains(t, got, name)
	}

	// A directory that is moved while the walk is below it is not left to another place.
	err := FromDir(dir, nil).walk(t.Context(), func(e *entry) error {
		if strings.HasSuffix(e.Name, "/empty/file") && strings.Count(e.Name, "/") > maxOpenDirs+10 {
			return os.Rename(filepath.Dir(filepath.Dir(dir+"/"+e.Name)), dir+"/moved")
		}
		return nil
	})
	require.ErrorIs(t, err, ErrChanged)
}

// TestFromDirUnreadable: what the user may not read is an error that names it.
func TestFromDirUnreadable(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", "dir", "dir-x"} {
		dir := t.TempDir()
		writeFile(t, dir+"/file", "x")
		writeFile(t, dir+"/dir/x", "x")
		writeFile(t, dir+"/dir-x/x", "x")
		modes := map[string]fs.FileMode{"file": 0, "dir": 0o111, "dir-x": 0o444}
		require.NoError(t, os.Chmod(dir+"/"+name, modes[name]))
		open, err := os.Open(dir)
		require.NoError(t, err)
		defer open.Close()
		result := make(chan error)
		go func() {
			// Root may read all, so this thread is not root; it ends with the goroutine.
			runtime.LockOSThread()
			if os.Geteuid() == 0 {
				unix.RawSyscall(unix.SYS_SETFSUID, 65534, 0, 0)
			}
			_, err := tryWalk(t.Context(), FromDir(fmt.Sprintf("/proc/self/fd/%d", open.Fd()), nil))
			result <- err
		}()
		err = <-result
		require.ErrorIs(t, err, fs.ErrPermission, name)
		require.Contains(t, err.Error(), "/"+name)
		require.NoError(t, os.Chmod(dir+"/"+name, 0o755))
	}
}

// TestFromDirLinkChanged: a file that has changed since the first of its hard links was packed, or another file that has got its
// inode.
func TestFromDirLinkChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, dir+"/a", "x")
	require.NoError(t, os.Link(dir+"/a", dir+"/d"))
	writeFile(t, dir+"/b", "y")
	past := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(dir+"/a", past, past))
	err := FromDir(dir, nil).walk(t.Context(), func(e *entry) error {
		if e.Name == "b" {
			writeFile(t, dir+"/d", "z")
		}
		return nil
	})
	require.ErrorIs(t, err, ErrChanged)
	require.Contains(t, err.Error(), dir+"/d")
}

// TestFromDirMemory: of the files without further hard links nothing is remembered.
func TestFromDirMemory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for n := range 300 {
		writeFile(t, fmt.Sprint(dir, "/", n), "x")
	}
	require.NoError(t, os.Link(dir+"/7", dir+"/x"))
	root := FromDir(dir, nil).(*dirRoot)
	w := &dirWalk{dirRoot: root, ctx: t.Context(), path: []byte("."), links: map[fileID]linkedFile{}, buffer: make([]byte, blockSize)}
	w.add = func(e *entry) error {
		if e.content != nil {
			_, err := io.Copy(io.Discard, e.content)
			return err
		}
		return nil
	}
	top, err := openTop(dir)
	require.NoError(t, err)
	defer top.close()
	stat, err := top.stat()
	require.NoError(t, err)
	require.NoError(t, w.directory(nil, top, stat, 0))
	require.Len(t, w.links, 1)
}
