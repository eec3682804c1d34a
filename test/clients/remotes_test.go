package clients_test

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
)

// command runs lxc or incus with its own configuration directory.
func command(t *testing.T, dir string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "LXD_CONF="+dir, "INCUS_CONF="+dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// realDaemons are those that the environment names, two of each kind. Without
// it there are none, and the tests over them are empty.
func realDaemons(t *testing.T) map[lxd.Family][]*testdaemon.Daemon {
	t.Helper()
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	daemons := map[lxd.Family][]*testdaemon.Daemon{}
	if len(lxds) > 0 {
		daemons[lxd.LXD] = lxds
	}
	if len(incuses) > 0 {
		daemons[lxd.Incus] = incuses
	}
	return daemons
}

// TestRealRemotes has the daemons' own commands write a configuration, and uses
// its remotes: with the trust password on LXD 5.0.2, with tokens on Incus 6.0.4.
func TestRealRemotes(t *testing.T) {
	t.Parallel()
	for family, daemons := range realDaemons(t) {
		t.Run(string(family), func(t *testing.T) {
			t.Parallel()
			ctx, dir := t.Context(), t.TempDir()
			names := []string{"one", "two"}
			require.GreaterOrEqual(t, len(daemons), len(names))
			for n, name := range names {
				if family == lxd.LXD {
					command(t, dir, "lxc", "remote", "add", name, daemons[n].URL, "--accept-certificate", "--password="+daemons[n].TrustPassword)
					continue
				}
				token, err := daemons[n].JoinToken(ctx, testkit.Unique("remote"))
				require.NoError(t, err)
				command(t, dir, "incus", "remote", "add", name, token)
			}
			options := lxd.Options{Family: family, ConfigDir: dir}
			before := testkit.Tree(t, dir)
			remotes, err := lxd.Remotes(&lxd.RemotesOptions{Family: family, ConfigDir: dir})
			require.NoError(t, err)
			require.Subset(t, testkit.RemoteNames(remotes), []string{"images", "local", "one", "two"})
			clients := make([]*lxd.Client, len(names))
			for n, name := range names {
				clients[n], err = lxd.Remote(name, &options)
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, clients[n].Close()) })
				require.Equal(t, daemons[n].URL, clients[n].Endpoint())
				require.True(t, testkit.Trusted(t, clients[n]))
			}
			image := testkit.Upload(t, clients[0], nil)
			copied, err := image.Copy(ctx, clients[1], &lxd.CopyOptions{Wait: true})
			require.NoError(t, err)
			require.Equal(t, image.Fingerprint, copied.Image.Fingerprint)
			testkit.DeleteAfter(t, copied.Image)
			images, err := clients[1].Images.All(ctx, nil)
			require.NoError(t, err)
			require.NotEmpty(t, images)
			require.Equal(t, before, testkit.Tree(t, dir))
		})
	}
}

// TestRealTrust joins real daemons by tokens and passwords, with each kind of
// key, and is refused with bad ones.
func TestRealTrust(t *testing.T) {
	t.Parallel()
	for family, daemons := range realDaemons(t) {
		t.Run(string(family), func(t *testing.T) {
			t.Parallel()
			ctx, daemon := t.Context(), daemons[0]
			for _, kind := range []lxd.KeyType{lxd.P256, lxd.P384, lxd.Ed25519} {
				token, err := daemon.JoinToken(ctx, testkit.Unique("join"))
				require.NoError(t, err)
				cert, key := testkit.NewKeyPair(t, &lxd.KeyPairOptions{Type: kind})
				client, err := lxd.Join(ctx, token, &lxd.Options{ClientCertificate: cert, ClientKey: key})
				require.NoError(t, err, kind)
				t.Cleanup(func() { require.NoError(t, client.Close()) })
				testkit.Upload(t, client, nil)
				require.NoError(t, client.Trust(ctx, token), "it is trusted already")
				_, err = lxd.Join(ctx, token, testkit.Joiner(t))
				testkit.ErrOf[*lxd.TrustError](t, err)
				require.ErrorIs(t, err, lxd.ErrForbidden)
			}
			opts := testkit.Joiner(t)
			opts.ServerCertificate = daemon.ServerCertificate
			client := testkit.NewClient(t, daemon.URL, opts)
			if family == lxd.Incus {
				require.ErrorIs(t, client.TrustPassword(ctx, "any", nil), lxd.ErrUnsupported)
				return
			}
			testkit.ErrOf[*lxd.TrustError](t, client.TrustPassword(ctx, "wrong", nil))
			require.False(t, testkit.Trusted(t, client))
			require.NoError(t, client.TrustPassword(ctx, daemon.TrustPassword, &lxd.TrustPasswordOptions{Name: testkit.Unique("me")}))
			testkit.Upload(t, client, nil)
		})
	}
}
