package lxd_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// tokens counts the tokens that wait to be used.
func tokens(t *testing.T, clients ...*lxd.Client) (n int) {
	t.Helper()
	for _, c := range clients {
		ops, err := c.Operations(t.Context())
		require.NoError(t, err)
		for _, op := range ops {
			if s := op.Status(); s.Class == "token" && !s.Done() {
				n++
			}
		}
	}
	return n
}

// imageOf adds an image that goes with the server.
func imageOf(t *testing.T, f *testkit.Fake) *lxd.Image {
	t.Helper()
	fingerprint, err := f.AddImage(testkit.Unified(t, 0), nil)
	require.NoError(t, err)
	image, err := f.Client.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	return image
}

// requireEarlier returns when a token is older than what a response may take, and than
// the second to which a server's clock is known where no response arrives: one that is not
// cannot be distinguished from one that is lost now.
func requireEarlier(t *testing.T, secret *lxd.Secret) {
	t.Helper()
	created := secret.Operation().Status().CreatedAt
	require.Eventually(t, func() bool { return time.Since(created) > 3*time.Second }, patience, tick)
}

// loser is a proxy before a daemon's socket which loses the responses of selected
// requests. The daemon has processed them.
type loser struct {
	endpoint string
	lose     atomic.Pointer[func(*http.Request) bool]
	lost     atomic.Int64
}

func newLoser(t *testing.T, socket string) *loser {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	l := &loser{endpoint: "unix://" + path}
	l.set(func(*http.Request) bool { return false })
	pool := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "unix"}) },
		Transport: pool,
		ModifyResponse: func(res *http.Response) error {
			if (*l.lose.Load())(res.Request) {
				l.lost.Add(1)
				return http.ErrAbortHandler
			}
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	server := &http.Server{Handler: proxy}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		<-served
		pool.CloseIdleConnections()
	})
	return l
}

func (l *loser) set(lose func(*http.Request) bool) { l.lose.Store(&lose) }

// times loses the response of the first n requests of this method and end of
// the path.
func (l *loser) times(n int64, method, end string) {
	var met atomic.Int64
	l.set(func(r *http.Request) bool {
		return r.Method == method && strings.HasSuffix(r.URL.Path, end) && met.Add(1) <= n
	})
}

// socketOf is the path of a subject's socket.
func socketOf(s *testkit.Subject) string {
	if s.Fake != nil {
		return s.Fake.Socket()
	}
	return s.Real.Socket
}

// TestLostTokens loses the responses with tokens, and those of revoking them, of
// lxdtest and of real daemons. No token of the client remains, and none of another
// program is revoked.
func TestLostTokens(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			if s.Fake != nil {
				t.Parallel()
			}
			loseTokens(t, s)
		})
	}
}

