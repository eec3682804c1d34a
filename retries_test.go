package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// retryCase is a server in a bubble that has one image, with a client of it.
type retryCase struct {
	*lxdtest.Server
	ctx         context.Context //nolint:containedctx // of the calls; it ends what would never end
	client      *lxd.Client
	data        []byte
	image       *lxd.Image
	unreachable atomic.Pointer[error] // what dialing returns
}

func inRetryCase(t *testing.T, opts *lxd.Options, play func(*testing.T, *retryCase)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &retryCase{Server: lxdtest.NewServer(&lxdtest.Options{InMemory: true}), data: lxdtest.UnifiedImage("retry", 24_000)}
		defer r.Close()
		var cancel context.CancelFunc
		r.ctx, cancel = context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		fingerprint, err := r.AddImage(r.data, nil)
		require.NoError(t, err)
		if opts == nil {
			opts = &lxd.Options{}
		}
		o := *opts
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if err := r.unreachable.Load(); err != nil {
				return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", *err)}
			}
			return r.DialContext(ctx, network, address)
		}
		r.client, err = lxd.New("unix:///retry", &o)
		require.NoError(t, err)
		defer func() { require.NoError(t, r.client.Close()) }()
		r.image, err = r.client.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		_, err = r.client.Server(t.Context())
		require.NoError(t, err)
		play(t, r)
	})
}

// leave ends all connections, and has new ones fail.
func (r *retryCase) leave(err error) {
	time.Sleep(2 * time.Minute) // idle connections go
	r.unreachable.Store(&err)
}

func (r *retryCase) comeBack() { r.unreachable.Store(nil) }

// retryPaths are calls that fail in each place that retries.
var retryPaths = []struct {
	name            string
	method, pattern string // of the request that fails
	run             func(*testing.T, *retryCase) error
	// waits says that it has a longer timeout of its own.
	waits bool
}{
	{name: "read", method: "GET", pattern: "/1.0/images/*", run: func(t *testing.T, r *retryCase) error {
		_, err := r.client.Images.Get(r.ctx, r.image.Fingerprint)
		return err
	}},
	{name: "list", method: "GET", pattern: "/1.0/images", run: func(t *testing.T, r *retryCase) error {
		_, err := r.client.Images.All(r.ctx, nil)
		return err
	}},
	{name: "upload", method: "POST", pattern: "/1.0/images", run: func(t *testing.T, r *retryCase) error {
		_, err := r.client.Images.Create(r.ctx, bytes.NewReader(lxdtest.UnifiedImage("other", 1000)), &lxd.CreateOptions{Wait: true})
		return err
	}},
	{name: "upload, its properties", method: "PUT", pattern: "/1.0/images/*", run: func(t *testing.T, r *retryCase) error {
		_, err := r.client.Images.Create(r.ctx, bytes.NewReader(lxdtest.UnifiedImage("other", 1000)), &lxd.CreateOptions{
			Properties: map[string]string{"a": "b"}, Wait: true,
		})
		return err
	}},
	{name: "import by the client", method: "POST", pattern: "/1.0/images", run: func(t *testing.T, r *retryCase) error {
		data := lxdtest.UnifiedImage("other", 1000)
		web := &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
			body := io.NopCloser(bytes.NewReader(data))
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body, ContentLength: int64(len(data)), Request: req}, nil
		})}
		_, err := r.client.Images.CreateFromURL(r.ctx, "https://images.example/image", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true, HTTPClient: web})
		return err
	}},
	{name: "export", method: "GET", pattern: testkit.ExportPattern, run: func(t *testing.T, r *retryCase) error {
		export, err := r.image.Export(r.ctx, nil)
		if err != nil {
			return err
		}
		defer export.Close()
		_, err = io.Copy(io.Discard, export)
		return err
	}},
	{name: "ExportTo over connections", method: "GET", pattern: testkit.ExportPattern, run: func(t *testing.T, r *retryCase) error {
		_, err := r.image.ExportTo(r.ctx, t.TempDir(), &lxd.ExportToOptions{Connections: 2})
		return err
	}},
	{name: "events", method: "GET", pattern: "/1.0/events", run: func(t *testing.T, r *retryCase) error {
		for _, err := range r.client.Events(r.ctx, nil) {
			return err
		}
		return errors.New("no event")
	}},
	{name: "wait", method: "GET", pattern: "/1.0/operations/*/wait", waits: true, run: func(t *testing.T, r *retryCase) error {
		held := r.Inject(lxdtest.StallOperations())
		defer held.Remove()
		image, err := r.client.Images.Create(r.ctx, bytes.NewReader(lxdtest.UnifiedImage("other", 1000)), nil)
		require.NoError(t, err)
		return image.Wait(r.ctx)
	}},
}

