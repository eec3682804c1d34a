package content

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/netconn"
)

// fileWriter is a netconn.FileWriter in memory.
type fileWriter struct {
	bytes.Buffer
	files int // the number of bytes from files
}

func (w *fileWriter) WriteFile(f *os.File, offset, n int64, sent func(int)) (int64, error) {
	done, err := io.Copy(&w.Buffer, io.NewSectionReader(f, offset, n))
	w.files += int(done)
	if sent != nil {
		sent(int(done))
	}
	if err == nil && done < n {
		err = io.ErrUnexpectedEOF
	}
	return done, err
}

func file(t *testing.T, data []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func source(t *testing.T, r io.Reader, size int64) *Source {
	t.Helper()
	s, err := NewSource(r, size)
	require.NoError(t, err)
	return s
}

func sum(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// send has the ways in which net/http sends a body: the beginning through a
// buffer and the rest by SendTo, or all of it by SendTo, Read or WriteTo.
var send = map[string]func(*Body, *fileWriter, int64) error{
	"SendTo": func(b *Body, w *fileWriter, n int64) error {
		done, err := b.SendTo(w, n)
		if err == nil && done != n {
			err = io.ErrShortWrite
		}
		return err
	},
	"Read, then SendTo": func(b *Body, w *fileWriter, n int64) error {
		head, err := io.CopyN(&w.Buffer, struct{ io.Reader }{b}, n/3)
		if err == nil {
			_, err = b.SendTo(w, n-head)
		}
		return err
	},
	"Read": func(b *Body, w *fileWriter, _ int64) error {
		_, err := io.Copy(&w.Buffer, struct{ io.Reader }{b})
		return err
	},
	"WriteTo": func(b *Body, w *fileWriter, _ int64) error {
		_, err := b.WriteTo(&w.Buffer)
		return err
	},
}

func TestContent(t *testing.T) {
	t.Parallel()
	first, second := bytes.Repeat([]byte("meta"), 30_000), bytes.Repeat([]byte("rootfs"), 100_000)
	for kind, open := range map[string]func([]byte) io.Reader{
		"file":     func(b []byte) io.Reader { return file(t, b) },
		"bytes":    func(b []byte) io.Reader { return bytes.NewReader(b) },
		"one-shot": func(b []byte) io.Reader { return iotest.HalfReader(bytes.NewReader(b)) },
	} {
		for name, do := range send {
			for _, hash := range []bool{false, true} {
				unified := Unified(source(t, open(second), int64(len(second))))
				split, err := Split(source(t, open(first), int64(len(first))), "meta", source(t, open(second), int64(len(second))), "rootfs", "root")
				require.NoError(t, err)
				for c, want := range map[*Content][][]byte{unified: {second}, split: {first, second}} {
					require.Positive(t, c.Size())
					require.Equal(t, kind != "one-shot", c.Replayable())
					sent := 0
					b, err := c.Open(t.Context(), Options{Hash: hash, Sent: func(n int) { sent += n }})
					require.NoError(t, err)
					var w fileWriter
					require.NoError(t, do(b, &w, c.Size()), "%s %s", kind, name)
					require.EqualValues(t, c.Size(), w.Len())
					require.EqualValues(t, c.Size(), sent)
					if kind == "file" && name == "SendTo" {
						require.GreaterOrEqual(t, w.files, len(second), "the connection sent the file")
					}
					if hash {
						got, err := b.Fingerprint(t.Context())
						require.NoError(t, err)
						require.Equal(t, sum(want...), got, "%s %s", kind, name)
					}
					require.NoError(t, b.Close())
					require.NoError(t, b.Err())
					requireParts(t, c.Type, w.Bytes(), want)
					if kind == "one-shot" {
						_, err = c.Open(t.Context(), Options{})
						require.ErrorIs(t, err, ErrOneShot)
						continue
					}
					again, err := c.Open(t.Context(), Options{})
					require.NoError(t, err)
					var same fileWriter
					_, err = again.SendTo(&same, c.Size())
					require.NoError(t, err)
					require.True(t, bytes.Equal(w.Bytes(), same.Bytes()), "the content can be sent again")
				}
			}
		}
	}
}

func requireParts(t *testing.T, mediaType string, body []byte, want [][]byte) {
	t.Helper()
	if len(want) == 1 {
		require.True(t, bytes.Equal(want[0], body))
		return
	}
	_, params, err := mime.ParseMediaType(mediaType)
	require.NoError(t, err)
	form := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for _, data := range want {
		part, err := form.NextPart()
		require.NoError(t, err)
		got, err := io.ReadAll(part)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got))
	}
	_, err = form.NextPart()
	require.Equal(t, io.EOF, err)
}

