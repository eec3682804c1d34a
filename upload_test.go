package lxd_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// lateReader is a seekable reader that waits in the Read that goes past a place.
type lateReader struct {
	t    *testing.T
	r    *bytes.Reader
	wait func()

	mu sync.Mutex // to see that it is used by one goroutine at a time
}

func (l *lateReader) Read(p []byte) (int, error) {
	if !l.mu.TryLock() {
		l.t.Error("it is read while it is used")
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	n, err := l.r.Read(p)
	if l.r.Len() < 1<<20 {
		l.wait()
	}
	return n, err
}

func (l *lateReader) Seek(offset int64, whence int) (int64, error) {
	if !l.mu.TryLock() {
		l.t.Error("it is rewound while it is used")
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	return l.r.Seek(offset, whence)
}

// TestRetryWaitsForTheReader: a server refuses early while the client is in a
// Read of the caller's reader, which the second attempt must not disturb.
func TestRetryWaitsForTheReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer server.Close()
		client, err := lxd.New("unix:///lxd", &lxd.Options{Dial: server.DialContext})
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close()) }()
		refused := server.Inject(lxdtest.EarlyResponse(1<<19, 503, "busy").On("POST", "/1.0/images").Times(1))
		data := lxdtest.UnifiedImage("late", 2<<20)
		var once sync.Once
		reader := &lateReader{t: t, r: bytes.NewReader(data), wait: func() {
			// The first time, until the client only waits.
			once.Do(func() { time.Sleep(time.Second) })
		}}
		image, err := client.Images.Create(t.Context(), reader, &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
		require.Equal(t, 1, refused.Fired())
	})
}

// TestReadersAreSentOnce: of a reader that cannot be rewound no more than 512 bytes is
// read before the server wants the content, and after that it is sent once.
func TestReadersAreSentOnce(t *testing.T) {
	t.Parallel()
	data := testkit.Unified(t, 4<<20)
	for name, test := range map[string]struct {
		fault    lxdtest.Fault
		is       error // nil: the upload succeeds
		read     int
		attempts int
	}{
		"refused":                        {lxdtest.Status(http.StatusForbidden, "no"), lxd.ErrForbidden, 512, 1},
		"unavailable, then not":          {lxdtest.Unavailable().Times(2), nil, len(data), 2},
		"broken before the content":      {lxdtest.Reset().Times(2), nil, len(data), 2},
		"broken in the content":          {lxdtest.CutRequest(1 << 20), lxd.ErrNotReplayable, len(data), 1},
		"response lost":                  {lxdtest.LoseResponse(), lxd.ErrNotReplayable, len(data), 1},
		"unavailable within the content": {lxdtest.EarlyResponse(1<<20, http.StatusServiceUnavailable, "busy"), lxd.ErrNotReplayable, len(data), 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testkit.StartFake(t)
			injected := server.Inject(test.fault.On("POST", "/1.0/images"))
			left := bytes.NewReader(data)
			image, err := server.Client.Images.Create(t.Context(), testkit.OneShotReader{Reader: left}, &lxd.CreateOptions{Wait: true})
			if test.is == nil {
				require.NoError(t, err)
				require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
			} else {
				require.ErrorIs(t, err, test.is)
			}
			require.LessOrEqual(t, len(data)-left.Len(), test.read)
			require.Equal(t, test.attempts, injected.Fired())
		})
	}
}

// TestContextEndsSlowReaders ends uploads while a reader that could be read
// again blocks, while it is sent and while it is hashed.
func TestContextEndsSlowReaders(t *testing.T) {
	t.Parallel()
	server := testkit.StartFake(t)
	data := lxdtest.UnifiedImage("slow", 2<<20)
	for name, reader := range map[string]func(wait func()) io.Reader{
		"sending": func(wait func()) io.Reader { return &lateReader{t: t, r: bytes.NewReader(data), wait: wait} },
		"hash": func(wait func()) io.Reader {
			return &slowHash{ReadSeeker: bytes.NewReader(data), at: bytes.NewReader(data), wait: wait}
		},
	} {
		for _, opts := range []*lxd.CreateOptions{nil, {Wait: true, Verify: true}} {
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := errors.New("enough")
			proceed := make(chan struct{})
			ended := make(chan error, 1)
			go func() {
				var once sync.Once
				_, err := server.Client.Images.Create(ctx, reader(func() {
					once.Do(func() { cancel(stop) })
					<-proceed
				}), opts)
				ended <- err
			}()
			select {
			case err := <-ended:
				require.ErrorIs(t, err, context.Canceled, name)
				require.ErrorIs(t, err, stop, name)
			case <-time.After(patience):
				t.Errorf("%s: the context does not end it", name)
			}
			close(proceed)
		}
	}
}

