package simplestreams_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/simplestreams"
)

// envKills is how many publishers TestTreeKilled kills.
const envKills = "SIMPLESTREAMS_TEST_KILLS"

func startPublisher(t *testing.T, dir, product string, versions int) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	command := exec.CommandContext(t.Context(), program)
	command.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%s|%d", envPublish, dir, product, versions))
	var output bytes.Buffer
	command.Stderr = &output
	require.NoError(t, command.Start())

	return command, &output
}

// TestTreeProcesses publishes with two processes at once. Nothing is lost.
func TestTreeProcesses(t *testing.T) {
	dir := t.TempDir()
	first, firstOutput := startPublisher(t, dir, "first", 6)
	second, secondOutput := startPublisher(t, dir, "second", 6)
	require.NoError(t, first.Wait(), firstOutput)
	require.NoError(t, second.Wait(), secondOutput)
	store := newDirStore(t, dir)
	require.Len(t, images(t, simplestreams.NewHandler(store.FS())), 2*2*3)
}

// TestTreeKilled kills publishing processes at random moments. After each, the tree is whole; in the end, after a day, no
// file is left that is not listed.
func TestTreeKilled(t *testing.T) {
	kills := 4
	if text := os.Getenv(envKills); text != "" {
		var err error
		kills, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	dir := t.TempDir()
	for path, content := range foreignFiles() {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, path), content, 0o600))
	}
	store := newDirStore(t, dir)
	index := filepath.Join(dir, "streams/v1/index.json")
	for kill := range kills {
		before, err := os.ReadFile(index)
		require.NoError(t, err)
		command, output := startPublisher(t, dir, fmt.Sprintf("product-%d", kill%3), 1<<20)
		// It is killed in the middle of what it does: once it has changed the index.
		require.Eventually(t, func() bool {
			now, err := os.ReadFile(index)
			return err == nil && !bytes.Equal(before, now)
		}, time.Minute, time.Millisecond)
		time.Sleep(rand.N(20 * time.Millisecond))
		require.NoError(t, command.Process.Kill())
		var ended *exec.ExitError
		require.ErrorAs(t, command.Wait(), &ended)
		require.Equal(t, syscall.SIGKILL, ended.Sys().(syscall.WaitStatus).Signal(), output)
		require.NotEmpty(t, images(t, simplestreams.NewHandler(store.FS())))
	}
	now := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now.Add(26 * time.Hour)))
		tree := newTree(t, store, nil)
		_, err := tree.Prune(t.Context(), nil)
		require.NoError(t, err)
		require.NotEmpty(t, images(t, simplestreams.NewHandler(store.FS())))
	})
	files := readFiles(t, dir)
	requireForeign(t, files)
	delete(files, ".golxd/lock")
	require.Empty(t, unlisted(t, files))
}

// TestTreeFullDisk publishes on a disk that becomes full. It needs root, as the real daemons do.
func TestTreeFullDisk(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, 0)) })
	store, err := simplestreams.NewDirStore(dir)
	require.NoError(t, err)
	defer store.Close()
	tree := newTree(t, store, nil)
	_, err = tree.Publish(t.Context(), debian("20260101", gzipMagic+"small"), nil)
	require.NoError(t, err)
	before := readFiles(t, dir)

	large := debian("20260102", gzipMagic+strings.Repeat("x", 1<<20))
	_, err = tree.Publish(t.Context(), large, nil)
	require.ErrorIs(t, err, syscall.ENOSPC)
	after := readFiles(t, dir)
	delete(before, "streams/v1/golxd.ledger.json")
	delete(after, "streams/v1/golxd.ledger.json")
	require.Equal(t, before, after)

	// With hardly any space the files fit, but not the index: each amount leaves a whole tree.
	for free := 4; free <= 40; free += 4 {
		filler := filepath.Join(dir, "filler")
		file, err := os.Create(filler)
		require.NoError(t, err)
		_, err = io.Copy(file, zeros{})
		require.ErrorIs(t, err, syscall.ENOSPC)
		info, err := file.Stat()
		require.NoError(t, err)
		require.NoError(t, file.Truncate(info.Size()-int64(free)<<10))
		require.NoError(t, file.Close())
		_, err = tree.Publish(t.Context(), debian(fmt.Sprintf("202602%02d", free/4), fmt.Sprintf("%s%d", gzipMagic, free)), nil)
		if err != nil {
			require.True(t, errors.Is(err, syscall.ENOSPC), err)
		}
		images(t, simplestreams.NewHandler(store.FS()))
		require.NoError(t, os.Remove(filler))
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestHandlerLinks serves a directory with links out of it, and a pipe that would block whoever opens it.
func TestHandlerLinks(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(outside, []byte("secret"), 0o600))
	store, err := simplestreams.NewDirStore(dir)
	require.NoError(t, err)
	defer store.Close()
	require.NoError(t, store.Put(t.Context(), "images/a/file", strings.NewReader("content")))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "absolute")))
	require.NoError(t, os.Symlink(filepath.Dir(outside), filepath.Join(dir, "directory")))
	require.NoError(t, os.Symlink("images/a/file", filepath.Join(dir, "within")))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	handler := simplestreams.NewHandler(store.FS())
	for _, path := range []string{"/absolute", "/directory/secret", "/pipe", "/images", "/images/a", "/images/a/file/x"} {
		w := ask(handler, "GET", path, nil)
		require.Equal(t, http.StatusNotFound, w.Code, path)
		require.NotContains(t, w.Body.String(), "secret")
	}
	require.Equal(t, "content", ask(handler, "GET", "/within", nil).Body.String())
	require.Equal(t, "content", ask(handler, "GET", "/images/a/file", nil).Body.String())
}
