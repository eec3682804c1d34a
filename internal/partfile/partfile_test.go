package partfile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// imageOf returns an image of this content, in a new directory.
func imageOf(t *testing.T, name string, content ...[]byte) *Image {
	t.Helper()
	all := bytes.Join(content, nil)
	sum := sha256.Sum256(all)
	return &Image{
		Dir: t.TempDir(), Name: name, Fingerprint: hex.EncodeToString(sum[:]), Size: int64(len(all)),
		Verifying: func(int64) func(int) { return func(int) {} },
	}
}

func (i *Image) partialPath() string { return filepath.Join(i.Dir, i.Fingerprint+".partial") }

func open(t *testing.T, image *Image) *File {
	t.Helper()
	f, err := image.Open(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// namesIn returns the sorted names in a directory.
func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func write(t *testing.T, f *File, data []byte) {
	t.Helper()
	_, err := f.Write(data)
	require.NoError(t, err)
}

func TestUnified(t *testing.T) {
	t.Parallel()
	data := []byte("\x1f\x8b and more")
	image := imageOf(t, "web", data)
	found, err := image.Find(t.Context())
	require.NoError(t, err)
	require.Nil(t, found)
	require.False(t, image.MayBeThere())

	f := open(t, image)
	require.NoError(t, f.Begin(0))
	require.NoError(t, f.Reserve(t.Context(), image.Size))
	write(t, f, data[:5])
	require.NoError(t, f.Close())
	require.Equal(t, []string{filepath.Base(image.partialPath())}, namesIn(t, image.Dir))

	f = open(t, image)
	sum := sha256.New()
	have, err := f.Resume(t.Context(), sum, image.Size)
	require.NoError(t, err)
	require.EqualValues(t, 5, have)
	require.NoError(t, f.Begin(have))
	write(t, f, data[5:])
	sum.Write(data[5:])
	require.Equal(t, image.Fingerprint, hex.EncodeToString(sum.Sum(nil)))
	files, err := f.Publish(t.Context())
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, &Files{Image: filepath.Join(image.Dir, "web.tar.gz")}, files)
	require.Equal(t, []string{"web.tar.gz"}, namesIn(t, image.Dir))
	require.True(t, image.MayBeThere())
	found, err = image.Find(t.Context())
	require.NoError(t, err)
	require.Equal(t, files, found)

	require.NoError(t, os.WriteFile(files.Image, append(data[:len(data)-1:len(data)-1], 'X'), 0o600))
	found, err = image.Find(t.Context())
	require.NoError(t, err)
	require.Nil(t, found, "it has other content")
}

// TestResumeEmptiesWhatIsLonger resumes a file that is longer than the image.
func TestResumeEmptiesWhatIsLonger(t *testing.T) {
	t.Parallel()
	image := imageOf(t, "web", []byte("0123456789"))
	require.NoError(t, os.WriteFile(image.partialPath(), []byte("0123456789 and more"), 0o600))
	f := open(t, image)
	have, err := f.Resume(t.Context(), sha256.New(), image.Size)
	require.NoError(t, err)
	require.Zero(t, have)
	require.NoError(t, f.Close())
	require.Empty(t, namesIn(t, image.Dir), "an empty file is of no use")
}

func TestParts(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	image := imageOf(t, "web", data)
	f := open(t, image)
	parts, err := f.Parts(1)
	require.NoError(t, err)
	require.Nil(t, parts)
	parts, err = f.Parts(3)
	require.NoError(t, err)
	require.Len(t, parts, 4, "what is there, and three of what is missing")
	_, err = parts[2].Write(data[parts[2].From : parts[2].From+100])
	require.NoError(t, err)
	require.NoError(t, f.Close())

	f = open(t, image)
	parts, err = f.Parts(1)
	require.NoError(t, err)
	require.Len(t, parts, 4, "they are in the file")
	require.Equal(t, parts[2].From+100, parts[2].Next)
	for _, p := range parts {
		_, err := p.Write(data[p.Next:p.To])
		require.NoError(t, err)
	}
	got, err := f.Hash(t.Context())
	require.NoError(t, err)
	require.Equal(t, image.Fingerprint, got)
	_, err = f.Publish(t.Context())
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, []string{"web.img"}, namesIn(t, image.Dir))
}

// splitIn writes the two partial files of a split image.
func splitIn(t *testing.T, image *Image, metadata, rootfs []byte) *File {
	t.Helper()
	f := open(t, image)
	require.NoError(t, f.Begin(0))
	second, err := f.Rootfs(t.Context())
	require.NoError(t, err)
	write(t, f, metadata)
	write(t, second, rootfs)
	return f
}

