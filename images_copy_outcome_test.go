package lxd_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestCopiesAtOnce makes the same copy several times at the same moment: all succeed,
// and there is one image.
func TestCopiesAtOnce(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		from, to := s.Client(t), s.Twin.Client(t)
		for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay, lxd.CopyAuto} {
			if mode == lxd.CopyPush && !s.Pushes(t) {
				continue
			}
			for _, n := range []int{4, 8} {
				image := testkit.Upload(t, from, &lxd.CreateOptions{Properties: map[string]string{"set": "later"}})
				opts := &lxd.CopyOptions{Mode: mode, Wait: true}
				if n == 8 {
					opts.Aliases = []lxd.Alias{{Name: testkit.Unique("at-once"), Description: "one"}}
				}
				var all sync.WaitGroup
				errs := make([]error, n)
				copies := make([]*lxd.Copied, n)
				for i := range n {
					all.Go(func() { copies[i], errs[i] = image.Copy(t.Context(), to, opts) })
				}
				all.Wait()
				for i := range n {
					require.NoError(t, errs[i], "%s %s %d", s.Column, mode, n)
					require.Equal(t, image.Fingerprint, copies[i].Fingerprint)
				}
				testkit.DeleteAfter(t, copies[0].Image)
				read, err := to.Images.Get(t.Context(), image.Fingerprint)
				require.NoError(t, err)
				require.Equal(t, image.Properties, read.Properties, "%s %s %d", s.Column, mode, n)
				require.Len(t, read.Aliases, len(opts.Aliases), "%s %s %d", s.Column, mode, n)
			}
		}
		testkit.RequireNoTokens(t, s)
		testkit.RequireNoTokens(t, s.Twin)
	}
}

// TestRelayWhoseResponseIsLost: the image that this call has created is not one that
// existed before.
func TestRelayWhoseResponseIsLost(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60, lxdtest.Incus70} {
		for _, ifExists := range []lxd.IfExists{lxd.UseExisting, lxd.ErrorIfExists} {
			synctest.Test(t, func(t *testing.T) {
				source, target := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, nil), testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, InMemory: true}, nil)
				image := testkit.CopySource(t, source.Client, false)
				lost := target.Inject(lxdtest.LoseResponse().On("POST", "/1.0/images").Times(1))
				copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: lxd.CopyRelay, IfExists: ifExists, CopyAliases: true, Wait: true})
				require.NoError(t, err, dialect)
				require.Equal(t, 1, lost.Fired())
				testkit.RequireCopy(t, image, copied)
			})
		}
	}
}

// TestRelayBesideAnother: an image that another call has created in the meantime is one
// that exists.
func TestRelayBesideAnother(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60, lxdtest.Incus70} {
		for _, ifExists := range []lxd.IfExists{lxd.UseExisting, lxd.ErrorIfExists} {
			source, target := testkit.StartFake(t), testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect}, nil)
			image := testkit.CopySource(t, source.Client, false)
			target.Inject(lxdtest.LoseInsert().Times(1))
			copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: lxd.CopyRelay, IfExists: ifExists, CopyAliases: true, Wait: true})
			if ifExists == lxd.ErrorIfExists {
				require.ErrorIs(t, err, lxd.ErrExists, dialect)
				continue
			}
			require.NoError(t, err, dialect)
			require.ElementsMatch(t, image.Aliases, copied.Aliases)
			require.Equal(t, image.Properties, copied.Properties)
		}
	}
}

// TestPushWhoseLineBreaks breaks the connection between the servers when the content
// was sent: the copy is completed.
func TestPushWhoseLineBreaks(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60, lxdtest.Incus70} {
		for _, fault := range []lxdtest.Fault{
			lxdtest.LoseResponse().On("POST", "/1.0/images").Times(1),
			lxdtest.Reset().On("GET", "/1.0/operations/*/wait").Times(1),
		} {
			for _, ifExists := range []lxd.IfExists{lxd.UseExisting, lxd.ErrorIfExists} {
				synctest.Test(t, func(t *testing.T) {
					fleet := testkit.StartFleet(t, nil, lxdtest.Options{Dialect: dialect}, lxdtest.Options{Dialect: dialect})
					source, target := fleet[0], fleet[1]
					image := testkit.CopySource(t, source.Client, false)
					copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: lxd.CopyPush, IfExists: ifExists, CopyAliases: true})
					require.NoError(t, err)
					// The target stores the image a moment after the connection has broken.
					slow := target.Inject(lxdtest.StallImages())
					broken := target.Inject(fault)
					released := time.AfterFunc(3*time.Second, slow.Remove)
					err = copied.Wait(t.Context())
					released.Stop()
					slow.Remove()
					require.NoError(t, err, "%s %s", dialect, fault)
					if broken.Fired() > 0 {
						testkit.RequireCopy(t, image, copied)
					}
					require.Empty(t, source.Tokens())
					require.Empty(t, target.Tokens())
				})
			}
		}
	}
}

