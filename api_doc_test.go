package lxd_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/wire"
	"github.com/golxd/lxd/lxdtest"
)

// TestAPIPage: the names of this package and the extensions on docs/api.md exist,
// and it has all fields of images that servers were recorded to send, that Image
// has, or that this package sends.
func TestAPIPage(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("docs/api.md")
	require.NoError(t, err)
	extensions := []string{"image_registries"} // of servers after LXD 6.9
	for _, d := range []lxdtest.Dialect{lxdtest.LXD69, lxdtest.Incus70} {
		extensions = append(extensions, d.Extensions()...)
	}
	exported := exportedNames(t)
	quoted := regexp.MustCompile("`([^`]+)`")
	identifier := regexp.MustCompile(`^[A-Z]\w*(\.[A-Z]\w*)?$`)
	section, rows, names := "", map[string][]string{}, 0
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = title
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		require.Len(t, cells, 4, line)
		for _, found := range quoted.FindAllStringSubmatch(cells[0], -1) {
			rows[section] = append(rows[section], found[1])
		}
		for _, found := range quoted.FindAllStringSubmatch(cells[1], -1) {
			require.True(t, slices.Contains(extensions, found[1]), "no dialect has %s: %s", found[1], line)
		}
		for _, found := range quoted.FindAllStringSubmatch(cells[2], -1) {
			if identifier.MatchString(found[1]) && found[1] != "PUT" {
				require.True(t, slices.Contains(exported, found[1]), "%s is not in the package: %s", found[1], line)
				names++
			}
		}
	}
	require.Greater(t, names, 100)

	require.Subset(t, rows["An image"], recordedFields(t, "image*.json", "image-registries"))
	require.Subset(t, rows["An alias"], recordedFields(t, "alias*.json", ""))
	require.Subset(t, rows["An image"], jsonFields("", reflect.TypeFor[lxd.Image]()))
	require.Subset(t, rows["An image registry"], jsonFields("", reflect.TypeFor[lxd.Registry]()))
	require.Subset(t, rows["An image registry"], jsonFields("", reflect.TypeFor[wire.ImageRegistry]()))
	require.Subset(t, rows["An alias"], jsonFields("", reflect.TypeFor[lxd.Alias]()))
	require.Subset(t, rows["An alias"], jsonFields("", reflect.TypeFor[wire.Alias]()))
	require.Subset(t, rows["A push"], topFields(jsonFields("", reflect.TypeFor[wire.ImageExport]())))
	for _, field := range jsonFields("", reflect.TypeFor[wire.ImagePost]()) {
		if field != "source" && !strings.HasPrefix(field, "aliases.") {
			require.Contains(t, rows["A new image, and a change"], field)
		}
	}
	require.Subset(t, rows["A new image, and a change"], jsonFields("", reflect.TypeFor[wire.ImagePut]()))
}

// exportedNames returns the exported names of this package: functions, types,
// variables, constants, and fields and methods as Type.Name.
func exportedNames(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var names []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				prefix := ""
				if decl.Recv != nil {
					receiver := decl.Recv.List[0].Type
					if star, ok := receiver.(*ast.StarExpr); ok {
						receiver = star.X
					}
					if ident, ok := receiver.(*ast.Ident); ok {
						prefix = ident.Name + "."
					}
				}
				names = append(names, prefix+decl.Name.Name)
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					names = append(names, specNames(spec)...)
				}
			}
		}
	}
	return names
}

func specNames(spec ast.Spec) (names []string) {
	switch spec := spec.(type) {
	case *ast.ValueSpec:
		for _, ident := range spec.Names {
			names = append(names, ident.Name)
		}
	case *ast.TypeSpec:
		names = append(names, spec.Name.Name)
		if structure, ok := spec.Type.(*ast.StructType); ok {
			for _, field := range structure.Fields.List {
				for _, ident := range field.Names {
					names = append(names, spec.Name.Name+"."+ident.Name)
				}
			}
		}
	}
	return names
}

// jsonFields returns the names of a struct's fields in JSON, those of inner structs
// as "field.inner".
func jsonFields(prefix string, structure reflect.Type) (fields []string) {
	for n := range structure.NumField() {
		field := structure.Field(n)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" || !field.IsExported() {
			continue
		}
		fields = append(fields, prefix+name)
		inner := field.Type
		for inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && inner.PkgPath() != "time" {
			fields = append(fields, jsonFields(prefix+name+".", inner)...)
		}
	}
	return fields
}

func topFields(fields []string) []string {
	return slices.DeleteFunc(fields, func(field string) bool { return strings.Contains(field, ".") })
}

// recordedFields returns the names of the fields in recorded responses, as jsonFields
// does, but for the properties, whose names are the image's.
func recordedFields(t *testing.T, pattern, except string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "envelopes", "*", pattern))
	require.NoError(t, err)
	seen := map[string]bool{}
	var walk func(prefix string, value any)
	walk = func(prefix string, value any) {
		switch value := value.(type) {
		case []any:
			for _, element := range value {
				walk(prefix, element)
			}
		case map[string]any:
			for name, inner := range value {
				seen[prefix+name] = true
				if name != "properties" {
					walk(prefix+name+".", inner)
				}
			}
		}
	}
	for _, file := range files {
		if except != "" && strings.HasPrefix(filepath.Base(file), except) {
			continue
		}
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		var envelope struct {
			Type     string
			Metadata any
		}
		require.NoError(t, json.Unmarshal(data, &envelope))
		if envelope.Type == wire.TypeSync {
			walk("", envelope.Metadata)
		}
	}
	require.GreaterOrEqual(t, len(seen), 4)
	var fields []string
	for field := range seen {
		fields = append(fields, field)
	}
	return fields
}