func loseTokens(t *testing.T, s *testkit.Subject) {
	t.Helper()
	direct, twin := s.Client(t), s.Twin.Client(t)
	atSource, atTarget := newLoser(t, socketOf(s)), newLoser(t, socketOf(s.Twin))
	source, target := testkit.NewClient(t, atSource.endpoint, nil), testkit.NewClient(t, atTarget.endpoint, nil)
	image := testkit.Upload(t, source, nil)
	foreign, err := direct.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	theirs, err := foreign.Secret(t.Context())
	require.NoError(t, err)
	requireEarlier(t, theirs)
	before := tokens(t, direct, twin)
	info, err := direct.Server(t.Context())
	require.NoError(t, err)
	for name, test := range map[string]struct {
		at   *loser
		n    int64 // how many responses are lost
		lose [2]string
		mode lxd.CopyMode
		fail bool
	}{
		"secret once":            {atSource, 1, [2]string{"POST", "/secret"}, "secret", true},
		"secret always":          {atSource, 1000, [2]string{"POST", "/secret"}, "secret", true},
		"pull once":              {atSource, 1, [2]string{"POST", "/secret"}, lxd.CopyPull, true},
		"pull, then another way": {atSource, 1, [2]string{"POST", "/secret"}, lxd.CopyAuto, false},
		"push once":              {atTarget, 1, [2]string{"POST", "/1.0/images"}, lxd.CopyPush, true},
		"push always":            {atTarget, 1000, [2]string{"POST", "/1.0/images"}, lxd.CopyPush, true},
	} {
		if test.mode == lxd.CopyPush && !info.Has("images_push_relay") {
			continue
		}
		for range testkit.Size(t, 1, 50) {
			lost := test.at.lost.Load()
			test.at.times(test.n, test.lose[0], test.lose[1])
			var err error
			if test.mode == "secret" {
				_, err = image.Secret(t.Context())
			} else {
				var copied *lxd.Copied
				if copied, err = image.Copy(t.Context(), target, &lxd.CopyOptions{Mode: test.mode, Wait: true}); err == nil {
					require.NoError(t, copied.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
				}
			}
			test.at.set(func(*http.Request) bool { return false })
			if test.fail {
				require.ErrorIs(t, err, lxd.ErrUnavailable, name)
			} else {
				require.NoError(t, err, name)
			}
			require.Greater(t, test.at.lost.Load(), lost, name)
			require.Equal(t, before, tokens(t, direct, twin), "%s %s: only theirs is left", s.Column, name)
		}
	}
	require.NoError(t, theirs.Operation().Cancel(t.Context()), "it was running")
}

// TestRevokingATokenIsRetried has revoking a token fail with each transient error.
func TestRevokingATokenIsRetried(t *testing.T) {
	t.Parallel()
	modes := []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyAuto}
	for name, fault := range map[string]lxdtest.Fault{
		"500":         lxdtest.Status(500, "database is locked").Times(1),
		"500, thrice": lxdtest.Status(500, "database is locked").Times(3),
		"reset":       lxdtest.Reset().Times(1),
		"lost":        lxdtest.LoseResponse().Times(1),
		"a page":      lxdtest.HTML().Times(1),
	} {
		for _, mode := range modes {
			t.Run(fmt.Sprintf("%s, %q", name, mode), func(t *testing.T) {
				t.Parallel()
				revokingIsRetried(t, fault, mode, true)
			})
		}
	}
	for _, mode := range modes {
		t.Run(fmt.Sprintf("without Wait, %q", mode), func(t *testing.T) {
			t.Parallel()
			revokingIsRetried(t, lxdtest.Status(500, "database is locked").Times(1), mode, false)
		})
	}
	// What never passes is given up, in time.
	source := testkit.StartFake(t)
	secret, err := testkit.Upload(t, source.Client, nil).Secret(t.Context())
	require.NoError(t, err)
	source.Inject(lxdtest.Status(500, "database is locked").On("DELETE", "/1.0/operations/*").Times(1))
	require.ErrorContains(t, secret.Revoke(t.Context()), "locked")
	require.NoError(t, secret.Revoke(t.Context()))
	require.Empty(t, source.Tokens())
}

// revokingIsRetried makes a copy fail, or be relayed, and the revocation of its token
// fail with the fault.
func revokingIsRetried(t *testing.T, fault lxdtest.Fault, mode lxd.CopyMode, wait bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fleet := testkit.StartFleet(t, &lxd.Options{RetryTimeout: -1}, make([]lxdtest.Options, 2)...)
		source, target := fleet[0], fleet[1]
		image := imageOf(t, source)
		// Nobody gets as far as using the token.
		source.Inject(lxdtest.Status(500, "disk broken").On("POST", "/1.0/images/*/export"))
		source.Inject(lxdtest.Status(502, "a proxy").On("GET", "/1.0/images/*").Times(2))
		failing := []*lxdtest.Injection{source.Inject(fault.On("DELETE", "/1.0/operations/*")), target.Inject(fault.On("DELETE", "/1.0/operations/*"))}
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: mode, Wait: wait})
		if err == nil {
			err = copied.Wait(t.Context())
		}
		if mode == lxd.CopyAuto {
			require.NoError(t, err)
		} else {
			require.Error(t, err)
		}
		require.Positive(t, failing[0].Fired()+failing[1].Fired())
		require.Empty(t, source.Tokens())
		require.Empty(t, target.Tokens())
	})
}