// slowHash blocks the last Read at its end, usually that of the hash and not that of
// the upload.
type slowHash struct {
	io.ReadSeeker
	at   *bytes.Reader
	wait func()

	mu   sync.Mutex
	last int
}

func (s *slowHash) ReadAt(p []byte, offset int64) (int, error) {
	if offset+int64(len(p)) >= s.at.Size() {
		s.mu.Lock()
		s.last++
		second := s.last == 2
		s.mu.Unlock()
		if second {
			s.wait()
		}
	}
	return s.at.ReadAt(p, offset)
}

// TestBusyServerKeepsUpload responds 429 to what sets the attributes after the
// upload: the image exists, and a second call can set them.
func TestBusyServerKeepsUpload(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, nil, &lxd.Options{RetryTimeout: -1})
	data := testkit.Unified(t, 0)
	f.Inject(lxdtest.TooManyRequests(0).On("PUT", "/1.0/images/*"))
	_, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{ExpiresAt: time.Now().Add(time.Hour), Wait: true})
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	exists, err := f.Client.Images.Exists(t.Context(), lxdtest.Fingerprint(data))
	require.NoError(t, err)
	require.True(t, exists)
}

// refusingProxy is the server's side of a connection through a proxy that responds
// 503 to the first uploads, and leaves the connection open.
func refusingProxy(conn net.Conn, dial func(context.Context, string, string) (net.Conn, error), refusals *atomic.Int64) {
	defer conn.Close()
	upstream := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return dial(ctx, "unix", address)
	}}
	from := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(from)
		if err != nil {
			return
		}
		if req.Method == http.MethodPost && refusals.Add(-1) >= 0 {
			if _, err := io.WriteString(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"); err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			continue
		}
		if req.Header.Get("Expect") != "" {
			if _, err := io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
				return
			}
			req.Header.Del("Expect")
		}
		req.RequestURI, req.URL.Scheme, req.URL.Host = "", "http", "unix"
		res, err := upstream.RoundTrip(req)
		if err != nil {
			return
		}
		err = res.Write(conn)
		_ = res.Body.Close()
		if err != nil || req.Close {
			return
		}
	}
}

// TestRefusalThatLeavesTheConnectionOpen uploads a one-shot reader through a proxy
// that refuses it before it is read: it is retried.
func TestRefusalThatLeavesTheConnectionOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer server.Close()
		var refusals atomic.Int64
		client, err := lxd.New("unix:///proxy", &lxd.Options{Dial: func(context.Context, string, string) (net.Conn, error) {
			local, remote := net.Pipe()
			go refusingProxy(remote, server.DialContext, &refusals)
			return local, nil
		}})
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close()) }()
		refusals.Store(5)
		data := testkit.Unified(t, 1<<20)
		image, err := client.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
		require.Negative(t, refusals.Load())
	})
}

// TestSameUploadWithAlias uploads twice under a name that is then taken by this
// very image.
func TestSameUploadWithAlias(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	data := testkit.Unified(t, 0)
	for _, opts := range []lxd.CreateOptions{{}, {Fingerprint: lxdtest.Fingerprint(data)}, {Dedupe: true}} {
		opts.Aliases, opts.Wait = []lxd.Alias{{Name: "prod"}}, true
		image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), &opts)
		require.NoError(t, err)
		require.Len(t, image.Aliases, 1)
	}
}

// TestWaitFailsAgain waits twice for an upload whose alias was taken in the
// meantime, and once more when it is free.
func TestWaitFailsAgain(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	other, err := f.Client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 1000)), &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "prod"}}})
	require.NoError(t, err)
	require.NoError(t, other.AddAlias(t.Context(), "prod", ""))
	for range 2 {
		require.ErrorIs(t, image.Wait(t.Context()), lxd.ErrExists)
	}
	require.NoError(t, other.DeleteAlias(t.Context(), "prod"))
	require.NoError(t, image.Wait(t.Context()))
	require.Len(t, image.Aliases, 1)
	require.NoError(t, image.DeleteAlias(t.Context(), "prod"))
	require.NoError(t, image.Wait(t.Context()), "it has ended")
	require.Empty(t, image.Aliases)
}

