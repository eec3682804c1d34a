package lxd

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestKeyLocks: one holder for each key, a wait that ends with its context, and nothing
// kept of a key that nobody uses.
func TestKeyLocks(t *testing.T) {
	t.Parallel()
	var locks keyLocks
	unlock, err := locks.lock(t.Context(), "one")
	require.NoError(t, err)
	other, err := locks.lock(t.Context(), "other")
	require.NoError(t, err, "another key does not wait")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = locks.lock(ctx, "one")
	require.ErrorIs(t, err, context.Canceled)

	held := 0
	done := make(chan error)
	for range 8 {
		go func() {
			unlock, err := locks.lock(context.Background(), "one")
			if err == nil {
				held++ // the race detector sees two holders
				unlock()
			}
			done <- err
		}()
	}
	require.Eventually(t, func() bool {
		locks.mu.Lock()
		defer locks.mu.Unlock()
		return locks.used["one"] != nil && locks.used["one"].users == 9
	}, 30*time.Second, time.Millisecond, "all wait while the lock is held")
	unlock()
	other()
	for range 8 {
		require.NoError(t, <-done)
	}
	require.Equal(t, 8, held)
	require.Empty(t, locks.used)
}
