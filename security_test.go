package lxd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// TestRedirectsAreNotFollowed: another host never sees a request, let alone the
// token.
func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	elsewhere := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(elsewhere.Close)
	for _, status := range []int{301, 302, 303, 307, 308} {
		var seen http.Header
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = r.Header.Clone()
			http.Redirect(w, r, elsewhere.URL()+r.URL.Path+"?secret=s3cr3t", status)
		}))
		c := newClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw), Token: "bearer-s3cr3t"})
		_, err := c.Images.All(t.Context(), nil)
		require.ErrorIs(t, err, lxd.ErrBadResponse)
		require.NotContains(t, err.Error(), "s3cr3t")
		require.Equal(t, "Bearer bearer-s3cr3t", seen.Get("Authorization"))
		for _, err := range c.Events(t.Context(), nil) {
			require.Error(t, err)
			require.NotContains(t, err.Error(), "s3cr3t")
		}
		server.Close()
	}
	require.Empty(t, elsewhere.Requests())
}

// recorder is a slog handler that keeps every record as text.
type recorder struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// TestSecretsAreNotTold drives what handles secrets, with and without failures,
// and looks for them in all errors and log records.
func TestSecretsAreNotTold(t *testing.T) {
	t.Parallel()
	const bearer = "bearer-s3cr3t"
	const password = "password-s3cr3t"
	log := &recorder{}
	options := func(s *lxdtest.Server) *lxd.Options {
		cert, key := s.ClientCertificate()
		return &lxd.Options{
			ClientCertificate: cert, ClientKey: key, ServerCertificate: s.Certificate(), Token: bearer, RetryTimeout: shortRetries,
			Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}
	}
	source := lxdtest.NewServer(&lxdtest.Options{TLS: true, TrustPassword: password})
	t.Cleanup(source.Close)
	target := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(target.Close)
	from, to := newClient(t, source.URL(), options(source)), newClient(t, target.URL(), options(target))
	_, key := source.ClientCertificate()

	var secrets, told []string
	secrets = append(secrets, bearer, password, "user-s3cr3t", "query-s3cr3t", strings.Split(string(key), "\n")[1])
	tell := func(err error) { told = append(told, textsOf(err)...) }
	faults := []*lxdtest.Fault{nil}
	for _, f := range []lxdtest.Fault{
		lxdtest.Reset(), lxdtest.HTML(), lxdtest.Status(400, "no"), lxdtest.LoseResponse(), lxdtest.EndlessJSON(),
		lxdtest.Redirect("https://elsewhere.invalid/?secret=query-s3cr3t"),
	} {
		faults = append(faults, &f)
	}
	for n, f := range faults {
		fingerprint, err := source.AddImage(lxdtest.UnifiedImage(fmt.Sprint("secrets", n), 0), nil)
		require.NoError(t, err)
		image, err := from.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		secret, err := image.Secret(t.Context())
		require.NoError(t, err)
		secrets = append(secrets, secret.Value)
		var injected []*lxdtest.Injection
		if f != nil {
			for _, s := range []*lxdtest.Server{source, target} {
				injected = append(injected, s.Inject(*f))
			}
		}
		_, err = from.Images.GetWithSecret(t.Context(), fingerprint, secret.Value)
		tell(err)
		for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay} {
			_, err = image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, Wait: true})
			tell(err)
		}
		_, err = to.Images.CreateFromURL(t.Context(), "http://user:user-s3cr3t@127.0.0.1:1/x?token=query-s3cr3t", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true})
		require.Error(t, err)
		tell(err)
		tell(from.TrustPassword(t.Context(), password, nil))
		tell(secret.Revoke(t.Context()))
		for _, i := range injected {
			require.NotZero(t, i.Fired())
			i.Remove()
		}
	}
	_, err := lxd.New("https://user:user-s3cr3t@host:8443", nil)
	require.Error(t, err)
	tell(err)

	require.Contains(t, log.String(), "/1.0/images") // the log was on
	require.NotEmpty(t, told)
	for _, secret := range secrets {
		require.NotEmpty(t, secret)
		require.NotContains(t, log.String(), secret)
		for _, text := range told {
			require.NotContains(t, text, secret)
		}
	}
}

