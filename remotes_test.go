package lxd_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// configDir is a configuration directory of a command line.
type configDir struct{ dir string }

func newConfigDir(t *testing.T, config string) *configDir {
	t.Helper()
	f := &configDir{t.TempDir()}
	f.write(t, "config.yml", []byte(config))
	return f
}

func (f *configDir) write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(f.dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

// configFor is a config.yml as lxc 5.0.2 writes it.
func configFor(server *lxdtest.Server) string {
	return fmt.Sprintf(`default-remote: farm
remotes:
  images:
    addr: https://images.linuxcontainers.org
    protocol: simplestreams
    public: true
  local:
    addr: unix://
    project: mine
    public: false
  farm:
    addr: %[1]s
    auth_type: tls
    project: default
    protocol: lxd
    public: false
  blue:
    addr: %[1]s
    project: blue
    protocol: lxd
    public: false
  shop:
    addr: %[1]s
    protocol: lxd
    public: true
  socket:
    addr: %[2]s
    public: false
  login:
    addr: %[1]s
    auth_type: oidc
    protocol: lxd
  old:
    addr: %[1]s
    auth_type: candid
    protocol: lxd
  alien:
    addr: %[1]s
    protocol: vmware
aliases: {}
`, server.URL(), server.Endpoint())
}

// remoteServer is a server, and a directory whose remotes point to it.
func remoteServer(t *testing.T, opts lxdtest.Options) (*lxdtest.Server, *configDir) {
	t.Helper()
	opts.TLS = true
	server := lxdtest.NewServer(&opts)
	t.Cleanup(server.Close)
	config := newConfigDir(t, configFor(server))
	cert, key := testkit.NewKeyPair(t, nil)
	require.NoError(t, server.Trust("cli", cert))
	config.write(t, "client.crt", cert)
	config.write(t, "client.key", key)
	for _, name := range []string{"farm", "blue", "shop", "login"} {
		config.write(t, "servercerts/"+name+".crt", server.Certificate())
	}
	return server, config
}

func (f *configDir) remote(t *testing.T, name string, opts lxd.Options) *lxd.Client {
	t.Helper()
	opts.ConfigDir = f.dir
	client, err := lxd.Remote(name, &opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

// fails returns the error of a remote.
func (f *configDir) fails(t *testing.T, name string, opts lxd.Options) (*lxd.RemoteError, error) {
	t.Helper()
	opts.ConfigDir = f.dir
	_, err := lxd.Remote(name, &opts)
	return testkit.ErrOf[*lxd.RemoteError](t, err), err
}

func TestRemoteIsTheCommandsOwn(t *testing.T) {
	t.Parallel()
	server, config := remoteServer(t, lxdtest.Options{})
	server.AddProject("blue", true)

	before := testkit.Tree(t, config.dir)
	farm := config.remote(t, "", lxd.Options{})
	require.Equal(t, server.URL(), farm.Endpoint())
	require.Equal(t, "default", farm.Project())
	image := testkit.Upload(t, farm, nil)
	trusted, err := farm.Trusted(t.Context())
	require.NoError(t, err)
	require.True(t, trusted)

	blue := config.remote(t, "blue:", lxd.Options{})
	require.Equal(t, "blue", blue.Project())
	_, err = blue.Images.Get(t.Context(), image.Fingerprint)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	require.Equal(t, "red", config.remote(t, "blue", lxd.Options{Project: "red"}).Project())

	socket := config.remote(t, "socket", lxd.Options{})
	require.Equal(t, server.Endpoint(), socket.Endpoint())
	_, err = socket.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)

	local := config.remote(t, "local", lxd.Options{})
	require.Equal(t, "the local daemon", local.Endpoint())
	require.Equal(t, "mine", local.Project())
	require.Equal(t, before, testkit.Tree(t, config.dir), "files are read, never written")
}

func TestPublicRemoteOnlyReads(t *testing.T) {
	t.Parallel()
	server, config := remoteServer(t, lxdtest.Options{})
	trusted := testkit.NewClient(t, server.Endpoint(), nil)
	public := testkit.Upload(t, trusted, &lxd.CreateOptions{Public: true})
	testkit.Upload(t, trusted, nil)
	shop := config.remote(t, "shop", lxd.Options{})
	images, err := shop.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, images, 1)
	require.Equal(t, public.Fingerprint, images[0].Fingerprint)
	_, err = shop.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), nil)
	require.ErrorIs(t, err, lxd.ErrForbidden)
}

func TestRemoteThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	_, config := remoteServer(t, lxdtest.Options{})
	refused, err := config.fails(t, "fram", lxd.Options{})
	require.ErrorIs(t, err, lxd.ErrNotFound)
	require.Equal(t, "fram", refused.Name)
	require.Contains(t, refused.Known, "farm")
	require.ErrorContains(t, err, "alien, blue, farm")
	require.ErrorContains(t, err, "lxc command")

	refused, err = config.fails(t, "images", lxd.Options{})
	require.ErrorIs(t, err, lxd.ErrUnsupported)
	require.Equal(t, lxd.SimplestreamsProtocol, refused.Info.Protocol)
	require.Equal(t, "https://images.linuxcontainers.org", refused.Info.Address)
	require.ErrorContains(t, err, "CreateFromSimplestreams")

	for _, name := range []string{"old", "alien"} {
		_, err = config.fails(t, name, lxd.Options{})
		require.ErrorIs(t, err, lxd.ErrUnsupported, name)
	}
}

// TestRemoteNamesAreNotPaths: the name of a remote selects files of its own.
func TestRemoteNamesAreNotPaths(t *testing.T) {
	t.Parallel()
	server, config := remoteServer(t, lxdtest.Options{})
	for _, name := range []string{"../client", "a/farm"} {
		for _, auth := range []string{"tls", "oidc"} {
			config.write(t, "config.yml", fmt.Appendf(nil, "remotes: {%s: {addr: '%s', auth_type: %s}}", name, server.URL(), auth))
			_, err := config.fails(t, name, lxd.Options{})
			require.ErrorContains(t, err, "not a valid file name", name)
		}
	}
}

func TestRemoteWithBrokenConfig(t *testing.T) {
	t.Parallel()
	for config, line := range map[string]int{
		"remotes:\n  farm:\n    addr: [unclosed\n":      3,
		"remotes:\n  farm:\n    addr: x\n   y: z\n":     2, // where the mapping begins
		"remotes:\n  farm:\n    addr: 'x: y: z\n":       3,
		"remotes:\n  farm:\n    addr: x: y\n":           3,
		"default-remote: local\nremotes:\n\tfarm: {}\n": 3,
		"remotes:\n  farm:\n    public: perhaps\n":      3,
		"remotes:\n- farm\n":                            2,
	} {
		dir := newConfigDir(t, config)
		broken, err := dir.fails(t, "farm", lxd.Options{})
		require.Equal(t, line, broken.Line, config)
		require.Equal(t, filepath.Join(dir.dir, "config.yml"), broken.File)
		require.ErrorContains(t, err, fmt.Sprintf("config.yml line %d: ", line))
		_, err = lxd.Remotes(&lxd.RemotesOptions{ConfigDir: dir.dir})
		require.Equal(t, line, testkit.ErrOf[*lxd.RemoteError](t, err).Line)
	}
	config := newConfigDir(t, "remotes: {farm: {addr: 'ftp://host', public: true}}")
	_, err := config.fails(t, "farm", lxd.Options{})
	require.ErrorIs(t, err, lxd.ErrInvalid)
}

