package lxdtest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// testRate is such that an image of rateImageSize takes a second.
const (
	testRate      = 1 << 20
	rateImageSize = testRate
)

// requireTook compares the time since begin with that for so many bytes at testRate.
// The tolerance is 3 % of a second: the burst, and the bytes that are not content.
func requireTook(t *testing.T, begin time.Time, size int) {
	t.Helper()
	want := time.Duration(float64(size) / testRate * float64(time.Second))
	require.InDelta(t, want.Seconds(), time.Since(begin).Seconds(), 0.03)
}

// requireExport exports an image and compares its content.
func requireExport(t *testing.T, c *client, file []byte) {
	t.Helper()
	_, body, err := c.get("/1.0/images/" + Fingerprint(file) + "/export")
	require.NoError(t, err)
	require.True(t, bytes.Equal(file, body), "%d bytes", len(body))
}

// newRateServer returns an in-memory server that has an image.
func newRateServer(t *testing.T, opts Options) (s *Server, file []byte) {
	t.Helper()
	opts.InMemory = true
	s = newTestServer(t, &opts)
	file = UnifiedImage("rate", rateImageSize)
	_, err := s.AddImage(file, &AddOptions{Public: true})
	require.NoError(t, err)
	return s, file
}

// eachRateClient runs a test in a bubble, with a plain and with a TLS connection.
func eachRateClient(t *testing.T, test func(t *testing.T, s *Server, c *client, file []byte)) {
	t.Helper()
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[secure], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, file := newRateServer(t, Options{})
				c := newClient(t, s)
				if secure {
					c = newTLSClient(t, s, true)
				}
				test(t, s, c, file)
			})
		})
	}
}

func TestRateLimitSharesTheLink(t *testing.T) {
	eachRateClient(t, func(t *testing.T, s *Server, c *client, file []byte) {
		limit := s.Inject(RateLimit(testRate))
		for _, exports := range []int{1, 2, 4} {
			time.Sleep(10 * time.Second) // an idle link saves up no more than the burst
			begin := time.Now()
			var group sync.WaitGroup
			for range exports {
				group.Go(func() {
					requireExport(t, c, file)
					// None is served before the others.
					require.InEpsilon(t, float64(exports), time.Since(begin).Seconds(), 0.05)
				})
			}
			group.Wait()
			requireTook(t, begin, exports*len(file))
		}
		require.Greater(t, limit.Fired(), 100)
	})
}

func TestRateLimitOfUploads(t *testing.T) {
	eachRateClient(t, func(t *testing.T, s *Server, c *client, _ []byte) {
		s.Inject(RateLimit(testRate))
		for i, uploads := range []int{1, 2, 4} {
			begin := time.Now()
			size := 0
			var group sync.WaitGroup
			for j := range uploads {
				file := UnifiedImage(string(rune('a'+4*i+j)), rateImageSize)
				size += len(file)
				group.Go(func() { c.upload(file) })
			}
			group.Wait()
			requireTook(t, begin, size)
		}
		require.Len(t, s.Images(), 1+7)
	})
}

func TestRateLimitIsFullDuplex(t *testing.T) {
	eachRateClient(t, func(t *testing.T, s *Server, c *client, file []byte) {
		s.Inject(RateLimit(testRate))
		begin := time.Now()
		var group sync.WaitGroup
		group.Go(func() { requireExport(t, c, file) })
		group.Go(func() { c.upload(UnifiedImage("other", rateImageSize)) })
		group.Wait()
		requireTook(t, begin, len(file))
	})
}

// TestRateLimitDelaysOthersLittle sends a small request while exports use the link.
func TestRateLimitDelaysOthersLittle(t *testing.T) {
	for _, rate := range []int64{100 << 10, testRate} {
		synctest.Test(t, func(t *testing.T) {
			s, file := newRateServer(t, Options{})
			c := newClient(t, s)
			s.Inject(RateLimit(rate))
			ctx, cancel := context.WithCancel(t.Context())
			var group sync.WaitGroup
			for range 4 {
				group.Go(func() {
					req, err := http.NewRequestWithContext(ctx, "GET", "http://lxd/1.0/images/"+Fingerprint(file)+"/export", nil)
					require.NoError(t, err)
					res, err := c.http.Do(req)
					require.NoError(t, err)
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
				})
			}
			time.Sleep(100 * time.Millisecond)
			begin := time.Now()
			require.Equal(t, 200, c.do("GET", "/1.0/images", nil).HTTP)
			require.Less(t, time.Since(begin), 100*time.Millisecond)
			cancel()
			group.Wait()
		})
	}
}

// pullFrom starts a pull of an image.
func pullFrom(c *client, source *Server, fingerprint string) *apiResponse {
	return c.do("POST", "/1.0/images", map[string]any{"source": map[string]string{
		"type": "image", "mode": "pull", "protocol": "lxd", "server": source.URL(),
		"fingerprint": fingerprint, "certificate": string(source.Certificate())}})
}

