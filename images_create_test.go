package lxd_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestNothingIsSentTwice sends no content that the server has.
func TestNothingIsSentTwice(t *testing.T) {
	f, target := testkit.StartFake(t), testkit.StartFake(t)
	data := testkit.Unified(t, 1<<20)
	image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	_, err = target.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	f.ForgetRequests()
	target.ForgetRequests()

	_, err = f.Client.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true, Fingerprint: lxdtest.Fingerprint(data)})
	require.NoError(t, err)
	_, err = f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Dedupe: true})
	require.NoError(t, err)
	copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true})
	require.NoError(t, err)
	require.Empty(t, copied.Mode)
	for _, r := range append(f.Requests(), target.Requests()...) {
		require.Equal(t, http.MethodGet, r.Method, r.Path)
		require.NotContains(t, r.Path, "/export")
	}
}

// readFunc is an io.Reader.
type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// TestReaderThatBreaksIsNotAtItsEnd has a reader fail with an error that wraps io.EOF, as
// errors of net/http do.
func TestReaderThatBreaksIsNotAtItsEnd(t *testing.T) {
	t.Parallel()
	server := testkit.StartFake(t)
	broken := errors.New("the source broke")
	for _, opts := range []*lxd.CreateOptions{nil, {Wait: true}, {Wait: true, Verify: true}} {
		half := bytes.NewReader(lxdtest.UnifiedImage("half", 2<<20)[:1<<20])
		_, err := server.Client.Images.Create(t.Context(), readFunc(func(p []byte) (int, error) {
			n, err := half.Read(p)
			if err == io.EOF {
				err = fmt.Errorf("%w: %w", broken, io.EOF)
			}
			return n, err
		}), opts)
		require.ErrorIs(t, err, broken)
		require.Empty(t, server.Images())
	}
}

func TestSplitImageHasTheSizeOfItsFiles(t *testing.T) {
	t.Parallel()
	server := testkit.StartFake(t)
	metadata, rootfs := lxdtest.SplitImage("size", 1<<20)
	image, err := server.Client.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(rootfs)})
	require.NoError(t, err)
	require.EqualValues(t, len(metadata)+len(rootfs), image.Size)
	require.NoError(t, image.Wait(t.Context()))
	require.EqualValues(t, len(metadata)+len(rootfs), image.Size)
}

// TestDedupeObeysContext has a seekable reader that blocks.
func TestDedupeObeysContext(t *testing.T) {
	t.Parallel()
	s := lxdtest.NewServer(nil)
	t.Cleanup(s.Close)
	client := testkit.NewClient(t, s.Endpoint(), nil)
	r := newWatchedReader(0)
	defer close(r.proceed)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-r.blocked
		cancel()
	}()
	ended := make(chan error, 1)
	go func() {
		_, err := client.Images.Create(ctx, seekableReader{r}, &lxd.CreateOptions{Dedupe: true})
		ended <- err
	}()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for the reader")
	}
	require.Empty(t, s.Requests())
}

// seekableReader has one MiB.
type seekableReader struct{ io.Reader }

func (seekableReader) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return 1<<20 + offset, nil
	}
	return offset, nil
}

// tarball returns a tar archive of files with these names and contents. A name that
// ends with a slash is a directory.
func tarball(t *testing.T, namesAndContents ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	out := tar.NewWriter(&buf)
	for n := 0; n < len(namesAndContents); n += 2 {
		name, content := namesAndContents[n], namesAndContents[n+1]
		require.NoError(t, out.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Format: tar.FormatUSTAR}))
		_, err := io.WriteString(out, content)
		require.NoError(t, err)
	}
	require.NoError(t, out.Close())
	return buf.Bytes()
}