// TestTokenOutlivesAWait has a Wait cancelled before the other server has used the
// token. The next Wait completes the copy; then no token remains.
func TestTokenOutlivesAWait(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush} {
		for _, fails := range []bool{false, true} {
			source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
			target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
			image := imageOf(t, source)
			// The server of the token, and the one that uses it.
			holder, worker := source, target
			if mode == lxd.CopyPush {
				holder, worker = target, source
			}
			stalled := worker.Inject(lxdtest.StallOperations())
			copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: mode})
			require.NoError(t, err)
			for range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				require.ErrorIs(t, copied.Wait(ctx), context.DeadlineExceeded)
				cancel()
				require.Len(t, holder.Tokens(), 1, mode)
			}
			if fails {
				source.Inject(lxdtest.Status(400, "no").On("GET", "/1.0/images/*"))
				target.Inject(lxdtest.Status(400, "no").On("POST", "/1.0/images"))
			}
			stalled.Remove()
			if err := copied.Wait(t.Context()); fails {
				require.Error(t, err, mode)
			} else {
				require.NoError(t, err, mode)
				testkit.RequireCopy(t, image, copied)
			}
			require.Empty(t, holder.Tokens(), mode)
		}
	}
}

// TestTokenOfAnEndedCopy: no token remains if nobody can wait for the copy any more, or
// the server has forgotten it.
func TestTokenOfAnEndedCopy(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush} {
		synctest.Test(t, func(t *testing.T) {
			fleet := testkit.StartFleet(t, nil, make([]lxdtest.Options, 2)...)
			source, target := fleet[0], fleet[1]
			image := imageOf(t, source)
			holder, worker := source, target
			if mode == lxd.CopyPush {
				holder, worker = target, source
			}
			stalled := worker.Inject(lxdtest.StallOperations())
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				for len(worker.Running()) == 0 && ctx.Err() == nil {
					time.Sleep(tick)
				}
				cancel()
			}()
			_, err := image.Copy(ctx, target.Client, &lxd.CopyOptions{Mode: mode, Wait: true})
			cancel()
			require.ErrorIs(t, err, context.Canceled, mode)
			require.Empty(t, holder.Tokens(), mode)

			copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: mode})
			require.NoError(t, err)
			require.Len(t, holder.Tokens(), 1, mode)
			worker.Restart()
			require.ErrorIs(t, copied.Wait(t.Context()), lxd.ErrOutcomeUnknown, mode)
			require.Empty(t, holder.Tokens(), mode)
			stalled.Remove()
		})
	}
}

// TestForeignTokensStay has other programs create tokens for the same image while a
// response is lost: they are not revoked, and the lost one is found once they are
// used.
func TestForeignTokensStay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, used := range []bool{true, false} {
			server := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, nil)
			fingerprint := testkit.Upload(t, server.Client, nil).Fingerprint
			there, err := server.Client.Images.Get(t.Context(), fingerprint)
			require.NoError(t, err)
			var theirs []*lxd.Secret
			others := func() {
				for range 3 {
					secret, err := there.Secret(t.Context())
					require.NoError(t, err)
					theirs = append(theirs, secret)
				}
			}
			posts, done := 0, make(chan struct{})
			client := testkit.NewClient(t, server.Endpoint(), &lxd.Options{Dial: server.DialContext, Transport: func(next http.RoundTripper) http.RoundTripper {
				return roundTripFunc(func(req *http.Request) (*http.Response, error) {
					if req.Method != http.MethodPost {
						return next.RoundTrip(req)
					}
					if posts++; posts > 1 {
						return next.RoundTrip(req)
					}
					others()
					injected := server.Inject(lxdtest.LoseResponse().On("POST", "/1.0/images/*/secret").Times(1))
					res, err := next.RoundTrip(req)
					injected.Remove()
					others()
					if used {
						// All but those that were made before are used in the end.
						go func() {
							defer close(done)
							time.Sleep(tokenUse)
							for _, secret := range theirs[3:] {
								_ = secret.Operation().Cancel(context.WithoutCancel(t.Context()))
							}
						}()
					}
					return res, err
				})
			}})
			image, err := client.Images.Get(t.Context(), fingerprint)
			require.NoError(t, err)
			others()
			requireEarlier(t, theirs[2])
			_, err = image.Secret(t.Context())
			require.ErrorIs(t, err, lxd.ErrUnavailable)
			left := 1 // one that cannot be told from theirs
			if used {
				<-done
				theirs, left = theirs[:3], 0
			}
			for _, secret := range theirs {
				require.NoError(t, secret.Operation().Cancel(t.Context()), "it was running")
			}
			require.Len(t, server.Tokens(), left)
		}
	})
}