func TestRemoteWithBadFiles(t *testing.T) {
	t.Parallel()
	server, config := remoteServer(t, lxdtest.Options{})
	key, crt := filepath.Join(config.dir, "client.key"), filepath.Join(config.dir, "client.crt")
	good, err := os.ReadFile(key)
	require.NoError(t, err)

	_, other := testkit.NewKeyPair(t, nil)
	config.write(t, "client.key", other)
	bad, err := config.fails(t, "farm", lxd.Options{})
	require.Equal(t, key, bad.File)
	require.ErrorContains(t, err, key+" does not match "+crt)

	config.write(t, "client.key", []byte("no PEM"))
	bad, err = config.fails(t, "farm", lxd.Options{})
	require.Equal(t, key, bad.File)
	require.ErrorContains(t, err, "no PEM key")

	config.write(t, "client.key", pem.EncodeToMemory(&pem.Block{
		Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("x"),
	}))
	_, err = config.fails(t, "farm", lxd.Options{})
	require.ErrorContains(t, err, "protected by a password")

	require.NoError(t, os.Remove(key))
	bad, err = config.fails(t, "farm", lxd.Options{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Equal(t, key, bad.File)
	require.ErrorContains(t, err, "lxc remote add")

	// The options' own certificate needs no files.
	mine, mineKey := server.ClientCertificate()
	testkit.Upload(t, config.remote(t, "farm", lxd.Options{ClientCertificate: mine, ClientKey: mineKey}), nil)

	config.write(t, "client.key", good)
	config.write(t, "servercerts/farm.crt", []byte("no PEM"))
	_, err = config.fails(t, "farm", lxd.Options{})
	require.ErrorIs(t, err, lxd.ErrInvalid)
}

func TestRemoteWithChangedServerCertificate(t *testing.T) {
	t.Parallel()
	_, config := remoteServer(t, lxdtest.Options{})
	other, _ := testkit.NewKeyPair(t, nil)
	config.write(t, "servercerts/farm.crt", other)
	client := config.remote(t, "farm", lxd.Options{})
	_, err := client.Images.All(t.Context(), nil)
	pin := testkit.ErrOf[*lxd.PinError](t, err)
	block, _ := pem.Decode(other)
	require.Equal(t, fingerprintOf(block.Bytes), pin.Want)
	require.NotEqual(t, pin.Want, pin.Got)
}

// TestRemoteWithAuthority has the server's certificate issued by client.ca, as
// with "lxc remote add" in PKI mode, in the place of a stored one.
func TestRemoteWithAuthority(t *testing.T) {
	t.Parallel()
	server, config := remoteServer(t, lxdtest.Options{})
	require.NoError(t, os.Remove(filepath.Join(config.dir, "servercerts/farm.crt")))
	_, err := config.remote(t, "farm", lxd.Options{}).Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrUnavailable, "no system authority has issued it")
	config.write(t, "client.ca", server.Certificate())
	_, err = config.remote(t, "farm", lxd.Options{}).Images.All(t.Context(), nil)
	require.NoError(t, err)
	config.write(t, "client.ca", []byte("no PEM"))
	bad, _ := config.fails(t, "farm", lxd.Options{})
	require.Equal(t, filepath.Join(config.dir, "client.ca"), bad.File)
}

func TestRemoteWarnsOfAnExposedKey(t *testing.T) {
	t.Parallel()
	_, config := remoteServer(t, lxdtest.Options{})
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	config.remote(t, "farm", lxd.Options{Logger: logger})
	require.Empty(t, log.String())
	if runtime.GOOS == "windows" {
		return // it has no such modes
	}
	require.NoError(t, os.Chmod(filepath.Join(config.dir, "client.key"), 0o644))
	config.remote(t, "farm", lxd.Options{Logger: logger})
	require.Contains(t, log.String(), "level=WARN")
	require.Contains(t, log.String(), "client.key")
}

// TestRemoteWithItsOwnClientCertificate: Incus has clientcerts/<remote>.
func TestRemoteWithItsOwnClientCertificate(t *testing.T) {
	t.Parallel()
	server, config := remoteServer(t, lxdtest.Options{Dialect: lxdtest.Incus60})
	server.Distrust()
	require.False(t, testkit.Trusted(t, config.remote(t, "farm", lxd.Options{})))
	cert, key := testkit.NewKeyPair(t, nil)
	require.NoError(t, server.Trust("farm", cert))
	config.write(t, "clientcerts/farm.crt", cert)
	config.write(t, "clientcerts/farm.key", key)
	require.True(t, testkit.Trusted(t, config.remote(t, "farm", lxd.Options{})))
	require.False(t, testkit.Trusted(t, config.remote(t, "blue", lxd.Options{})))
}

func TestRemoteWithOIDC(t *testing.T) {
	t.Parallel()
	_, config := remoteServer(t, lxdtest.Options{Dialect: lxdtest.LXD69, BearerTokens: []string{"first", "second"}})
	client := config.remote(t, "login", lxd.Options{})
	_, err := client.Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrUnauthorized)
	require.ErrorContains(t, err, "lxc image list login:")
	save := func(token string, expiry time.Time) {
		config.write(t, "oidctokens/login.json", fmt.Appendf(nil,
			`{"access_token":%q,"token_type":"Bearer","refresh_token":"r","expiry":%q,"IDTokenClaims":null,"IDToken":""}`, token, expiry.Format(time.RFC3339)))
	}
	for _, token := range []string{"first", "second"} {
		save(token, time.Now().Add(time.Hour))
		require.True(t, testkit.Trusted(t, client), "the token is read anew")
	}
	save("first", time.Now().Add(-time.Hour))
	_, err = client.Trusted(t.Context())
	require.ErrorIs(t, err, lxd.ErrUnauthorized)
	require.ErrorContains(t, err, "expired")
	config.write(t, "oidctokens/login.json", []byte(`{}`))
	_, err = client.Trusted(t.Context())
	require.ErrorContains(t, err, "contains no access token")
}

