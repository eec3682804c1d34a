package partfile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLockOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	first, err := Lock(t.Context(), path, 0o600)
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 2*poll)
	defer cancel()
	_, err = Lock(ctx, path, 0o600)
	require.ErrorIs(t, err, context.DeadlineExceeded, "somebody has it")

	opened := make(chan *os.File)
	go func() {
		second, err := Lock(context.Background(), path, 0o600)
		if err != nil {
			close(opened)
			return
		}
		opened <- second
	}()
	_, err = first.WriteString("whole")
	require.NoError(t, err)
	require.NoError(t, os.Rename(path, path+".final"))
	require.NoError(t, first.Close())
	select {
	case second := <-opened:
		require.NotNil(t, second)
		info, err := second.Stat()
		require.NoError(t, err)
		require.Zero(t, info.Size(), "a new file, not the renamed one")
		require.NoError(t, second.Close())
	case <-time.After(10 * time.Second):
		t.Fatal("the lock was not passed on")
	}
	kept, err := os.ReadFile(path + ".final")
	require.NoError(t, err)
	require.Equal(t, "whole", string(kept))
}

func TestLockInMissingDirectory(t *testing.T) {
	_, err := Lock(t.Context(), filepath.Join(t.TempDir(), "none", "file"), 0o600)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestLockEndedContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	shutdown := errors.New("shutdown")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(shutdown)
	_, err := Lock(ctx, path, 0o600)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, shutdown)
	require.NoFileExists(t, path)

	first, err := Lock(t.Context(), path, 0o600)
	require.NoError(t, err)
	defer first.Close()
	ctx, stop := context.WithTimeoutCause(t.Context(), 2*poll, shutdown)
	defer stop()
	_, err = Lock(ctx, path, 0o600)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, shutdown)
}

func TestLockRefusesDirectory(t *testing.T) {
	dir := t.TempDir()
	_, err := Lock(t.Context(), dir, 0o600)
	require.EqualError(t, err, dir+" is a directory: remove it")
}
