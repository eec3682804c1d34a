//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package main

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDirectoryInUse: a second process does not take the directory of one that has no sockets
// in it.
func TestDirectoryInUse(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	flags := func(socket string) []string {
		return []string{"-dir", filepath.Join(dir, "new"), "-control", "127.0.0.1:0", "-socket", filepath.Join(dir, socket)}
	}
	p := start(t, flags("one")...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that it ends if it does serve
	var stdout, stderr bytes.Buffer
	require.Equal(t, 1, run(ctx, flags("two"), &stdout, &stderr), stdout.String())
	require.Contains(t, stderr.String(), "is in use by another process")
	require.FileExists(t, filepath.Join(p.ready.Servers[0].Conf, "config.yml"))
	require.Equal(t, 0, p.end())
	require.NoDirExists(t, p.ready.Dir)
}
