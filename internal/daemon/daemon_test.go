package daemon

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOf(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		name       string
		extensions []string
		want       *Family
	}{
		"LXD says so":                      {"lxd", []string{"x"}, LXD},
		"Incus says so":                    {"incus", nil, Incus},
		"a stranger of Incus 0.1 to 6.x":   {"", []string{"x", "dev_incus_events"}, Incus},
		"a stranger of LXD":                {"", []string{"x"}, LXD},
		"a stranger of Incus 7":            {"", nil, Unknown},
		"another program, or a new family": {"other", nil, Unknown},
	} {
		require.Same(t, c.want, Of(c.name, c.extensions), name)
	}
}

// TestRows checks that a row is complete and unique.
func TestRows(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{"": true}
	for _, f := range Known() {
		for _, name := range []string{f.Name, f.Prefix} {
			require.False(t, seen[name], name)
			seen[name] = true
		}
		require.Same(t, f, Named(f.Name))
		require.Equal(t, []string{f.Prefix}, f.Prefixes())
		require.Same(t, f, f.Preferred()[0])
		require.ElementsMatch(t, Known(), f.Preferred())
	}
	require.Same(t, Unknown, Named(""))
	require.Equal(t, []string{"LXD", "Incus"}, Unknown.Prefixes())
	require.Equal(t, Known(), Unknown.Preferred())
}

func TestTokenIsPassword(t *testing.T) {
	t.Parallel()
	require.True(t, LXD.TokenIsPassword([]string{"x"}))
	require.False(t, LXD.TokenIsPassword([]string{"explicit_trust_token"}))
	for _, f := range []*Family{Incus, Unknown} {
		require.False(t, f.TokenIsPassword(nil))
	}
}
