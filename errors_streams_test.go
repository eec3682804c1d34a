package lxd_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/simplestreams"
)

// TestOneTypeInBothPackages: a value of package simplestreams needs no conversion.
func TestOneTypeInBothPackages(t *testing.T) {
	t.Parallel()
	require.Equal(t, []lxd.Family{lxd.LXD, lxd.Incus}, []simplestreams.Family{simplestreams.LXD, simplestreams.Incus})
	require.Equal(t, []lxd.ImageType{lxd.Container, lxd.VirtualMachine}, []simplestreams.ImageType{simplestreams.Container, simplestreams.VirtualMachine})
	_, err := simplestreams.New("https://127.0.0.1:1", &simplestreams.Options{Family: lxd.Incus})
	require.NoError(t, err)

	require.ErrorIs(t, &simplestreams.Error{Err: simplestreams.ErrNotFound}, lxd.ErrNotFound)
	require.ErrorIs(t, &simplestreams.ResolveError{Err: simplestreams.ErrAmbiguous}, lxd.ErrAmbiguous)
	require.ErrorIs(t, &lxd.Error{StatusCode: 404}, simplestreams.ErrNotFound)
	_, err = simplestreams.New("https://127.0.0.1:1", &simplestreams.Options{Family: "other"})
	require.ErrorIs(t, err, lxd.ErrInvalid)
	require.Equal(t, "Options.Family", testkit.ErrOf[*lxd.InputError](t, err).Field)
	require.NotErrorIs(t, &simplestreams.HashError{}, lxd.ErrInvalid, "a server's bad data is no bad input")

	require.False(t, lxd.IsTransient(&simplestreams.HashError{}))
	require.True(t, lxd.IsTransient(&simplestreams.Error{StatusCode: 503}))
	require.False(t, lxd.IsTransient(&simplestreams.ResolveError{Err: &simplestreams.Error{StatusCode: 404}}))
}
