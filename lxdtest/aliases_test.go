package lxdtest

import (
	"net/url"
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
