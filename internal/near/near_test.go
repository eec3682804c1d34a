package near_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/near"
)

// TestNames: the names with the longest common prefix, each once, in their order.
func TestNames(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		names, want []string
	}{
		"debian/31": {[]string{"debian/13", "debian/12", "de", "debian/30/cloud", "debian/3", "debian/30/cloud"}, []string{"debian/30/cloud", "debian/3"}},
		"web":       {[]string{"we", "w", "db"}, nil},
		"we":        {[]string{"we", "web"}, nil},
		"webs":      {[]string{"web1", "web2", "web3", "web4", "web5", "web6"}, []string{"web1", "web2", "web3", "web4", "web5"}},
	} {
		require.Equal(t, test.want, near.Names(name, slices.Values(test.names)), name)
	}
}