// TestNegativeRetryTimeoutNeverRetries has one transient failure.
func TestNegativeRetryTimeoutNeverRetries(t *testing.T) {
	t.Parallel()
	for _, path := range retryPaths {
		if path.waits {
			continue
		}
		for name, fault := range map[string]lxdtest.Fault{
			"503": lxdtest.Unavailable(), "429": lxdtest.TooManyRequests(time.Millisecond), "reset": lxdtest.Reset(),
		} {
			t.Run(path.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				inRetryCase(t, &lxd.Options{RetryTimeout: -1}, func(t *testing.T, r *retryCase) {
					time.Sleep(2 * time.Minute) // idle connections go, on which net/http retries itself
					injected := r.Inject(fault.On(path.method, path.pattern))
					began := time.Now()
					require.ErrorIs(t, path.run(t, r), lxd.ErrUnavailable)
					require.Equal(t, 1, injected.Fired())
					require.Zero(t, time.Since(began))
				})
			})
		}
	}
}

// TestRetryTimeout has failures that persist: the last attempt is at the end of the
// timeout.
func TestRetryTimeout(t *testing.T) {
	t.Parallel()
	for _, path := range retryPaths {
		if path.waits {
			continue
		}
		for name, timeout := range map[string]time.Duration{"default": 0, "five seconds": 5 * time.Second} {
			t.Run(path.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				inRetryCase(t, &lxd.Options{RetryTimeout: timeout}, func(t *testing.T, r *retryCase) {
					injected := r.Inject(lxdtest.Unavailable().On(path.method, path.pattern))
					began := time.Now()
					require.ErrorIs(t, path.run(t, r), lxd.ErrUnavailable)
					if timeout == 0 {
						timeout = 30 * time.Second
					}
					require.Equal(t, timeout, time.Since(began).Round(time.Millisecond))
					require.Greater(t, injected.Fired(), 4)
				})
			})
		}
	}
}

// TestRetryAfter: the header is observed up to 10 minutes; beyond, the error is returned
// at once.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, path := range retryPaths {
		t.Run(path.name+"/10 minutes", func(t *testing.T) {
			t.Parallel()
			inRetryCase(t, nil, func(t *testing.T, r *retryCase) {
				r.Inject(lxdtest.TooManyRequests(10*time.Minute).On(path.method, path.pattern).Times(1))
				began := time.Now()
				if path.waits {
					time.AfterFunc(10*time.Minute+time.Second, func() { r.Restart() })
				}
				err := path.run(t, r)
				if !path.waits {
					require.NoError(t, err)
				}
				require.GreaterOrEqual(t, time.Since(began), 10*time.Minute)
				require.Less(t, time.Since(began), 12*time.Minute)
			})
		})
		t.Run(path.name+"/more", func(t *testing.T) {
			t.Parallel()
			inRetryCase(t, nil, func(t *testing.T, r *retryCase) {
				injected := r.Inject(lxdtest.TooManyRequests(10*time.Minute+time.Second).On(path.method, path.pattern))
				began := time.Now()
				err := path.run(t, r)
				require.ErrorIs(t, err, lxd.ErrUnavailable)
				require.Equal(t, 1, injected.Fired())
				require.Less(t, time.Since(began), time.Second)
				wait, ok := testkit.ErrOf[*lxd.Error](t, err).RetryAfter()
				require.True(t, ok)
				require.Equal(t, 10*time.Minute+time.Second, wait)
			})
		})
	}
}