// TestTLSVersions: 1.3 where the server has it, 1.2 at the least.
func TestTLSVersions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		server uint16 // the newest that the server speaks
		want   uint16 // 0: refused
	}{{tls.VersionTLS13, tls.VersionTLS13}, {tls.VersionTLS12, tls.VersionTLS12}, {tls.VersionTLS11, 0}} {
		var got uint16
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = r.TLS.Version
			_, _ = io.WriteString(w, `{"type":"sync","metadata":[]}`)
		}))
		server.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: c.server}
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		server.StartTLS()
		client := newClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw), RetryTimeout: -1})
		_, err := client.Aliases.All(t.Context())
		require.Equal(t, c.want, got)
		require.Equal(t, c.want == 0, err != nil, "%v", err)
		server.Close()
	}
}

// TestPins: a server that shows another certificate is not sent a request.
func TestPins(t *testing.T) {
	t.Parallel()
	server, other := lxdtest.NewServer(&lxdtest.Options{TLS: true}), lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(server.Close)
	t.Cleanup(other.Close)
	for name, opts := range map[string]*lxd.Options{
		"certificate": {ServerCertificate: other.Certificate()},
		"fingerprint": {ServerFingerprint: strings.Repeat("ab", 32)},
	} {
		c := newClient(t, server.URL(), opts)
		_, err := c.Images.All(t.Context(), nil)
		errOf[*lxd.PinError](t, err)
		require.ErrorIs(t, err, lxd.ErrUnavailable, name)
		for _, err := range c.Events(t.Context(), nil) {
			errOf[*lxd.PinError](t, err)
		}
	}
	_, err := newClient(t, server.URL(), nil).Images.All(t.Context(), nil)
	var unknown *tls.CertificateVerificationError
	require.ErrorAs(t, err, &unknown)
	require.Empty(t, server.Requests())
}

// TestMetadataIsBounded feeds answers without an end, each of a shape that
// decodes, and looks at the memory.
func TestMetadataIsBounded(t *testing.T) {
	var sent atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := `{"type":"sync","metadata":{"name":"`
		switch {
		case strings.Contains(r.URL.Path, "/operations/"):
			start = `{"type":"sync","metadata":{"id":"x","err":"`
		case strings.HasSuffix(r.URL.Path, "/missing"):
			start = `{"type":"error","error":"`
		}
		_, err := io.WriteString(w, start)
		sent.Store(0)
		for block := strings.Repeat("x", 64<<10); err == nil; {
			var n int
			n, err = io.WriteString(w, block)
			sent.Add(int64(n))
		}
	}))
	_ = server.Listener.Close()
	server.Listener = l
	server.StartTLS()
	t.Cleanup(server.Close)
	c := newClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw)})
	for name, call := range map[string]func() error{
		"alias":   func() error { _, err := c.Aliases.Get(t.Context(), "a"); return err },
		"refusal": func() error { _, err := c.Aliases.Get(t.Context(), "missing"); return err },
		"server":  func() error { _, err := c.Server(t.Context()); return err },
		"image":   func() error { _, err := c.Images.Get(t.Context(), "ab"); return err },
		"each": func() error {
			for _, err := range c.Images.Each(t.Context(), nil) {
				return err
			}
			return nil
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := call()
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, lxd.ErrBadResponse, name)
		require.Less(t, after.HeapSys, before.HeapSys+(256<<20), name)
		require.Less(t, sent.Load(), int64(64<<20), name)
	}
}

// TestBlockedReader: the end of ctx ends an upload whose reader gives nothing.
func TestBlockedReader(t *testing.T) {
	t.Parallel()
	server := startFake(t)
	for _, opts := range []*lxd.CreateOptions{nil, {Wait: true, Verify: true}} {
		r, w := io.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		started := time.Now()
		_, err := server.Client.Images.Create(ctx, r, opts)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(started), time.Second+100*time.Millisecond)
		require.NoError(t, w.Close())
	}
	require.Empty(t, server.Images())
}
