package conformance_test

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

var update = flag.Bool("update", false, "write docs/conformance.md anew; needs the real daemons")

// subject is one that has its outcomes written into the table.
type subject struct {
	*testkit.Subject
	results *conformanceTable
}

// unsupported is the outcome of a call that this daemon cannot do, which the
// client must say in so many words.
func (s *subject) unsupported(t *testing.T, err error, why string) {
	t.Helper()
	require.ErrorIs(t, err, lxd.ErrUnsupported)
	require.ErrorContains(t, err, why)
	s.results.set(s.Column, strings.TrimPrefix(strings.Split(t.Name(), "/")[len(strings.Split(t.Name(), "/"))-1], "/"), "ErrUnsupported: "+why)
}

// is says whether the daemon, real or not, is one of these: "LXD 4.0".
func (s *subject) is(daemon string) bool {
	return strings.HasPrefix(strings.TrimPrefix(s.Column, "lxdtest "), daemon)
}

// hidesInfo says whether a stranger is not told which daemon it is.
func (s *subject) hidesInfo() bool { return s.is("Incus 7.") }

// incus7Alias matches the names that Incus 7 allows.
var incus7Alias = regexp.MustCompile("^[0-9A-Za-z]([^\\s$?&+\"'`*]{0,62}[0-9A-Za-z])?$")

// refusesAlias says whether the daemon refuses an alias of that name.
func (s *subject) refusesAlias(name string) bool {
	return s.is("Incus 7.") && !incus7Alias.MatchString(name)
}

// splits says whether the daemon can publish a split image.
func (s *subject) splits(t *testing.T) bool {
	t.Helper()
	info, err := s.Client(t).Server(t.Context())
	require.NoError(t, err)
	return info.Has("instance_publish_split")
}

// conformanceTable is what every call did on every daemon.
type conformanceTable struct {
	mu      sync.Mutex
	columns []string
	rows    []string
	cells   map[[2]string]string // column, row
}

func (c *conformanceTable) set(column, row, cell string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.columns, column) {
		c.columns = append(c.columns, column)
	}
	if !slices.Contains(c.rows, row) {
		c.rows = append(c.rows, row)
	}
	key := [2]string{column, row}
	if was, ok := c.cells[key]; !ok || was == "yes" || cell == "fails" {
		c.cells[key] = cell
	}
}

const conformanceDoc = "../../docs/conformance.md"

func (c *conformanceTable) markdown() string {
	var b strings.Builder
	b.WriteString("# What works where\n\nWritten by the conformance suite (`go test ./test/conformance -run TestConformance -update` beside the real daemons),\nwhich also checks it: every row is a subtest, run over the unix socket and over TLS. The cluster has three members, and is used over TLS with the\naddresses of all.\n`ErrUnsupported` is what the client says where the daemon cannot do it.\n\n")
	b.WriteString("| call | " + strings.Join(c.columns, " | ") + " |\n|---|" + strings.Repeat("---|", len(c.columns)) + "\n")
	for _, row := range c.rows {
		b.WriteString("| " + strings.ReplaceAll(row, "_", " "))
		for _, column := range c.columns {
			b.WriteString(" | " + c.cells[[2]string{column, row}])
		}
		b.WriteString(" |\n")
	}
	return b.String()
}

// documentedColumns returns the columns of the table as it is.
func documentedColumns(t *testing.T) []string {
	t.Helper()
	doc, err := os.ReadFile(conformanceDoc)
	require.NoError(t, err)
	for line := range strings.SplitSeq(string(doc), "\n") {
		if cells, found := strings.CutPrefix(line, "| call | "); found {
			return strings.Split(strings.TrimSuffix(cells, " |"), " | ")
		}
	}
	t.Fatalf("%s has no table", conformanceDoc)
	return nil
}

// check compares the columns that were run with the document.
func (c *conformanceTable) check(t *testing.T) {
	t.Helper()
	if *update {
		require.Subset(t, c.columns, documentedColumns(t), "the table needs all daemons that it had before")
		require.NoError(t, os.MkdirAll(filepath.Dir(conformanceDoc), 0o755))
		require.NoError(t, os.WriteFile(conformanceDoc, []byte(c.markdown()), 0o644))
		return
	}
	doc, err := os.ReadFile(conformanceDoc)
	require.NoError(t, err)
	var header []string
	documented := map[[2]string]string{}
	for line := range strings.SplitSeq(string(doc), "\n") {
		if !strings.HasPrefix(line, "| ") {
			continue
		}
		fields := strings.Split(strings.Trim(line, "| "), " | ")
		if header == nil {
			header = fields
			continue
		}
		require.Len(t, fields, len(header), line)
		for n := 1; n < len(fields); n++ {
			documented[[2]string{header[n], strings.ReplaceAll(fields[0], " ", "_")}] = fields[n]
		}
	}
	for _, column := range c.columns {
		for _, row := range c.rows {
			require.Equal(t, documented[[2]string{column, row}], c.cells[[2]string{column, row}],
				"%s on %s differs from %s; run with -update", row, column, conformanceDoc)
		}
	}
}

// TestConformance runs every call against the dialects of lxdtest and, where
// LXD_TEST_LXD_DIRS and LXD_TEST_INCUS_DIRS name them, against real daemons and a
// cluster of LXD. What differs between the two is a bug in lxdtest.
func TestConformance(t *testing.T) {
	table := &conformanceTable{cells: map[[2]string]string{}}
	subjects := testkit.Subjects(t)
	for _, s := range slices.Clone(subjects) {
		if s.Real != nil && s.Family == lxd.LXD {
			subjects = append(subjects, s.Cluster(t))
		}
	}
	for _, call := range conformanceCalls {
		for _, s := range subjects {
			table.set(s.Column, strings.ReplaceAll(call.name, " ", "_"), "yes")
		}
	}
	t.Run("subjects", func(t *testing.T) {
		for _, s := range subjects {
			for _, overTLS := range []bool{false, true} {
				if s.Clustered() && !overTLS {
					continue // a member's unix socket is that of any daemon
				}
				this := *s
				this.TLS = overTLS
				one := &subject{Subject: &this, results: table}
				name := s.Column + " unix"
				if overTLS {
					name = s.Column + " TLS"
				}
				t.Run(name, func(t *testing.T) {
					if s.Fake != nil {
						t.Parallel()
					}
					for _, call := range conformanceCalls {
						t.Run(call.name, func(t *testing.T) {
							if s.Real != nil && !s.Clustered() { // nothing else uses it meanwhile
								t.Cleanup(func() { testkit.RequireNoTokens(t, s) })
							}
							call.run(t, one)
							if t.Failed() {
								table.set(s.Column, strings.ReplaceAll(call.name, " ", "_"), "fails")
							}
						})
					}
				})
			}
		}
	})
	if !t.Failed() {
		table.check(t)
	}
	for _, s := range subjects {
		if s.Clustered() {
			continue // LXD 5.0.2 makes tokens too, to copy an image to the other members, and can leave one
		}
		testkit.RequireNoTokens(t, s)
		testkit.RequireNoTokens(t, s.Twin)
	}
}
