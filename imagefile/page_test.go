package imagefile_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPage: the code on docs/imagefiles.md is that of the executed examples, and the page has each kind of problem.
func TestPage(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../docs/imagefiles.md")
	require.NoError(t, err)
	page := string(data)
	examples, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	lines := map[string]bool{}
	for line := range strings.Lines(string(examples)) {
		lines[strings.TrimSpace(line)] = true
	}
	blocks := strings.Split(page, "```go\n")[1:]
	require.Len(t, blocks, 6)
	for _, block := range blocks {
		code, _, _ := strings.Cut(block, "```")
		for line := range strings.Lines(code) {
			require.True(t, lines[strings.TrimSpace(line)], "no example has %q", line)
		}
	}

	file, err := parser.ParseFile(token.NewFileSet(), "problem.go", nil, 0)
	require.NoError(t, err)
	kinds := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Type == nil {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); !ok || name.Name != "ProblemKind" {
			return true
		}
		kinds++
		kind, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		require.NoError(t, err)
		require.Contains(t, page, "`"+kind+"`")
		return true
	})
	require.Greater(t, kinds, 15)
}
