package lxd

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest"
)

// inSharedCase calls play in a bubble, with an image of this size on a server whose
// exports fail so.
func inSharedCase(t *testing.T, size int64, fault lxdtest.Fault, play func(t *testing.T, source *Image, data []byte)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer server.Close()
		client, err := New("unix:///shared", &Options{Dial: server.DialContext})
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close()) }()
		data := lxdtest.UnifiedImage("shared", size)
		fingerprint, err := server.AddImage(data, nil)
		require.NoError(t, err)
		source, err := client.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		defer server.Inject(fault.On("GET", "/1.0/images/*/export")).Remove()
		play(t, source, data)
	})
}

// TestSharedContent has readers of all speeds, some of which leave, and a source that
// breaks: each that stays reads the content, and nothing is left.
func TestSharedContent(t *testing.T) {
	t.Parallel()
	const image = 3 * sharedBlocks * sharedBlockSize / 2
	for name, test := range map[string]struct {
		size int64 // of the rootfs
		cut  lxdtest.Fault
	}{
		"empty":               {0, lxdtest.CutResponse(10)},
		"a block":             {sharedBlockSize, lxdtest.CutResponse(10)},
		"more than a window":  {image, lxdtest.CutResponse(image / 3)},
		"cut within a window": {image, lxdtest.CutResponse(sharedBlockSize / 2)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inSharedCase(t, test.size, test.cut.Times(2), func(t *testing.T, source *Image, data []byte) {
				content, readers := source.shareContent(t.Context(), 12)
				var wg sync.WaitGroup
				for n, r := range readers {
					random := rand.New(rand.NewPCG(uint64(n), 1))
					wg.Go(func() {
						defer func() { _ = r.Close() }()
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						opened, err := r.open(ctx)
						if !assert.NoError(t, err) {
							return
						}
						p := make([]byte, 1+random.IntN(100_000))
						read := 0
						for {
							if n%4 == 1 && read > random.IntN(len(data)) {
								switch n % 8 {
								case 1:
									_ = r.Close()
								default:
									time.AfterFunc(time.Millisecond, cancel)
									time.Sleep(2 * time.Millisecond)
								}
								_, err := opened.Read(p)
								assert.Error(t, err)
								return
							}
							m, err := opened.Read(p)
							if !bytes.Equal(p[:m], data[read:read+m]) {
								t.Errorf("reader %d reads something else at %d", n, read)
								return
							}
							read += m
							if err == io.EOF {
								break
							}
							if !assert.NoError(t, err) {
								return
							}
							time.Sleep(time.Duration(n*random.IntN(3)) * time.Millisecond)
						}
						assert.Equal(t, len(data), read)
					})
				}
				wg.Wait()
				<-content.done
			})
		})
	}
}

// TestSharedContentEndsWithItsReaders: a source that is silent is not read when nobody
// is left, nor when ctx has ended.
func TestSharedContentEndsWithItsReaders(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(readers []*sharedReader, cancel func()){
		"closed": func(readers []*sharedReader, _ func()) {
			for _, r := range readers {
				_ = r.Close()
				_ = r.Close()
			}
		},
		"ctx": func(_ []*sharedReader, cancel func()) { cancel() },
	} {
		for _, fault := range []lxdtest.Fault{lxdtest.StallHeaders(), lxdtest.StallResponse(10)} {
			t.Run(name+" "+fault.String(), func(t *testing.T) {
				t.Parallel()
				inSharedCase(t, 1000, fault, func(t *testing.T, source *Image, _ []byte) {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					began := time.Now()
					content, readers := source.shareContent(ctx, 2)
					synctest.Wait()
					end(readers, cancel)
					<-content.done
					require.Less(t, time.Since(began), time.Second)
					for _, r := range readers {
						_ = r.Close()
					}
				})
			})
		}
	}
}
