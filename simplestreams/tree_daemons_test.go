package simplestreams_test

import (
	"crypto/rand"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// serveTree serves a store over http and TLS, below a path that no other server has: daemons cache the index of a URL for
// an hour.
func serveTree(t *testing.T, store *simplestreams.DirStore) (plain, secure, certificate string) {
	t.Helper()
	prefix := "/" + rand.Text()
	handler := http.StripPrefix(prefix, simplestreams.NewHandler(store.FS()))
	http, https := httptest.NewServer(handler), httptest.NewUnstartedServer(handler)
	https.Config.ErrorLog = log.New(io.Discard, "", 0) // daemons try several things
	https.StartTLS()
	t.Cleanup(http.Close)
	t.Cleanup(https.Close)

	return http.URL + prefix, https.URL + prefix,
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: https.Certificate().Raw}))
}

// publishReal publishes a unified image, and a container and a virtual machine that are split, which daemons accept.
func publishReal(t *testing.T, tree *simplestreams.Tree, unique string) {
	t.Helper()
	unified := debian("20260101_01:00", string(tarball(t, unique+"unified", true)))
	unified.Product, unified.Aliases = "unified", []string{"unified", "one/file"}
	unified.Requirements, unified.EndOfLife = map[string]string{"secureboot": "false"}, time.Date(2099, 1, 2, 0, 0, 0, 0, time.UTC)
	container := debian("20260102_01:00", string(tarball(t, unique+"container", false)), squashfsMagic+unique)
	machine := debian("20260102_01:00", string(tarball(t, unique+"machine", false)), qcow2Magic+unique)
	archive := debian("20260103", string(tarball(t, unique+"archive", false)), string(tarball(t, unique, true)))
	arm := debian("20260102_01:00", string(tarball(t, unique+"arm", false)), squashfsMagic+"arm")
	arm.Architecture = "aarch64"
	archive.Product, archive.Aliases, archive.Variant, archive.Label = "archive", []string{"archive"}, "cloud", "daily"
	for _, p := range []*simplestreams.Publication{unified, container, machine, archive, arm} {
		_, err := tree.Publish(t.Context(), p, nil)
		require.NoError(t, err)
	}
}

// TestTreeDaemons imports the images of a tree into each real daemon that the environment names: the daemon fetches them, or
// a client does. internal/cmd/testdaemons starts daemons.
func TestTreeDaemons(t *testing.T) {
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, daemon := range append(lxds, incuses...) {
		t.Run(daemon.Name(), func(t *testing.T) {
			dir := t.TempDir()
			store := newDirStore(t, dir)
			publishReal(t, newTree(t, store, nil), daemon.Name()+time.Now().String())
			plain, secure, certificate := serveTree(t, store)
			// Daemons cache the index of a URL, so nginx has another one for each daemon.
			nginx := serveNginx(t, dir)
			refs := []struct {
				ref  string
				kind simplestreams.ImageType
			}{
				{"unified", ""}, {"one/file", ""}, {"debian/13", simplestreams.Container}, {"debian/13", simplestreams.VirtualMachine},
				{"debian/trixie/arm64", ""}, {"archive", ""},
			}
			for _, server := range []struct{ url, certificate string }{{plain, ""}, {secure, certificate}, {nginx, ""}} {
				client, err := simplestreams.New(server.url, &simplestreams.Options{
					AllowHTTP: true, Certificate: server.certificate, Family: simplestreams.Family(daemon.Family), DaemonVersion: daemon.Version,
				})
				require.NoError(t, err)
				defer client.Close()
				for _, test := range refs {
					mine, err := client.Resolve(t.Context(), test.ref, &simplestreams.ResolveOptions{Type: test.kind})
					require.NoError(t, err)
					compare(t, daemon, server.url, server.certificate, test.ref, test.kind, mine)
				}
			}

			client, err := lxd.New(filepath.Join(daemon.Dir, "unix.socket"), nil)
			require.NoError(t, err)
			defer client.Close()
			for _, test := range refs {
				image, err := client.Images.CreateFromSimplestreams(t.Context(), secure, test.ref, &lxd.CreateFromSimplestreamsOptions{
					Type: test.kind, Certificate: certificate, Via: lxd.ViaClient, Wait: true,
				})
				require.NoError(t, err, test.ref)
				require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			}
			testCommand(t, daemon, secure, certificate)
		})
	}
}

// testCommand lists the images with the command of the daemon's family, and exports them with it.
func testCommand(t *testing.T, daemon *testdaemon.Daemon, server, certificate string) {
	client, err := simplestreams.New(server, &simplestreams.Options{Certificate: certificate, Family: simplestreams.Family(daemon.Family)})
	require.NoError(t, err)
	defer client.Close()
	conf := t.TempDir()
	trusted := filepath.Join(conf, "trusted.pem")
	require.NoError(t, os.WriteFile(trusted, []byte(certificate), 0o600))
	command := map[testdaemon.Family]string{testdaemon.LXD: "lxc", testdaemon.Incus: "incus"}[daemon.Family]
	socket := filepath.Join(daemon.Dir, "unix.socket")
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), command, args...)
		cmd.Env = append(os.Environ(), "LXD_CONF="+conf, "INCUS_CONF="+conf, "LXD_SOCKET="+socket, "INCUS_SOCKET="+socket, "SSL_CERT_FILE="+trusted)
		output, err := cmd.CombinedOutput()
		require.NoError(t, err, "%v: %s", args, output)

		return string(output)
	}
	run("remote", "add", "tree", server, "--protocol", "simplestreams")
	list := run("image", "list", "tree:", "--format", "csv")
	for _, want := range []string{"unified", "debian/13", "archive", "VIRTUAL-MACHINE", "CONTAINER", "x86_64", "aarch64", "Debian 13 amd64"} {
		require.Contains(t, list, want)
	}
	require.Equal(t, 5, strings.Count(strings.TrimSpace(list), "\n")+1, list)
	for ref, kind := range map[string]simplestreams.ImageType{
		"unified": "", "debian/13": simplestreams.Container, "archive": "", "debian/trixie": simplestreams.VirtualMachine,
	} {
		args := []string{"tree:" + ref}
		if kind == simplestreams.VirtualMachine {
			args = append(args, "--vm")
		}
		require.Contains(t, run(append([]string{"image", "info"}, args...)...), "Debian")
		into := t.TempDir()
		run(append([]string{"image", "export", args[0], into}, args[1:]...)...)
		image, err := client.Resolve(t.Context(), ref, &simplestreams.ResolveOptions{Type: kind})
		require.NoError(t, err)
		exported := readFiles(t, into)
		require.Len(t, exported, len(image.Files))
		for _, content := range exported {
			require.True(t, slices.ContainsFunc(image.Files, func(file simplestreams.File) bool { return file.SHA256 == streamstest.Hash(content) }))
		}
	}
}
