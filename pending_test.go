package lxd_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// begun returns an image whose upload the server has accepted, with an alias that
// Image.Wait creates.
func begun(t *testing.T, f *testkit.Fake, opts *lxd.CreateOptions) *lxd.Image {
	t.Helper()
	opts.Aliases = []lxd.Alias{{Name: testkit.Unique("pending")}}
	image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(lxdtest.UnifiedImage(testkit.Unique("pending"), 10_000)), opts)
	require.NoError(t, err)
	require.True(t, image.UploadedAt.IsZero(), "it is not complete")
	require.NotNil(t, image.Operation())
	return image
}

func TestWaitFromSeveralGoroutines(t *testing.T) {
	t.Parallel()
	const waiters = 8
	f := testkit.StartFake(t)
	hold := f.Inject(lxdtest.StallOperations())
	image := begun(t, f, &lxd.CreateOptions{})
	other := *image
	f.ForgetRequests()
	asked := func(method, suffix string) (n int) {
		for _, r := range f.Requests() {
			if r.Method == method && strings.HasSuffix(r.Path, suffix) {
				n++
			}
		}
		return n
	}
	var waits sync.WaitGroup
	for range waiters {
		waits.Go(func() {
			if err := image.Wait(t.Context()); err != nil {
				t.Error(err)
			} else if len(image.Aliases) != 1 || image.UploadedAt.IsZero() {
				t.Error("Wait returned before the image was complete")
			}
		})
	}
	require.Eventually(t, func() bool { return asked("GET", "/wait") == waiters }, 30*time.Second, time.Millisecond)
	hold.Remove() // now all of them wait
	waits.Wait()
	require.NoError(t, other.Wait(t.Context()))
	require.Equal(t, image.Aliases, other.Aliases, "another value of the same image is completed too")
	require.Equal(t, 1, asked("GET", "/images/"+image.Fingerprint), "the image is completed once")
	require.Equal(t, 1, asked("POST", "/aliases"), "the alias is given once")
}

// TestWaitReturnsAFailureAgain: it also repeats the work that has failed.
func TestWaitReturnsAFailureAgain(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image := begun(t, f, &lxd.CreateOptions{})
	fault := f.Inject(lxdtest.Status(500, "broken").On("POST", "/1.0/images/aliases"))
	for range 2 {
		require.Error(t, image.Wait(t.Context()))
	}
	fault.Remove()
	require.NoError(t, image.Wait(t.Context()))
	require.Len(t, image.Aliases, 1)

	image, err := f.Client.Images.Create(t.Context(), strings.NewReader("not an image\x00"), nil)
	require.NoError(t, err)
	for range 2 {
		var failed *lxd.OperationError
		require.ErrorAs(t, image.Wait(t.Context()), &failed)
	}
}

// TestWaitEndsWithItsContext: even if another goroutine waits, which continues.
func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	hold := f.Inject(lxdtest.StallOperations())
	image := begun(t, f, &lxd.CreateOptions{})
	patient := make(chan error, 1)
	go func() { patient <- image.Wait(t.Context()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, image.Wait(ctx), context.DeadlineExceeded)
	hold.Remove()
	require.NoError(t, <-patient)
	require.Len(t, image.Aliases, 1)
}

func TestProgressContinuesInWait(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	var mu sync.Mutex
	var phases []string
	image := begun(t, f, &lxd.CreateOptions{Progress: func(p lxd.Progress) {
		mu.Lock()
		defer mu.Unlock()
		phases = append(phases, p.Phase)
	}})
	mu.Lock()
	require.Equal(t, lxd.PhaseSend, phases[len(phases)-1])
	mu.Unlock()
	require.NoError(t, image.Wait(t.Context()))
	mu.Lock()
	require.Equal(t, lxd.PhaseServer, phases[len(phases)-1])
	told := len(phases)
	mu.Unlock()
	require.NoError(t, image.Wait(t.Context()))
	require.Len(t, phases, told, "what is done is not told again")
}

// TestRefreshKeepsPendingWork of an upload that was not waited for.
func TestRefreshKeepsPendingWork(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image := begun(t, f, &lxd.CreateOptions{})
	require.NoError(t, image.Operation().Wait(t.Context()))
	_, _ = image.Refresh(t.Context(), nil) // the image has no source
	_ = image.Wait(t.Context())
	require.Len(t, f.Aliases(), 1)
}
