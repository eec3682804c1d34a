package lxdtest

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// writtenFaults has a fault of each function that returns one, and its text.
var writtenFaults = []struct {
	fault Fault
	text  string
}{
	{Refuse(), "refuse"},
	{Reset(), "reset"},
	{LoseResponse(), "lose-response"},
	{CutResponse(1<<20).On("GET", "/1.0/images/*/export").Times(2), "cut-response bytes=1048576 method=GET path=/1.0/images/*/export times=2"},
	{CutRequest(0), "cut-request bytes=0"},
	{StallHeaders().On("", "/1.0/images/**"), "stall-headers path=/1.0/images/**"},
	{Latency(250 * time.Millisecond), "latency pause=250ms"},
	{StallResponse(1), "stall-response bytes=1"},
	{StallRequest(1), "stall-request bytes=1"},
	{HalfOpen(1), "half-open bytes=1"},
	{SlowLoris(time.Second), "slow-loris pause=1s"},
	{Corrupt(1), "corrupt bytes=1"},
	{ShortLength(1), "short-length bytes=1"},
	{TruncateRootfs(1), "truncate-rootfs bytes=1"},
	{Unavailable().WithHeader("retry-after", "5"), "unavailable header.Retry-After=5"},
	{TooManyRequests(time.Minute), "too-many-requests pause=1m0s"},
	{Status(507, "no space \"left\"\n").WithHeader("A", ""), `status status=507 message="no space \"left\"\n" header.A=""`},
	{EarlyResponse(7, 413, "no"), "early-response bytes=7 status=413 message=no"},
	{HTML(), "html"},
	{EndlessJSON(), "endless-json"},
	{Redirect("https://example.com/a=b"), "redirect url=https://example.com/a=b"},
	{RateLimit(1 << 20), "rate-limit bytes=1048576"},
	{RestartServer(0).Times(1), "restart-server bytes=0 times=1"},
	{DuplicateEvents(), "duplicate-events"},
	{ReorderEvents(), "reorder-events"},
	{DropEvents(), "drop-events"},
	{ForgetOperations(), "forget-operations"},
	{StallOperations(), "stall-operations"},
	{StallImages(), "stall-images"},
	{FailImages("ü"), "fail-images message=ü"},
	{StallUpdates(), "stall-updates"},
	{LoseInsert(), "lose-insert"},
	{LoseContent(), "lose-content"},
	{CacheStreams(), "cache-streams"},
	{SlowRename(10 * time.Second), "slow-rename pause=10s"},
}