// watchedReader has no end, blocks once, and records reads that end after the call
// has returned.
type watchedReader struct {
	blockAt  int // bytes after which a Read waits for proceed
	proceed  chan struct{}
	blocked  chan struct{} // closed when it does
	wentOn   chan struct{} // closed at the end of that Read
	read     atomic.Int64
	returned atomic.Bool // the call
	late     atomic.Bool // a Read ended after it
}

func newWatchedReader(blockAt int) *watchedReader {
	return &watchedReader{blockAt: blockAt, proceed: make(chan struct{}), blocked: make(chan struct{}), wentOn: make(chan struct{})}
}

func (r *watchedReader) Read(p []byte) (int, error) {
	before := r.read.Add(int64(len(p))) - int64(len(p))
	select {
	case <-r.blocked:
	default:
		if before >= int64(r.blockAt) {
			close(r.blocked)
			<-r.proceed
			defer close(r.wentOn)
		}
	}
	if r.returned.Load() {
		r.late.Store(true)
	}
	return len(p), nil
}

// heldConn is a client's connection that delays a refusal until it is released.
type heldConn struct {
	net.Conn
	mayGoOn func() <-chan struct{}
}

func (c heldConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if bytes.Contains(p[:n], []byte("507 Insufficient Storage")) {
		<-c.mayGoOn()
	}
	return n, err
}

// TestCreateReadsNoMoreWhenItHasReturned has a server that refuses an upload in
// the middle, while the reader is being read: the rest of the reader must not be read.
func TestCreateReadsNoMoreWhenItHasReturned(t *testing.T) {
	t.Parallel()
	s := lxdtest.NewServer(nil)
	t.Cleanup(s.Close)
	s.Inject(lxdtest.EarlyResponse(1<<20, http.StatusInsufficientStorage, "the disk is full").On("POST", "/1.0/images"))
	refused := make(chan struct{}, 1)
	var current atomic.Pointer[watchedReader]
	client := testkit.NewClient(t, s.Endpoint(), &lxd.Options{
		// The refusal comes while the reader is being read.
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			return heldConn{conn, func() <-chan struct{} { return current.Load().blocked }}, err
		},
		Transport: func(next http.RoundTripper) http.RoundTripper {
			return roundTripFunc(func(req *http.Request) (*http.Response, error) {
				res, err := next.RoundTrip(req)
				if req.Method == http.MethodPost {
					refused <- struct{}{}
				}
				return res, err
			})
		},
	})
	for _, size := range []int64{0, 1 << 40} {
		r := newWatchedReader(1 << 20)
		current.Store(r)
		go func() {
			<-refused
			// So much later a call that does not wait has returned.
			time.AfterFunc(300*time.Millisecond, func() { close(r.proceed) })
		}()
		_, err := client.Images.Create(t.Context(), r, &lxd.CreateOptions{Size: size})
		r.returned.Store(true)
		var failed *lxd.Error
		require.ErrorAs(t, err, &failed)
		require.Equal(t, http.StatusInsufficientStorage, failed.StatusCode)
		<-r.wentOn
		require.False(t, r.late.Load())
	}

	// A Read that does not end is left alone when the context has ended.
	r := newWatchedReader(1 << 20)
	current.Store(r)
	defer close(r.proceed)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-refused
		cancel()
	}()
	_, err := client.Images.Create(ctx, r, nil)
	require.Error(t, err)
}

// TestBlockedReader: the end of ctx ends an upload whose reader returns nothing.
func TestBlockedReader(t *testing.T) {
	t.Parallel()
	server := testkit.StartFake(t)
	for _, opts := range []*lxd.CreateOptions{nil, {Wait: true, Verify: true}} {
		r, w := io.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		started := time.Now()
		_, err := server.Client.Images.Create(ctx, r, opts)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(started), patience)
		require.NoError(t, w.Close())
	}
	require.Empty(t, server.Images())
}

