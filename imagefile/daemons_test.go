package imagefile_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

// TestDaemons: the real daemons and lxdtest refuse what Check calls refused, in the expected words, accept the rest, and
// report the metadata that Inspect reads. The words of lxdtest are those of the real ones. Containers cannot be created of
// what is expected to be unusable, and can of all else.
func TestDaemons(t *testing.T) {
	t.Parallel()
	cases := imageCases(t)
	subjects := testkit.Subjects(t)
	for _, s := range subjects {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			var twin *testkit.Subject // of a real daemon, in lxdtest
			if s.Real != nil {
				twin = subjects[slices.IndexFunc(subjects, func(other *testkit.Subject) bool { return other.Column == "lxdtest "+s.Column })].Twin
			}
			for _, c := range cases {
				fingerprint, refusal := uploadRaw(t, s, c)
				if c.refusedBy == "all" || c.refusedBy != "" && strings.Contains(s.Column, c.refusedBy) {
					require.NotEmpty(t, refusal, c.name)
					require.Contains(t, refusal, c.text, c.name)
					if twin != nil {
						_, imitated := uploadRaw(t, twin, c)
						requireSameRefusal(t, c.name, refusal, imitated)
					}
					continue
				}
				require.Empty(t, refusal, c.name)
				image, err := s.Client(t).Images.Get(t.Context(), fingerprint)
				require.NoError(t, err, c.name)
				requireSame(t, &c, image)
				if twin != nil {
					requireImitated(t, twin, c, image)
				}
				if s.Real != nil && !c.vm {
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

// requireSameRefusal fails if lxdtest refuses an image in other words than the real daemon. Incus 7.0.2 reports syntax
// errors of YAML, and a decompressor that is not installed, in its own way.
func requireSameRefusal(t *testing.T, name, refusal, imitated string) {
	t.Helper()
	if strings.HasPrefix(refusal, "go-yaml load error") || strings.Contains(refusal, "executable file not found") {
		require.NotEmpty(t, imitated, name)
		return
	}
	require.Equal(t, refusal, imitated, name)
}

// requireImitated fails if lxdtest reports something else of an image than the real daemon.
func requireImitated(t *testing.T, twin *testkit.Subject, c imageCase, image *lxd.Image) {
	t.Helper()
	fingerprint, refusal := uploadRaw(t, twin, c)
	require.Empty(t, refusal, c.name)
	imitated, err := twin.Client(t).Images.Get(t.Context(), fingerprint)
	require.NoError(t, err, c.name)
	known := func(i *lxd.Image) []any {
		return []any{i.Fingerprint, i.Type, i.Size, i.Architecture, i.CreatedAt, i.ExpiresAt, i.Properties, i.Filename}
	}
	require.Equal(t, known(image), known(imitated), c.name)
	require.NoError(t, imitated.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}), c.name)
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
	var socket string
	if s.Real != nil {
		socket = s.Real.Socket
	} else {
		socket = strings.TrimPrefix(s.Fake.Endpoint(), "unix://")
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
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
