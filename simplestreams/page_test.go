package simplestreams_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPage: the code on docs/imageserver.md is that of the executed examples.
func TestPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/imageserver.md")
	require.NoError(t, err)
	lines := map[string]bool{}
	for _, name := range []string{"example_test.go", "example_tree_test.go", "example_mirror_test.go", "signed/example_test.go"} {
		examples, err := os.ReadFile(name)
		require.NoError(t, err)
		for line := range strings.Lines(string(examples)) {
			lines[strings.TrimSpace(line)] = true
		}
	}
	blocks := strings.Split(string(page), "```go\n")[1:]
	require.GreaterOrEqual(t, len(blocks), 4)
	for _, block := range blocks {
		code, _, _ := strings.Cut(block, "```")
		for line := range strings.Lines(code) {
			require.True(t, lines[strings.TrimSpace(line)], "no example has %q", line)
		}
	}
}