// TestUploadOfAnotherImage: the header with the fingerprint of an upload is
// lost, so the server verifies nothing. The image that it creates is deleted, and one
// that existed before is not.
func TestUploadOfAnotherImage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testkit.StartFake(t)
	data := testkit.Unified(t, 1000)
	fingerprint := lxdtest.Fingerprint(data)
	before, err := s.AddImage(testkit.Unified(t, 2000), nil)
	require.NoError(t, err)
	lost := func(req *http.Request) {
		for name := range req.Header {
			if strings.HasSuffix(strings.ToLower(name), "-fingerprint") {
				req.Header.Del(name)
			}
		}
	}
	proxied := rewriting(t, s.Endpoint(), lost, nil)
	for _, wait := range []bool{true, false} {
		for name, reader := range map[string]io.Reader{"file": bytes.NewReader(data), "one-shot": testkit.OneShotReader{Reader: bytes.NewReader(data)}} {
			for _, verify := range []bool{true, false} {
				if seeker, ok := reader.(io.Seeker); ok {
					_, err := seeker.Seek(0, io.SeekStart)
					require.NoError(t, err)
				} else {
					reader = testkit.OneShotReader{Reader: bytes.NewReader(data)}
				}
				image, err := proxied.Images.Create(ctx, reader, &lxd.CreateOptions{Fingerprint: oneFingerprint, Verify: verify, Wait: wait})
				if !wait {
					require.NoError(t, err, name)
					err = image.Wait(ctx)
				}
				mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
				require.Equal(t, oneFingerprint, mismatch.Want, name)
				require.Equal(t, fingerprint, mismatch.Got, name)
				require.Len(t, s.Images(), 1, name)
			}
		}
	}

	// The server reports an image that existed before.
	silent := false
	began := regexp.MustCompile(`"created_at":"[^"]*"`)
	lying := func(told string) *lxd.Client {
		return rewriting(t, s.Endpoint(), lost, func(req *http.Request, body []byte) []byte {
			if strings.Contains(req.URL.Path, "/operations/") {
				body = bytes.ReplaceAll(body, []byte(fingerprint), []byte(told))
			}
			if strings.Contains(req.URL.Path, "/operations/") && told == before && silent {
				body = began.ReplaceAll(body, nil)
				body = bytes.ReplaceAll(body, []byte(`,,`), []byte(`,`))
			}
			return body
		})
	}
	for _, opts := range []*lxd.CreateOptions{{Fingerprint: fingerprint}, {Verify: true}} {
		opts.Wait = true
		silent = !silent // when the operation began
		for _, told := range []string{before, "../" + before[3:], "1a1a"} {
			_, err := lying(told).Images.Create(ctx, bytes.NewReader(data), opts)
			mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
			require.Equal(t, fingerprint, mismatch.Want)
			require.Equal(t, told, mismatch.Got)
			require.NotErrorIs(t, err, lxd.ErrInvalid, "nobody asks for it")
			_, there := s.Image(before)
			require.True(t, there, "it is somebody else's")
			image, err := s.Client.Images.Get(ctx, fingerprint)
			require.NoError(t, err)
			require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
		}
	}
	// The server reports the requested image, but was sent another.
	claimed := rewriting(t, s.Endpoint(), lost, func(req *http.Request, body []byte) []byte {
		return bytes.ReplaceAll(body, []byte(fingerprint), []byte(oneFingerprint))
	})
	_, err = claimed.Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Fingerprint: oneFingerprint, Verify: true, Wait: true})
	lie := testkit.ErrOf[*lxd.FingerprintError](t, err)
	require.Equal(t, []string{fingerprint, oneFingerprint}, []string{lie.Want, lie.Got})
	made, err := s.Client.Images.Get(ctx, fingerprint)
	require.NoError(t, err)
	require.NoError(t, made.Delete(ctx, &lxd.DeleteOptions{Wait: true}))

	// No fingerprint is required, and the reported one is invalid.
	_, err = lying("1a1a").Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.ErrorIs(t, err, lxd.ErrBadResponse)

	// The upload has failed as the content exists; the reported image is another.
	_, err = lying(before).Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Verify: true, Wait: true})
	mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
	require.Equal(t, []string{fingerprint, before}, []string{mismatch.Want, mismatch.Got})
	require.Len(t, s.Images(), 2)
}
