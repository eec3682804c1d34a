package simplestreams_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDependencies checks that the package imports nothing of the module but
// packages that have no dependencies themselves.
func TestDependencies(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	require.NoError(t, err)
	const module = "github.com/golxd/lxd/"
	own := []string{module + "simplestreams"}
	for _, name := range []string{"ctxerr", "near", "partfile", "pump", "rangeread", "redact", "retry", "stall"} {
		own = append(own, module+"internal/"+name)
	}
	others := slices.DeleteFunc(strings.Fields(string(out)), func(path string) bool {
		return slices.Contains(own, path) || strings.HasPrefix(path, "github.com/go-json-experiment/json/")
	})
	require.Empty(t, others)
}
