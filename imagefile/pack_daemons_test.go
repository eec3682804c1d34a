package imagefile_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/internal/testkit"
)

// TestPackOnDaemons: each daemon accepts what is packed, in each layout and compression, while it is packed; reports the
// fingerprint and metadata of Info, and creates containers that have the files.
func TestPackOnDaemons(t *testing.T) {
	t.Parallel()
	rootfs := tarball(t, entry{name: "./", kind: tar.TypeDir}, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/motd", content: "packed\n"},
		entry{name: "etc/alias", kind: tar.TypeLink, link: "etc/motd"}, entry{name: "etc/symbolic", kind: tar.TypeSymlink, link: "motd"})
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			for name, opts := range map[string]imagefile.PackOptions{
				"unified none": {Compression: imagefile.None},
				"unified gzip": {},
				"unified xz":   {Compression: imagefile.XZ},
				"unified zstd": {Compression: imagefile.Zstd},
				"split gzip":   {},
				"split zstd":   {Compression: imagefile.Zstd},
				"split none":   {Compression: imagefile.None}, // with a metadata tarball that is not read in one piece
				// The program that writes it is installed where daemons are.
				"split squashfs": {Format: imagefile.Squashfs},
			} {
				if opts.Format != "" && s.Real == nil {
					continue
				}
				metadata := described()
				metadata.ExpiresAt = metadata.CreatedAt.AddDate(50, 0, 0)
				metadata.Properties["test"] = testkit.Unique(name)
				root := func() imagefile.Root { return imagefile.FromTar(bytes.NewReader(rootfs), nil) }
				create := &lxd.CreateOptions{Wait: true}
				var packed io.ReadCloser
				var info *imagefile.Info
				var err error
				if name[0] == 'u' {
					packed = imagefile.NewReader(t.Context(), root(), metadata, withTemplates(opts))
					info, err = imagefile.Pack(t.Context(), io.Discard, nil, root(), metadata, withTemplates(opts))
				} else {
					packed, create.Rootfs = imagefile.NewReaders(t.Context(), root(), metadata, withTemplates(opts))
					info, err = imagefile.Pack(t.Context(), io.Discard, io.Discard, root(), metadata, withTemplates(opts))
				}
				require.NoError(t, err)
				image, err := s.Client(t).Images.Create(t.Context(), packed, create)
				require.NoError(t, err, name)
				require.Equal(t, info.Fingerprint, image.Fingerprint)
				require.Equal(t, info.Size, image.Size)
				require.Equal(t, info.Type, image.Type)
				require.Equal(t, "x86_64", image.Architecture)
				require.Equal(t, metadata.Properties, image.Properties)
				require.Equal(t, metadata.CreatedAt, image.CreatedAt.UTC())
				require.Equal(t, metadata.ExpiresAt, image.ExpiresAt.UTC())
				if s.Real != nil {
					instance := testkit.Unique("imagefile")
					require.NoError(t, s.Real.CreateInstance(t.Context(), instance, image.Fingerprint), name)
					for _, file := range []string{"/etc/motd", "/etc/alias"} {
						require.Equal(t, "packed\n", instanceFile(t, s, instance, file))
					}
					require.NoError(t, s.Real.DeleteInstance(t.Context(), instance))
				}
				require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			}
		})
	}
}

// instanceFile returns a file of an instance.
func instanceFile(t *testing.T, s *testkit.Subject, instance, file string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.Real.Socket)
	}}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://daemon/1.0/instances/"+instance+"/files?path="+url.QueryEscape(file), nil)
	require.NoError(t, err)
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, "%s", data)
	return string(data)
}
