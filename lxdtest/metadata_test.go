package lxdtest

import (
	"bytes"
	"compress/gzip"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// TestCompressedUploads: the metadata of a compressed image is read, and its files are exported with the extension of
// their format. What is refused is compared with the daemons in the tests of package imagefile.
func TestCompressedUploads(t *testing.T) {
	compress := func(w io.WriteCloser, err error) func([]byte) {
		require.NoError(t, err)
		return func(data []byte) {
			_, err := w.Write(data)
			require.NoError(t, err)
			require.NoError(t, w.Close())
		}
	}
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		for extension, open := range map[string]func(io.Writer) (io.WriteCloser, error){
			".tar.gz":   func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
			".tar.xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
			".tar.lzma": func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) },
			".tar.zst":  func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		} {
			var unified, root bytes.Buffer
			compress(open(&unified))(UnifiedImage(extension, 20_000))
			c.upload(unified.Bytes())
			fingerprint := Fingerprint(unified.Bytes())
			img, ok := s.Image(fingerprint)
			require.True(t, ok, extension)
			require.Equal(t, extension, img.Properties["seed"])
			require.Equal(t, imageDate, img.CreatedAt)
			res, _, err := c.get("/1.0/images/" + fingerprint + "/export")
			require.NoError(t, err)
			require.Equal(t, "inline;filename="+fingerprint+extension, res.Header.Get("Content-Disposition"))

			meta, rootfs := SplitImage(extension, 0)
			compress(open(&root))(rootfs)
			for second, want := range map[string]string{root.String(): extension, "hsqs": ".squashfs", "QFI\xfb": ".qcow2", "text": "", "": ""} {
				body, contentType := form(t, []string{"metadata", "rootfs"}, meta, []byte(second))
				c.wait(c.do("POST", "/1.0/images", body, "Content-Type", contentType))
				fingerprint := Fingerprint(meta, []byte(second))
				res, data, err := c.get("/1.0/images/" + fingerprint + "/export")
				require.NoError(t, err)
				require.Equal(t, 200, res.StatusCode)
				require.Contains(t, string(data), `filename="meta-`+fingerprint+`.tar"`)
				require.Contains(t, string(data), `filename="`+fingerprint+want+`"`)
			}
		}
	})
}
