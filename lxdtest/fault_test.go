package lxdtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// eachTransport runs a test over a unix socket, over TLS and in memory.
func eachTransport(t *testing.T, test func(t *testing.T, s *Server, c *client)) {
	t.Helper()
	t.Run("unix", func(t *testing.T) {
		s := newTestServer(t, nil)
		dialer := &http.Transport{DialContext: dialUnix(s)}
		t.Cleanup(dialer.CloseIdleConnections)
		test(t, s, &client{t, &http.Client{Transport: dialer}, "http://lxd"})
	})
	t.Run("TLS", func(t *testing.T) {
		s := newTestServer(t, &Options{TLS: true})
		test(t, s, newTLSClient(t, s, true))
	})
	t.Run("memory", func(t *testing.T) {
		s := newTestServer(t, &Options{InMemory: true})
		test(t, s, newClient(t, s))
	})
}

func TestExportFaults(t *testing.T) {
	file := UnifiedImage("x", 200_000)
	broken := bytes.Clone(file)
	broken[1234] ^= 0xff
	for _, test := range []struct {
		fault Fault
		code  int // 0 for an error before the header
		body  []byte
		whole bool // the body ends without an error
	}{
		{CutResponse(0), 200, nil, false},
		{CutResponse(70_000), 200, file[:70_000], false},
		{Reset(), 0, nil, false},
		{LoseResponse(), 0, nil, false},
		{Corrupt(1234), 200, broken, true},
		{ShortLength(100), 200, file[:len(file)-100], true},
		{Unavailable(), 503, nil, true},
		{TooManyRequests(1500 * time.Millisecond), 429, nil, true},
		{Status(418, "teapot"), 418, nil, true},
		{HTML(), 200, nil, true},
	} {
		t.Run(test.fault.String(), func(t *testing.T) {
			eachTransport(t, func(t *testing.T, s *Server, c *client) {
				fingerprint, err := s.AddImage(file, nil)
				require.NoError(t, err)
				path := "/1.0/images/" + fingerprint + "/export"
				handle := s.Inject(test.fault.On("GET", "/1.0/images/*/export").Times(1))
				// On a new connection the HTTP client does not retry.
				res, body, err := c.get(path)
				if test.code == 0 {
					require.Error(t, err)
				} else {
					require.Equal(t, test.whole, err == nil, "%v", err)
					require.Equal(t, test.code, res.StatusCode)
				}
				if test.code == 429 {
					require.Equal(t, "2", res.Header.Get("Retry-After"))
				}
				if test.body != nil {
					want := test.body
					if strings.HasPrefix(c.base, "https:") && !test.whole {
						// A reset overtakes data that is beyond the client's
						// receive buffer.
						want = want[:min(len(body), len(want))]
					}
					require.True(t, bytes.Equal(want, body), "%d bytes", len(body))
				}
				require.Equal(t, 1, handle.Fired())
				_, body, err = c.get(path)
				require.NoError(t, err)
				require.True(t, bytes.Equal(file, body))
				require.Equal(t, 1, handle.Fired())
			})
		})
	}
}

func TestStalls(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, c *client) {
		file := UnifiedImage("x", 100_000)
		fingerprint, err := s.AddImage(file, nil)
		require.NoError(t, err)
		for _, fault := range []Fault{StallHeaders(), StallResponse(0), StallResponse(50_000)} {
			handle := s.Inject(fault.On("GET", "/1.0/images/*/export"))
			got := make(chan []byte)
			go func() {
				_, body, _ := c.get("/1.0/images/" + fingerprint + "/export")
				got <- body
			}()
			require.Eventually(t, func() bool { return handle.Fired() == 1 }, 30*time.Second, time.Millisecond)
			// Other requests are served meanwhile.
			require.Equal(t, 200, c.do("GET", "/1.0/images/"+fingerprint, nil).HTTP)
			select {
			case <-got:
				t.Fatal("the response arrived in spite of the stall")
			default:
			}
			handle.Remove()
			require.True(t, bytes.Equal(file, <-got))
		}
	})
}

func TestStalledUpload(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, c *client) {
		handle := s.Inject(StallRequest(5000).On("POST", "/1.0/images"))
		done := make(chan *apiResponse)
		go func() { done <- c.do("POST", "/1.0/images", UnifiedImage("x", 500_000)) }()
		upload := func() *Request {
			for _, r := range s.Requests() {
				if r.Method == "POST" {
					return r
				}
			}
			return nil
		}
		require.Eventually(t, func() bool { return upload() != nil && upload().BodyBytes() == 5000 }, 30*time.Second, time.Millisecond)
		require.False(t, upload().Done())
		handle.Release()
		c.wait(<-done)
		require.True(t, upload().Done())
		require.Len(t, s.Images(), 1)
	})
}

