package lxd_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// exportChild is a process that runs TestExportToChild.
func exportChild(t *testing.T, image *lxd.Image, dir string, connections int, fileLimit int64) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestExportToChild$", "-test.v")
	cmd.Env = append(os.Environ(), envExportEndpoint+"="+image.Client().Endpoint(), envExportFingerprint+"="+image.Fingerprint, envExportFolder+"="+dir, fmt.Sprintf("%s=%d", envExportConnections, connections))
	if fileLimit > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", envExportFileLimit, fileLimit))
	}
	cmd.Stderr = os.Stderr
	return cmd
}

// TestExportToChild is what a child process of the other tests runs. Without the
// environment of a child it does nothing.
func TestExportToChild(t *testing.T) {
	endpoint := os.Getenv(envExportEndpoint)
	if endpoint == "" {
		require.Empty(t, os.Getenv(envExportFingerprint))
		return
	}
	if limit := os.Getenv(envExportFileLimit); limit != "" {
		bytes, err := strconv.ParseUint(limit, 10, 64)
		require.NoError(t, err)
		signal.Ignore(syscall.SIGXFSZ) // the write fails then
		require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: bytes}))
	}
	client := testkit.NewClient(t, endpoint, nil)
	image, err := client.Images.Get(t.Context(), os.Getenv(envExportFingerprint))
	require.NoError(t, err)
	connections, err := strconv.Atoi(os.Getenv(envExportConnections))
	require.NoError(t, err)
	_, err = image.ExportTo(t.Context(), os.Getenv(envExportFolder), &lxd.ExportToOptions{
		Connections: connections,
		Progress:    func(p lxd.Progress) { fmt.Println("received", p.Done) },
	})
	if errors.Is(err, syscall.EFBIG) {
		fmt.Println("the disk is full")
		return
	}
	require.NoError(t, err)
}

// awaitReceived reads what a child prints until it has received so many bytes.
func awaitReceived(t *testing.T, out io.Reader, bytes int) {
	t.Helper()
	lines := bufio.NewScanner(out)
	for received := 0; received < bytes; {
		require.True(t, lines.Scan(), "the child ended: %v", lines.Err())
		if number, ok := strings.CutPrefix(lines.Text(), "received "); ok {
			var err error
			received, err = strconv.Atoi(number)
			require.NoError(t, err)
		}
	}
}

// TestExportToResumesInNextProcess kills one in the middle.
func TestExportToResumesInNextProcess(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("killed", 4<<20), nil)
	dir := t.TempDir()
	const before = 2 << 20
	stalled := x.Inject(lxdtest.StallResponse(before).On("GET", testkit.ExportPattern).Times(1))
	defer stalled.Remove()
	child := exportChild(t, x.image, dir, 0, 0)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	awaitReceived(t, out, 1)
	require.Eventually(t, func() bool {
		info, err := os.Stat(partialPath(dir, x.image))
		return err == nil && info.Size() > 0
	}, exportWait, exportTick)
	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	left, err := os.ReadFile(partialPath(dir, x.image))
	require.NoError(t, err)
	require.NotEmpty(t, left)
	require.True(t, bytes.HasPrefix(x.data, left))

	files, err := x.image.ExportTo(t.Context(), dir, nil)
	require.NoError(t, err)
	testkit.RequireExported(t, dir, files, x.data)
	require.Equal(t, []string{"", fmt.Sprintf("bytes=%d-", len(left))}, x.ranges())
}

// TestExportToOverConnectionsResumesInNextProcess kills one while each of its
// connections has received the same amount.
func TestExportToOverConnectionsResumesInNextProcess(t *testing.T) {
	t.Parallel()
	const connections, each = 3, 1 << 20
	x := newExportTest(t, 0, lxdtest.UnifiedImage("killed", 6<<20), nil)
	dir := t.TempDir()
	stalled := x.Inject(lxdtest.StallResponse(each).On("GET", testkit.ExportPattern).Times(connections))
	defer stalled.Remove()
	child := exportChild(t, x.image, dir, connections, 0)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	awaitReceived(t, out, connections*each)
	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	x.ForgetRequests()
	files, err := x.image.ExportTo(t.Context(), dir, nil)
	require.NoError(t, err)
	testkit.RequireExported(t, dir, files, x.data)
	require.Len(t, x.ranges(), connections)
	require.LessOrEqual(t, asked(t, x.ranges(), len(x.data)), len(x.data)-connections*each, "all that came is of use")
}

// TestExportToOverConnectionsKeepsBeginning has no space for the state of the parts,
// after what another call has downloaded.
func TestExportToOverConnectionsKeepsBeginning(t *testing.T) {
	t.Parallel()
	const room = 1<<20 + 1000
	x := newExportTest(t, 0, lxdtest.UnifiedImage("keeps", 4<<20), nil)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(partialPath(dir, x.image), x.data[:room], 0o600))
	x.ForgetRequests()
	out, err := exportChild(t, x.image, dir, 2, room).Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "the disk is full")
	require.Empty(t, x.ranges())
	left, err := os.ReadFile(partialPath(dir, x.image))
	require.NoError(t, err)
	require.True(t, bytes.Equal(x.data[:room], left))
}

// TestExportToOnFullDisk has a process that cannot write more than so many
// bytes, and then one that can.
func TestExportToOnFullDisk(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("full", 4<<20), nil)
	dir := t.TempDir()
	const room = 1<<20 + 1000
	out, err := exportChild(t, x.image, dir, 0, room).Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "the disk is full")
	require.Equal(t, []string{partialPath(dir, x.image)}, testkit.FilesIn(t, dir))
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(partialPath(dir, x.image), &stat))
	require.EqualValues(t, room, stat.Size)
	require.Less(t, stat.Blocks*512, int64(2<<20), "what was reserved for the rest is given back")
	files, err := x.image.ExportTo(t.Context(), dir, nil)
	require.NoError(t, err)
	testkit.RequireExported(t, dir, files, x.data)
	require.Equal(t, []string{"", fmt.Sprintf("bytes=%d-", room)}, x.ranges())
}

