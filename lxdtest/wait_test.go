package lxdtest

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// inBubble runs a test with an in-memory server in a bubble, where a test that waits for
// ever, and a goroutine that is left, panic.
func inBubble(t *testing.T, opts Options, test func(t *testing.T, s *Server, c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		opts.InMemory = true
		s := NewServer(&opts)
		defer s.Close()
		test(t, s, newClient(t, s))
	})
}

func TestWaitRequest(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, s *Server, c *client) {
		// Those that came before, each once and in order.
		c.do("GET", "/1.0", nil)
		c.do("GET", "/1.0/images?recursion=1", nil)
		c.do("GET", "/1.0/images?recursion=0", nil)
		for _, query := range []string{"recursion=1", "recursion=0"} {
			got, err := s.WaitRequest(t.Context(), "GET", "/1.0/images")
			require.NoError(t, err)
			require.Equal(t, query, got.Query)
		}
		got, err := s.WaitRequest(t.Context(), "", "")
		require.NoError(t, err)
		require.Equal(t, "/1.0", got.Path)

		// One that comes later: the faults have fired, and it is not done.
		stall := s.Inject(StallHeaders().On("GET", "/1.0/images/**"))
		go func() {
			time.Sleep(time.Hour)
			c.do("GET", "/1.0/projects", nil)
			c.do("GET", "/1.0/images/aliases", nil)
		}()
		got, err = s.WaitRequest(t.Context(), "GET", "/1.0/images/*")
		require.NoError(t, err)
		require.Equal(t, "/1.0/images/aliases", got.Path)
		require.Equal(t, 1, stall.Fired())
		require.False(t, got.Done())
		require.Zero(t, got.Status())
		soon, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, got.Wait(soon), context.DeadlineExceeded)
		require.Equal(t, time.Minute, got.Duration())
		stall.Release()
		require.NoError(t, got.Wait(t.Context()))
		require.True(t, got.Done())
		require.Equal(t, 200, got.Status())
		require.Equal(t, time.Minute, got.Duration())
	})
}

// TestWaitRequestEach has more waiters than requests: each request is one waiter's.
func TestWaitRequestEach(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, s *Server, c *client) {
		var mu sync.Mutex
		got := map[*Request]int{}
		var failed []error
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var waiters sync.WaitGroup
		for range 5 {
			waiters.Go(func() {
				r, err := s.WaitRequest(ctx, "GET", "/1.0")
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed = append(failed, err)
				} else {
					got[r]++
				}
			})
		}
		synctest.Wait()
		for range 3 {
			c.do("GET", "/1.0", nil)
		}
		c.do("GET", "/1.0/images", nil)
		waiters.Wait()
		require.Len(t, got, 3)
		require.Len(t, failed, 2)
		require.ErrorIs(t, failed[0], context.DeadlineExceeded)
		require.EqualError(t, failed[0], `lxdtest: wait for a request "GET" "/1.0": context deadline exceeded; 4 have arrived, the last is GET /1.0/images`)
	})
}

func TestWaitRequestErrors(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, s *Server, c *client) {
		_, err := s.WaitRequest(t.Context(), "GET", "/[")
		require.ErrorContains(t, err, `path "/[": syntax error in pattern`)

		c.do("GET", "/1.0", nil)
		s.ForgetRequests()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = s.WaitRequest(ctx, "", "")
		require.ErrorContains(t, err, "none has arrived")

		time.AfterFunc(time.Hour, s.Close)
		_, err = s.WaitRequest(t.Context(), "", "")
		require.ErrorContains(t, err, "the server is closed")
	})
}

func TestInjectionWait(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, s *Server, c *client) {
		fault := s.Inject(Unavailable())
		require.NoError(t, fault.Wait(t.Context(), 0))
		go func() {
			for range 3 {
				time.Sleep(time.Minute)
				c.do("GET", "/1.0", nil)
			}
		}()
		start := time.Now()
		require.NoError(t, fault.Wait(t.Context(), 1))
		require.Equal(t, time.Minute, time.Since(start))
		require.NoError(t, fault.Wait(t.Context(), 3))
		require.Equal(t, 3*time.Minute, time.Since(start))
		require.NoError(t, fault.Wait(t.Context(), 2))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := fault.Wait(ctx, 4)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualError(t, err, `lxdtest: wait for the fault "unavailable": context deadline exceeded; it has fired 3 times of 4`)
		time.AfterFunc(time.Hour, s.Close)
		require.ErrorContains(t, fault.Wait(t.Context(), 4), "the server is closed; it has fired 3 times of 4")
	})
}