// TestFileChanges changes a file while it is sent.
func TestFileChanges(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("x"), 1<<20)
	for _, now := range []int64{1<<20 + 1, 1<<20 - 1, 100} {
		for _, kernel := range []bool{true, false} {
			f := file(t, data)
			b, err := Unified(source(t, f, -1)).Open(t.Context(), Options{})
			require.NoError(t, err)
			var w fileWriter
			_, err = b.SendTo(&w, 1000)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(f.Name(), now))
			if kernel {
				_, err = b.SendTo(&w, 1<<20)
			} else {
				_, err = io.Copy(&w.Buffer, struct{ io.Reader }{b})
			}
			require.Error(t, err)
			require.ErrorIs(t, b.Err(), err)
			if kernel {
				require.ErrorIs(t, err, ErrChanged)
			}
			require.Less(t, w.Len(), len(data), "the server never gets a complete body")
		}
	}
}

func TestReaderErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, c := range []struct {
		r    io.Reader
		size int64
		want error
	}{
		{iotest.ErrReader(broken), 10, broken},
		{io.MultiReader(bytes.NewReader(make([]byte, 5)), iotest.ErrReader(broken)), -1, broken},
		{iotest.HalfReader(bytes.NewReader(make([]byte, 5))), 10, io.ErrUnexpectedEOF},
		{struct{ io.Reader }{bytes.NewReader(make([]byte, 11))}, 10, ErrChanged},
	} {
		b, err := Unified(source(t, c.r, c.size)).Open(t.Context(), Options{Hash: true})
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, struct{ io.Reader }{b})
		require.ErrorIs(t, err, c.want)
		require.ErrorIs(t, b.Err(), c.want)
		b.Discard(t.Context())
	}
}

func TestSourceStartsAtCurrentOffset(t *testing.T) {
	t.Parallel()
	f := file(t, []byte("0123456789"))
	_, err := f.Seek(4, io.SeekStart)
	require.NoError(t, err)
	c := Unified(source(t, f, -1))
	require.EqualValues(t, 6, c.Size())
	var w fileWriter
	b, err := c.Open(t.Context(), Options{})
	require.NoError(t, err)
	_, err = b.SendTo(&w, 6)
	require.NoError(t, err)
	require.Equal(t, "456789", w.String())
	hash, err := c.HashAhead(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, sum([]byte("456789")), hash)
}

var _ netconn.FileWriter = (*fileWriter)(nil)

// blockingReader is a reader whose first Read or ReadAt blocks until unblock is
// closed.
type blockingReader struct {
	*bytes.Reader
	once    sync.Once
	inside  chan struct{}
	unblock chan struct{}
}

func newBlocking(data []byte) *blockingReader {
	return &blockingReader{Reader: bytes.NewReader(data), inside: make(chan struct{}), unblock: make(chan struct{})}
}

func (b *blockingReader) wait() {
	b.once.Do(func() {
		close(b.inside)
		<-b.unblock
	})
}

func (b *blockingReader) Read(p []byte) (int, error) {
	b.wait()
	return b.Reader.Read(p)
}

func (b *blockingReader) ReadAt(p []byte, offset int64) (int, error) {
	b.wait()
	return b.Reader.ReadAt(p, offset)
}

// TestOpenWaitsForRead opens a content while the previous body is in a Read.
func TestOpenWaitsForRead(t *testing.T) {
	t.Parallel()
	data := []byte("0123456789")
	r := newBlocking(data)
	c := Unified(source(t, struct{ io.ReadSeeker }{r}, -1))
	first, err := c.Open(t.Context(), Options{})
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = first.Read(make([]byte, 4))
	}()
	<-r.inside
	require.NoError(t, first.Close())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Open(ctx, Options{})
	require.ErrorIs(t, err, context.Canceled)
	close(r.unblock)
	<-ended
	second, err := c.Open(t.Context(), Options{})
	require.NoError(t, err)
	got, err := io.ReadAll(second)
	require.NoError(t, err)
	require.Equal(t, data, got)
	_, err = first.Read(make([]byte, 4))
	require.ErrorIs(t, err, errClosed)
}

