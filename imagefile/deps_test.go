package imagefile_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDependencies: the package links only the modules that it needs, and package lxd does not import it, so that programs
// that only import lxd do not link them.
func TestDependencies(t *testing.T) {
	t.Parallel()
	deps := func(format, name string) []string {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", format, name).Output()
		require.NoError(t, err)
		list := strings.Fields(string(out))
		slices.Sort(list)
		return slices.Compact(list)
	}
	require.Equal(t, []string{
		"github.com/go-json-experiment/json", // of simplestreams, which has the types
		"github.com/golxd/lxd",
		"github.com/klauspost/compress",
		"github.com/klauspost/pgzip",
		"github.com/mikelolasagasti/xz",
		"github.com/ulikunitz/xz",
		"go.yaml.in/yaml/v3",
		"golang.org/x/sys", // of FromDir on Linux
	}, deps("{{with .Module}}{{.Path}}{{end}}", "."))
	const own = "github.com/golxd/lxd"
	require.NotContains(t, deps("{{.ImportPath}}", "."), own)
	for _, name := range []string{own, own + "/simplestreams"} {
		require.NotContains(t, deps("{{.ImportPath}}", name), own+"/imagefile")
	}
}
