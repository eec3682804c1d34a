package lxd_test

import (
	"bytes"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// TestNothingIsSentTwice sends no content that the server has.
func TestNothingIsSentTwice(t *testing.T) {
	f, target := startFake(t), startFake(t)
	data := unified(t, 1<<20)
	image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	_, err = target.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	f.ForgetRequests()
	target.ForgetRequests()

	_, err = f.Client.Images.Create(t.Context(), onlyReader{bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true, Fingerprint: lxdtest.Fingerprint(data)})
	require.NoError(t, err)
	_, err = f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Dedupe: true})
	require.NoError(t, err)
	copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true})
	require.NoError(t, err)
	require.Empty(t, copied.Mode)
	for _, r := range append(f.Requests(), target.Requests()...) {
		require.Equal(t, http.MethodGet, r.Method, r.Path)
		require.NotContains(t, r.Path, "/export")
	}
}