// faultFunctions returns the names of the exported functions that return a fault, but not of
// those that need a function.
func faultFunctions(t *testing.T) []string {
	t.Helper()
	packages, err := parser.ParseDir(token.NewFileSet(), ".", nil, 0) //nolint:staticcheck // Build tags do not matter.
	require.NoError(t, err)
	var names []string
	for _, file := range packages["lxdtest"].Files {
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !f.Name.IsExported() || f.Type.Results == nil || len(f.Type.Results.List) != 1 {
				continue
			}
			if result, ok := f.Type.Results.List[0].Type.(*ast.Ident); !ok || result.Name != "Fault" {
				continue
			}
			if !slices.ContainsFunc(f.Type.Params.List, func(p *ast.Field) bool { _, ok := p.Type.(*ast.FuncType); return ok }) {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names
}

// TestEveryFaultIsWritten compares the faults that have a written form, and those in the
// package documentation, with the functions that return a fault.
func TestEveryFaultIsWritten(t *testing.T) {
	capital := regexp.MustCompile(`([a-z])([A-Z])`)
	var want, got, tested []string
	for _, name := range faultFunctions(t) {
		want = append(want, strings.ToLower(capital.ReplaceAllString(name, "$1-$2")))
	}
	for _, form := range faultForms {
		got = append(got, form.fault.name)
	}
	for _, test := range writtenFaults {
		tested = append(tested, test.fault.name)
	}
	require.Greater(t, len(want), 30)
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	for _, name := range append(faultFunctions(t), "Call") {
		require.Contains(t, string(doc), "\n//\t"+name+"  ", "the table of faults")
	}
	require.ElementsMatch(t, want, got)
	require.ElementsMatch(t, want, tested)
}

func TestFaultText(t *testing.T) {
	for _, test := range writtenFaults {
		t.Run(test.fault.name, func(t *testing.T) {
			require.Equal(t, test.text, test.fault.String())
			got, err := ParseFault(test.text)
			require.NoError(t, err)
			require.Equal(t, test.fault, got)

			data, err := json.Marshal(test.fault)
			require.NoError(t, err)
			var decoded Fault
			require.NoError(t, json.Unmarshal(data, &decoded))
			require.Equal(t, test.fault, decoded)
		})
	}
	got, err := ParseFault("  status   message=\"a b\"  status=500 ")
	require.NoError(t, err)
	require.Equal(t, Status(500, "a b"), got)

	var decoded Fault
	require.NoError(t, json.Unmarshal([]byte(`{"fault": "early-response", "bytes": 0, "status": 507, "message": "", "header": {"x-a": "b"}, "method": "POST", "path": "/1.0/images", "times": 1}`), &decoded))
	require.Equal(t, EarlyResponse(0, 507, "").WithHeader("X-A", "b").On("POST", "/1.0/images").Times(1), decoded)

	require.Equal(t, "call times=1", Call(nil).Times(1).String())
	_, err = json.Marshal(Call(nil))
	require.ErrorContains(t, err, "a Call cannot be written as JSON")
}

func TestBadFaults(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "no such fault; the faults are refuse, reset, lose-response, cut-response,",
		"CutResponse bytes=1":                   `fault "CutResponse": no such fault`,
		"call":                                  "no such fault",
		"reset bytes=1":                         "it has no bytes",
		"reset status=500":                      "it has no status",
		"reset header.A=1":                      "it has no header",
		"cut-response":                          "bytes is missing",
		"cut-response bytes=1 pause=1s":         "it has no pause",
		"cut-response bytes=-1":                 "bytes must not be -1",
		"cut-response bytes=1MiB":               `bytes must be a whole number, not "1MiB"`,
		"rate-limit bytes=0":                    "bytes must not be 0",
		"rate-limit bytes=1 times=2":            "it has no times",
		"rate-limit bytes=1 path=/1.0":          "it has no method and path",
		"stall-operations method=GET":           "it has no method and path",
		"refuse times=1":                        "it has no times",
		"latency pause=10":                      `pause must be a time above 0 such as 250ms, not "10"`,
		"latency pause=0s":                      "pause must be a time above 0",
		"status status=200 message=x":           "status must be that of an error, 400 to 599, not 200",
		"status status=500":                     "message is missing",
		"reset times=-1":                        "times must not be -1",
		"reset method=get":                      `method must be in capitals, not "get"`,
		"reset path=1.0":                        "path must begin with a slash",
		"reset path=/[":                         "syntax error in pattern",
		"reset colour=red":                      `no fault has "colour"; they have bytes,`,
		"reset on":                              `"on" is not of the form key=value`,
		`fail-images message="a"b`:              "a space is missing after",
		`fail-images message=no space left`:     `"space left" is not of the form key=value`,
		"redirect":                              "url is missing",
		"reset path=/1.0/images =3":             "is not of the form key=value",
		"reset times=1 path=/1.0 times=2":       "times is there twice",
		"status status=500 message=x header.=y": `"" is not the name of a header`,
	} {
		_, err := ParseFault(text)
		require.ErrorContains(t, err, want, "%s", text)
		require.ErrorContains(t, err, "lxdtest: fault", "%s", text)
	}
	for text, want := range map[string]string{
		`{"fault": "reset", "byte": 1}`:          `unknown field "byte"`,
		`{"fault": "reset", "bytes": 0}`:         "it has no bytes",
		`{"fault": "cut-response"}`:              "bytes is missing",
		`{"fault": "cut-response", "bytes": ""}`: "cannot unmarshal string",
		`"reset"`:                                "cannot unmarshal string",
		`{"fault": "status", "status": 500, "message": "x", "header": {"a b": "c"}}`: `"a b" is not the name of a header`,
		`{}`: "no such fault",
	} {
		kept := Latency(time.Second)
		require.ErrorContains(t, json.Unmarshal([]byte(text), &kept), want, "%s", text)
		require.Equal(t, Latency(time.Second), kept, "%s", text)
	}
}

func TestParseDialect(t *testing.T) {
	names := map[string]Dialect{
		"lxd50": LXD50, "LXD 5.0.2": LXD50, "lxd-5.0": LXD50, "LXD_5.0": LXD50, "lxd5.0.2": LXD50,
		"lxd40": LXD40, "LXD 4.0.13": LXD40, "lxd69": LXD69, "LXD69": LXD69, "lxd 6.9": LXD69,
		"Incus60": Incus60, "incus-6.0.4": Incus60, "incus70": Incus70, "Incus 7.0.2": Incus70,
	}
	for name, want := range names {
		got, err := ParseDialect(name)
		require.NoError(t, err)
		require.Equal(t, want, got, name)
	}
	for _, d := range Dialects() {
		got, err := ParseDialect(d.Name())
		require.NoError(t, err)
		require.Equal(t, d, got)
	}
	require.Len(t, Dialects(), len(dialects))
	for _, name := range []string{"", "lxd", "lxd5", "incus50", "lxd501"} {
		_, err := ParseDialect(name)
		require.ErrorContains(t, err, "the dialects are lxd40 (LXD 4.0.13), lxd50 (LXD 5.0.2), lxd69 (LXD 6.9), incus60 (Incus 6.0.4), incus70 (Incus 7.0.2)", name)
	}
}
