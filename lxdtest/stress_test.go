package lxdtest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestManyClientsAndRestarts restarts the server while many clients use it:
// whatever happens to a request, the store contains only complete images, and
// Close leaves no files.
func TestManyClientsAndRestarts(t *testing.T) {
	s := NewServer(&Options{TLS: true})
	dir := s.dir
	clients := []*client{newClient(t, s), newTLSClient(t, s, true)}
	var responded atomic.Int64
	var group sync.WaitGroup
	for worker := range 16 {
		group.Go(func() {
			c := clients[worker%2]
			for i := range 8 {
				file := UnifiedImage(fmt.Sprintf("%d of %d", i, worker), 20_000)
				fingerprint := Fingerprint(file)
				for _, request := range []struct {
					method, path string
					body         []byte
				}{
					{"POST", "/1.0/images", file},
					{"GET", "/1.0/images?recursion=1", nil},
					{"GET", "/1.0/images/" + fingerprint + "/export", nil},
					{"POST", "/1.0/images/" + fingerprint + "/secret", nil},
					{"GET", "/1.0/operations?recursion=1", nil},
				} {
					req, err := http.NewRequest(request.method, c.base+request.path, bytes.NewReader(request.body))
					if err != nil {
						t.Error(err)
						return
					}
					res, err := c.http.Do(req)
					if err != nil {
						continue // the server was restarted meanwhile
					}
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
					responded.Add(1)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	restarts := 0
	for running := true; running; {
		select {
		case <-ticker.C:
			if restarts++; restarts <= 10 {
				s.Restart()
			}
		case <-done:
			running = false
		}
	}
	require.Positive(t, responded.Load())
	images := s.Images()
	require.NotEmpty(t, images)
	for _, img := range images {
		files, err := s.Files(img.Fingerprint)
		require.NoError(t, err)
		require.Equal(t, img.Fingerprint, Fingerprint(files...))
	}
	s.Close()
	_, err := os.Stat(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
}
