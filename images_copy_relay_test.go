package lxd_test

import (
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestRelayLeavesTheSourceAlone has the target refuse a relay that continues after
// a break: the source must get no request once Copy has returned.
func TestRelayLeavesTheSourceAlone(t *testing.T) {
	t.Parallel()
	x := newExportTest(t, 0, lxdtest.UnifiedImage("relay", 8<<20), nil)
	target := testkit.StartFakeWith(t, nil, &lxd.Options{RetryTimeout: -1})
	target.Inject(lxdtest.EarlyResponse(1<<20, 400, "no room").On("POST", "/1.0/images"))
	returned := make(chan struct{})
	var late atomic.Int64
	x.between(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		res, err := next.RoundTrip(req)
		if err != nil {
			return res, err
		}
		// What comes after 2 MiB comes when Copy has returned, and is a cut.
		first := io.LimitReader(res.Body, 2<<20)
		body := res.Body
		res.Body = struct {
			io.Reader
			io.Closer
		}{readFunc(func(p []byte) (int, error) {
			if n, err := first.Read(p); err == nil {
				return n, nil
			}
			<-returned
			return 0, io.ErrUnexpectedEOF
		}), body}
		select {
		case <-returned:
			late.Add(1)
		default:
		}
		return res, nil
	})
	_, err := x.image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true})
	require.Equal(t, 400, testkit.ErrOf[*lxd.Error](t, err).StatusCode)
	close(returned)
	require.Never(t, func() bool { return late.Load() > 0 }, 500*time.Millisecond, exportTick)
}

// memoryTarget is the client of another server, for a bubble: end must be called in it.
func memoryTarget(t *testing.T) (client *lxd.Client, end func()) {
	t.Helper()
	target := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
	client, err := lxd.New("unix:///target", &lxd.Options{Dial: target.DialContext})
	require.NoError(t, err)
	return client, func() {
		require.NoError(t, client.Close())
		target.Close()
	}
}

// TestRelayRetriesTheSourceOnce has a source that is unavailable: reading it is
// retried for the timeout, and not again for that of the upload.
func TestRelayRetriesTheSourceOnce(t *testing.T) {
	inRetryCase(t, nil, func(t *testing.T, r *retryCase) {
		client, end := memoryTarget(t)
		defer end()
		r.Inject(lxdtest.Unavailable().On("GET", "/1.0/images/*/export"))
		began := time.Now()
		_, err := r.image.Copy(r.ctx, client, &lxd.CopyOptions{Mode: lxd.CopyRelay})
		require.ErrorIs(t, err, lxd.ErrUnavailable)
		require.WithinDuration(t, began.Add(30*time.Second), time.Now(), time.Second)
	})
}
