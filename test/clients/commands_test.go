//go:build clients

package clients_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// These tests run other clients against lxdtest: the lxc and incus commands and
// pylxd, from Debian's packages. They run with -tags clients and require all
// three.

// commands runs a command-line client against servers.
type commands struct {
	t   *testing.T
	bin string
	env []string
	dir string
}

// newCommands prepares a client whose local server is s.
func newCommands(t *testing.T, bin string, s *lxdtest.Server) *commands {
	t.Helper()
	dir := t.TempDir()
	return &commands{t, bin, append(os.Environ(),
		"LXD_CONF="+dir+"/conf", "INCUS_CONF="+dir+"/conf", "LXD_SOCKET="+s.Socket(), "INCUS_SOCKET="+s.Socket()), dir}
}

// exec runs the client with this standard input and returns its output.
func (c *commands) exec(stdin string, args ...string) (string, error) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.bin, args...)
	cmd.WaitDelay = time.Minute
	cmd.Env, cmd.Dir, cmd.Stdin = c.env, c.dir, strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// run runs the client, which must succeed, and returns its output.
func (c *commands) run(args ...string) string {
	c.t.Helper()
	out, err := c.exec("", args...)
	require.NoError(c.t, err, "%s %v: %s", c.bin, args, out)
	return out
}

// fails runs the client, which must fail with output that contains words.
func (c *commands) fails(words string, args ...string) {
	c.t.Helper()
	out, err := c.exec("", args...)
	require.Error(c.t, err, "%s %v: %s", c.bin, args, out)
	require.Contains(c.t, out, words)
}

// file writes a file and returns its path.
func (c *commands) file(name string, content []byte) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	require.NoError(c.t, os.WriteFile(path, content, 0o600))
	return path
}

// eachCommand runs a test on each dialect with the command that speaks it.
func eachCommand(t *testing.T, test func(t *testing.T, d lxdtest.Dialect, bin string)) {
	t.Helper()
	for d, bin := range map[lxdtest.Dialect]string{lxdtest.LXD50: "lxc", lxdtest.LXD69: "lxc", lxdtest.Incus60: "incus"} {
		t.Run(d.String(), func(t *testing.T) { test(t, d, bin) })
	}
}

func TestCommandLine(t *testing.T) {
	eachCommand(t, func(t *testing.T, d lxdtest.Dialect, bin string) {
		s := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: d, TLS: true}, nil).Server
		s.AddInstance("web1", nil)
		s.AddInstance("web1/snap0", nil)
		c := newCommands(t, bin, s)
		unified := lxdtest.UnifiedImage("unified", 50_000)
		meta, root := lxdtest.SplitImage("split", 50_000)
		vmMeta, disk := lxdtest.VMImage("vm", 50_000)
		one, two, three := lxdtest.Fingerprint(unified), lxdtest.Fingerprint(meta, root), lxdtest.Fingerprint(vmMeta, disk)

		require.Regexp(t, `server_version: "?`+d.Version(), c.run("info"))
		u := c.file("u.tar", unified)
		c.run("image", "import", u, "--alias", "one", "foo=bar")
		c.run("image", "import", c.file("m.tar", meta), c.file("r.tar", root), "--alias", "two", "--public")
		c.run("image", "import", c.file("vm.tar", vmMeta), c.file("d.qcow2", disk), "--alias", "three")
		require.Equal(t, map[string]string{"one": one, "two": two, "three": three}, s.Aliases())
		c.fails("Image with same fingerprint already exists", "image", "import", u)
		c.fails("Metadata tarball is missing metadata.yaml", "image", "import", filepath.Join(c.dir, "r.tar"))
		img, _ := s.Image(one)
		require.Equal(t, "bar", img.Properties["foo"])
		require.Equal(t, "u.tar", img.Filename)
		img, _ = s.Image(two)
		require.True(t, img.Public)

		require.Equal(t, 3, strings.Count(c.run("image", "list", "--format", "csv"), "\n"))
		require.Contains(t, c.run("image", "list", "foo=bar", "--format", "csv"), one[:12])
		require.NotContains(t, c.run("image", "list", "foo=bar", "--format", "csv"), two[:12])
		require.Contains(t, c.run("image", "show", "one"), "foo: bar")
		require.Contains(t, c.run("image", "info", "three"), "virtual-machine")
		require.Equal(t, "lxdtest\n", c.run("image", "get-property", "one", "os"))
		c.run("image", "set-property", "one", "k", "v")
		img, _ = s.Image(one)
		require.Equal(t, "v", img.Properties["k"])
		c.run("image", "unset-property", "one", "k")

		c.run("image", "alias", "create", "a/b", one)
		require.Contains(t, c.run("image", "alias", "list", "--format", "csv"), "a/b")
		c.run("image", "alias", "rename", "a/b", "c")
		require.Equal(t, one, s.Aliases()["c"])
		c.run("image", "alias", "delete", "c")
		require.NotContains(t, s.Aliases(), "c")

		for alias, files := range map[string]map[string][]byte{
			"one":   {one + ".tar": unified},
			"two":   {"meta-" + two + ".tar": meta, two + ".tar": root},
			"three": {"meta-" + three + ".tar": vmMeta, three + ".qcow2": disk},
		} {
			into := t.TempDir()
			c.run("image", "export", alias, into)
			for name, content := range files {
				got, err := os.ReadFile(filepath.Join(into, name))
				require.NoError(t, err)
				require.True(t, bytes.Equal(content, got), name)
			}
		}

		_, err := c.exec("public: true\nproperties: {a: b}\n", "image", "edit", "one")
		require.NoError(t, err)
		img, _ = s.Image(one)
		require.Equal(t, map[string]string{"a": "b"}, img.Properties)

		c.run("publish", "web1", "--alias", "published")
		c.run("publish", "web1/snap0", "--alias", "snapshot", "x=y")
		require.Contains(t, s.Aliases(), "published")
		require.Contains(t, s.Aliases(), "snapshot")
		c.fails("Image source not found", "image", "refresh", "one")

		c.run("project", "create", "other")
		c.run("image", "copy", "one", "local:", "--target-project", "other", "--alias", "there")
		require.Contains(t, c.run("image", "list", "--project", "other", "--format", "csv"), "there")
		c.run("image", "delete", "one", "two", "three")
		require.NotContains(t, s.Aliases(), "one")
		require.Empty(t, s.Running())
	})
}

