package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

func TestQuickstart(t *testing.T) {
	t.Setenv("LXD_SOCKET", t.TempDir()+"/none")
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.Incus60})
	defer server.Close()
	for endpoint, want := range map[string]string{
		"":                "There is no local daemon to use",
		"embedded":        "in this process",
		server.Endpoint(): "Using incus 6.0.4 at unix://",
	} {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), &out, endpoint))
		require.Contains(t, out.String(), want)
		require.Contains(t, out.String(), "verified")
		require.Contains(t, out.String(), "Deleted the image.")
	}
	require.Empty(t, server.Images())
	require.ErrorIs(t, run(t.Context(), &bytes.Buffer{}, t.TempDir()+"/none"), lxd.ErrUnavailable)
}
