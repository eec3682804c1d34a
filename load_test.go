package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// envLong makes the tests of load, of long use and of kills as long as a
// release needs: LXD_TEST_LONG=1.
const envLong = "LXD_TEST_LONG"

// testSize gives how large a test is to be.
func testSize(t *testing.T, short, long int) int {
	t.Helper()
	if text := os.Getenv(envLong); text != "" {
		on, err := strconv.ParseBool(text)
		require.NoError(t, err, envLong)
		if on {
			return long
		}
	}
	return short
}

// TestWaitingUnderLoad makes 200 small images from eight goroutines, each with
// Wait, on lxdtest and the real daemons, over the unix socket and TLS: no call
// hangs, and every outcome is the server's.
func TestWaitingUnderLoad(t *testing.T) {
	const images, workers = 200, 8
	rounds := testSize(t, 1, 20)
	for _, s := range conformanceSubjects(t) {
		for _, overTLS := range []bool{false, true} {
			one := *s
			one.tls = overTLS
			t.Run(fmt.Sprintf("%s TLS %v", s.column, overTLS), func(t *testing.T) {
				c := one.client(t)
				for range rounds {
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
					made := make([]*lxd.Image, images)
					onAll(t, workers, images, func(n int) error {
						data := lxdtest.UnifiedImage(unique("load")+strconv.Itoa(os.Getpid()), 0)
						image, err := c.Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
						if err == nil && image.Fingerprint != lxdtest.Fingerprint(data) {
							err = errors.New("it is another image")
						}
						made[n] = image
						return err
					})
					onAll(t, workers, images, func(n int) error {
						return made[n].Delete(ctx, &lxd.DeleteOptions{Wait: true})
					})
					for _, image := range made {
						is, err := c.Images.Exists(ctx, image.Fingerprint)
						require.NoError(t, err)
						require.False(t, is)
					}
					cancel()
				}
			})
		}
	}
}

// onAll calls do for every number under total, from some goroutines.
func onAll(t *testing.T, workers, total int, do func(n int) error) {
	t.Helper()
	work := make(chan int)
	var mu sync.Mutex
	var failures []error
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for n := range work {
				if err := do(n); err != nil {
					mu.Lock()
					failures = append(failures, fmt.Errorf("%d: %w", n, err))
					mu.Unlock()
				}
			}
		})
	}
	for n := range total {
		work <- n
	}
	close(work)
	running.Wait()
	require.NoError(t, errors.Join(failures...))
}
