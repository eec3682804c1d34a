package lxd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestStalledUploadIsSentAgain has the server take nothing more in the middle of
// an upload, on each way that a body takes to a connection.
func TestStalledUploadIsSentAgain(t *testing.T) {
	t.Parallel()
	data := testkit.Unified(t, 24<<20)
	file := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	for _, overTLS := range []bool{false, true} {
		for name, reader := range map[string]func(*testing.T) io.Reader{
			"file": func(t *testing.T) io.Reader {
				t.Helper()
				f, err := os.Open(file)
				require.NoError(t, err)
				t.Cleanup(func() { _ = f.Close() })
				return f
			},
			"memory": func(*testing.T) io.Reader { return bytes.NewReader(data) },
			"seeker": func(*testing.T) io.Reader { return struct{ io.ReadSeeker }{bytes.NewReader(data)} },
		} {
			over := "unix"
			if overTLS {
				over = "TLS"
			}
			t.Run(name+" over "+over, func(t *testing.T) {
				t.Parallel()
				server := lxdtest.NewServer(&lxdtest.Options{TLS: overTLS})
				t.Cleanup(server.Close)
				opts, endpoint := &lxd.Options{StallTimeout: time.Second}, server.Endpoint()
				if overTLS {
					endpoint = server.URL()
					opts.ClientCertificate, opts.ClientKey = server.ClientCertificate()
					opts.ServerCertificate = server.Certificate()
				}
				client := testkit.NewClient(t, endpoint, opts)
				stalled := server.Inject(lxdtest.StallRequest(1<<20).On("POST", "/1.0/images").Times(1))
				defer stalled.Release()
				image, err := client.Images.Create(t.Context(), reader(t), &lxd.CreateOptions{Wait: true})
				require.NoError(t, err)
				require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
				require.Equal(t, 1, stalled.Fired())
			})
		}
	}
}

// TestStalledUploadThroughAWrapper has Options.Transport wrap the body, so that
// net/http reads it, and does not pass it to the connection.
func TestStalledUploadThroughAWrapper(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, &lxd.Options{Transport: func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				if req.Body != nil {
					req = req.Clone(req.Context())
					req.Body = struct{ io.ReadCloser }{req.Body}
				}
				return next.RoundTrip(req)
			})
		}})
		stalled := server.Inject(lxdtest.StallRequest(1<<20).On("POST", "/1.0/images").Times(1))
		defer stalled.Release()
		data := testkit.Unified(t, 2<<20)
		image, err := server.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
		require.Equal(t, 1, stalled.Fired())
	})
}

// TestStalledHandshake: a server that accepts the connection and is then silent is waited
// for for 10 seconds, even without a stall timeout.
func TestStalledHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, err := lxd.New("https://lxd", &lxd.Options{RetryTimeout: -1, StallTimeout: -1, Dial: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			return near, nil
		}})
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close()) }()
		began := time.Now()
		_, err = client.Server(t.Context())
		require.ErrorIs(t, err, lxd.ErrUnavailable)
		require.Equal(t, 10*time.Second, time.Since(began))
	})
}

// TestStalledDial has making a connection take for ever: it is waited for the
// server, whether the request has a body or not.
func TestStalledDial(t *testing.T) {
	data := testkit.Unified(t, 0)
	for name, call := range map[string]func(*testing.T, *lxd.Client) error{
		"without a body": func(t *testing.T, c *lxd.Client) error {
			t.Helper()
			_, err := c.Images.All(t.Context(), nil)
			return err
		},
		"JSON": func(t *testing.T, c *lxd.Client) error {
			t.Helper()
			return c.Aliases.Rename(t.Context(), "alias", "other")
		},
		"upload": func(t *testing.T, c *lxd.Client) error {
			t.Helper()
			_, err := c.Images.Create(t.Context(), bytes.NewReader(data), nil)
			return err
		},
		"one-shot upload": func(t *testing.T, c *lxd.Client) error {
			t.Helper()
			_, err := c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
				defer server.Close()
				var hang atomic.Bool
				client, err := lxd.New("unix:///server", &lxd.Options{RetryTimeout: -1, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					if hang.Load() {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return server.DialContext(ctx, network, address)
				}})
				require.NoError(t, err)
				defer func() { require.NoError(t, client.Close()) }()
				_, err = client.Server(t.Context())
				require.NoError(t, err)
				time.Sleep(time.Minute) // the idle connection is closed
				hang.Store(true)
				began := time.Now()
				require.ErrorIs(t, call(t, client), lxd.ErrUnavailable)
				require.Equal(t, time.Minute, time.Since(began))
			})
		})
	}
}