func TestSplit(t *testing.T) {
	t.Parallel()
	metadata, rootfs := []byte("\xfd7zXZ\x00 metadata"), []byte("hsqs rootfs")
	image := imageOf(t, "web", metadata, rootfs)
	f := splitIn(t, image, metadata, rootfs)
	require.NoError(t, f.Close())
	require.Empty(t, namesIn(t, image.Dir), "there is nothing to go on from")

	f = splitIn(t, image, metadata, rootfs)
	require.NoError(t, f.Discard())
	require.Len(t, namesIn(t, image.Dir), 1)
	require.NoError(t, f.Close())
	require.Empty(t, namesIn(t, image.Dir))

	f = splitIn(t, image, metadata, rootfs)
	files, err := f.Publish(t.Context())
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, []string{"web.meta.tar.xz", "web.squashfs"}, namesIn(t, image.Dir))
	found, err := image.Find(t.Context())
	require.NoError(t, err)
	require.Equal(t, files, found)
}

// TestPair resumes both files of a split image.
func TestPair(t *testing.T) {
	t.Parallel()
	metadata, rootfs := []byte("\xfd7zXZ\x00 metadata"), []byte("hsqs rootfs")
	image := imageOf(t, "web", metadata, rootfs)
	image.Metadata = int64(len(metadata))
	first, second, err := image.OpenPair(t.Context())
	require.NoError(t, err)
	write(t, first, metadata)
	write(t, second, rootfs[:4])
	require.NoError(t, first.Close())
	require.Len(t, namesIn(t, image.Dir), 2)

	first, second, err = image.OpenPair(t.Context())
	require.NoError(t, err)
	var both bytes.Buffer
	for f, size := range map[*File]int{first: len(metadata), second: len(rootfs)} {
		both.Reset()
		have, err := f.Resume(t.Context(), &both, int64(size))
		require.NoError(t, err)
		require.EqualValues(t, both.Len(), have)
		require.NoError(t, f.Begin(have))
	}
	write(t, second, rootfs[4:])
	files, err := first.Publish(t.Context())
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.Equal(t, []string{"web.meta.tar.xz", "web.squashfs"}, namesIn(t, image.Dir))
	found, err := image.Find(t.Context())
	require.NoError(t, err)
	require.Equal(t, files, found)

	image.Metadata--
	found, err = image.Find(t.Context())
	require.NoError(t, err)
	require.Nil(t, found, "the two files are divided elsewhere")

	second, rest, err := image.OpenPair(t.Context())
	require.NoError(t, err)
	write(t, rest, rootfs)
	require.NoError(t, rest.Begin(0))
	require.NoError(t, second.Close())
	require.Len(t, namesIn(t, image.Dir), 2, "no empty file stays")
}

// TestPublishMixesNoPair publishes while another process publishes its files under
// the same names.
func TestPublishMixesNoPair(t *testing.T) {
	t.Parallel()
	metadata, rootfs := []byte("\x1f\x8b metadata"), []byte("\x1f\x8b rootfs")
	image := imageOf(t, "web", metadata, rootfs)
	other, err := Lock(t.Context(), filepath.Join(image.Dir, "web.lock.partial"), 0o600)
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, os.WriteFile(filepath.Join(image.Dir, "web.tar.gz"), []byte("of the other"), 0o600))

	f := splitIn(t, image, metadata, rootfs)
	ctx, cancel := context.WithTimeout(t.Context(), 2*poll)
	defer cancel()
	_, err = f.Publish(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, f.Close())
	require.Equal(t, []string{"web.lock.partial", "web.tar.gz"}, namesIn(t, image.Dir))
	kept, err := os.ReadFile(filepath.Join(image.Dir, "web.tar.gz"))
	require.NoError(t, err)
	require.Equal(t, "of the other", string(kept))

	f = splitIn(t, image, metadata, rootfs)
	published := make(chan error)
	go func() {
		_, err := f.Publish(context.Background())
		published <- err
	}()
	require.NoError(t, os.Remove(other.Name()))
	require.NoError(t, other.Close())
	select {
	case err := <-published:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("the lock was not passed on")
	}
	require.NoError(t, f.Close())
	require.Equal(t, []string{"web.meta.tar.gz", "web.tar.gz"}, namesIn(t, image.Dir))
}

// TestPublishOfHalfAPair fails to rename the second of two files.
func TestPublishOfHalfAPair(t *testing.T) {
	metadata, rootfs := []byte("\x1f\x8b metadata"), []byte("\x1f\x8b rootfs")
	image := imageOf(t, "web", metadata, rootfs)
	f := splitIn(t, image, metadata, rootfs)
	refused := errors.New("refused")
	rename = func(from, to string) error {
		if strings.Contains(to, ".meta.") {
			return refused
		}
		return os.Rename(from, to)
	}
	defer func() { rename = os.Rename }()
	_, err := f.Publish(t.Context())
	require.ErrorIs(t, err, refused)
	require.NoError(t, f.Close())
	require.Empty(t, namesIn(t, image.Dir))
}

