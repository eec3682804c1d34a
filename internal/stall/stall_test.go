package stall

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, w := New(t.Context(), time.Minute)
		defer w.Close()
		began := time.Now()
		w.Start()
		<-ctx.Done()
		require.Equal(t, time.Minute, time.Since(began))
		err := Cause(ctx, errors.New("other"))
		require.ErrorIs(t, err, Err)
		require.NotErrorIs(t, err, context.Canceled, "nobody canceled the context")
		require.ErrorContains(t, err, "1m0s")
		w.Stop()
	})
}

func TestWatchCountsOnlyWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, w := New(t.Context(), time.Minute)
		w.Progress()
		for range 3 {
			w.Start()
			time.Sleep(59 * time.Second)
			w.Progress()
			time.Sleep(59 * time.Second)
			w.Stop()
			time.Sleep(time.Hour) // not between Start and Stop
			w.Progress()
			time.Sleep(time.Hour)
		}
		w.Start()
		w.Start() // concurrent sending and receiving
		time.Sleep(59 * time.Second)
		w.Stop()
		time.Sleep(59 * time.Second)
		require.NoError(t, ctx.Err())
		time.Sleep(time.Second)
		synctest.Wait()
		require.Error(t, ctx.Err())
		w.Close()
	})
}

func TestWatchWithoutTimeout(t *testing.T) {
	t.Parallel()
	for _, timeout := range []time.Duration{0, -1} {
		ctx, w := New(t.Context(), timeout)
		w.Start()
		w.Progress()
		w.Stop()
		require.NoError(t, ctx.Err())
		require.NoError(t, Cause(ctx, nil))
		w.Close()
		require.ErrorIs(t, Cause(ctx, nil), context.Canceled)
	}
}

type blockedBody struct{ ctx context.Context }

func (b blockedBody) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

func (b blockedBody) Close() error { return nil }

func TestBodyWatchesOnlyReads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, w := New(t.Context(), time.Second)
		body := Body(ctx, w, io.NopCloser(strings.NewReader("content")))
		for range 3 {
			_, err := body.Read(make([]byte, 1))
			require.NoError(t, err)
			time.Sleep(time.Hour) // the caller's time
			require.NoError(t, ctx.Err())
		}
		require.NoError(t, body.Close())
		require.Error(t, ctx.Err())
	})
}

func TestBodyReportsStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, w := New(t.Context(), time.Second)
		body := Body(ctx, w, blockedBody{ctx})
		_, err := io.ReadAll(body)
		require.ErrorIs(t, err, Err)
		require.NoError(t, body.Close())
	})
}
