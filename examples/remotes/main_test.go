package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

func TestRemotes(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	image, err := server.AddImage(lxdtest.UnifiedImage("example", 0), nil)
	require.NoError(t, err)
	dir := t.TempDir()
	var out bytes.Buffer
	require.NoError(t, join(t.Context(), &out, server.NewTrustToken("example"), filepath.Join(dir, "joined")))
	require.Contains(t, out.String(), "now trusts this client")
	require.ErrorIs(t, join(t.Context(), &out, server.NewTrustToken("again"), filepath.Join(dir, "joined")), os.ErrExist)

	// The command line stores the same files as join, under other names.
	config := fmt.Sprintf("remotes: {farm: {addr: %q, protocol: lxd, public: false}}", server.URL())
	joined := filepath.Join(dir, "joined")
	require.NoError(t, os.WriteFile(filepath.Join(joined, "config.yml"), []byte(config), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(joined, "servercerts"), 0o700))
	require.NoError(t, os.Rename(filepath.Join(joined, "server.crt"), filepath.Join(joined, "servercerts", "farm.crt")))

	out.Reset()
	require.NoError(t, list(&out, &lxd.RemotesOptions{ConfigDir: joined}))
	require.Contains(t, out.String(), "farm ")
	require.Contains(t, out.String(), server.URL())
	out.Reset()
	require.NoError(t, images(t.Context(), &out, "farm", &lxd.Options{ConfigDir: joined}))
	require.Contains(t, out.String(), image)
	require.ErrorIs(t, images(t.Context(), &out, "fram", &lxd.Options{ConfigDir: joined}), lxd.ErrNotFound)
}