// withoutPermission runs f without the privileges of root, if it has them. A
// directory of mode 0o555 is read-only then.
func withoutPermission(f func() error) error {
	ended := make(chan error)
	go func() {
		// The thread ends with this goroutine, as it is not unlocked.
		runtime.LockOSThread()
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			ended <- err
			return
		}
		ended <- f()
	}()
	return <-ended
}

func TestExportToWithoutPermission(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("permission", 0), nil)
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o555))
	x.ForgetRequests()
	err := withoutPermission(func() error {
		_, err := x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Progress: func(lxd.Progress) { t.Error("there is no progress") }})
		return err
	})
	require.ErrorIs(t, err, os.ErrPermission)
	require.Contains(t, err.Error(), filepath.Base(partialPath(dir, x.image)))
	require.Empty(t, x.Requests())
	require.Empty(t, testkit.FilesIn(t, dir))
}

// TestExportToCannotReplace has a partial file that others can write to, in a
// directory in which this user cannot remove it.
func TestExportToCannotReplace(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("replace", 0), nil)
	for _, finished := range []bool{false, true} {
		dir := t.TempDir()
		path := partialPath(dir, x.image)
		if finished {
			path = filepath.Join(dir, x.image.Fingerprint+".tar")
		}
		require.NoError(t, os.WriteFile(path, x.data, 0o600))
		require.NoError(t, os.Chmod(path, 0o666))
		require.NoError(t, os.Chmod(dir, 0o555))
		t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
		x.ForgetRequests()
		err := withoutPermission(func() error {
			_, err := x.image.ExportTo(t.Context(), dir, nil)
			return err
		})
		require.ErrorIs(t, err, os.ErrPermission)
		require.ErrorContains(t, err, path+" is writable by others (mode 0666)")
		if !finished {
			require.ErrorContains(t, err, "remove it, or use a directory that nobody else may write to")
		}
		require.Empty(t, x.Requests())
		require.Equal(t, []string{path}, testkit.FilesIn(t, dir))
	}
}

// TestExportToReservesRoom looks at the partial file after a quarter of the content.
func TestExportToReservesRoom(t *testing.T) {
	t.Parallel()
	const size, came = 4 << 20, 1 << 20
	metadata, rootfs := lxdtest.SplitImage("room", size)
	for _, c := range []struct {
		data, rootfs []byte
		path         func(dir string, image *lxd.Image) string
	}{
		{lxdtest.UnifiedImage("room", size), nil, partialPath},
		{metadata, rootfs, rootfsPartialPath},
	} {
		x := newExportTest(t, 0, c.data, c.rootfs)
		dir := t.TempDir()
		stalled := x.Inject(lxdtest.StallResponse(came).On("GET", testkit.ExportPattern))
		ended := make(chan error)
		go func() {
			_, err := x.image.ExportTo(t.Context(), dir, nil)
			ended <- err
		}()
		var stat unix.Stat_t
		reserved := func() bool {
			return unix.Stat(c.path(dir, x.image), &stat) == nil && stat.Blocks*512 >= size
		}
		require.Eventually(t, func() bool { return stalled.Fired() == 1 }, exportWait, exportTick)
		if !canReserve(t) {
			reserved = func() bool { return true }
		}
		require.Eventually(t, reserved, exportWait, exportTick)
		require.Less(t, stat.Size, int64(size), "it has not come yet")
		stalled.Release()
		require.NoError(t, <-ended)
	}
}

// canReserve reports whether the file system of temporary files reserves space.
func canReserve(t *testing.T) bool {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1) == nil
}

// TestExportToFindsFilesInReadOnlyDirectory has the files of an earlier call, or
// what only looks like them.
func TestExportToFindsFilesInReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	unified := lxdtest.UnifiedImage("read-only", 1<<20)
	metadata, rootfs := lxdtest.SplitImage("read-only", 1<<20)
	for _, c := range []struct {
		name         string
		data, rootfs []byte
		damaged      bool
		partial      bool // is there, and may be written to
	}{
		{name: "unified", data: unified},
		{name: "split", data: metadata, rootfs: rootfs},
		{name: "damaged", data: unified, damaged: true},
		{name: "unified and a partial file", data: unified, partial: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newExportTest(t, 0, c.data, c.rootfs)
			dir := t.TempDir()
			want, err := x.image.ExportTo(t.Context(), dir, nil)
			require.NoError(t, err)
			if c.damaged {
				damaged := bytes.Clone(c.data)
				damaged[len(damaged)/2] ^= 1
				require.NoError(t, os.WriteFile(want.Image, damaged, 0o600))
			}
			if c.partial {
				require.NoError(t, os.WriteFile(partialPath(dir, x.image), nil, 0o600))
			}
			require.NoError(t, os.Chmod(dir, 0o555))
			t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
			x.ForgetRequests()
			var files *lxd.ExportedFiles
			var last lxd.Progress
			err = withoutPermission(func() (err error) {
				files, err = x.image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Progress: func(p lxd.Progress) { last = p }})
				return err
			})
			if c.damaged {
				require.ErrorIs(t, err, os.ErrPermission)
			} else {
				require.NoError(t, err)
				require.Equal(t, want, files)
			}
			require.Equal(t, lxd.PhaseVerify, last.Phase)
			require.Equal(t, x.image.Size, last.Done)
			require.Equal(t, x.image.Size, last.Total)
			require.Empty(t, x.Requests())
		})
	}
}