// TestContinueThatIsNotSent has a short timeout, and a proxy that does not send
// "100 Continue": the content is sent nevertheless.
func TestContinueThatIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer server.Close()
		client, err := lxd.New("unix:///server", &lxd.Options{StallTimeout: time.Second, RetryTimeout: -1, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := server.DialContext(ctx, network, address)
			return deafConn{conn}, err
		}})
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close()) }()
		data := testkit.Unified(t, 1<<20)
		began := time.Now()
		image, err := client.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
		require.GreaterOrEqual(t, time.Since(began), 10*time.Second)
	})
}

// deafConn loses "100 Continue".
type deafConn struct{ net.Conn }

func (c deafConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		rest, lost := bytes.CutPrefix(p[:n], []byte("HTTP/1.1 100 Continue\r\n\r\n"))
		if n = copy(p, rest); n > 0 || err != nil || !lost {
			return n, err
		}
	}
}

// pausing takes ten minutes for each Read and Write, which is nobody's fault.
type pausing struct {
	r io.Reader
	w io.Writer
}

func (p pausing) Read(b []byte) (int, error) {
	time.Sleep(10 * time.Minute)
	return p.r.Read(b)
}

func (p pausing) Write(b []byte) (int, error) {
	time.Sleep(10 * time.Minute)
	return p.w.Write(b)
}

// TestSlowCallersDoNotStall uploads from a reader, and exports to a writer, that
// take longer than the timeout of the server.
func TestSlowCallersDoNotStall(t *testing.T) {
	for name, wrap := range map[string]func(http.RoundTripper) http.RoundTripper{
		"plain": nil,
		"with a body that Options.Transport has wrapped": func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				if r.Body != nil {
					r = r.Clone(r.Context())
					r.Body = struct{ io.ReadCloser }{r.Body}
				}
				return next.RoundTrip(r)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { transferSlowly(t, wrap) })
		})
	}
}

func transferSlowly(t *testing.T, wrap func(http.RoundTripper) http.RoundTripper) {
	t.Helper()
	server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
	defer server.Close()
	client, err := lxd.New("unix:///server", &lxd.Options{Dial: server.DialContext, RetryTimeout: -1, Transport: wrap})
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()
	data := testkit.Unified(t, 8<<20) // more than is read ahead
	began := time.Now()
	for _, again := range []bool{false, true} {
		reader := bytes.NewReader(testkit.Unified(t, 8<<20))
		var slow io.Reader = pausing{r: reader}
		if again { // is sent without "Expect: 100-continue"
			slow = struct {
				io.Reader
				io.Seeker
			}{slow, reader}
		}
		_, err := client.Images.Create(t.Context(), slow, &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
	}
	image, err := client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	export, err := image.Export(t.Context(), nil)
	require.NoError(t, err)
	defer func() { _ = export.Close() }()
	var got bytes.Buffer
	_, err = export.WriteTo(pausing{w: &got})
	require.NoError(t, err)
	require.Equal(t, lxdtest.Fingerprint(data), lxdtest.Fingerprint(got.Bytes()))
	require.Greater(t, time.Since(began), time.Hour)
}

// TestNoStallTimeout waits for a server for as long as ctx lets.
func TestNoStallTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer server.Close()
		client, err := lxd.New("unix:///server", &lxd.Options{Dial: server.DialContext, StallTimeout: -1})
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close()) }()
		stalled := server.Inject(lxdtest.StallHeaders().Times(1))
		release := time.AfterFunc(24*time.Hour, stalled.Release)
		defer release.Stop()
		began := time.Now()
		_, err = client.Images.All(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, 24*time.Hour, time.Since(began))
	})
}
