package lxdtest

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCreateInstance: from an image by fingerprint and alias, started, stopped and
// deleted; what is refused.
func TestCreateInstance(t *testing.T) {
	for _, dialect := range []Dialect{LXD50, Incus60} {
		t.Run(dialect.String(), func(t *testing.T) {
			s := newTestServer(t, &Options{Dialect: dialect, InMemory: true})
			c := newClient(t, s)
			fingerprint := add(t, s, "x", &AddOptions{Aliases: []string{"web"}})
			require.EqualValues(t, statusSuccess, c.wait(c.do("POST", "/1.0/instances", map[string]any{"name": "a", "source": map[string]string{"type": "image", "fingerprint": fingerprint[:12]}})).field("status_code"))
			require.EqualValues(t, statusSuccess, c.wait(c.do("POST", "/1.0/instances", map[string]any{"name": "b", "source": map[string]string{"type": "image", "alias": "web"}})).field("status_code"))
			require.EqualValues(t, statusSuccess, c.wait(c.do("POST", "/1.0/instances", map[string]any{"source": map[string]string{"type": "none"}})).field("status_code"))
			var list []instanceJSON
			require.NoError(t, json.Unmarshal(c.do("GET", "/1.0/instances?recursion=1&all-projects=true", nil).Metadata, &list))
			require.Len(t, list, 3)
			require.Equal(t, fingerprint, list[0].Config["volatile.base_image"])
			require.Equal(t, fingerprint, list[1].Config["volatile.base_image"])
			require.Equal(t, "instance-1", list[2].Name)
			require.Empty(t, list[2].Config)

			require.Equal(t, 400, c.do("GET", "/1.0/instances?all-projects=true&project=default", nil).HTTP)
			require.Equal(t, 400, c.do("POST", "/1.0/instances", map[string]any{"name": "a b", "source": map[string]string{"type": "none"}}).HTTP)
			require.Equal(t, 400, c.do("POST", "/1.0/instances", map[string]any{"name": "c"}).HTTP)
			taken := c.do("POST", "/1.0/instances", map[string]any{"name": "a", "source": map[string]string{"type": "none"}})
			require.Contains(t, c.failure(taken), "already exists")
			missing := c.do("POST", "/1.0/instances", map[string]any{"name": "c", "source": map[string]string{"type": "image", "alias": "none"}})
			if dialect == LXD50 {
				require.Equal(t, 404, missing.HTTP)
			} else {
				require.Equal(t, "Image not provided for instance creation", c.failure(missing))
			}

			require.EqualValues(t, statusSuccess, c.wait(c.do("PUT", "/1.0/instances/a/state", map[string]string{"action": "start"})).field("status_code"))
			require.Equal(t, 400, c.do("PUT", "/1.0/instances/a/state", map[string]string{"action": "start"}).HTTP)
			require.Equal(t, 400, c.do("PUT", "/1.0/instances/a/state", map[string]string{"action": "jump"}).HTTP)
			require.Equal(t, 400, c.do("DELETE", "/1.0/instances/a", nil).HTTP)
			require.EqualValues(t, statusSuccess, c.wait(c.do("PUT", "/1.0/instances/a/state", map[string]string{"action": "stop"})).field("status_code"))
			s.AddInstance("a/snap0", nil)
			require.EqualValues(t, statusSuccess, c.wait(c.do("DELETE", "/1.0/instances/a", nil)).field("status_code"))
			require.Equal(t, 404, c.do("GET", "/1.0/instances/a/snapshots/snap0", nil).HTTP)
			require.Equal(t, 404, c.do("DELETE", "/1.0/instances/a", nil).HTTP)
		})
	}
}
