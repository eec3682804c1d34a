package lxdtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// add adds an image and returns its fingerprint.
func add(t *testing.T, s *Server, seed string, opts *AddOptions) string {
	t.Helper()
	fingerprint, err := s.AddImage(UnifiedImage(seed, 0), opts)
	require.NoError(t, err)
	return fingerprint
}

func TestPrefixes(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	for i := range 17 {
		add(t, s, fmt.Sprint(i), nil)
	}
	full := s.Images()[0].Fingerprint
	require.Equal(t, 200, c.do("GET", "/1.0/images/"+full[:20], nil).HTTP)
	require.Equal(t, 404, c.do("GET", "/1.0/images/zz", nil).HTTP)
	// At least two of 17 fingerprints begin with the same digit.
	codes := map[int]bool{}
	for _, digit := range "0123456789abcdef" {
		codes[c.do("GET", "/1.0/images/"+string(digit), nil).HTTP] = true
	}
	require.True(t, codes[500])

	s = newTestServer(t, &Options{Dialect: LXD69, InMemory: true})
	full = add(t, s, "x", nil)
	require.Equal(t, 400, newClient(t, s).do("GET", "/1.0/images/"+full[:11], nil).HTTP)
	require.Equal(t, 200, newClient(t, s).do("GET", "/1.0/images/"+full[:12], nil).HTTP)
}

func TestPutAndPatch(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		expires := time.Date(2040, 1, 2, 3, 4, 5, 0, time.UTC)
		path := "/1.0/images/" + add(t, s, "x", &AddOptions{ExpiresAt: expires})
		etag := c.do("GET", path, nil).Header.Get("Etag")
		require.NotEmpty(t, etag)

		require.Equal(t, 200, c.do("PATCH", path, map[string]any{"properties": map[string]string{"a": "b", "os": ""}, "public": true}).HTTP)
		img := s.Images()[0]
		require.Equal(t, "b", img.Properties["a"])
		require.NotContains(t, img.Properties, "os")
		require.True(t, img.Public)

		require.Equal(t, 412, c.do("PUT", path, map[string]any{}, "If-Match", etag).HTTP)
		etag = c.do("GET", path, nil).Header.Get("Etag")
		put := c.do("PUT", path, map[string]any{"properties": map[string]string{"x": "y"}}, "If-Match", etag)
		require.Equal(t, 200, put.HTTP, put.Error)
		img = s.Images()[0]
		require.Equal(t, map[string]string{"x": "y"}, img.Properties)
		require.Equal(t, []string{"default"}, img.Profiles)
		require.False(t, img.Public)
		require.Equal(t, expires, img.ExpiresAt)

		bad := c.do("PUT", path, map[string]any{"profiles": []string{"nope"}})
		require.Equal(t, d.traits().badProfile, bad.HTTP)
		require.Equal(t, fmt.Sprintf(d.traits().texts.profile, "nope"), bad.Error)
	})
}

func TestNeverExpires(t *testing.T) {
	for d, want := range map[Dialect]string{LXD50: "1970-01-01T00:00:00Z", Incus60: "0001-01-01T00:00:00Z"} {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		got := newClient(t, s).do("GET", "/1.0/images/"+add(t, s, "x", nil), nil)
		require.Equal(t, want, got.field("expires_at"))
		require.Equal(t, "0001-01-01T00:00:00Z", got.field("last_used_at"))
	}
}

func TestFilters(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		add(t, s, "a", &AddOptions{Properties: map[string]string{"os": "Debian", "n": "two words"}, Public: true})
		add(t, s, "b", &AddOptions{Properties: map[string]string{"os": "alpine"}})
		count := func(filter string) int {
			got := c.do("GET", "/1.0/images?filter="+url.QueryEscape(filter), nil)
			var list []string
			if got.HTTP != 200 {
				return got.HTTP
			}
			require.NoError(t, json.Unmarshal(got.Metadata, &list))
			return len(list)
		}
		lax := 1 // values are patterns, and case does not matter
		if d == LXD40 {
			lax = 0
		}
		for filter, want := range map[string]int{
			"":                        2,
			"properties.os eq debian": lax, "properties.os eq Debian": 1, "properties.os eq deb.*": lax, "properties.os ne debian": 2 - lax,
			`properties.n eq "two words"`: 1, "not type eq container": 0,
			"type eq container and properties.os eq alpine":      1,
			"properties.os eq alpine or properties.os eq debian": 1 + lax,
			`type eq "container"`:                                500,
			"type":                                               500,
			"type eq":                                            500,
			"type eq container xor properties.os eq alpine":      500,
			"properties.os eq Debian and not properties.os eq alpine": 1,
			"properties.missing eq x":                                 0,
		} {
			require.Equal(t, want, count(filter), filter)
		}
		typed := 1
		if d == LXD40 || d == LXD50 {
			typed = 0
		}
		require.Equal(t, typed, count("public eq true"))
	})
}

func TestProjects(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		s.AddProject("own", true)
		require.Equal(t, 201, c.do("POST", "/1.0/projects", map[string]any{"name": "shared", "config": map[string]string{"features.images": "false"}}).HTTP)
		fingerprint := add(t, s, "x", nil)
		c.wait(c.do("POST", "/1.0/images?project=own", UnifiedImage("x", 0)))
		require.Len(t, s.Images(), 2)
		require.Equal(t, 200, c.do("GET", "/1.0/images/"+fingerprint+"?project=shared", nil).HTTP)
		require.Equal(t, 404, c.do("GET", "/1.0/images?project=none", nil).HTTP)
		got := c.do("GET", "/1.0/images?all-projects=true", nil)
		var list []string
		require.NoError(t, json.Unmarshal(got.Metadata, &list))
		require.Len(t, list, map[Dialect]int{LXD40: 1, LXD50: 1, LXD69: 2, Incus60: 2, Incus70: 2}[d])
		public := c.do("PATCH", "/1.0/images/"+fingerprint+"?project=own", map[string]any{"public": true})
		require.Equal(t, map[bool]int{true: 200, false: 400}[d != LXD69], public.HTTP)
		upload := c.do("POST", "/1.0/images?project=own", UnifiedImage("public", 0), d.traits().uploadHeader+"public", "1")
		require.Equal(t, map[bool]int{true: 202, false: 400}[d != LXD69], upload.HTTP)
		if d != LXD69 {
			c.wait(upload)
			c.wait(c.do("DELETE", "/1.0/images/"+Fingerprint(UnifiedImage("public", 0))+"?project=own", nil))
		}
		c.wait(c.do("DELETE", "/1.0/images/"+fingerprint+"?project=own", nil))
		require.Len(t, s.Images(), 1)
	})
}

func TestUnknownPathsAndMethods(t *testing.T) {
	c := newClient(t, newTestServer(t, &Options{InMemory: true}))
	require.Equal(t, 404, c.do("GET", "/1.0/nope", nil).HTTP)
	require.Equal(t, 404, c.do("GET", "/1.0/image-registries", nil).HTTP)
	require.Equal(t, 501, c.do("DELETE", "/1.0/images", nil).HTTP)
	require.Equal(t, 200, c.do("GET", "/", nil).HTTP)
	require.Equal(t, 400, c.do("PUT", "/1.0/images/aliases/x", []byte("bad")).HTTP)
	res, err := c.http.Head(c.base + "/1.0/images/x/export")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusNotImplemented, res.StatusCode)
}
