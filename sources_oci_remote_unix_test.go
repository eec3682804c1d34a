//go:build unix

package lxd_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/ociregistry"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// credentialsHelper writes a helper that logs its arguments and input to the file of that
// name with ".log", and prints output.
func credentialsHelper(t *testing.T, output string) string {
	t.Helper()
	helper := writeTemp(t, "helper", fmt.Appendf(nil, "#!/bin/sh\necho \"$* $(cat)\" >>\"$0.log\"\n%s\n", output))
	require.NoError(t, os.Chmod(helper, 0o700))
	return helper
}

func printing(username, password string) string {
	return fmt.Sprintf(`echo '{"ServerURL":"x","Username":%q,"Secret":%q}'`, username, password)
}

// TestOpenSourceOCI: images of registries that are remotes, with the credentials that
// the command line has for them.
func TestOpenSourceOCI(t *testing.T) {
	const password = "s3cr:et/%"
	for _, s := range pullers(t) {
		t.Run(s.Column, func(t *testing.T) {
			c, ctx := s.Client(t), t.Context()
			open, private := startRegistry(t, ociregistry.Options{}), startRegistry(t, ociregistry.Options{Username: "joe", Password: password})
			name := testkit.Unique("remote")
			want := open.Add("team/"+name, "v1", "amd64", name)
			private.Add("team/"+name, "v1", "amd64", name)
			host := private.Listener.Addr().String()
			helper := credentialsHelper(t, printing("joe", password))
			dir := newConfigDir(t, fmt.Sprintf(`remotes:
  docker:
    addr: %s
    protocol: oci
    public: true
  user:
    addr: https://joe:s3cr%%3Aet%%2F%%25@%[2]s/
    protocol: oci
    public: true
  wrong:
    addr: https://joe:wrong-word@%[2]s
    protocol: oci
  helper:
    addr: https://%[2]s/team
    protocol: oci
    credentials_helper: %[3]s
  broken:
    addr: https://%[2]s
    protocol: oci
    credentials_helper: %[4]s
  failing:
    addr: https://%[2]s
    protocol: oci
    credentials_helper: %[5]s
  missing:
    addr: https://%[2]s
    protocol: oci
    credentials_helper: /nowhere/helper
`, open.URL, host, helper, credentialsHelper(t, "echo s3cret-text"), credentialsHelper(t, "echo s3cret-text; echo s3cret-text >&2; exit 3")))
			source := func(name string, options lxd.FromOCIOptions) lxd.Source {
				options.HTTPClient = open.Client()
				source, err := lxd.OpenSource(name, &lxd.OpenSourceOptions{Options: &lxd.Options{ConfigDir: dir.dir, Family: lxd.Incus}, OCI: options})
				require.NoError(t, err)
				require.NotContains(t, source.String(), "s3cr")
				t.Cleanup(func() { require.NoError(t, source.Close()) })
				return source
			}
			for remote, from := range map[string]lxd.Source{
				"docker": source("docker:team/"+name+":v1", lxd.FromOCIOptions{}), "user": source("user:team/"+name+":v1", lxd.FromOCIOptions{}),
				"helper":                source("helper:"+name+":v1", lxd.FromOCIOptions{}),
				"own":                   source("wrong:team/"+name+":v1", lxd.FromOCIOptions{Username: "joe", Password: password}),
				"own, not the helper's": source("missing:team/"+name+":v1", lxd.FromOCIOptions{Username: "joe", Password: password}),
			} {
				resolved, err := from.Resolve(ctx, c)
				require.NoError(t, err, remote)
				require.Equal(t, want.Fingerprint(), resolved.Fingerprint, remote)
				image, err := c.Images.CreateFrom(ctx, from, &lxd.CreateFromOptions{Wait: true})
				require.NoError(t, err, remote)
				require.Equal(t, want.Fingerprint(), image.Fingerprint)
				require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
			}
			log, err := os.ReadFile(helper + ".log")
			require.NoError(t, err)
			require.Equal(t, "get "+host+"\nget "+host+"\n", string(log), "it runs when the source is used")

			_, err = c.Images.CreateFrom(ctx, source("wrong:team/"+name+":v1", lxd.FromOCIOptions{}), &lxd.CreateFromOptions{Wait: true})
			require.ErrorIs(t, err, lxd.ErrUnauthorized)
			require.NotContains(t, err.Error(), "wrong-word")
			for remote, text := range map[string]string{"broken": "is not JSON", "failing": "exit status 3", "missing": "no such file"} {
				_, err = c.Images.CreateFrom(ctx, source(remote+":team/"+name+":v1", lxd.FromOCIOptions{}), nil)
				require.Equal(t, remote, testkit.ErrOf[*lxd.RemoteError](t, err).Name)
				require.ErrorContains(t, err, text)
				require.NotContains(t, err.Error(), "s3cret")
			}
			_, err = lxd.OpenSource("docker:web", &lxd.OpenSourceOptions{Options: &lxd.Options{ConfigDir: dir.dir, Family: lxd.Incus}, Type: lxd.VirtualMachine})
			require.ErrorIs(t, err, lxd.ErrInvalid)
			_, err = lxd.Remote("helper", &lxd.Options{ConfigDir: dir.dir, Family: lxd.Incus})
			require.ErrorIs(t, err, lxd.ErrUnsupported)
			require.ErrorContains(t, err, "use OpenSource or FromOCI")
			info := testkit.ErrOf[*lxd.RemoteError](t, err).Info
			require.Equal(t, lxd.OCIProtocol, info.Protocol)
			require.Equal(t, helper, info.CredentialsHelper)
		})
	}
}

// TestCredentialsHelperThatHangs: the context ends the call, even if what the helper has
// started keeps its output open.
func TestCredentialsHelperThatHangs(t *testing.T) {
	f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus70, Skopeo: true}, nil)
	helper := credentialsHelper(t, `sleep 60 & echo $! >"$0.new"; mv "$0.new" "$0.started"; wait`)
	dir := newConfigDir(t, fmt.Sprintf("remotes:\n  r:\n    addr: https://localhost:1\n    protocol: oci\n    credentials_helper: %s\n", helper))
	source, err := lxd.OpenSource("r:web", &lxd.OpenSourceOptions{Options: &lxd.Options{ConfigDir: dir.dir, Family: lxd.Incus}})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var pid int // of the process that the helper has started
	var cancelled time.Time
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			if text, err := os.ReadFile(filepath.Clean(helper + ".started")); err == nil {
				pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
				cancelled = time.Now()
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	_, err = source.Resolve(ctx, f.Client)
	require.ErrorIs(t, err, context.Canceled)
	took := time.Since(cancelled)
	process, err := os.FindProcess(pid)
	require.NoError(t, err)
	_ = process.Kill()
	require.Less(t, took, patience)
}