func TestCommandLineCopies(t *testing.T) {
	eachCommand(t, func(t *testing.T, d lxdtest.Dialect, bin string) {
		from, to := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: d, TLS: true}, nil).Server, testkit.StartFakeWith(t, &lxdtest.Options{Dialect: d, TLS: true}, nil).Server
		c := newCommands(t, bin, from)
		if d == lxdtest.LXD69 {
			// This lxc sends a token as a password, which LXD 6.9 refuses, so its
			// certificate is trusted beforehand.
			cert, key := from.ClientCertificate()
			require.NoError(t, to.Trust("lxc", cert))
			require.NoError(t, os.Mkdir(filepath.Join(c.dir, "conf"), 0o700))
			c.file("conf/client.crt", cert)
			c.file("conf/client.key", key)
		}
		for name, s := range map[string]*lxdtest.Server{"from": from, "to": to} {
			switch d {
			case lxdtest.LXD69:
				c.run("remote", "add", name, s.URL(), "--accept-certificate")
			case lxdtest.Incus60:
				c.run("remote", "add", name, s.NewTrustToken("test"))
			default:
				c.run("remote", "add", name, s.URL(), "--accept-certificate", "--password", s.NewTrustToken("test"))
			}
		}
		meta, root := lxdtest.SplitImage("split", 50_000)
		split, err := from.AddImage(meta, &lxdtest.AddOptions{Rootfs: root, Aliases: []string{"split"}})
		require.NoError(t, err)
		unified, err := from.AddImage(lxdtest.UnifiedImage("unified", 0), &lxdtest.AddOptions{Aliases: []string{"unified"}})
		require.NoError(t, err)
		for _, mode := range []string{"pull", "push", "relay"} {
			for name, fingerprint := range map[string]string{"split": split, "unified": unified} {
				c.run("image", "copy", "from:"+name, "to:", "--mode", mode, "--copy-aliases")
				img, ok := to.Image(fingerprint)
				require.True(t, ok, mode)
				require.Equal(t, []string{name}, img.Aliases)
				require.Equal(t, "lxdtest", img.Properties["os"])
				c.run("image", "delete", "to:"+name)
			}
		}
		require.Empty(t, to.Tokens())
	})
}