// TestTokenOfAnotherKindStays has another program create a token to upload the
// image while one to read it is lost.
func TestTokenOfAnotherKindStays(t *testing.T) {
	t.Parallel()
	server := testkit.StartFake(t)
	fingerprint := imageOf(t, server).Fingerprint
	push := fmt.Sprintf(`{"source": {"type": "image", "mode": "push", "fingerprint": %q}, "properties": {}}`, fingerprint)
	posts := 0
	client := testkit.NewClient(t, server.Endpoint(), &lxd.Options{Transport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripFunc(func(req *http.Request) (*http.Response, error) {
			if posts++; posts == 2 {
				res, err := server.Server.Client().Post("http://lxd/1.0/images", "application/json", strings.NewReader(push))
				require.NoError(t, err)
				require.NoError(t, res.Body.Close())
				require.Equal(t, http.StatusAccepted, res.StatusCode)
			}
			return next.RoundTrip(req)
		})
	}})
	image, err := client.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	server.Inject(lxdtest.LoseResponse().On("POST", "/1.0/images/*/secret").Times(1))
	_, err = image.Secret(t.Context())
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	require.Len(t, server.Tokens(), 1)
	ops, err := client.Operations(t.Context())
	require.NoError(t, err)
	for _, op := range ops {
		if s := op.Status(); s.Class == "token" && !s.Done() {
			require.Contains(t, s.Metadata, "properties", "it is the other program's")
		}
	}
}

// tokenUse is how long another program takes to use its token.
const tokenUse = 300 * time.Millisecond

// TestOwnTokensStay has a client create many tokens at once, one of which is lost.
func TestOwnTokensStay(t *testing.T) {
	t.Parallel()
	server := testkit.StartFake(t)
	image := testkit.Upload(t, server.Client, nil)
	const many = 20
	for range 5 {
		server.Inject(lxdtest.LoseResponse().On("POST", "/1.0/images/*/secret").Times(1))
		made := make(chan *lxd.Secret, many)
		for range many {
			go func() {
				secret, _ := image.Secret(context.WithoutCancel(t.Context()))
				made <- secret
			}()
		}
		lost := 0
		for range many {
			secret := <-made
			if secret == nil {
				lost++
				continue
			}
			require.NoError(t, secret.Operation().Cancel(t.Context()), "it is still running")
		}
		require.Equal(t, 1, lost)
		require.Empty(t, server.Tokens())
	}
}

// TestTokenThatCannotBeRevoked: a copy revokes its token in more than one place, and
// must wait only once.
func TestTokenThatCannotBeRevoked(t *testing.T) {
	t.Parallel()
	source, target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil), testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	var logged bytes.Buffer
	client := testkit.NewClient(t, "unix://"+source.Socket(), &lxd.Options{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	image, err := client.Images.Get(t.Context(), imageOf(t, source).Fingerprint)
	require.NoError(t, err)
	copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: lxd.CopyPull})
	require.NoError(t, err)
	require.NoError(t, client.Close()) // which ends every attempt at once
	require.NoError(t, copied.Wait(t.Context()))
	require.Equal(t, 1, strings.Count(logged.String(), "token is left"), logged.String())
}