// TestPublishOnlyWhatWasWritten puts another file at the partial file's path.
func TestPublishOnlyWhatWasWritten(t *testing.T) {
	t.Parallel()
	image := imageOf(t, "web", []byte("content"))
	f := open(t, image)
	write(t, f, []byte("content"))
	require.NoError(t, os.Remove(image.partialPath()))
	require.NoError(t, os.WriteFile(image.partialPath(), []byte("another"), 0o600))
	_, err := f.Publish(t.Context())
	require.ErrorContains(t, err, "is no longer the file that was written")
	require.NoError(t, f.Close())
	require.Equal(t, []string{filepath.Base(image.partialPath())}, namesIn(t, image.Dir))
}

// TestSync records what is made durable: the files, before they have their names,
// and then the directory.
func TestSync(t *testing.T) {
	metadata, rootfs := []byte("metadata"), []byte("rootfs")
	image := imageOf(t, "web", metadata, rootfs)
	var mu sync.Mutex
	var synced [][]string // the names in the directory at each sync
	fsync = func(f *os.File) error {
		mu.Lock()
		defer mu.Unlock()
		synced = append(synced, append([]string{filepath.Base(f.Name())}, namesIn(t, image.Dir)...))
		return f.Sync()
	}
	defer func() { fsync = (*os.File).Sync }()
	first, second := image.Fingerprint+".partial", image.Fingerprint+".rootfs.partial"
	f := splitIn(t, image, metadata, rootfs)
	_, err := f.Publish(t.Context())
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = image.Find(t.Context())
	require.NoError(t, err)
	require.Empty(t, synced, "nobody asked for it")

	for _, name := range namesIn(t, image.Dir) {
		require.NoError(t, os.Remove(filepath.Join(image.Dir, name)))
	}
	image.Sync = true
	f = splitIn(t, image, metadata, rootfs)
	_, err = f.Publish(t.Context())
	require.NoError(t, err)
	require.NoError(t, f.Close())
	dir := filepath.Base(image.Dir)
	require.Equal(t, [][]string{{first, first, second}, {second, first, second}, {dir, "web.img", "web.lock.partial", "web.meta.img"}}, synced)

	synced = nil
	files, err := image.Find(t.Context())
	require.NoError(t, err)
	require.NotNil(t, files)
	require.Equal(t, []string{"web.meta.img", "web.img", dir}, []string{synced[0][0], synced[1][0], synced[2][0]}, "an earlier call may not have done it")

	broken := errors.New("broken")
	fsync = func(*os.File) error { return broken }
	_, err = image.Find(t.Context())
	require.ErrorIs(t, err, broken)
}

// TestSyncObeysContext has a sync that never returns.
func TestSyncObeysContext(t *testing.T) {
	image := imageOf(t, "web", []byte("content"))
	image.Sync = true
	f := open(t, image)
	write(t, f, []byte("content"))
	shutdown := errors.New("shutdown")
	ctx, cancel := context.WithCancelCause(t.Context())
	unblock := make(chan struct{})
	fsync = func(*os.File) error {
		cancel(shutdown)
		<-unblock
		return nil
	}
	defer func() { fsync = (*os.File).Sync }()
	defer close(unblock)
	_, err := f.Publish(ctx)
	require.ErrorIs(t, err, shutdown)
	require.NoError(t, f.Close())
	require.Equal(t, []string{filepath.Base(image.partialPath())}, namesIn(t, image.Dir))
}

func TestCheckName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, want := range map[string]string{
		"web":                    "",
		"..":                     "is not a plain file name",
		"a/b":                    "is not a plain file name",
		`a\b`:                    "is not a plain file name",
		"a\x00b":                 "is not a plain file name",
		strings.Repeat("n", 241): "",
		strings.Repeat("n", 242): "is too long for the file system",
	} {
		require.Equal(t, want, CheckName(dir, name), "%q", name)
	}
	for name, want := range map[string]string{
		"web": "", "console": "", "com": "", "com10": "", "nul2": "",
		"NUL": "is the name of a device on Windows", "con": "is the name of a device on Windows", "Aux .x": "is the name of a device on Windows",
		"com1": "is the name of a device on Windows", "LPT².web": "is the name of a device on Windows",
		"a:b": `contains one of the characters <>:"|?*, which Windows does not allow`,
	} {
		require.Equal(t, want, checkWindowsName(name), "%q", name)
	}
}
