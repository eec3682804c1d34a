package lxd_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestPushTokenHasProperties: a push token whose properties
// are null crashes LXD 5.0.2 and Incus 6.0.4 when it is used.
func TestPushTokenHasProperties(t *testing.T) {
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		source := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		target := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		image := testkit.Upload(t, source.Client, nil)
		image.Properties = nil
		require.NoError(t, image.Update(t.Context(), nil))
		require.Empty(t, image.Properties)
		image.Properties = nil
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: lxd.CopyPush, Wait: true})
		require.NoError(t, err, dialect)
		require.Empty(t, copied.Properties)
		require.Nil(t, source.Crashed())
		require.Nil(t, target.Crashed())

		copied, err = testkit.Upload(t, source.Client, nil).Copy(t.Context(), target.Client, &lxd.CopyOptions{
			Mode: lxd.CopyPush, Wait: true, Properties: map[string]string{},
		})
		require.NoError(t, err, dialect)
		require.Empty(t, copied.Properties)
		require.Nil(t, target.Crashed())
	}
}
