package testdaemon

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRealDaemons tests the whole package with each family of which the
// environment has a daemon. It starts its own daemons.
func TestRealDaemons(t *testing.T) {
	lxd, incus, err := FromEnv()
	require.NoError(t, err)
	if len(lxd) > 0 {
		t.Run("LXD", func(t *testing.T) { testRealDaemon(t, LXD) })
	}
	if len(incus) > 0 {
		t.Run("Incus", func(t *testing.T) { testRealDaemon(t, Incus) })
	}
}

func testRealDaemon(t *testing.T, family Family) {
	ctx := t.Context()
	d, err := Start(ctx, family, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })

	var info struct {
		Environment struct {
			Server string `json:"server"`
		} `json:"environment"`
	}
	require.NoError(t, d.Do(ctx, "GET", "/1.0", nil, &info))
	require.Equal(t, string(family), info.Environment.Server)

	fingerprint, err := d.Upload(ctx, bytes.NewReader(tarball(t)))
	require.NoError(t, err)
	require.Len(t, fingerprint, 64)
	var refusal *Error
	_, err = d.Upload(ctx, bytes.NewReader(tarball(t)))
	require.ErrorAs(t, err, &refusal, "the same image twice")

	require.NoError(t, d.CreateInstance(ctx, "c1", fingerprint))
	require.NoError(t, d.CreateSnapshot(ctx, "c1", "snap0"))
	for _, source := range []map[string]any{
		{"type": "instance", "name": "c1"},
		{"type": "snapshot", "name": "c1/snap0"},
	} {
		require.NoError(t, d.Do(ctx, "POST", "/1.0/images", map[string]any{
			"source": source, "properties": map[string]string{"from": source["name"].(string)},
		}, nil), "publish %v", source)
	}
	require.NoError(t, d.CreateProject(ctx, "p1"))
	require.NoError(t, d.CreateProfile(ctx, "p1", "extra"))
	require.NoError(t, d.DeleteProfile(ctx, "p1", "extra"))
	require.NoError(t, d.DeleteProject(ctx, "p1"))
	token, err := d.JoinToken(ctx, "joiner")
	require.NoError(t, err)
	require.NotEmpty(t, token)

	require.NoError(t, d.Kill())
	require.NoError(t, d.Restart(ctx))
	require.NoError(t, d.StopGracefully(ctx))
	require.NoError(t, d.Restart(ctx))
	var images []string
	require.NoError(t, d.Do(ctx, "GET", "/1.0/images", nil, &images))
	require.Contains(t, images, "/1.0/images/"+fingerprint)
	require.NoError(t, d.DeleteInstance(ctx, "c1"))

	// A killed daemon leaves its mounts behind.
	require.NoError(t, d.Kill())
	table, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotEmpty(t, mountsBelow(string(table), d.Dir))
	require.NoError(t, d.Close())
	require.NoDirExists(t, d.Dir)
}

// tarball returns the smallest image that the daemons accept.
func tarball(t *testing.T) []byte {
	t.Helper()
	metadata := []byte("architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: test\n")
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	archive := tar.NewWriter(zip)
	require.NoError(t, archive.WriteHeader(&tar.Header{Name: "metadata.yaml", Mode: 0o644, Size: int64(len(metadata))}))
	_, err := archive.Write(metadata)
	require.NoError(t, err)
	require.NoError(t, archive.WriteHeader(&tar.Header{Name: "rootfs/", Typeflag: tar.TypeDir, Mode: 0o755}))
	require.NoError(t, archive.Close())
	require.NoError(t, zip.Close())
	return out.Bytes()
}
