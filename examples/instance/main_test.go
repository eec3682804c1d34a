package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// steps has a function for each name of an instance, which is called before each step of
// run with the step's method.
type steps struct{ sync.Map }

// watch makes the steps of all instances known until the test ends.
func watch(t *testing.T) *steps {
	s := &steps{}
	flags := log.Flags()
	log.SetFlags(0)
	log.SetOutput(s)
	t.Cleanup(func() { log.SetFlags(flags); log.SetOutput(os.Stderr) })
	return s
}

func (s *steps) Write(line []byte) (int, error) {
	method, path, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
	name, _, _ := strings.Cut(strings.TrimPrefix(path, "/1.0/instances/"), "/")
	if before, ok := s.Load(name); ok {
		before.(func(string))(method)
	}
	return len(line), nil
}

// TestInstance: an instance of an ensured image runs, and is removed; so is one that does
// not start. A machine may be unable to start any; then the error is the daemon's.
func TestInstance(t *testing.T) {
	steps := watch(t)
	var program []byte
	for _, s := range testkit.Subjects(t) {
		if s.Real != nil && program == nil {
			program = build(t, "package main\nimport \"time\"\nfunc main() { for { time.Sleep(time.Hour) } }\n")
		}
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			client, name := s.Client(t), testkit.Unique("example")
			var devices map[string]any
			image := lxdtest.UnifiedImage(name, 0)
			images := [][]byte{image, image} // the second time, the server has it
			if s.Real != nil {
				images = [][]byte{imageOf(t, program), imageOf(t, []byte("not a program"))}
				devices = map[string]any{"root": map[string]any{"type": "disk", "path": "/", "pool": testdaemon.PoolName}}
				require.NoError(t, s.Real.CreatePool(t.Context()))
			}
			var seen []string
			steps.Store(name, func(method string) {
				image, err := client.Images.GetByAlias(t.Context(), "example")
				require.NoError(t, err)
				used, err := image.UsedBy(t.Context())
				require.NoError(t, err)
				for _, instance := range used {
					require.Equal(t, name, instance.Name)
					method += " " + instance.Status
				}
				seen = append(seen, method)
			})
			for n, content := range images {
				seen = nil
				err := run(t.Context(), client, lxd.FromReader(bytes.NewReader(content), nil), name, devices)
				image, missing := client.Images.GetByAlias(t.Context(), "example")
				require.NoError(t, missing)
				testkit.DeleteAfter(t, image)
				if s.Real != nil && (err != nil || n > 0) {
					t.Log(testkit.ErrOf[*lxd.OperationError](t, err))
					require.Equal(t, []string{"PUT Stopped", "DELETE"}, []string{seen[0], seen[1][:6]})
				} else {
					require.NoError(t, err)
					require.Equal(t, []string{"PUT Stopped", "PUT Running", "DELETE Stopped"}, seen)
				}
				used, err := image.UsedBy(t.Context())
				require.NoError(t, err)
				require.Empty(t, used)
			}
		})
	}
}

// TestInstanceIsDeleted if it does not start, if the first attempt fails, and if ctx ends
// while it exists.
func TestInstanceIsDeleted(t *testing.T) {
	f := testkit.StartFake(t)
	source := lxd.FromReader(bytes.NewReader(lxdtest.UnifiedImage("example", 0)), nil)
	fault := f.Inject(lxdtest.Status(500, "it does not start").On("PUT", "/1.0/instances/example/state"))
	f.Inject(lxdtest.Status(400, "Instance is running").On("DELETE", "/1.0/instances/example").Times(1))
	err := run(t.Context(), f.Client, source, "example", nil)
	require.ErrorContains(t, err, "it does not start")
	require.NotContains(t, err.Error(), "Instance is running")
	_, err = f.Client.Do(t.Context(), "GET", "/1.0/instances/example", nil, nil)
	require.ErrorIs(t, err, lxd.ErrNotFound)

	fault.Remove()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch(t).Store("example", func(string) { cancel() })
	require.NoError(t, run(ctx, f.Client, source, "example", nil))
	_, err = f.Client.Do(t.Context(), "GET", "/1.0/instances/example", nil, nil)
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

// build returns a static program of the daemon's machine.
func build(t *testing.T, code string) []byte {
	t.Helper()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "init.go"), filepath.Join(dir, "init")
	require.NoError(t, os.WriteFile(source, []byte(code), 0o600))
	command := exec.CommandContext(t.Context(), "go", "build", "-o", program, source)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := command.CombinedOutput()
	require.NoError(t, err, string(output))
	data, err := os.ReadFile(program)
	require.NoError(t, err)

	return data
}

// imageOf returns an image with this init.
func imageOf(t *testing.T, init []byte) []byte {
	t.Helper()
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
	add("rootfs/sbin/init", 0o755, init)
	require.NoError(t, w.Close())
	return image.Bytes()
}
