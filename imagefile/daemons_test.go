package imagefile_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

// TestDaemons: the real daemons refuse what Check calls refused, in the expected words, accept the rest, and report the
// metadata that Inspect reads. Containers cannot be created of what is expected to be unusable, and can of all else.
func TestDaemons(t *testing.T) {
	t.Parallel()
	cases := imageCases(t)
	for _, s := range testkit.Subjects(t) {
		if s.Real == nil {
			continue // lxdtest imitates the uploads of good images, and not all refusals.
		}
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			for _, c := range cases {
				fingerprint, refusal := uploadRaw(t, s, c)
				if c.refusedBy == "all" || c.refusedBy != "" && strings.Contains(s.Column, c.refusedBy) {
					require.NotEmpty(t, refusal, c.name)
					require.Contains(t, refusal, c.text, c.name)
					continue
				}
				require.Empty(t, refusal, c.name)
				image, err := s.Client(t).Images.Get(t.Context(), fingerprint)
				require.NoError(t, err, c.name)
				requireSame(t, &c, image)
				if !c.vm {
					name := testkit.Unique("imagefile")
					err := s.Real.CreateInstance(t.Context(), name, fingerprint)
					if c.unusable {
						require.Error(t, err, c.name)
					} else {
						require.NoError(t, err, c.name)
						require.NoError(t, s.Real.DeleteInstance(t.Context(), name))
					}
				}
				require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}), c.name)
			}
		})
	}
}

// requireSame fails if the daemon reports something else than Inspect.
func requireSame(t *testing.T, c *imageCase, image *lxd.Image) {
	t.Helper()
	report := c.check(t)
	info := report.Info
	if report.Problems == nil {
		require.Equal(t, image.Fingerprint, info.Fingerprint, c.name)
		require.Equal(t, image.Size, info.Size, c.name)
		require.Equal(t, image.Type, info.Type, c.name)
	}
	if info.Metadata == nil {
		return // Incus 7.0.2 alone refuses it.
	}
	require.Equal(t, image.Architecture, info.Metadata.Architecture, c.name)
	if c.name != "negative date" { // Incus reports the zero time.
		require.Equal(t, image.CreatedAt.Unix(), info.Metadata.CreatedAt.Unix(), c.name)
	}
	require.Equal(t, image.ExpiresAt.IsZero(), info.Metadata.ExpiresAt.IsZero(), c.name)
	require.Len(t, info.Metadata.Properties, len(image.Properties), c.name)
	for name, value := range image.Properties {
		require.Equal(t, value, info.Metadata.Properties[name], c.name)
	}
}

// uploadRaw uploads an image without the checks of package lxd. It returns its fingerprint, or why it was refused.
func uploadRaw(t *testing.T, s *testkit.Subject, c imageCase) (fingerprint, refusal string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.Real.Socket)
	}}}
	type response struct {
		Error     string
		Operation string
		Metadata  struct {
			Err      string
			Metadata struct{ Fingerprint string }
		}
	}
	do := func(method, path, contentType string, body io.Reader) (r response) {
		request, err := http.NewRequestWithContext(t.Context(), method, "http://daemon"+path, body)
		require.NoError(t, err)
		request.Header.Set("Content-Type", contentType)
		got, err := client.Do(request)
		require.NoError(t, err)
		defer got.Body.Close()
		require.NoError(t, json.NewDecoder(got.Body).Decode(&r))
		return r
	}
	body, contentType := bytes.NewBuffer(c.image), "application/octet-stream"
	if c.rootfs != nil {
		body = &bytes.Buffer{}
		form := multipart.NewWriter(body)
		field := "rootfs"
		if c.vm {
			field = "rootfs.img"
		}
		for n, data := range [][]byte{c.image, c.rootfs} {
			part, err := form.CreateFormFile([]string{"metadata", field}[n], "file")
			require.NoError(t, err)
			_, err = part.Write(data)
			require.NoError(t, err)
		}
		require.NoError(t, form.Close())
		contentType = form.FormDataContentType()
	}
	r := do(http.MethodPost, "/1.0/images", contentType, body)
	if r.Error == "" {
		r = do(http.MethodGet, r.Operation+"/wait", "", nil)
	}
	return r.Metadata.Metadata.Fingerprint, r.Error + r.Metadata.Err
}