// TestCopyAutoAfterRefusals: what the source refuses does not end a copy that a relay
// can make; what the target refuses, or a caller cancels, does.
func TestCopyAutoAfterRefusals(t *testing.T) {
	t.Parallel()
	forbidden := func(method, pattern string) lxdtest.Fault { return lxdtest.Status(403, "not you").On(method, pattern) }
	for name, test := range map[string]struct {
		source, target []lxdtest.Fault
		want           error
	}{
		"the source allows no secret": {source: []lxdtest.Fault{forbidden("POST", "/1.0/images/*/secret")}},
		"the source does not push": {source: []lxdtest.Fault{
			forbidden("POST", "/1.0/images/*/secret"), forbidden("POST", "/1.0/images/*/export"),
		}},
		"the target does not pull": {target: []lxdtest.Fault{forbidden("POST", "/1.0/images")}, want: lxd.ErrForbidden},
	} {
		for _, wait := range []bool{true, false} {
			source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
			target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
			image := testkit.CopySource(t, source.Client, false)
			for _, f := range test.source {
				source.Inject(f)
			}
			for _, f := range test.target {
				target.Inject(f)
			}
			copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{CopyAliases: true, Wait: wait})
			if err == nil {
				err = copied.Wait(t.Context())
			}
			require.Empty(t, source.Tokens(), name)
			require.Empty(t, target.Tokens(), name)
			if test.want != nil {
				require.ErrorIs(t, err, test.want, name)
				for _, r := range source.Requests() {
					require.NotEqual(t, "/1.0/images/"+image.Fingerprint+"/export", r.Path, "no other mode is tried")
				}
				continue
			}
			require.NoError(t, err, name)
			testkit.RequireCopy(t, image, copied)
			require.Len(t, copied.Failed, len(test.source))
			require.ErrorIs(t, copied.Failed[0].Err, lxd.ErrForbidden)
		}
	}
}

// TestCancelledCopyEnds: a copy whose operation was cancelled is not made in another
// mode.
func TestCancelledCopyEnds(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60, lxdtest.Incus70} {
		source := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		target := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		image := testkit.Upload(t, source.Client, nil)
		stalled := source.Inject(lxdtest.StallHeaders().On("GET", "/1.0/images/*/export"))
		copied, err := image.Copy(t.Context(), target.Client, nil)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return copied.Operation().Cancel(t.Context()) == nil }, exportWait, exportTick)
		stalled.Remove()
		require.ErrorIs(t, copied.Wait(t.Context()), lxd.ErrCancelled, dialect)
		require.Empty(t, target.Images())
		require.Empty(t, source.Tokens())
	}
}

// TestErrorOfCopyAuto matches the mode that decided, and names all.
func TestErrorOfCopyAuto(t *testing.T) {
	t.Parallel()
	source := testkit.StartFake(t)
	target := testkit.StartFakeWith(t, nil, &lxd.Options{RetryTimeout: -1})
	image := testkit.Upload(t, source.Client, nil)
	target.Inject(lxdtest.Unavailable().On("POST", "/1.0/images"))
	for _, wait := range []bool{true, false} {
		_, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: wait})
		require.ErrorIs(t, err, lxd.ErrUnavailable)
		require.NotErrorIs(t, err, lxd.ErrUnsupported)
		require.True(t, lxd.IsTransient(err))
		for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay} {
			require.ErrorContains(t, err, string(mode)+": ")
		}
	}
}

// TestErrorOfCopyAutoThatUpdates matches the pull, which is the only mode that can be
// updated, and not the others.
func TestErrorOfCopyAutoThatUpdates(t *testing.T) {
	t.Parallel()
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	image := testkit.Upload(t, source.Client, &lxd.CreateOptions{Public: true, Aliases: []lxd.Alias{{Name: "updates"}}})
	source.Inject(lxdtest.Status(500, "disk broken").On("GET", "/1.0/images/*/export"))
	yes := true
	_, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{AutoUpdate: &yes, Wait: true})
	require.ErrorContains(t, testkit.ErrOf[*lxd.OperationError](t, err), "disk broken")
	require.NotErrorIs(t, err, lxd.ErrUnsupported)
	require.ErrorContains(t, err, "relay: ")
	require.Empty(t, target.Images())
}

