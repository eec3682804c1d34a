package lxdtest

import (
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// get downloads a path; headers are name-value pairs.
func (c *client) get(path string, headers ...string) (*http.Response, []byte, error) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), "GET", c.base+path, nil)
	require.NoError(c.t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(res.Body)
	require.NoError(c.t, res.Body.Close())
	return res, data, err
}

func TestExportInRanges(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		file := UnifiedImage("x", 10_000)
		fingerprint, err := s.AddImage(file, nil)
		require.NoError(t, err)
		path := "/1.0/images/" + fingerprint + "/export"
		res, data, err := c.get(path)
		require.NoError(t, err)
		require.Equal(t, file, data)
		require.Equal(t, "inline;filename="+fingerprint+".tar", res.Header.Get("Content-Disposition"))
		require.Equal(t, "application/octet-stream", res.Header.Get("Content-Type"))
		require.EqualValues(t, len(file), res.ContentLength)
		modified := res.Header.Get("Last-Modified")
		require.NotEmpty(t, modified)
		require.Empty(t, res.Header.Get("Etag"))

		res, data, err = c.get(path, "Range", "bytes=5-9", "If-Range", modified)
		require.NoError(t, err)
		require.Equal(t, 206, res.StatusCode)
		require.Equal(t, file[5:10], data)
		res, data, err = c.get(path, "Range", "bytes=5-9", "If-Range", "Mon, 01 Jan 2001 00:00:00 GMT")
		require.NoError(t, err)
		require.Equal(t, 200, res.StatusCode)
		require.Len(t, data, len(file))
		res, _, err = c.get(path, "Range", "bytes=99999999-")
		require.NoError(t, err)
		require.Equal(t, 416, res.StatusCode)
	})
}

// parts returns the names and files of a form.
func parts(t *testing.T, res *http.Response, body io.Reader) (names []string, files [][]byte) {
	t.Helper()
	_, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	require.NoError(t, err)
	form := multipart.NewReader(body, params["boundary"])
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return names, files
		}
		require.NoError(t, err)
		data, err := io.ReadAll(part)
		require.NoError(t, err)
		names, files = append(names, part.FormName()+" "+part.FileName()), append(files, data)
	}
}

func TestSplitExport(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	meta, disk := VMImage("x", 50_000)
	fingerprint, err := s.AddImage(meta, &AddOptions{Rootfs: disk, VM: true})
	require.NoError(t, err)
	fault := s.Inject(TruncateRootfs(100).On("GET", "/1.0/images/*/export"))
	for range 2 {
		res, err := c.http.Get(c.base + "/1.0/images/" + fingerprint + "/export")
		require.NoError(t, err)
		require.EqualValues(t, -1, res.ContentLength)
		names, files := parts(t, res, res.Body)
		require.NoError(t, res.Body.Close())
		require.Equal(t, []string{"metadata meta-" + fingerprint + ".tar", "rootfs.img " + fingerprint + ".qcow2"}, names)
		require.Equal(t, meta, files[0])
		if fault.Fired() == 1 && len(files[1]) == 100 {
			fault.Remove()
			continue
		}
		require.Equal(t, disk, files[1])
	}
	require.Equal(t, 1, fault.Fired())
}

// TestLoseContent: the responses were recorded of LXD 5.0.2, Incus 6.0.4 and 7.0.2.
func TestLoseContent(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d})
		c := newClient(t, s)
		fingerprint, err := s.AddImage(UnifiedImage("x", 0), nil)
		require.NoError(t, err)
		fault := s.Inject(LoseContent().Times(1))
		refused := c.do("GET", "/1.0/images/"+fingerprint+"/export", nil)
		require.Equal(t, 1, fault.Fired())
		require.Equal(t, 200, c.do("GET", "/1.0/images/"+fingerprint, nil).HTTP)
		switch {
		case d == Incus70:
			require.Equal(t, 404, refused.HTTP)
			require.Equal(t, `Image "`+fingerprint+`" file is missing on this cluster member`, refused.Error)
		case d.Family() == "incus":
			require.Equal(t, 404, refused.HTTP)
			require.Regexp(t, "^open /.*: no such file or directory$", refused.Error)
		default:
			require.Equal(t, 500, refused.HTTP)
			require.Regexp(t, "^open /.*: no such file or directory$", refused.Error)
		}

		// A file on disk that is removed is the same.
		path := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(path, UnifiedImage("y", 0), 0o600))
		fingerprint, err = s.AddImageFile(path, "", nil)
		require.NoError(t, err)
		require.NoError(t, os.Remove(path))
		removed := c.do("GET", "/1.0/images/"+fingerprint+"/export", nil)
		require.Equal(t, refused.HTTP, removed.HTTP)
		require.Equal(t, d == Incus70, removed.Error != "open "+path+": no such file or directory")
	})
}

func TestDeleteDuringExport(t *testing.T) {
	s := newTestServer(t, nil)
	c := newClient(t, s)
	file := UnifiedImage("x", 300_000)
	fingerprint, err := s.AddImage(file, nil)
	require.NoError(t, err)
	stall := s.Inject(StallResponse(1000).On("GET", "/1.0/images/*/export"))
	res, err := c.http.Get(c.base + "/1.0/images/" + fingerprint + "/export")
	require.NoError(t, err)
	defer res.Body.Close()
	c.wait(c.do("DELETE", "/1.0/images/"+fingerprint, nil))
	stall.Release()
	data, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, fingerprint, Fingerprint(data))
}
