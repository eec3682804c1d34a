package soak_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestWaitingUnderLoad makes 200 small images from eight goroutines, each with
// Wait, on lxdtest and the real daemons, over the unix socket and TLS: no call
// hangs, and every outcome is the server's.
func TestWaitingUnderLoad(t *testing.T) {
	const images, workers = 200, 8
	rounds := testkit.Size(t, 1, 20)
	for _, s := range testkit.Subjects(t) {
		for _, overTLS := range []bool{false, true} {
			one := *s
			one.TLS = overTLS
			t.Run(fmt.Sprintf("%s TLS %v", s.Column, overTLS), func(t *testing.T) {
				c := one.Client(t)
				for range rounds {
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
					made := make([]*lxd.Image, images)
					onAll(t, workers, images, func(n int) error {
						data := lxdtest.UnifiedImage(testkit.Unique("load"), 0)
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

// maxStall is how long another program may wait for a daemon that this package
// is using. LXD 5.0.2 and Incus 6.0.4 accept nobody while a unix connection is
// open on which nothing was written; before a pool closes such a connection, 90
// seconds pass.
const maxStall = 10 * time.Second

// TestOtherProgramsAreServed uses a daemon in bursts, as programs do, while a
// second program connects for each of its requests: it is never kept waiting. In
// the long form no call of its 20,000 takes a second.
func TestOtherProgramsAreServed(t *testing.T) {
	const perBurst = 10
	calls := testkit.Size(t, 300, 20_000)
	limit := maxStall
	if calls == 20_000 {
		limit = time.Second
	}
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			socket := strings.TrimPrefix(c.Endpoint(), "unix://")
			ctx := t.Context()
			burst := map[string]func() error{
				"list": func() error {
					_, err := c.Aliases.All(ctx)
					return err
				},
				"give up": func() error {
					short, cancel := context.WithTimeout(ctx, time.Millisecond)
					defer cancel()
					_, err := c.Aliases.All(short)
					if short.Err() != nil {
						return nil
					}
					return err
				},
				"wait with progress": func() error {
					data := lxdtest.UnifiedImage(testkit.Unique("busy"), 0)
					image, err := c.Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Progress: func(lxd.Progress) {}})
					if err != nil {
						return err
					}
					return image.Delete(ctx, &lxd.DeleteOptions{Wait: true})
				},
				"events": func() error {
					for _, err := range c.Events(ctx, nil) {
						return err
					}
					return nil
				},
			}
			var longest time.Duration
			for n := 0; n < calls; n += perBurst {
				var first sync.WaitGroup
				for name, do := range burst {
					workers := 1
					if name == "list" {
						workers = 8
					}
					for range workers {
						first.Go(func() {
							if err := do(); err != nil {
								t.Errorf("%s: %v", name, err)
							}
						})
					}
				}
				if n%(2*perBurst) == 0 {
					first.Wait() // by turns after a burst, and beside one
				}
				for range perBurst {
					began := time.Now()
					err := askOnce(socket, maxStall)
					longest = max(longest, time.Since(began))
					require.NoError(t, err, "the second program, after %v", time.Since(began))
				}
				first.Wait()
			}
			t.Logf("the longest of %d calls took %v", calls, longest)
			require.Less(t, longest, limit)
		})
	}
}

// askOnce is a whole program's GET /1.0, over a connection of its own.
func askOnce(socket string, limit time.Duration) error {
	conn, err := net.DialTimeout("unix", socket, limit)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET /1.0 HTTP/1.1\r\nHost: unix\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
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