// pylxdScript uses the image functions of pylxd's documentation and prints their
// results.
const pylxdScript = `
import sys, warnings
warnings.simplefilter("ignore")
import pylxd
client = pylxd.Client(endpoint="http+unix://" + sys.argv[1].replace("/", "%2F"))
data = open(sys.argv[2], "rb").read()
image = client.images.create(data, public=True, wait=True)
image = client.images.get(image.fingerprint)
print(len(client.images.all()), image.public, image.properties["os"], image.size == len(data))
try:
    client.images.create(data, wait=True)
except pylxd.exceptions.LXDAPIException as error:
    print(error)
image.add_alias("py/x", "text")
print(client.images.get_by_alias("py/x").fingerprint == image.fingerprint, client.images.exists("py/x", alias=True))
image = client.images.get(image.fingerprint)
image.delete_alias("py/x")
print(client.images.exists("py/x", alias=True))
image.public = False
image.properties = {"a": "b"}
image.save()
print(client.images.get(image.fingerprint).properties)
print(image.export().read() == data)
split = client.images.create(open(sys.argv[4], "rb").read(), metadata=open(sys.argv[3], "rb").read(), wait=True)
print(split.fingerprint)
other = pylxd.Client(endpoint=sys.argv[5], cert=(sys.argv[6], sys.argv[7]), verify=sys.argv[10])
print(client.images.create_from_url(sys.argv[8]).fingerprint == sys.argv[9])
image.delete(wait=True)
try:
    client.images.get(image.fingerprint)
except pylxd.exceptions.NotFound as error:
    print(error)
print(other.images.all()[0].fingerprint == sys.argv[9])
`

func TestPylxd(t *testing.T) {
	bin, env := build(t)
	c := &commands{t, "/usr/bin/python3", env, t.TempDir()}
	meta, root := lxdtest.SplitImage("split", 0)
	web := lxdtest.UnifiedImage("web", 0)
	source := streamstest.NewServer(nil)
	t.Cleanup(source.Close)
	servers := serve(t, bin, "-dialect", "near=lxd50,remote=lxd50", "-image", "remote:web="+c.file("web.tar", web)).Servers
	remote := servers[1]
	out := c.run("-c", pylxdScript, servers[0].Socket, c.file("u", lxdtest.UnifiedImage("unified", 20_000)), c.file("m", meta), c.file("r", root),
		remote.URL, remote.ClientCertificate, remote.ClientKey, source.Direct("image", streamstest.Direct{Content: web}), lxdtest.Fingerprint(web),
		remote.ServerCertificate)
	require.Equal(t, strings.Join([]string{
		"1 True lxdtest True",
		"Image with same fingerprint already exists",
		"True True",
		"False",
		"{'a': 'b'}",
		"True",
		lxdtest.Fingerprint(meta, root),
		"True",
		"Image not found",
		"True",
		"",
	}, "\n"), out)
}

// TestCommandsPage: docs/commands.md has each command of images, and each flag but those
// of the output.
func TestCommandsPage(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../docs/commands.md")
	require.NoError(t, err)
	page := string(data)
	for _, bin := range []string{"lxc", "incus"} {
		c := newCommands(t, bin, testkit.StartFake(t).Server)
		checked := 0
		var check func(args ...string)
		check = func(args ...string) {
			help := c.run(append(args, "--help")...)
			_, commands, parent := strings.Cut(help, "Available Commands:\n")
			if parent {
				commands, _, _ = strings.Cut(commands, "\n\n")
				for line := range strings.Lines(commands) {
					check(append(slices.Clone(args), strings.Fields(line)[0])...)
				}
				return
			}
			require.True(t, regexp.MustCompile("`lxc "+strings.Join(args, " ")+"[` ]").MatchString(page), "%s has %v", bin, args)
			_, flags, _ := strings.Cut(help, "\nFlags:\n")
			flags, _, _ = strings.Cut(flags, "\n\n")
			for _, flag := range regexp.MustCompile(`(?m)^ .*?(--[a-z-]+)`).FindAllStringSubmatch(flags, -1) {
				if !slices.Contains([]string{"--columns", "--format"}, flag[1]) {
					require.True(t, regexp.MustCompile("`"+flag[1]+"[`= ]").MatchString(page), "%s %v has %s", bin, args, flag[1])
				}
			}
			checked++
		}
		check("image")
		check("publish")
		require.Equal(t, 17, checked, bin)
	}
}
