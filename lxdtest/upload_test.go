package lxdtest

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestSplitUpload(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		meta, root := SplitImage("split", 30_000)
		body, contentType := form(t, []string{"metadata", "rootfs"}, meta, root)
		c.wait(c.do("POST", "/1.0/images", body, "Content-Type", contentType))
		img, ok := s.Image(Fingerprint(meta, root))
		require.True(t, ok)
		require.Equal(t, "container", img.Type)
		require.Equal(t, "rootfs.bin", img.Filename)
		require.Equal(t, int64(len(meta)+len(root)), img.Size)

		meta, disk := VMImage("vm", 0)
		body, contentType = form(t, []string{"metadata", "rootfs.img"}, meta, disk)
		c.wait(c.do("POST", "/1.0/images", body, "Content-Type", contentType))
		img, ok = s.Image(Fingerprint(meta, disk))
		require.True(t, ok)
		require.Equal(t, "virtual-machine", img.Type)
		files, err := s.Files(img.Fingerprint)
		require.NoError(t, err)
		require.Equal(t, [][]byte{meta, disk}, files)
	})
}

// failure waits for an operation, which must fail, and returns its error.
func (c *client) failure(r *apiResponse) string {
	c.t.Helper()
	done := c.wait(r)
	if done.Type == "error" {
		require.Equal(c.t, http.StatusOK, done.HTTP)
		return done.Error
	}
	require.EqualValues(c.t, statusFailure, done.field("status_code"))
	text, _ := done.field("err").(string)
	return text
}

func TestFailedUploads(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		meta, root := SplitImage("x", 0)
		prefix := d.traits().uploadHeader
		split := func(names []string, files ...[]byte) *apiResponse {
			body, contentType := form(t, names, files...)
			return c.do("POST", "/1.0/images", body, "Content-Type", contentType)
		}
		raw := func(file []byte, headers ...string) *apiResponse {
			return c.do("POST", "/1.0/images", file, headers...)
		}
		for want, got := range map[string]*apiResponse{
			"Metadata tarball is missing metadata.yaml": raw(root),
			"Unsupported compression":                   raw([]byte("hello")),
			"EOF":                                       raw(nil),
			"Invalid instance type":                     raw(meta),
			"Invalid multipart image":                   split([]string{"rootfs", "metadata"}, root, meta),
			fmt.Sprintf(d.traits().texts.hash, Fingerprint(UnifiedImage("y", 0)), "abc"): raw(UnifiedImage("y", 0), prefix+"fingerprint", "abc"),
		} {
			require.Equal(t, want, c.failure(got))
		}
		require.Equal(t, "EOF", c.failure(split([]string{"metadata"}, meta)))
		require.Empty(t, s.Images())
	})
}

func TestDuplicateUploadReportsFingerprint(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		file := UnifiedImage("dup", 0)
		c.upload(file)
		again := c.do("POST", "/1.0/images", file)
		require.Equal(t, "Image with same fingerprint already exists", c.failure(again))
		op := c.do("GET", again.Operation, nil)
		require.EqualValues(t, statusFailure, op.field("status_code"))
		require.Equal(t, Fingerprint(file), op.field("metadata").(map[string]any)["fingerprint"])
		require.Len(t, s.Images(), 1)
	})
}

func TestHeadersOfTheOtherFamilyAreIgnored(t *testing.T) {
	s := newTestServer(t, &Options{Dialect: Incus60, InMemory: true})
	c := newClient(t, s)
	c.upload(UnifiedImage("a", 0), "X-LXD-public", "1", "X-LXD-properties", "a=b", "X-Incus-aliases", "alias=one&alias=t/wo")
	img := s.Images()[0]
	require.False(t, img.Public)
	require.NotContains(t, img.Properties, "a")
	require.Equal(t, []string{"one", "t/wo"}, img.Aliases)

	s = newTestServer(t, &Options{InMemory: true})
	c = newClient(t, s)
	c.upload(UnifiedImage("a", 0), "X-LXD-public", "1", "X-Incus-properties", "a=b", "X-LXD-aliases", "alias=one")
	img = s.Images()[0]
	require.True(t, img.Public)
	require.NotContains(t, img.Properties, "a")
	require.Empty(t, img.Aliases)
}

func TestUploadProfiles(t *testing.T) {
	query := url.Values{"profile": {"extra", "default"}}.Encode()
	for d, want := range map[Dialect][]string{LXD50: {"default"}, LXD69: {"extra", "default"}, Incus60: {"extra", "default"}, Incus70: {"extra", "default"}} {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		s.AddProfile("extra")
		newClient(t, s).upload(UnifiedImage("a", 0), d.traits().uploadHeader+"profiles", query)
		require.Equal(t, want, s.Images()[0].Profiles, d)
	}
	s := newTestServer(t, &Options{Dialect: Incus60, InMemory: true})
	c := newClient(t, s)
	require.Equal(t, "Profile 'no' doesn't exist", c.failure(c.do("POST", "/1.0/images", UnifiedImage("a", 0), "X-Incus-profiles", "profile=no")))
}

func TestExistingAliasKeepsImage(t *testing.T) {
	s := newTestServer(t, &Options{Dialect: Incus60, InMemory: true})
	c := newClient(t, s)
	c.upload(UnifiedImage("a", 0), "X-Incus-aliases", "alias=x")
	got := c.failure(c.do("POST", "/1.0/images", UnifiedImage("b", 0), "X-Incus-aliases", "alias=x"))
	require.Equal(t, "Alias already exists: x", got)
	require.Len(t, s.Images(), 2)
	require.Equal(t, map[string]string{"x": Fingerprint(UnifiedImage("a", 0))}, s.Aliases())
}

func TestInterruptedUploadLeavesNothing(t *testing.T) {
	s := newTestServer(t, nil)
	fault := s.Inject(CutRequest(1000).On("POST", "/1.0/images"))
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://lxd/1.0/images", strings.NewReader(strings.Repeat("x", 5000)))
	require.NoError(t, err)
	_, err = s.Client().Do(req)
	require.Error(t, err)
	require.Equal(t, 1, fault.Fired())
	require.Empty(t, s.Images())
	require.EqualValues(t, 1000, s.Requests()[0].BodyBytes())
}

// TestCutUploads: nothing is left of an upload whose connection breaks.
func TestCutUploads(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, s *Server, c *client) {
		meta, root := SplitImage("split", 30_000)
		split, contentType := form(t, []string{"metadata", "rootfs"}, meta, root)
		for kind, body := range map[string][]byte{"application/octet-stream": UnifiedImage("x", 30_000), contentType: split} {
			for _, fault := range []Fault{CutRequest(10), CutRequest(20_000), RestartServer(20_000)} {
				cut := s.Inject(fault.On("POST", "/1.0/images").Times(1))
				_, err := c.http.Post(c.base+"/1.0/images", kind, bytes.NewReader(body))
				require.Error(t, err)
				require.Equal(t, 1, cut.Fired())
				synctest.Wait()
				require.Zero(t, imageFiles(t, s), "%s: %s", kind, fault)
			}
		}
	})
}
