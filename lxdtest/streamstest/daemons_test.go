package streamstest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/testdaemon"
)

// TestDaemonsImportByURL imports an image from a URL with each real daemon in the environment, and checks that faulty
// images are refused.
func TestDaemonsImportByURL(t *testing.T) {
	lxd, incus, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, daemon := range append(lxd, incus...) {
		t.Run(string(daemon.Family), func(t *testing.T) { testImportByURL(t, daemon) })
	}
}

func testImportByURL(t *testing.T, daemon *testdaemon.Daemon) {
	server := NewServer(nil)
	defer server.Close()
	image := tarball(t, string(daemon.Family)+time.Now().String())
	prefix := map[testdaemon.Family]string{testdaemon.LXD: "LXD", testdaemon.Incus: "Incus"}[daemon.Family]
	other := map[string]string{"LXD": "Incus", "Incus": "LXD"}[prefix]
	create := func(url string) (string, error) {
		var created struct{ Fingerprint string }
		err := daemon.Do(t.Context(), "POST", "/1.0/images", map[string]any{
			"source": map[string]string{"type": "url", "mode": "pull", "url": url},
		}, &created)

		return created.Fingerprint, err
	}

	for name, offer := range map[string]Direct{
		"other family": {Content: image, Families: []string{other}},
		"no hash":      {Content: image, Hash: "-"},
		"wrong hash":   {Content: image, Hash: Hash(nil)},
		"no URL":       {Content: image, URL: "-"},
		"relative URL": {Content: image, URL: "/relative.tar.gz"},
	} {
		_, err := create(server.Direct(name, offer))
		var refusal *testdaemon.Error
		require.ErrorAs(t, err, &refusal, name)
	}

	url := server.Direct("image", Direct{Content: image})
	server.Fault("redirected", Redirect(url))
	for _, each := range []string{url, server.URL + "/redirected"} {
		fingerprint, err := create(each)
		require.NoError(t, err)
		require.Equal(t, Hash(image), fingerprint)
		require.NoError(t, daemon.Do(t.Context(), http.MethodDelete, "/1.0/images/"+fingerprint, nil, nil))
	}
}

func tarball(t *testing.T, name string) []byte {
	var packed bytes.Buffer
	compressor := gzip.NewWriter(&packed)
	archive := tar.NewWriter(compressor)
	metadata := "architecture: x86_64\ncreation_date: 1500000000\nproperties:\n  name: \"" + name + "\"\n"
	require.NoError(t, archive.WriteHeader(&tar.Header{Name: "metadata.yaml", Mode: 0o644, Size: int64(len(metadata))}))
	_, err := archive.Write([]byte(metadata))
	require.NoError(t, err)
	require.NoError(t, archive.WriteHeader(&tar.Header{Name: "rootfs/", Mode: 0o755, Typeflag: tar.TypeDir}))
	require.NoError(t, archive.Close())
	require.NoError(t, compressor.Close())

	return packed.Bytes()
}