func TestRemotes(t *testing.T) {
	t.Parallel()
	server, config := remoteServer(t, lxdtest.Options{})
	remotes, err := lxd.Remotes(&lxd.RemotesOptions{ConfigDir: config.dir})
	require.NoError(t, err)
	byName := map[string]lxd.RemoteInfo{}
	for _, r := range remotes {
		byName[r.Name] = r
	}
	require.Equal(t, lxd.RemoteInfo{
		Name: "farm", Address: server.URL(), Protocol: "lxd", Project: "default", AuthType: "tls", Default: true,
		Family: lxd.LXD, ConfigPath: config.dir,
	}, byName["farm"])
	require.Equal(t, lxd.RemoteInfo{
		Name: "local", Address: "unix://", Protocol: "lxd", Project: "mine", Static: true, Family: lxd.LXD, ConfigPath: config.dir,
	}, byName["local"])
	require.True(t, byName["ubuntu"].Static)
	require.Equal(t, lxd.SimplestreamsProtocol, byName["images"].Protocol)
	require.IsIncreasing(t, testkit.RemoteNames(remotes))

	fresh, err := lxd.Remotes(&lxd.RemotesOptions{ConfigDir: t.TempDir(), Family: lxd.Incus})
	require.NoError(t, err)
	require.Equal(t, []string{"images", "local"}, testkit.RemoteNames(fresh))
	require.True(t, fresh[1].Default)
	require.Equal(t, "incus", fresh[1].Protocol)

	_, err = lxd.Remotes(&lxd.RemotesOptions{Family: "lxc"})
	require.ErrorIs(t, err, lxd.ErrInvalid)
}