// TestDaemonIsAwayFor20Seconds makes every call while the daemon restarts: its socket
// exists without a listener, or does not exist.
func TestDaemonIsAwayFor20Seconds(t *testing.T) {
	t.Parallel()
	for name, errno := range map[string]error{"refused": syscall.ECONNREFUSED, "no socket": syscall.ENOENT} {
		for _, path := range retryPaths {
			if path.waits {
				continue
			}
			t.Run(path.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				inRetryCase(t, nil, func(t *testing.T, r *retryCase) {
					r.leave(errno)
					began := time.Now()
					time.AfterFunc(20*time.Second, r.comeBack)
					require.NoError(t, path.run(t, r))
					require.GreaterOrEqual(t, time.Since(began), 20*time.Second)
				})
			})
		}
	}
}

// TestMissingSocket: it is retried only if there was one before.
func TestMissingSocket(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		client, err := lxd.New("unix:///nowhere", &lxd.Options{Dial: func(context.Context, string, string) (net.Conn, error) {
			dials++
			return nil, &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.ENOENT)}
		}})
		require.NoError(t, err)
		began := time.Now()
		_, err = client.Images.All(t.Context(), nil)
		require.ErrorIs(t, err, os.ErrNotExist)
		require.False(t, testkit.ErrOf[*lxd.ConnectionError](t, err).Transient())
		require.Equal(t, 1, dials)
		require.Zero(t, time.Since(began))
		require.NoError(t, client.Close())
	})
}

// TestWaitOutlastsTheRetryTimeout: a wait is retried for a minute, with any options.
func TestWaitOutlastsTheRetryTimeout(t *testing.T) {
	t.Parallel()
	for away, survives := range map[time.Duration]bool{50 * time.Second: true, 70 * time.Second: false} {
		t.Run(away.String(), func(t *testing.T) {
			t.Parallel()
			inRetryCase(t, &lxd.Options{RetryTimeout: -1}, func(t *testing.T, r *retryCase) {
				held := r.Inject(lxdtest.StallOperations())
				image, err := r.client.Images.Create(t.Context(), bytes.NewReader(lxdtest.UnifiedImage("other", 1000)), nil)
				require.NoError(t, err)
				time.AfterFunc(time.Second, held.Remove)
				r.leave(syscall.ECONNREFUSED)
				began := time.Now()
				time.AfterFunc(away, r.comeBack)
				err = image.Wait(t.Context())
				if survives {
					// The fake daemon has forgotten the operation, and has the image.
					require.NoError(t, err)
					require.GreaterOrEqual(t, time.Since(began), away)
					return
				}
				require.ErrorIs(t, err, lxd.ErrUnavailable)
				require.ErrorContains(t, err, "may still be running")
				require.Equal(t, time.Minute, time.Since(began).Round(time.Millisecond))
			})
		})
	}
}

// TestEventsReconnectForEver: once connected, no timeout ends the events, and the
// pauses do not grow beyond those of every retry.
func TestEventsReconnectForEver(t *testing.T) {
	t.Parallel()
	inRetryCase(t, &lxd.Options{RetryTimeout: -1}, func(t *testing.T, r *retryCase) {
		var away time.Time
		for event, err := range r.client.Events(t.Context(), nil) {
			require.NoError(t, err)
			require.Equal(t, lxd.EventConnected, event.Type)
			if !away.IsZero() {
				require.GreaterOrEqual(t, time.Since(away), time.Hour)
				require.Less(t, time.Since(away), time.Hour+6*time.Second)
				return
			}
			var refused error = syscall.ECONNREFUSED
			r.unreachable.Store(&refused)
			r.Inject(lxdtest.DropEvents().Times(1))
			away = time.Now()
			time.AfterFunc(time.Hour, r.comeBack)
			time.AfterFunc(time.Second, func() { _, _ = r.AddImage(lxdtest.UnifiedImage("event", 0), nil) })
		}
		t.Error("the events ended")
	})
}

// TestGatewayErrors: 502 and 504 mean that the response was lost, so only repeatable
// requests are retried.
func TestGatewayErrors(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusBadGateway, http.StatusGatewayTimeout} {
		calls := map[string]int{}
		client := testkit.NewClient(t, "unix:///gateway", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				calls[req.Method]++
				code, body := status, "gateway"
				if calls[req.Method] > 1 {
					code, body = http.StatusOK, `{"type":"sync","metadata":[]}`
				}
				return &http.Response{StatusCode: code, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader([]byte(body))), Request: req}, nil
			})
		}})
		_, err := client.Aliases.All(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, calls["GET"])
		err = client.Aliases.Create(t.Context(), lxd.Alias{Name: "a", Target: oneFingerprint})
		refused := testkit.ErrOf[*lxd.Error](t, err)
		require.Equal(t, status, refused.StatusCode)
		require.True(t, refused.Transient())
		require.Equal(t, 1, calls["POST"])
	}
}

