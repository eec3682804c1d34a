package lxd_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest"
)

// TestArchitecturePage: the files, directories, tests and functions in backticks on
// docs/architecture.md exist.
func TestArchitecturePage(t *testing.T) {
	t.Parallel()
	var source, tests strings.Builder
	require.NoError(t, filepath.WalkDir(".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".go" {
			return err
		}
		text, err := os.ReadFile(name)
		if strings.HasSuffix(name, "_test.go") {
			tests.Write(text)
		} else {
			source.Write(text)
		}
		return err
	}))
	page, err := os.ReadFile("docs/architecture.md")
	require.NoError(t, err)
	method := regexp.MustCompile(`^(\w+)\.(\w+)$`)
	// A pattern that begins with literal text, which (?m)^ is not, is found much faster.
	declares := func(pattern string, names ...any) bool {
		return regexp.MustCompile(fmt.Sprintf(pattern, names...)).MatchString(source.String())
	}
	checked := 0
	for _, quoted := range regexp.MustCompile("`[^`\n]+`").FindAllString(string(page), -1) {
		name := strings.Trim(quoted, "`")
		parts := method.FindStringSubmatch(name)
		var exists bool
		switch {
		case strings.HasSuffix(name, ".go") || regexp.MustCompile(`^(internal|test|lxdtest|simplestreams)/`).MatchString(name):
			found, err := filepath.Glob(name)
			require.NoError(t, err)
			exists = len(found) > 0
		case strings.HasPrefix(name, "Test"):
			exists = strings.Contains(tests.String(), "\nfunc "+name+"(")
		case parts != nil:
			// A method or a field of a type, or a name of a package.
			exists = declares(`\nfunc \(\w+ \*?%s\) %s\(`, parts[1], parts[2]) ||
				declares(`\ntype %s struct \{\n(?:\s.*\n|\n)*?\s+%s\b`, parts[1], parts[2]) ||
				declares(`\npackage %s\n`, parts[1]) && (declares(`\nfunc %s\b`, parts[2]) || declares(`\ntype %s\b`, parts[2]))
		default:
			continue
		}
		checked++
		require.True(t, exists, "docs/architecture.md names %s, which does not exist", quoted)
	}
	require.Greater(t, checked, 100)
}

// TestCookbook: the code on docs/cookbook.md, and the first of README.md after the
// quickstart, is in the examples of example_cookbook_test.go, and the page names each of
// them.
func TestCookbook(t *testing.T) {
	t.Parallel()
	unindented := func(text string) string { return regexp.MustCompile(`(?m)^\t+`).ReplaceAllString(text, "") }
	data, err := os.ReadFile("example_cookbook_test.go")
	require.NoError(t, err)
	examples := unindented(string(data))
	page, err := os.ReadFile("docs/cookbook.md")
	require.NoError(t, err)
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)

	code := regexp.MustCompile("(?s)\n```go\n(.*?\n)```\n")
	shown := code.FindAllStringSubmatch(string(page), -1)
	require.Greater(t, len(shown), 5)
	for _, block := range append(shown, code.FindStringSubmatch(string(readme))) {
		require.Contains(t, examples, "\n"+unindented(block[1]))
	}
	for _, example := range regexp.MustCompile(`(?m)^func (Example\w+)\(`).FindAllStringSubmatch(string(data), -1) {
		require.Contains(t, string(page), "`"+example[1]+"`")
	}
	for _, name := range regexp.MustCompile("`(Example\\w+)`").FindAllStringSubmatch(string(page), -1) {
		require.Contains(t, string(data), "\nfunc "+name[1]+"()")
	}
}

// TestCommandsPage: the names of this package on docs/commands.md exist.
func TestCommandsPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/commands.md")
	require.NoError(t, err)
	exported := exportedNames(t)
	checked := 0
	for _, quoted := range regexp.MustCompile("`[^`\n]+`").FindAllString(string(page), -1) {
		var names []string
		for _, name := range regexp.MustCompile(`\b(lxd|c|c\.Images|c\.Aliases|b|image)\.([A-Z]\w*)`).FindAllStringSubmatch(quoted, -1) {
			of := map[string]string{"lxd": "", "c": "Client.", "b": "Client.", "image": "Image."}[name[1]]
			if field, ok := strings.CutPrefix(name[1], "c."); ok {
				of = field + "."
			}
			names = append(names, of+name[2])
		}
		for _, literal := range regexp.MustCompile(`lxd\.(\w+)\{([^{}]*)\}`).FindAllStringSubmatch(quoted, -1) {
			for _, field := range regexp.MustCompile(`(\w+): `).FindAllStringSubmatch(literal[2], -1) {
				names = append(names, literal[1]+"."+field[1])
			}
		}
		for _, name := range names {
			require.Contains(t, exported, name, quoted)
		}
		checked += len(names)
	}
	require.Greater(t, checked, 80)
}

// TestTestingPage: the programs on docs/testing.md are those of examples/testing, which
// test/clients runs, and the page has each fault and dialect of lxdtest.
func TestTestingPage(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("docs/testing.md")
	require.NoError(t, err)
	page := string(data)
	shown := regexp.MustCompile("(?s)\n```(?:go|sh|python|yaml)\n(.*?\n)```\n").FindAllStringSubmatch(page, -1)
	files := []string{"backup_test.go", "test_lxc.sh", "test_pylxd.py", "workflow.yml", "control.sh"}
	require.Len(t, shown, len(files))
	for n, file := range files {
		program, err := os.ReadFile("examples/testing/" + file)
		require.NoError(t, err)
		require.Equal(t, string(program), shown[n][1], file)
	}
	_, err = lxdtest.ParseFault("none")
	require.Error(t, err)
	_, names, _ := strings.Cut(err.Error(), "the faults are ")
	faults := strings.Split(names, ", ")
	require.Greater(t, len(faults), 30)
	for _, name := range faults {
		require.Contains(t, page, "`"+name+"`")
	}
	for _, d := range lxdtest.Dialects() {
		require.Contains(t, page, "`"+d.Name()+"`")
	}
}

// TestGuaranteesNameTheirTests: each guarantee of README.md and SECURITY.md names a
// test or a fuzz target, and all of them exist.
func TestGuaranteesNameTheirTests(t *testing.T) {
	t.Parallel()
	var tests strings.Builder
	require.NoError(t, filepath.WalkDir(".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := os.ReadFile(name)
		tests.Write(text)
		return err
	}))
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")
	for file, start := range map[string]string{"README.md": "\n| ", "SECURITY.md": "\n- "} {
		page, err := os.ReadFile(file)
		require.NoError(t, err)
		_, section, found := strings.Cut(string(page), "\n## Guarantees\n")
		require.True(t, found, file)
		section, _, _ = strings.Cut(section, "\n## ")
		guarantees := strings.Split(section, start)[1:]
		if file == "README.md" {
			guarantees = guarantees[1:] // the head of the table
		}
		require.NotEmpty(t, guarantees, file)
		for _, guarantee := range guarantees {
			names := named.FindAllStringSubmatch(guarantee, -1)
			require.NotEmpty(t, names, "%s: a guarantee without a test: %s", file, guarantee)
			for _, name := range names {
				require.True(t, strings.Contains(tests.String(), "\nfunc "+name[1]+"("), "%s names %s, which does not exist", file, name[1])
			}
		}
	}
}
