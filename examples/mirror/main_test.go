package main

import (
	"bytes"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// TestMain runs the command instead of the tests in a process that a test has started.
func TestMain(m *testing.M) {
	if os.Getenv("MIRROR_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// command runs the command in a process of its own.
func command(t *testing.T, args ...string) (code int, out, log string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), "MIRROR_MAIN=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

// upstreamFiles are those of an image server with two releases, the first of which has
// these versions.
func upstreamFiles(versions ...string) map[string][]byte {
	metadata, rootfs := lxdtest.SplitImage("mirror", 0)
	product := func(release string, versions []string) streamstest.Product {
		p := streamstest.Product{
			Name: "debian:" + release + ":amd64:default", Aliases: []string{"debian/" + release}, OS: "Debian", Release: release,
		}
		for _, version := range versions {
			p.Versions = append(p.Versions, streamstest.Version{
				Serial: version, Family: "both", Metadata: metadata,
				Roots: map[string][]byte{"squashfs": slices.Concat(rootfs, []byte(release+version))},
			})
		}
		return p
	}
	return streamstest.Tree([]streamstest.Product{product("13", versions), product("12", []string{"20260101_00:00"})}, nil)
}

func writeFile(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mirror.yaml")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600))
	return path
}

// TestMirror: each of its steps is a run of the command.
func TestMirror(t *testing.T) {
	upstream := streamstest.NewTLSServer(upstreamFiles("20260101_00:00", "20260102_00:00"))
	defer upstream.Close()
	file := writeFile(t,
		"directory: images", "grace: 1h", "upstreams:",
		"- url: "+upstream.URL, "  certificate: ca.crt", "  images:",
		"  - {aliases: [debian/13], architectures: [amd64], types: [container]}")
	dir := filepath.Dir(file)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.crt"), []byte(upstream.CA), 0o600))

	plan := func(args ...string) string {
		t.Helper()
		code, out, log := command(t, append(args, file)...)
		require.Zero(t, code, log)
		require.Empty(t, log)
		return out
	}
	added := "+ debian:13:amd64:default 20260102_00:00 "
	require.Contains(t, plan("-n"), added)
	require.NoFileExists(t, filepath.Join(dir, "images", "streams", "v1", "index.json"))
	require.Contains(t, plan(), added)
	require.Empty(t, plan(), "nothing has changed")

	// The directory is an image server.
	served := httptest.NewServer(simplestreams.NewHandler(os.DirFS(filepath.Join(dir, "images"))))
	defer served.Close()
	client, err := simplestreams.New(served.URL, &simplestreams.Options{AllowHTTP: true, TTL: -1})
	require.NoError(t, err)
	defer client.Close()
	resolve := func() *simplestreams.Image {
		t.Helper()
		image, err := client.Resolve(t.Context(), "debian/13", &simplestreams.ResolveOptions{Architecture: "amd64"})
		require.NoError(t, err)
		return image
	}
	require.Equal(t, "20260102_00:00", resolve().Version)
	_, err = client.Resolve(t.Context(), "debian/12", nil)
	require.ErrorIs(t, err, simplestreams.ErrNotFound)

	// A new version, of which a file is not what the index says: the old one stays.
	for path, content := range upstreamFiles("20260102_00:00", "20260103_00:00") {
		upstream.Set(path, content)
	}
	next := "images/debian/13/amd64/default/20260103_00:00/rootfs.squashfs"
	upstream.Fault(next, streamstest.Corrupt(7))
	code, out, log := command(t, file)
	require.Equal(t, failed, code)
	require.Empty(t, out)
	require.Contains(t, log, next)
	require.Equal(t, "20260102_00:00", resolve().Version)

	upstream.Fault(next, nil)
	require.Empty(t, plan("-q"))
	require.Equal(t, "20260103_00:00", resolve().Version)
	_, err = client.DownloadTo(t.Context(), resolve(), t.TempDir(), nil)
	require.NoError(t, err)
}

// TestUsage: what is wrong with the command line or the file costs nothing.
func TestUsage(t *testing.T) {
	for name, each := range map[string]struct {
		file []string
		log  string
	}{
		"empty":         {nil, "directory is not set"},
		"not a time":    {[]string{"directory: images", "grace: 24", "upstreams: [{url: https://images.invalid}]"}, "such as 24h"},
		"no URL":        {[]string{"directory: images", "upstreams: [{}]"}, "https://images.example.net"},
		"no directory":  {[]string{"upstreams: [{url: https://images.invalid}]"}, "directory"},
		"no upstream":   {[]string{"directory: images"}, "upstreams"},
		"unknown field": {[]string{"directory: images", "upstream: x"}, "line 2"},
		"not https":     {[]string{"directory: images", "upstreams: [{url: http://images.invalid}]"}, "allow_http: true"},
		"no keyring":    {[]string{"directory: images", "upstreams: [{url: https://images.invalid, keyring: none}]"}, "none"},
		"no key":        {[]string{"directory: images", "signing_key: none", "upstreams: [{url: https://images.invalid}]"}, "none"},
		"not a pattern": {[]string{"directory: images", "upstreams: [{url: https://images.invalid, images: [{aliases: ['[']}]}]"}, "Aliases"},
		"not a type":    {[]string{"directory: images", "upstreams: [{url: https://images.invalid, images: [{types: [vm]}]}]"}, "Types"},
	} {
		file := writeFile(t, each.file...)
		code, out, log := command(t, file)
		require.Equal(t, misused, code, name)
		require.Empty(t, out, name)
		require.Contains(t, log, each.log, name)
	}
	for _, args := range [][]string{nil, {"a", "b"}, {"-x", "a"}, {filepath.Join(t.TempDir(), "none")}} {
		code, _, log := command(t, args...)
		require.Equal(t, misused, code, args)
		require.NotEmpty(t, log)
	}
	code, _, log := command(t, "-h")
	require.Zero(t, code)
	require.Contains(t, log, "-n")
}

// TestInterrupted: a signal ends the command, and the next run resumes.
func TestInterrupted(t *testing.T) {
	files := upstreamFiles("20260101_00:00")
	upstream := streamstest.NewServer(files)
	defer upstream.Close()
	root := "images/debian/13/amd64/default/20260101_00:00/rootfs.squashfs"
	upstream.Fault(root, streamstest.Stall(100))
	file := writeFile(t, "directory: images", "upstreams:", "- url: "+upstream.URL, "  allow_http: true")
	cmd := exec.CommandContext(t.Context(), os.Args[0], file)
	cmd.Env = append(os.Environ(), "MIRROR_MAIN=1")
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		for _, request := range upstream.Requests() {
			if request.Path == root {
				return true
			}
		}
		return false
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.Error(t, cmd.Wait())
	require.Equal(t, failed, cmd.ProcessState.ExitCode())

	upstream.Fault(root, nil)
	code, out, log := command(t, file)
	require.Zero(t, code, log)
	require.Equal(t, 2, strings.Count(out, "+ "))
}
