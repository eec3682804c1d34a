package prealloc

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// roomOf is how many bytes a file takes on the disk.
func roomOf(t *testing.T, f *os.File) int64 {
	t.Helper()
	var stat syscall.Stat_t
	require.NoError(t, syscall.Fstat(int(f.Fd()), &stat))
	return stat.Blocks * 512
}

func TestReserveAndRelease(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("some bytes")
	require.NoError(t, err)
	const n = 4 << 20
	require.NoError(t, Reserve(f, 10, n))
	info, err := f.Stat()
	require.NoError(t, err)
	require.EqualValues(t, 10, info.Size(), "the size stays")
	if errors.Is(syscall.Fallocate(int(f.Fd()), keepSize, 10, n), syscall.EOPNOTSUPP) {
		t.Log("this file system reserves nothing")
	} else {
		require.GreaterOrEqual(t, roomOf(t, f), int64(n))
	}
	_, err = f.WriteString(", and more")
	require.NoError(t, err)
	require.NoError(t, Release(f))
	require.Less(t, roomOf(t, f), int64(1<<20))
	content, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	require.Equal(t, "some bytes, and more", string(content))
}

// TestReserveWhereItIsNotKnown is about files that nothing can be reserved for:
// writing to them tells what is wrong, if anything is.
func TestReserveWhereItIsNotKnown(t *testing.T) {
	t.Parallel()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	require.NoError(t, Reserve(null, 0, 100))
	require.NoError(t, Reserve(null, 0, 0))
	require.NoError(t, Reserve(null, 0, -1), "of unknown size")
	require.NoError(t, null.Close())
	require.NoError(t, Reserve(null, 0, 100))
	require.Error(t, Release(null))
}
