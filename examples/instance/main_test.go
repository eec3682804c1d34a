package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// steps calls a function before each step of run, with its name.
type steps func(step string)

func (s steps) Write(line []byte) (int, error) {
	s(strings.TrimSpace(string(line)))
	return len(line), nil
}

// TestInstance: an instance of an ensured image runs, and is removed. On a machine where
// a real daemon cannot start containers, it is created and removed, and the error is the
// daemon's.
func TestInstance(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			client, content := s.Client(t), lxdtest.UnifiedImage("example", 0)
			settings := map[string]any{"name": testkit.Unique("example")}
			if s.Real != nil {
				content = bootable(t)
				require.NoError(t, s.Real.CreatePool(t.Context()))
				settings["devices"] = map[string]any{"root": map[string]any{"type": "disk", "path": "/", "pool": testdaemon.PoolName}}
			}
			var image *lxd.Image
			for range 2 { // the second time, the image exists
				var seen []string
				err := run(t.Context(), steps(func(step string) {
					found, err := client.Images.GetByAlias(t.Context(), "example")
					require.NoError(t, err)
					if image == nil {
						testkit.DeleteAfter(t, found)
					}
					image = found
					used, err := image.UsedBy(t.Context())
					require.NoError(t, err)
					method, _, _ := strings.Cut(step, " ")
					for _, instance := range used {
						require.Equal(t, settings["name"], instance.Name)
						method += " " + instance.Status
					}
					seen = append(seen, method)
				}), client, lxd.FromReader(bytes.NewReader(content), nil), settings)
				if s.Real != nil && err != nil {
					t.Log(testkit.ErrOf[*lxd.OperationError](t, err))
					require.Equal(t, []string{"POST", "PUT Stopped", "DELETE Stopped"}, seen)
				} else {
					require.NoError(t, err)
					require.Equal(t, []string{"POST", "PUT Stopped", "PUT Running", "DELETE Stopped"}, seen)
				}
				used, err := image.UsedBy(t.Context())
				require.NoError(t, err)
				require.Empty(t, used)
			}
		})
	}
}

// TestInstanceIsRemoved if it does not start, and if ctx ends while it exists.
func TestInstanceIsRemoved(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	source := lxd.FromReader(bytes.NewReader(lxdtest.UnifiedImage("example", 0)), nil)
	fault := f.Inject(lxdtest.Status(500, "it does not start").On("PUT", "/1.0/instances/example/state"))
	err := run(t.Context(), new(bytes.Buffer), f.Client, source, map[string]any{"name": "example"})
	require.ErrorContains(t, err, "it does not start")
	_, err = f.Client.Do(t.Context(), "GET", "/1.0/instances/example", nil, nil)
	require.ErrorIs(t, err, lxd.ErrNotFound)

	fault.Remove()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, run(ctx, steps(func(string) { cancel() }), f.Client, source, map[string]any{"name": "example"}))
	_, err = f.Client.Do(t.Context(), "GET", "/1.0/instances/example", nil, nil)
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

// bootable returns an image whose only program waits.
func bootable(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	code, program := filepath.Join(dir, "init.go"), filepath.Join(dir, "init")
	require.NoError(t, os.WriteFile(code, []byte("package main\nimport \"time\"\nfunc main() { for { time.Sleep(time.Hour) } }\n"), 0o600))
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, code)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := build.CombinedOutput()
	require.NoError(t, err, string(output))
	data, err := os.ReadFile(program)
	require.NoError(t, err)

	var image bytes.Buffer
	w := tar.NewWriter(&image)
	add := func(name string, mode int64, content []byte) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}))
		_, err := w.Write(content)
		require.NoError(t, err)
	}
	architecture := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	add("metadata.yaml", 0o644, fmt.Appendf(nil, "architecture: %s\ncreation_date: 1700000000\n", architecture))
	for _, dir := range []string{"dev", "proc", "sys", "sbin"} {
		add("rootfs/"+dir+"/", 0o755, nil)
	}
	add("rootfs/sbin/init", 0o755, data)
	require.NoError(t, w.Close())
	return image.Bytes()
}