// TestSourceRetries: the retry rules of a URL that the client reads.
func TestSourceRetries(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		timeout time.Duration
		after   string
		took    time.Duration
	}{
		"never":            {timeout: -1},
		"timeout":          {timeout: 5 * time.Second, took: 5 * time.Second},
		"default":          {took: 30 * time.Second},
		"10 minutes":       {after: "600", took: 10 * time.Minute},
		"more than that":   {after: "601"},
		"never, for sure":  {timeout: -1, after: "1"},
		"after the server": {timeout: time.Second, after: "60", took: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inRetryCase(t, &lxd.Options{RetryTimeout: test.timeout}, func(t *testing.T, r *retryCase) {
				web := &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
					header := http.Header{}
					if test.after != "" {
						header.Set("Retry-After", test.after)
					}
					return &http.Response{StatusCode: 503, Status: "503 busy", Header: header, Body: http.NoBody, Request: req}, nil
				})}
				began := time.Now()
				_, err := r.client.Images.CreateFromURL(t.Context(), "https://images.example/image", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true, HTTPClient: web})
				failed := testkit.ErrOf[*lxd.SourceError](t, err)
				require.True(t, failed.Transient())
				_, asked := failed.RetryAfter()
				require.Equal(t, test.after != "", asked)
				require.Equal(t, test.took, time.Since(began).Round(time.Millisecond))
			})
		})
	}
}

// TestRetryAfterTooLong has a server with a Retry-After of an hour.
func TestRetryAfterTooLong(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	busy := f.Inject(lxdtest.TooManyRequests(time.Hour).On("GET", "/1.0/images"))
	_, err := f.Client.Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	require.Equal(t, 1, busy.Fired())
}

// TestRetryDiscardsThePartialResponse: nothing of a partial response remains in the
// next one.
func TestRetryDiscardsThePartialResponse(t *testing.T) {
	t.Parallel()
	start := `{"type":"sync","metadata":{"fingerprint":"` + oneFingerprint + `","properties":{`
	bodies := []io.Reader{
		io.MultiReader(strings.NewReader(start+`"old":"1"},"public":true,`), iotest.ErrReader(io.ErrUnexpectedEOF)),
		strings.NewReader(start + `"new":"2"}}}`),
	}
	c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			body := bodies[0]
			bodies = bodies[1:]
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(body), Request: req}, nil
		})
	}})
	image, err := c.Images.Get(t.Context(), oneFingerprint)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"new": "2"}, image.Properties)
	require.False(t, image.Public)
}