// TestRemoteByEnvironment changes the environment, so it is not parallel.
func TestRemoteByEnvironment(t *testing.T) {
	home := t.TempDir()
	for _, name := range []string{"LXD_CONF", "INCUS_CONF", "LXC_REMOTE", "INCUS_REMOTE", "LXD_PROJECT", "INCUS_PROJECT", "XDG_CONFIG_HOME"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", home)
	lxdGlobal, incusGlobal := t.TempDir(), t.TempDir()
	t.Setenv("LXD_GLOBAL_CONF", lxdGlobal)
	t.Setenv("INCUS_GLOBAL_CONF", incusGlobal)
	put := func(path, remote string) {
		t.Helper()
		path = filepath.Join(path, "config.yml")
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, "remotes: {%s: {addr: 'unix:/nowhere/%s', public: false}}", remote, remote), 0o600))
	}
	has := func(family lxd.Family, remote string) {
		t.Helper()
		client, err := lxd.Remote(remote, &lxd.Options{Family: family})
		require.NoError(t, err)
		require.Equal(t, "unix:///nowhere/"+remote, client.Endpoint())
		require.NoError(t, client.Close())
	}
	put(filepath.Join(home, ".config/incus"), "incus-own")
	has("", "incus-own")
	put(filepath.Join(home, "snap/lxd/common/config"), "snap")
	has("", "snap")
	has(lxd.Incus, "incus-own")
	put(filepath.Join(home, ".config/lxc"), "classic")
	has("", "classic")
	conf := t.TempDir()
	t.Setenv("LXD_CONF", conf)
	put(conf, "named")
	has("", "named")
	put(lxdGlobal, "system")
	has("", "system")
	put(incusGlobal, "incus-system")
	has(lxd.Incus, "incus-system")

	t.Setenv("LXC_REMOTE", "named")
	t.Setenv("LXD_PROJECT", "env")
	client, err := lxd.Remote("", nil)
	require.NoError(t, err)
	require.Equal(t, "unix:///nowhere/named", client.Endpoint())
	require.Equal(t, "env", client.Project())
	require.NoError(t, client.Close())
	t.Setenv("INCUS_REMOTE", "incus-system")
	t.Setenv("INCUS_PROJECT", "other")
	client, err = lxd.Remote("", &lxd.Options{Family: lxd.Incus})
	require.NoError(t, err)
	require.Equal(t, "unix:///nowhere/incus-system", client.Endpoint())
	require.Equal(t, "other", client.Project())
	require.NoError(t, client.Close())
}

// TestRemoteWithoutAddress: it is not the local daemon.
func TestRemoteWithoutAddress(t *testing.T) {
	f := testkit.StartFake(t)
	t.Setenv("LXD_SOCKET", f.Socket())
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.yml"), []byte("remotes:\n  farm:\n    address: https://10.0.0.7:8443\n    public: true\n"), 0o600))
	_, err := lxd.Remote("farm", &lxd.Options{ConfigDir: dir})
	testkit.ErrOf[*lxd.RemoteError](t, err)
	require.ErrorContains(t, err, "no address")
}

// TestRemoteWithSeveralAddresses has a remote of Incus 7, one of whose addresses
// does not respond.
func TestRemoteWithSeveralAddresses(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true, Dialect: lxdtest.Incus70})
	t.Cleanup(server.Close)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	gone := "https://" + dead.Addr().String()
	require.NoError(t, dead.Close())
	for _, test := range []struct{ last, first, second string }{
		{"", gone, server.URL()},
		{server.URL(), server.URL(), gone},
		{"https://10.0.0.1:8443", gone, server.URL()},
	} {
		f := newConfigDir(t, fmt.Sprintf(`remotes:
  farm:
    addr: %s, %s
    last_working_address: %s
    protocol: incus
    public: false
`, gone, server.URL(), test.last))
		cert, key := server.ClientCertificate()
		f.write(t, "client.crt", cert)
		f.write(t, "client.key", key)
		f.write(t, "servercerts/farm.crt", server.Certificate())
		client, err := lxd.Remote("farm", &lxd.Options{Family: lxd.Incus, ConfigDir: f.dir})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		require.Equal(t, test.first+","+test.second, client.Endpoint())
		require.True(t, testkit.Trusted(t, client))
	}
	remotes, err := lxd.Remotes(&lxd.RemotesOptions{Family: lxd.Incus, ConfigDir: newConfigDir(t, "remotes:\n  farm:\n    addr: https://a,https://b\n").dir})
	require.NoError(t, err)
	for _, r := range remotes {
		if r.Name == "farm" {
			require.Equal(t, "https://a,https://b", r.Address)
		}
	}
}