func TestClosingEndsStalls(t *testing.T) {
	for _, fault := range []Fault{StallHeaders(), StallResponse(10), HalfOpen(10), EndlessJSON(), SlowLoris(time.Hour)} {
		s := NewServer(nil)
		handle := s.Inject(fault)
		done := make(chan struct{})
		go func() {
			defer close(done)
			res, err := s.Client().Get("http://lxd/1.0")
			if err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		}()
		require.Eventually(t, func() bool { return handle.Fired() == 1 }, 30*time.Second, time.Millisecond)
		s.Close()
		<-done
	}
}

func TestHalfOpenConnection(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, c *client) {
		handle := s.Inject(HalfOpen(100).On("GET", "/1.0"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", c.base+"/1.0", nil)
		require.NoError(t, err)
		res, err := c.http.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err = io.ReadAll(res.Body)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 1, handle.Fired())
		handle.Remove()
		require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)
	})
}

func TestSlowLoris(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, &Options{InMemory: true})
		s.Inject(SlowLoris(time.Second).On("GET", "/1.0/images").Times(1))
		c := newClient(t, s)
		begin := time.Now()
		require.Equal(t, 200, c.do("GET", "/1.0/images", nil).HTTP)
		require.Greater(t, time.Since(begin), 100*time.Second)
		begin = time.Now()
		require.Equal(t, 200, c.do("GET", "/1.0/images", nil).HTTP)
		require.Less(t, time.Since(begin), time.Second)
	})
}

func TestRefusedConnections(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, c *client) {
		handle := s.Inject(Refuse())
		_, err := c.http.Get(c.base + "/1.0")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		handle.Remove()
		require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)
	})
}

func TestEarlyResponse(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, c *client) {
		s.Inject(EarlyResponse(1000, 507, "disk full").On("POST", "/1.0/images").Times(1))
		file := UnifiedImage("x", 3_000_000)
		req, err := http.NewRequestWithContext(t.Context(), "POST", c.base+"/1.0/images", io.MultiReader(bytes.NewReader(file)))
		require.NoError(t, err)
		res, err := c.http.Do(req)
		// Whether the client sees the response or the broken pipe is a race, as
		// with real servers.
		if err == nil {
			require.Equal(t, 507, res.StatusCode)
			require.NoError(t, res.Body.Close())
		}
		require.Empty(t, s.Images())
		c.wait(c.do("POST", "/1.0/images", file))
		require.Len(t, s.Images(), 1)
	})
}

func TestRedirect(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	s.Inject(Redirect("http://elsewhere/1.0/images").On("GET", "/1.0").Times(1))
	res, _, err := c.get("/1.0")
	require.NoError(t, err)
	require.Equal(t, "http://elsewhere/1.0/images", res.Request.URL.String())
}

func TestEndlessJSON(t *testing.T) {
	s := newTestServer(t, nil)
	s.Inject(EndlessJSON())
	res, err := s.Client().Get("http://lxd/1.0/images?recursion=1")
	require.NoError(t, err)
	n, err := io.CopyN(io.Discard, res.Body, 20<<20)
	require.NoError(t, err)
	require.EqualValues(t, 20<<20, n)
	require.NoError(t, res.Body.Close())
}

func TestRestartKeepsImages(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, c *client) {
		fingerprint := add(t, s, "x", &AddOptions{Aliases: []string{"a"}})
		token := c.do("POST", "/1.0/images/"+fingerprint+"/secret", nil)
		// On a reused connection the HTTP client would retry.
		c.http.CloseIdleConnections()
		waiting := make(chan error)
		go func() {
			res, err := c.http.Get(c.base + token.Operation + "/wait")
			if err == nil {
				_, err = io.ReadAll(res.Body)
				_ = res.Body.Close()
			}
			waiting <- err
		}()
		require.Eventually(t, func() bool { return len(s.Requests()) == 2 }, 30*time.Second, time.Millisecond)
		endpoint, url := s.Endpoint(), s.URL()
		s.Restart()
		require.Error(t, <-waiting)
		require.Equal(t, endpoint+url, s.Endpoint()+s.URL())
		c.http.CloseIdleConnections()
		require.Equal(t, 200, c.do("GET", "/1.0/images/"+fingerprint, nil).HTTP)
		require.Equal(t, 404, c.do("GET", token.Operation, nil).HTTP)
		require.Empty(t, s.Tokens())
		require.Equal(t, map[string]string{"a": fingerprint}, s.Aliases())
	})
}

func TestRestartDuringUpload(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, c *client) {
		handle := s.Inject(RestartServer(10_000).On("POST", "/1.0/images").Times(1))
		file := UnifiedImage("x", 1_000_000)
		res, err := c.http.Post(c.base+"/1.0/images", "application/octet-stream", io.MultiReader(bytes.NewReader(file)))
		if err == nil {
			_ = res.Body.Close()
		}
		require.Error(t, err)
		require.Equal(t, 1, handle.Fired())
		require.Empty(t, s.Images())
		c.http.CloseIdleConnections()
		require.Eventually(t, func() bool {
			res, err := c.http.Get(c.base + "/1.0")
			if err == nil {
				_ = res.Body.Close()
			}
			return err == nil
		}, 30*time.Second, time.Millisecond, "the server has restarted")
		c.wait(c.do("POST", "/1.0/images", file))
		require.Len(t, s.Images(), 1)
	})
}