// TestContextEndsHash ends the context while the hash is in a read.
func TestContextEndsHash(t *testing.T) {
	t.Parallel()
	r := newBlocking([]byte("0123456789"))
	b, err := Unified(source(t, r, -1)).Open(t.Context(), Options{Hash: true})
	require.NoError(t, err)
	<-r.inside
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.Fingerprint(ctx)
	require.ErrorIs(t, err, context.Canceled)
	b.Discard(ctx)
	close(r.unblock)
	_, err = b.Fingerprint(t.Context())
	require.ErrorIs(t, err, errClosed)
}

// TestFinishWaitsForRead finishes a body during a Read that would be followed
// by others.
func TestFinishWaitsForRead(t *testing.T) {
	t.Parallel()
	r := newBlocking(make([]byte, 1<<20))
	b, err := Unified(source(t, struct{ io.Reader }{r}, -1)).Open(t.Context(), Options{Hash: true})
	require.NoError(t, err)
	sent := make(chan int64)
	go func() {
		n, _ := io.Copy(io.Discard, b)
		sent <- n
	}()
	<-r.inside
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.Finish(ctx) // gives up
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		b.Finish(context.Background())
	}()
	select {
	case <-finished:
		t.Fatal("Finish did not wait")
	case <-time.After(10 * time.Millisecond):
	}
	close(r.unblock)
	<-finished
	left := r.Len()
	<-sent
	require.Equal(t, left, r.Len(), "the reader is not read any more")
	require.NotZero(t, left)
}

// TestReaderThatStaysOpen has a reader that blocks after its given size instead
// of returning io.EOF.
func TestReaderThatStaysOpen(t *testing.T) {
	t.Parallel()
	data := []byte("0123456789")
	for name, do := range send {
		r, w := io.Pipe()
		go func() {
			for n := range data {
				_, _ = w.Write(data[n : n+1])
			}
		}()
		c := Unified(source(t, r, int64(len(data))))
		b, err := c.Open(t.Context(), Options{Hash: true})
		require.NoError(t, err)
		var got fileWriter
		ended := make(chan error)
		go func() { ended <- do(b, &got, c.Size()) }()
		select {
		case err := <-ended:
			require.NoError(t, err, name)
		case <-time.After(30 * time.Second):
			t.Fatal(name, ": the body waits for more")
		}
		require.Equal(t, string(data), got.String())
		fingerprint, err := b.Fingerprint(t.Context())
		require.NoError(t, err)
		require.Equal(t, sum(data), fingerprint)
		next := make(chan byte)
		go func() {
			var one [1]byte
			_, _ = r.Read(one[:])
			next <- one[0]
		}()
		_, err = w.Write([]byte("n"))
		require.NoError(t, err)
		require.Equal(t, byte('n'), <-next, "later data is not consumed")
	}
}

// TestHashAheadObeysContext has readers that block and one that is very long.
func TestHashAheadObeysContext(t *testing.T) {
	t.Parallel()
	blocks := newBlocking(make([]byte, 1<<20))
	t.Cleanup(func() { close(blocks.unblock) })
	for name, r := range map[string]io.ReadSeeker{
		"blocks":                 struct{ io.ReadSeeker }{blocks},
		"blocks, read by offset": newBlockingForTest(t),
		"long":                   &longReader{},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(10*time.Millisecond, cancel)
			began := time.Now()
			_, err := Unified(source(t, r, -1)).HashAhead(ctx, nil)
			require.ErrorIs(t, err, context.Canceled)
			require.Less(t, time.Since(began), 20*time.Second)
			if long, ok := r.(*longReader); ok {
				reads := long.reads.Load()
				time.Sleep(10 * time.Millisecond)
				require.Equal(t, reads, long.reads.Load(), "the reader is not read any more")
			}
		})
	}
}

func newBlockingForTest(t *testing.T) *blockingReader {
	t.Helper()
	b := newBlocking(make([]byte, 1<<20))
	t.Cleanup(func() { close(b.unblock) })
	return b
}

// longReader is very long.
type longReader struct {
	at    int64
	reads atomic.Int64
}

func (r *longReader) Read(p []byte) (int, error) {
	r.reads.Add(1)
	return len(p), nil
}

func (r *longReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		r.at = offset
	case io.SeekEnd:
		r.at = 1<<60 + offset
	}
	return r.at, nil
}