// TestRateLimitOfCopies limits both servers, or only the one that opens the
// connection: the bytes leave the one and arrive at the other at the same time.
func TestRateLimitOfCopies(t *testing.T) {
	for _, limited := range []string{"both", "source", "target"} {
		limit := func(source, target *Server) {
			if limited != "target" {
				source.Inject(RateLimit(testRate))
			}
			if limited != "source" {
				target.Inject(RateLimit(testRate))
			}
		}
		t.Run("pull, "+limited, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source, file := newRateServer(t, Options{})
				target := newTestServer(t, &Options{InMemory: true, Dial: source.DialContext})
				limit(source, target)
				c := newClient(t, target)
				begin := time.Now()
				c.wait(pullFrom(c, source, Fingerprint(file)))
				requireTook(t, begin, len(file))
				require.Len(t, target.Images(), 1)
			})
		})
		t.Run("push, "+limited, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				target := newTestServer(t, &Options{InMemory: true})
				source, file := newRateServer(t, Options{Dial: target.DialContext})
				limit(source, target)
				fingerprint := Fingerprint(file)
				secret := pushToken(t, target, fingerprint, nil)
				c := newClient(t, source)
				begin := time.Now()
				c.wait(c.do("POST", "/1.0/images/"+fingerprint+"/export", map[string]any{
					"target": target.URL(), "certificate": string(target.Certificate()), "secret": secret,
				}))
				requireTook(t, begin, len(file))
				require.Len(t, target.Images(), 1)
			})
		})
	}
}

// TestRateLimitOnSockets limits two servers that are connected by TCP in the middle of
// a pull that would then take half an hour.
func TestRateLimitOnSockets(t *testing.T) {
	source := newTestServer(t, &Options{TLS: true})
	target := newTestServer(t, &Options{TLS: true})
	file := UnifiedImage("rate", 1<<20)
	_, err := source.AddImage(file, &AddOptions{Public: true})
	require.NoError(t, err)
	stall := source.Inject(StallResponse(0).On("GET", "/1.0/images/*/export"))
	c := newTLSClient(t, target, true)
	pull := pullFrom(c, source, Fingerprint(file))
	require.Eventually(t, func() bool { return stall.Fired() == 1 }, 30*time.Second, time.Millisecond)
	// The target is slower, so that it has to wait too.
	limits := []*Injection{source.Inject(RateLimit(1 << 10)), target.Inject(RateLimit(1 << 9))}
	stall.Release()
	// Nothing but the export uses the connections.
	for _, limit := range limits {
		require.Eventually(t, func() bool { return limit.Fired() >= 5 }, 30*time.Second, time.Millisecond)
	}
	require.Len(t, target.Running(), 1)
	for _, limit := range limits {
		limit.Remove()
	}
	c.wait(pull)
	files, err := target.Files(Fingerprint(file))
	require.NoError(t, err)
	require.True(t, bytes.Equal(file, files[0]))
}

func TestRemovedRateLimit(t *testing.T) {
	eachRateClient(t, func(t *testing.T, s *Server, c *client, file []byte) {
		for _, end := range []func(*Injection){(*Injection).Remove, (*Injection).Release} {
			limit := s.Inject(RateLimit(1)) // a byte takes a second
			begin := time.Now()
			time.AfterFunc(time.Hour, func() { end(limit) })
			requireExport(t, c, file)
			require.Equal(t, time.Hour, time.Since(begin))
			fired := limit.Fired()
			requireExport(t, c, file)
			require.Equal(t, time.Hour, time.Since(begin))
			require.Equal(t, fired, limit.Fired())
		}
	})
}

// TestRateLimitStartsLater limits a transfer that is under way.
func TestRateLimitStartsLater(t *testing.T) {
	eachRateClient(t, func(t *testing.T, s *Server, c *client, file []byte) {
		stall := s.Inject(StallResponse(rateImageSize/2).On("GET", "/1.0/images/*/export"))
		done := make(chan struct{})
		go func() {
			defer close(done)
			requireExport(t, c, file)
		}()
		synctest.Wait()
		begin := time.Now()
		s.Inject(RateLimit(testRate))
		stall.Release()
		<-done
		requireTook(t, begin, rateImageSize/2)
	})
}

// TestSeveralRateLimits has the lowest of several count.
func TestSeveralRateLimits(t *testing.T) {
	eachRateClient(t, func(t *testing.T, s *Server, c *client, file []byte) {
		for _, rate := range []int64{10 * testRate, testRate, 2 * testRate} {
			s.Inject(RateLimit(rate))
		}
		begin := time.Now()
		requireExport(t, c, file)
		requireTook(t, begin, len(file))
	})
}

// TestRateLimitAndRestart restarts the server while an export waits, and finds the
// limit in force afterwards.
func TestRateLimitAndRestart(t *testing.T) {
	eachRateClient(t, func(t *testing.T, s *Server, c *client, file []byte) {
		s.Inject(RateLimit(testRate))
		begin := time.Now()
		restarted := make(chan struct{})
		time.AfterFunc(time.Second/2, func() {
			defer close(restarted)
			s.Restart()
		})
		_, body, err := c.get("/1.0/images/" + Fingerprint(file) + "/export")
		require.Error(t, err)
		require.InDelta(t, rateImageSize/2, len(body), 0.03*rateImageSize)
		require.Equal(t, time.Second/2, time.Since(begin))
		<-restarted
		begin = time.Now()
		requireExport(t, c, file)
		requireTook(t, begin, len(file))
	})
}