func TestForgetOperationsFault(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	handle := s.Inject(ForgetOperations())
	done := c.do("POST", "/1.0/images", UnifiedImage("x", 0))
	require.Eventually(t, func() bool { return handle.Fired() == 1 }, 30*time.Second, time.Millisecond)
	require.Equal(t, 404, c.do("GET", done.Operation+"/wait", nil).HTTP)
	require.Len(t, s.Images(), 1)
}

func TestLoseResponseProcessesRequest(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, c *client) {
		fingerprint := add(t, s, "x", nil)
		s.Inject(LoseResponse().On("POST", "/1.0/images/aliases").Times(1))
		res, err := c.http.Post(c.base+"/1.0/images/aliases", "application/json", strings.NewReader(`{"name":"a","target":"`+fingerprint+`"}`))
		if err == nil {
			_ = res.Body.Close()
		}
		require.Error(t, err)
		require.Equal(t, map[string]string{"a": fingerprint}, s.Aliases())
	})
}

func TestStalledOperation(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	handle := s.Inject(StallOperations().Times(1))
	stalled := c.do("POST", "/1.0/images", UnifiedImage("x", 0))
	require.EqualValues(t, statusRunning, c.do("GET", stalled.Operation+"/wait?timeout=0", nil).field("status_code"))
	require.Equal(t, []string{"Downloading image"}, s.Running())
	c.upload(UnifiedImage("y", 0))
	require.Len(t, s.Images(), 1)
	handle.Release()
	c.wait(stalled)
	require.Len(t, s.Images(), 2)
}

func TestStatusWithHeader(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	s.Inject(Status(401, "login").WithHeader("X-LXD-OIDC-issuer", "https://issuer"))
	res, _, err := newClient(t, s).get("/1.0")
	require.NoError(t, err)
	require.Equal(t, 401, res.StatusCode)
	require.Equal(t, "https://issuer", res.Header.Get("X-LXD-OIDC-issuer"))
}

func TestCancelDownload(t *testing.T) {
	source := newTestServer(t, &Options{TLS: true})
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	fingerprint, err := source.AddImage(UnifiedImage("x", 100_000), &AddOptions{Public: true})
	require.NoError(t, err)
	source.Inject(StallResponse(50_000).On("GET", "/1.0/images/*/export"))
	pull := c.do("POST", "/1.0/images", map[string]any{"source": map[string]string{
		"type": "image", "mode": "pull", "protocol": "lxd", "server": source.URL(),
		"fingerprint": fingerprint, "certificate": string(source.Certificate())}})
	require.Eventually(t, func() bool {
		metadata, _ := c.do("GET", pull.Operation, nil).field("metadata").(map[string]any)
		return metadata["download_progress"] != nil
	}, 30*time.Second, time.Millisecond)
	require.Equal(t, 200, c.do("DELETE", pull.Operation, nil).HTTP)
	require.Eventually(t, func() bool {
		return c.do("GET", pull.Operation, nil).field("err") == "context canceled"
	}, 30*time.Second, time.Millisecond, "the download ends after its operation was cancelled")
	require.EqualValues(t, statusFailure, c.do("GET", pull.Operation, nil).field("status_code"))
	require.Empty(t, s.Images())
}

func TestPatterns(t *testing.T) {
	request := func(method, path string) *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, nil)
		require.NoError(t, err)
		return r
	}
	for _, test := range []struct {
		method, pattern string
		request         *http.Request
		want            bool
	}{
		{"", "", request("GET", "/1.0"), true},
		{"POST", "", request("GET", "/1.0"), false},
		{"GET", "/1.0/images/*/export", request("GET", "/1.0/images/abc/export?x=y"), true},
		{"GET", "/1.0/images/*", request("GET", "/1.0/images/abc/export"), false},
		{"GET", "/1.0/images/**", request("GET", "/1.0/images/abc/export"), true},
		{"GET", "/1.0/images/**", request("GET", "/1.0/images"), false},
		{"GET", "/1.0/images/aliases/*", request("GET", "/1.0/images/aliases/a%2Fb"), true},
	} {
		fault := Reset().On(test.method, test.pattern)
		require.Equal(t, test.want, fault.matches(test.request), "%s %s", test.method, test.pattern)
	}
}

func TestCounts(t *testing.T) {
	s := newTestServer(t, nil)
	c := newClient(t, s)
	for range 20 {
		c.do("GET", "/1.0", nil)
	}
	require.Equal(t, 1, s.Accepted())
	require.Equal(t, 1, s.Open())
	require.Len(t, s.Requests(), 20)
	c.http.CloseIdleConnections()
	require.Eventually(t, func() bool { return s.Open() == 0 }, 30*time.Second, time.Millisecond)
	s.ForgetRequests()
	require.Empty(t, s.Requests())
	s.Close()
	s.Close()
	_, err := s.DialContext(t.Context(), "unix", "")
	require.True(t, errors.Is(err, syscall.ECONNREFUSED))
}