// TestCall has an image disappear just before a request for it, and sees that other faults
// apply to the same request.
func TestCall(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, s *Server, c *client) {
		fingerprint, err := s.AddImage(UnifiedImage("x", 0), nil)
		require.NoError(t, err)
		var called []string
		call := s.Inject(Call(func(r *http.Request) {
			called = append(called, r.Method+" "+r.URL.Path)
			require.Len(t, s.Images(), 1)
			c.wait(c.do("DELETE", "/1.0/images/"+fingerprint, nil))
		}).On("GET", "/1.0/images/*").Times(1))
		slow := s.Inject(Latency(time.Minute).On("GET", "/1.0/images/*"))
		start := time.Now()
		require.Equal(t, 404, c.do("GET", "/1.0/images/"+fingerprint, nil).HTTP)
		require.Equal(t, []string{"GET /1.0/images/" + fingerprint}, called)
		require.Equal(t, time.Minute, time.Since(start))
		require.Equal(t, 404, c.do("GET", "/1.0/images/"+fingerprint, nil).HTTP)
		require.Equal(t, 1, call.Fired())
		require.Equal(t, 2, slow.Fired())
		require.Len(t, called, 1)
	})
}

func TestOnRequest(t *testing.T) {
	type entry struct {
		Method, Path string
		Status       int
		Body, Sent   int64
		Duration     time.Duration
	}
	var mu sync.Mutex
	var log []entry
	opts := Options{OnRequest: func(r *Request) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, entry{r.Method, r.Path, r.Status(), r.BodyBytes(), r.ResponseBytes(), r.Duration()})
		if !r.Done() {
			log = append(log, entry{Method: "not done"})
		}
	}}
	inBubble(t, opts, func(t *testing.T, s *Server, c *client) {
		file := UnifiedImage("x", 300_000)
		c.upload(file)
		size := int64(len(file))
		mu.Lock()
		require.Equal(t, entry{"POST", "/1.0/images", 202, size, log[0].Sent, 0}, log[0])
		require.Positive(t, log[0].Sent)
		log = nil
		mu.Unlock()

		path := "/1.0/images/" + Fingerprint(file) + "/export"
		s.Inject(Latency(time.Minute).On("GET", "/1.0"))
		s.Inject(Reset().On("DELETE", "/1.0/projects/none"))
		s.Inject(LoseResponse().On("DELETE", "/1.0/images/**"))
		s.Inject(CutResponse(1000).On("GET", path).Times(1))
		require.Error(t, c.body(path, 1000))
		require.NoError(t, c.body(path, size))
		for _, path := range []string{"/1.0/projects/none", "/1.0/images/aliases/none"} {
			// The HTTP client sends a GET again.
			req, err := http.NewRequestWithContext(t.Context(), "DELETE", c.base+path, nil)
			require.NoError(t, err)
			_, err = c.http.Do(req)
			require.Error(t, err)
		}
		c.do("GET", "/1.0", nil)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		last := log[len(log)-1]
		require.Equal(t, entry{"GET", "/1.0", 200, 0, last.Sent, time.Minute}, last)
		require.Equal(t, []entry{
			{"GET", path, 200, 0, 1000, 0},
			{"GET", path, 200, 0, size, 0},
			{"DELETE", "/1.0/projects/none", 0, 0, 0, 0},
			{"DELETE", "/1.0/images/aliases/none", 0, 0, 0, 0},
		}, log[:len(log)-1])
	})
}

// body reads a response of n bytes, and returns the error of its body.
func (c *client) body(path string, n int64) error {
	c.t.Helper()
	res, err := c.http.Get(c.base + path)
	require.NoError(c.t, err)
	got, err := io.Copy(io.Discard, res.Body)
	require.Equal(c.t, n, got)
	_ = res.Body.Close()
	return err
}
