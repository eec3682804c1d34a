package partfile

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// roomOf returns how many bytes a file takes on the disk.
func roomOf(t *testing.T, f *os.File) int64 {
	t.Helper()
	var stat syscall.Stat_t
	require.NoError(t, syscall.Fstat(int(f.Fd()), &stat))
	return stat.Blocks * 512
}

func create(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestReserve(t *testing.T) {
	t.Parallel()
	f := create(t)
	_, err := f.WriteString("some bytes")
	require.NoError(t, err)
	const n = reserveStep + 1<<20
	require.NoError(t, reserve(t.Context(), f, 10, n))
	if room := roomOf(t, f); room < n {
		// This is right only if the file system does not support it.
		require.ErrorIs(t, syscall.Fallocate(int(f.Fd()), keepSize, 10, n), syscall.EOPNOTSUPP, "%d bytes were reserved", room)
	}
	info, err := f.Stat()
	require.NoError(t, err)
	require.EqualValues(t, 10, info.Size(), "the size stays")
	_, err = f.WriteString(", and more")
	require.NoError(t, err)
	require.NoError(t, f.Truncate(20))
	require.Less(t, roomOf(t, f), int64(1<<20))
	content, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	require.Equal(t, "some bytes, and more", string(content))
}

func TestReserveObeysContext(t *testing.T) {
	t.Parallel()
	f := create(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, reserve(ctx, f, 0, 4<<20), context.Canceled)
	require.Zero(t, roomOf(t, f))
}

// TestReserveMoreThanThereIs reserves more than any disk has: meanwhile the space
// must not be taken from others.
func TestReserveMoreThanThereIs(t *testing.T) {
	t.Parallel()
	f := create(t)
	if err := syscall.Fallocate(int(f.Fd()), keepSize, 0, 1); err != nil {
		require.ErrorIs(t, err, syscall.EOPNOTSUPP)
		require.NoError(t, reserve(t.Context(), f, 0, 9e18))
		return
	}
	require.ErrorIs(t, reserve(t.Context(), f, 0, 9e18), syscall.ENOSPC)
	require.LessOrEqual(t, roomOf(t, f), int64(reserveStep+1<<20))
}

// TestReserveWhereItIsNotKnown reserves space for files that do not support it:
// writing to them reports any problem.
func TestReserveWhereItIsNotKnown(t *testing.T) {
	t.Parallel()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	require.NoError(t, reserve(t.Context(), null, 0, 100))
	require.NoError(t, reserve(t.Context(), null, 0, 0))
	require.NoError(t, reserve(t.Context(), null, 0, -1), "of unknown size")
	require.NoError(t, reserve(t.Context(), null, 0, 1<<62), "it is not asked for again and again")
	require.NoError(t, null.Close())
	require.NoError(t, reserve(t.Context(), null, 0, 100))
}