// TestRelayOfABrokenSource: a source that breaks in the middle, for good, is retried for
// one timeout; the error is transient.
func TestRelayOfABrokenSource(t *testing.T) {
	inRetryCase(t, nil, func(t *testing.T, r *retryCase) {
		client, end := memoryTarget(t)
		defer end()
		cut := r.Inject(lxdtest.CutResponse(8000).On("GET", "/1.0/images/*/export").Times(1))
		began := time.Now()
		ended := make(chan error)
		go func() {
			_, err := r.image.Copy(r.ctx, client, &lxd.CopyOptions{Mode: lxd.CopyRelay})
			ended <- err
		}()
		synctest.Wait() // until the pause before the content is resumed
		require.Equal(t, 1, cut.Fired())
		r.Inject(lxdtest.Unavailable().On("GET", "/1.0/images/*/export"))
		err := <-ended
		require.ErrorIs(t, err, lxd.ErrUnavailable)
		require.True(t, lxd.IsTransient(err))
		require.WithinDuration(t, began.Add(30*time.Second), time.Now(), 2*time.Second)
	})
}

// TestCopyWithoutItsAlias returns the copy beside the error.
func TestCopyWithoutItsAlias(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay, lxd.CopyAuto} {
		source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
		target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
		image, other := testkit.Upload(t, source.Client, nil), testkit.Upload(t, target.Client, nil)
		taken := false
		client := rewriting(t, target.Endpoint(), func(req *http.Request) {
			if req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/aliases") && !taken {
				taken = true
				require.NoError(t, other.AddAlias(t.Context(), "taken", ""))
			}
		}, nil)
		copied, err := image.Copy(t.Context(), client, &lxd.CopyOptions{Mode: mode, Aliases: []lxd.Alias{{Name: "taken"}}, Wait: true})
		require.ErrorIs(t, err, lxd.ErrExists, mode)
		require.NotNil(t, copied, mode)
		require.Equal(t, image.Fingerprint, copied.Fingerprint)
		_, err = target.Client.Images.Get(t.Context(), image.Fingerprint)
		require.NoError(t, err)
	}
}

// TestCopyLosesTheInsert has another client create the image at the target at the same
// moment. An ErrorIfExists ends CopyAuto.
func TestCopyLosesTheInsert(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyRelay, lxd.CopyAuto} {
		for _, ifExists := range []lxd.IfExists{lxd.UseExisting, lxd.ErrorIfExists} {
			source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
			target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
			image := testkit.CopySource(t, source.Client, false)
			target.Inject(lxdtest.LoseInsert().Times(1))
			copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: mode, IfExists: ifExists, CopyAliases: true, Wait: true})
			if ifExists == lxd.ErrorIfExists {
				require.ErrorIs(t, err, lxd.ErrExists, mode)
				require.Len(t, changesAt(target), 1, "%s: nothing else is tried", mode)
				continue
			}
			require.NoError(t, err, mode)
			require.Equal(t, image.Fingerprint, copied.Fingerprint)
			require.Equal(t, image.Properties, copied.Properties)
			require.Equal(t, image.Aliases, copied.Aliases)
		}
	}
}

// TestFailedModesAreToldOnce: a second Wait tries all modes again, and Failed has each
// mode once.
func TestFailedModesAreToldOnce(t *testing.T) {
	t.Parallel()
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	image := testkit.CopySource(t, source.Client, false)
	stalled := target.Inject(lxdtest.StallOperations().Times(1))
	copied, err := image.Copy(t.Context(), target.Client, nil)
	require.NoError(t, err)
	broken := source.Inject(lxdtest.Status(500, "broken").On("GET", testkit.ExportPattern))
	noPush := source.Inject(lxdtest.Status(500, "broken").On("POST", testkit.ExportPattern))
	stalled.Release()
	for range 2 {
		require.Error(t, copied.Wait(t.Context()))
		require.Len(t, copied.Failed, 3)
		require.Len(t, copied.Transfer().Failed, 3)
	}
	broken.Remove()
	noPush.Remove()
	require.NoError(t, copied.Wait(t.Context()))
	require.Len(t, copied.Failed, 1)
	require.Equal(t, "push", copied.Transfer().Way)
}
