package lxdtest

import (
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestAliasNames(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		one, two := add(t, s, "1", nil), add(t, s, "2", nil)
		for _, name := range []string{"plain", "a/b", "a//b", "a b", "a?b", "a#b", "50%25", "日本", "..", "a/../b"} {
			if d == Incus70 && strings.ContainsAny(name, " ?日.") && name != "a/../b" {
				continue
			}
			path := "/1.0/images/aliases/" + url.PathEscape(name)
			made := c.do("POST", "/1.0/images/aliases", map[string]any{"name": name, "target": one, "description": "d"})
			require.Equal(t, 201, made.HTTP, name)
			again := c.do("POST", "/1.0/images/aliases", map[string]any{"name": name, "target": one})
			require.Equal(t, 409, again.HTTP)
			got := c.do("GET", path, nil)
			require.Equal(t, name, got.field("name"))
			require.Equal(t, "container", got.field("type"))
			require.Equal(t, 412, c.do("PUT", path, map[string]any{"target": two}, "If-Match", "stale").HTTP)
			require.Equal(t, 400, c.do("PUT", path, map[string]any{"description": "x"}).HTTP)
			require.Equal(t, 200, c.do("PUT", path, map[string]any{"target": two}, "If-Match", got.Header.Get("Etag")).HTTP)
			require.Equal(t, two, s.Aliases()[name])
			require.Equal(t, 201, c.do("POST", path, map[string]any{"name": name + "2"}).HTTP)
			require.Equal(t, 404, c.do("GET", path, nil).HTTP)
			require.Equal(t, 200, c.do("DELETE", "/1.0/images/aliases/"+url.PathEscape(name+"2"), nil).HTTP)
			require.Empty(t, s.Aliases())
		}
		require.Equal(t, 404, c.do("POST", "/1.0/images/aliases", map[string]any{"name": "x", "target": "nope-nope-nope"}).HTTP)
		require.Equal(t, 400, c.do("POST", "/1.0/images/aliases", map[string]any{"name": "x"}).HTTP)
	})
}

// TestRefusedAliasNames uses names whose errors were seen on Incus 7.0.2.
func TestRefusedAliasNames(t *testing.T) {
	s := newTestServer(t, &Options{Dialect: Incus70, InMemory: true})
	c := newClient(t, s)
	image := add(t, s, "1", nil)
	const ends = "Names must start and end with an alphanumeric character"
	for name, want := range map[string]string{
		"a b": "Name cannot contain white space", "a\tb": "Name cannot contain white space",
		"-a": ends, "a-": ends, "é": ends, "aé": ends, "/x": ends, "a$": `Name contains invalid character "$"`,
		"a?b": `Name contains invalid character "?"`, "a&b": `Name contains invalid character "&"`,
		"a+b": `Name contains invalid character "+"`, "a'b": `Name contains invalid character "'"`,
		`a"b`: `Name contains invalid character "\""`, "a`b": "Name contains invalid character \"`\"",
		"a*b": `Name contains invalid character "*"`, strings.Repeat("a", 65): "Maximum name length is 64 characters",
	} {
		got := c.do("POST", "/1.0/images/aliases", map[string]any{"name": name, "target": image})
		require.Equal(t, 400, got.HTTP, name)
		require.Equal(t, "Invalid image alias name: "+want, got.Error, name)
	}
	for _, name := range []string{"x/y", "x//y", "x/../y", strings.Repeat("a", 64), "a#b", "a%b", "a:b", "a@b", "a,b", "a(b", "a|b", "a;b", "aéb", `a\b`} {
		require.Equal(t, 201, c.do("POST", "/1.0/images/aliases", map[string]any{"name": name, "target": image}).HTTP, name)
	}
	renamed := c.do("POST", "/1.0/images/aliases/a%23b", map[string]any{"name": "no way"})
	require.Equal(t, "Invalid image alias name: Name cannot contain white space", renamed.Error)
	c.upload(UnifiedImage("2", 0), "X-Incus-aliases", "alias=header+name")
	require.Contains(t, s.Aliases(), "header name")
}

func TestPatchAlias(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, &Options{InMemory: true})
		c := newClient(t, s)
		add(t, s, "1", &AddOptions{Aliases: []string{"x"}})
		begin := s.now()
		got := c.do("PATCH", "/1.0/images/aliases/x", map[string]any{"description": "new"})
		require.Equal(t, 500, got.HTTP)
		require.Equal(t, aliasPatchHang, s.now().Sub(begin))
	})
	s := newTestServer(t, &Options{Dialect: Incus60, InMemory: true})
	c := newClient(t, s)
	add(t, s, "1", &AddOptions{Aliases: []string{"x"}})
	require.Equal(t, 200, c.do("PATCH", "/1.0/images/aliases/x", map[string]any{"description": "new"}).HTTP)
	require.Equal(t, "new", c.do("GET", "/1.0/images/aliases/x", nil).field("description"))
}

func TestDeleteImageDeletesAliases(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	c.wait(c.do("DELETE", "/1.0/images/"+add(t, s, "1", &AddOptions{Aliases: []string{"x", "y"}}), nil))
	require.Empty(t, s.Aliases())
}
