package lxd_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDependencies keeps the package light: a program that imports it links at
// most four modules beside the standard library.
func TestDependencies(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".").CombinedOutput()
	require.NoError(t, err, string(out))
	modules := strings.Fields(string(out))
	slices.Sort(modules)
	modules = slices.Compact(modules)
	modules = slices.DeleteFunc(modules, func(m string) bool { return m == "github.com/golxd/lxd" })
	require.Subset(t, []string{
		"github.com/go-json-experiment/json",
		"github.com/gorilla/websocket",
		"go.yaml.in/yaml/v3",
		"golang.org/x/net",
	}, modules)
}