// TestCloseEndsEveryPause: a call whose server or source requests a long pause, or is
// silent, ends when the client is closed.
func TestCloseEndsEveryPause(t *testing.T) {
	t.Parallel()
	type closeCase struct {
		name  string
		fault lxdtest.Fault
		run   func(*testing.T, *retryCase) error
	}
	conflict := lxdtest.Status(http.StatusPreconditionFailed, "it was changed").WithHeader("Retry-After", "600")
	busy := lxdtest.TooManyRequests(10 * time.Minute)
	cases := []closeCase{
		{"export that resumes", busy.On("GET", testkit.ExportPattern), func(t *testing.T, r *retryCase) error {
			r.Inject(lxdtest.CutResponse(9000).On("GET", testkit.ExportPattern).Times(1))
			_, err := r.image.ExportTo(r.ctx, t.TempDir(), nil)
			return err
		}},
		{"ExportTo of a split image", lxdtest.CutResponse(9000).On("GET", testkit.ExportPattern), func(t *testing.T, r *retryCase) error {
			metadata, rootfs := lxdtest.SplitImage("split", 24_000)
			fingerprint, err := r.AddImage(metadata, &lxdtest.AddOptions{Rootfs: rootfs})
			require.NoError(t, err)
			split, err := r.client.Images.Get(r.ctx, fingerprint)
			require.NoError(t, err)
			_, err = split.ExportTo(r.ctx, t.TempDir(), nil)
			return err
		}},
		{"revoking a token", busy.On("DELETE", "/1.0/operations/*"), func(t *testing.T, r *retryCase) error {
			r.Inject(lxdtest.LoseResponse().On("POST", "/1.0/images/*/secret").Times(1))
			_, err := r.image.Secret(r.ctx)
			require.ErrorIs(t, err, lxd.ErrUnavailable) // of the lost response
			return r.client.Aliases.Delete(r.ctx, "any")
		}},
		{"update in conflict", conflict.On("PUT", "/1.0/images/*"), func(t *testing.T, r *retryCase) error {
			_, err := r.client.Images.Update(r.ctx, r.image.Fingerprint, func(image *lxd.Image) error {
				image.Properties = map[string]string{"a": "b"}
				return nil
			}, nil)
			return err
		}},
		{"alias move in conflict", conflict.On("PUT", "/1.0/images/aliases/*"), func(t *testing.T, r *retryCase) error {
			other, err := r.AddImage(lxdtest.UnifiedImage("other", 1000), nil)
			require.NoError(t, err)
			require.NoError(t, r.image.AddAlias(r.ctx, "moved", ""))
			return r.client.Aliases.Set(r.ctx, lxd.Alias{Name: "moved", Target: other})
		}},
	}
	for _, path := range retryPaths {
		cases = append(cases, closeCase{path.name, busy.On(path.method, path.pattern), path.run})
	}
	data := lxdtest.UnifiedImage("other", 24_000)
	for name, respond := range map[string]func(*http.Request) (*http.Response, error){
		"is busy": func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 503, Status: "503 busy", Header: http.Header{"Retry-After": {"600"}}, Body: http.NoBody, Request: req}, nil
		},
		"is silent": func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		},
		"breaks, then is busy": func(req *http.Request) (*http.Response, error) {
			if req.Header.Get("Range") != "" {
				return &http.Response{StatusCode: 503, Status: "503 busy", Header: http.Header{"Retry-After": {"600"}}, Body: http.NoBody, Request: req}, nil
			}
			body := io.NopCloser(io.MultiReader(bytes.NewReader(data[:9000]), iotest.ErrReader(io.ErrUnexpectedEOF)))
			return &http.Response{StatusCode: 200, Header: http.Header{"Etag": {`"1"`}}, Body: body, ContentLength: int64(len(data)), Request: req}, nil
		},
	} {
		web := &http.Client{Transport: roundTripper(respond)}
		cases = append(cases,
			closeCase{"URL that " + name, lxdtest.Fault{}, func(t *testing.T, r *retryCase) error {
				_, err := r.client.Images.CreateFromURL(r.ctx, "https://images.example/image", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, HTTPClient: web})
				return err
			}})
		if strings.HasPrefix(name, "breaks") {
			continue // it is no index
		}
		cases = append(cases,
			closeCase{"stream that " + name, lxdtest.Fault{}, func(t *testing.T, r *retryCase) error {
				_, err := r.client.Images.CreateFromSimplestreams(r.ctx, "https://images.example", "alpine", &lxd.CreateFromSimplestreamsOptions{Via: lxd.ViaClient, HTTPClient: web})
				return err
			}})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			inRetryCase(t, &lxd.Options{StallTimeout: -1}, func(t *testing.T, r *retryCase) {
				var injected *lxdtest.Injection
				if c.fault.String() != "" {
					injected = r.Inject(c.fault)
				}
				result := make(chan error, 1)
				go func() { result <- c.run(t, r) }()
				time.Sleep(3 * time.Second)
				synctest.Wait()
				require.Empty(t, result, "it waits")
				if injected != nil {
					require.NotZero(t, injected.Fired())
				}
				closed := time.Now()
				require.NoError(t, r.client.Close())
				err := <-result
				require.Less(t, time.Since(closed), 200*time.Millisecond)
				require.ErrorIs(t, err, net.ErrClosed)
				require.ErrorIs(t, err, lxd.ErrUnavailable)
				require.NotErrorIs(t, err, context.Canceled)
			})
		})
	}
}
