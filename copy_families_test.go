package lxd_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
)

// TestCopyBetweenFamilies brings images from LXD to Incus and back, on lxdtest
// and, where the environment names them, on real daemons.
func TestCopyBetweenFamilies(t *testing.T) {
	subjects := conformanceSubjects(t)
	pairs := map[string][2]*subject{"lxdtest": {subjects[0], subjects[2]}}
	if len(subjects) == 5 {
		pairs["real"] = [2]*subject{subjects[3], subjects[4]}
	}
	for name, pair := range pairs {
		for _, overTLS := range []bool{false, true} {
			first, second := *pair[0], *pair[1]
			first.tls, second.tls = overTLS, overTLS
			for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyRelay, lxd.CopyAuto} {
				for _, split := range []bool{false, true} {
					t.Run(name, func(t *testing.T) {
						there, back := first.client(t), first.twinClient(t)
						between := second.client(t)
						image := copySource(t, there, split)
						copied, err := image.Copy(t.Context(), between, &lxd.CopyOptions{Mode: mode, Wait: true})
						require.NoError(t, err)
						deleteAfter(t, copied.Image)
						requireCopy(t, image, copied)
						again, err := copied.Copy(t.Context(), back, &lxd.CopyOptions{Mode: mode, Wait: true})
						require.NoError(t, err)
						deleteAfter(t, again.Image)
						requireCopy(t, image, again)
						require.Equal(t, image.Fingerprint, again.Fingerprint)
						if mode == lxd.CopyAuto {
							require.Equal(t, lxd.CopyPull, again.Mode)
						}
					})
				}
			}
			t.Run(name+" push", func(t *testing.T) {
				image := copySource(t, first.client(t), false)
				_, err := image.Copy(t.Context(), second.client(t), &lxd.CopyOptions{Mode: lxd.CopyPush, Wait: true})
				require.ErrorIs(t, err, lxd.ErrUnsupported)
			})
		}
	}
	for _, s := range subjects {
		leftovers(t, s)
	}
}

func (s *subject) twinClient(t *testing.T) *lxd.Client {
	t.Helper()
	twin := *s.twin
	twin.tls = s.tls
	return twin.client(t)
}

// TestCopyAuto takes the next way where one cannot be taken, and says why.
func TestCopyAuto(t *testing.T) {
	source, target := startFake(t), startFake(t)
	image := copySource(t, source.Client, false)

	// Neither listens on the network.
	for _, wait := range []bool{true, false} {
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: wait})
		require.NoError(t, err)
		require.NoError(t, copied.Wait(t.Context()))
		require.Equal(t, lxd.CopyRelay, copied.Mode)
		require.Len(t, copied.NotTaken, 2)
		require.Equal(t, lxd.CopyPull, copied.NotTaken[0].Mode)
		require.ErrorIs(t, copied.NotTaken[0].Err, lxd.ErrUnsupported)
		require.Equal(t, lxd.CopyPush, copied.NotTaken[1].Mode)
		require.ErrorContains(t, copied.NotTaken[1].Err, "core.https_address")
		requireCopy(t, image, copied)
		require.NoError(t, copied.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
	}
	require.Empty(t, source.Tokens())
	require.Empty(t, target.Tokens())
}