// TestClosingEndsRateLimits stops servers while an export, an upload and a pull take
// more than an hour each.
func TestClosingEndsRateLimits(t *testing.T) {
	for name, stop := range map[string]func(*Server){"Shutdown": (*Server).Shutdown, "Close": (*Server).Close} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source, file := newRateServer(t, Options{})
				s, image := newRateServer(t, Options{})
				puller := newTestServer(t, &Options{InMemory: true, Dial: source.DialContext})
				s.Inject(RateLimit(1000))
				puller.Inject(RateLimit(1000))
				c := newClient(t, s)
				failed := make(chan error, 2)
				go func() {
					_, _, err := c.get("/1.0/images/" + Fingerprint(image) + "/export")
					failed <- err
				}()
				go func() {
					res, err := c.http.Post("http://lxd/1.0/images", "application/octet-stream", bytes.NewReader(image))
					if err == nil {
						_ = res.Body.Close()
					}
					failed <- err
				}()
				pullFrom(newClient(t, puller), source, Fingerprint(file))
				time.Sleep(time.Minute)
				require.Len(t, puller.Running(), 1)
				require.Empty(t, failed)
				begin := time.Now()
				stop(s)
				errs := []error{<-failed, <-failed}
				require.Zero(t, s.Open())
				// net/http waits for half a second for a body that was not read.
				require.LessOrEqual(t, time.Since(begin), time.Second)
				stop(puller)
				// If both ends of a pipe send a TLS alert, none reads: crypto/tls gives up
				// after 5 seconds.
				time.Sleep(6 * time.Second)
				require.LessOrEqual(t, time.Since(begin), 15*time.Second)
				require.Zero(t, source.Open())
				if name == "Shutdown" { // Close removes the limits first: what is fast enough succeeds
					require.Error(t, errs[0])
					require.Error(t, errs[1])
					require.Empty(t, puller.Images())
				}
			})
		})
	}
}

// TestRateLimitAndDeadlines has deadlines and Close end the waiting for the link.
func TestRateLimitAndDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, &Options{InMemory: true})
		s.Inject(RateLimit(1000)) // 10 bytes in 10 ms
		pair := func() (*linkConn, net.Conn) {
			ours, theirs := net.Pipe()
			c := s.newLinkConn(ours)
			t.Cleanup(func() { _ = c.Close(); _ = theirs.Close() })
			return c, theirs
		}
		data := make([]byte, 5000)
		for name, set := range map[string]func(*linkConn){
			"before": func(c *linkConn) { require.NoError(t, c.SetWriteDeadline(time.Now().Add(2*time.Second))) },
			"both":   func(c *linkConn) { require.NoError(t, c.SetDeadline(time.Now().Add(2*time.Second))) },
			"while it waits": func(c *linkConn) {
				time.AfterFunc(2*time.Second, func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) })
			},
		} {
			c, theirs := pair()
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			begin := time.Now()
			set(c)
			n, err := c.Write(data)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded, name)
			require.Equal(t, 2*time.Second, time.Since(begin), name)
			require.InDelta(t, 2000, n, 30, name)
		}

		// What was received is not lost.
		c, theirs := pair()
		go func() { _, _ = theirs.Write(data[:10]) }()
		limit := s.Inject(RateLimit(1))
		time.AfterFunc(time.Second/2, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
		begin := time.Now()
		n, err := c.Read(data)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Equal(t, time.Second/2, time.Since(begin))
		_, err = c.Read(data)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NoError(t, c.SetReadDeadline(time.Time{}))
		time.AfterFunc(time.Second, func() { _ = c.Close() })
		_, err = io.ReadFull(c, data[:10])
		require.ErrorIs(t, err, net.ErrClosed)
		limit.Remove()

		c, theirs = pair()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		const closes = time.Second + time.Millisecond // within a wait
		time.AfterFunc(closes, func() { _ = c.Close() })
		begin = time.Now()
		_, err = c.Write(data)
		require.ErrorIs(t, err, net.ErrClosed)
		require.Equal(t, closes, time.Since(begin))
	})
}

func TestLatency(t *testing.T) {
	eachRateClient(t, func(t *testing.T, s *Server, c *client, _ []byte) {
		limit := s.Inject(Latency(50*time.Millisecond).On("GET", "/1.0/images"))
		begin := time.Now()
		require.Equal(t, 200, c.do("GET", "/1.0/images", nil).HTTP)
		require.Equal(t, 50*time.Millisecond, time.Since(begin))
		require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)
		require.Equal(t, 50*time.Millisecond, time.Since(begin))
		require.Equal(t, 1, limit.Fired())
		limit.Remove()
		require.Equal(t, 200, c.do("GET", "/1.0/images", nil).HTTP)
		require.Equal(t, 50*time.Millisecond, time.Since(begin))
	})
}
