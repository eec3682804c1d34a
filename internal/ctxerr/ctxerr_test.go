package ctxerr

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOf(t *testing.T) {
	t.Parallel()
	shutdown := errors.New("shutdown")
	within := fmt.Errorf("shutdown: %w", context.Canceled)
	for _, c := range []struct {
		name string
		end  func(context.Context) (context.Context, context.CancelFunc)
		want []error
		text string
	}{
		{"cancelled", context.WithCancel, []error{context.Canceled}, "context canceled"},
		{"timed out", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithDeadline(ctx, time.Unix(0, 0))
		}, []error{context.DeadlineExceeded}, "context deadline exceeded"},
		{"timed out with a cause", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithDeadlineCause(ctx, time.Unix(0, 0), shutdown)
		}, []error{context.DeadlineExceeded, shutdown}, "context deadline exceeded: shutdown"},
		{"cancelled with a cause", withCause(shutdown), []error{context.Canceled, shutdown}, "context canceled: shutdown"},
		{"its error is in the cause", withCause(within), []error{context.Canceled, within}, "shutdown: context canceled"},
		{"no cause", withCause(nil), []error{context.Canceled}, "context canceled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := c.end(t.Context())
			cancel()
			err := Of(ctx)
			require.EqualError(t, err, c.text)
			for _, want := range c.want {
				require.ErrorIs(t, err, want)
			}
		})
	}
}

func TestOfContextThatHasNotEnded(t *testing.T) {
	t.Parallel()
	require.NoError(t, Of(t.Context()))
}

func TestOfOwnCause(t *testing.T) {
	t.Parallel()
	stalled := errors.New("stalled")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("%w for a minute", stalled))
	err := Of(ctx, errors.New("another"), stalled)
	require.EqualError(t, err, "stalled for a minute")
	require.NotErrorIs(t, err, context.Canceled)
}

func withCause(cause error) func(context.Context) (context.Context, context.CancelFunc) {
	return func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancelCause(ctx)
		return ctx, func() { cancel(cause) }
	}
}
