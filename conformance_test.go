package lxd_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/lxdtest"
)

var update = flag.Bool("update", false, "write docs/conformance.md anew; needs both real daemons")

// subject is a daemon, real or not, that the conformance suite runs against.
type subject struct {
	column  string // of the table
	family  lxd.Family
	fake    *lxdtest.Server
	real    *testdaemon.Daemon
	tls     bool
	twin    *subject // another daemon of the same kind
	results *conformanceTable
}

// conformanceSubjects are the three dialects of lxdtest, and the real daemons
// that the environment names: two of each kind, for copies.
func conformanceSubjects(t *testing.T) []*subject {
	t.Helper()
	var subjects []*subject
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		pair := [2]*subject{}
		for n := range pair {
			server := lxdtest.NewServer(&lxdtest.Options{Dialect: dialect, TLS: true})
			t.Cleanup(server.Close)
			pair[n] = &subject{column: "lxdtest " + dialect.String(), family: lxd.Family(dialect.Family()), fake: server}
		}
		pair[0].twin, pair[1].twin = pair[1], pair[0]
		subjects = append(subjects, pair[0])
	}
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, daemons := range [][]*testdaemon.Daemon{lxds, incuses} {
		if len(daemons) == 0 {
			continue
		}
		require.Len(t, daemons, 2, "the suite copies between two daemons of a kind")
		pair := [2]*subject{}
		for n, d := range daemons {
			name := "LXD 5.0.2"
			if d.Family == testdaemon.Incus {
				name = "Incus 6.0.4"
			}
			pair[n] = &subject{column: name, family: lxd.Family(d.Family), real: d}
		}
		pair[0].twin, pair[1].twin = pair[1], pair[0]
		subjects = append(subjects, pair[0])
	}
	return subjects
}

// client is a trusted one, over the unix socket or TLS.
func (s *subject) client(t *testing.T) *lxd.Client {
	t.Helper()
	if s.tls {
		return s.tlsClient(t)
	}
	endpoint := ""
	if s.fake != nil {
		endpoint = s.fake.Endpoint()
	} else {
		endpoint = "unix://" + s.real.Socket
	}
	return newClient(t, endpoint, nil)
}

func (s *subject) tlsClient(t *testing.T) *lxd.Client {
	t.Helper()
	if s.fake != nil {
		cert, key := s.fake.ClientCertificate()
		return newClient(t, s.fake.URL(), &lxd.Options{ClientCertificate: cert, ClientKey: key, ServerCertificate: s.fake.Certificate()})
	}
	return newClient(t, s.real.URL, &lxd.Options{ClientCertificate: s.real.ClientCertificate, ClientKey: s.real.ClientKey, ServerCertificate: s.real.ServerCertificate})
}

// stranger is a client that the daemon does not trust.
func (s *subject) stranger(t *testing.T, opts lxd.Options) *lxd.Client {
	t.Helper()
	if s.fake != nil {
		opts.ServerCertificate = s.fake.Certificate()
		return newClient(t, s.fake.URL(), &opts)
	}
	opts.ServerCertificate = s.real.ServerCertificate
	return newClient(t, s.real.URL, &opts)
}

func newClient(t *testing.T, endpoint string, opts *lxd.Options) *lxd.Client {
	t.Helper()
	client, err := lxd.New(endpoint, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

func (s *subject) addProfile(t *testing.T) string {
	t.Helper()
	name := unique("profile")
	if s.fake != nil {
		s.fake.AddProfile(name)
		return name
	}
	require.NoError(t, s.real.CreateProfile(t.Context(), "", name))
	return name
}

func (s *subject) addProject(t *testing.T) string {
	t.Helper()
	name := unique("project")
	if s.fake != nil {
		s.fake.AddProject(name, true)
		return name
	}
	require.NoError(t, s.real.CreateProject(t.Context(), name))
	return name
}

// addInstance makes a stopped instance with a snapshot called "snap0".
func (s *subject) addInstance(t *testing.T) string {
	t.Helper()
	name := unique("instance")
	if s.fake != nil {
		s.fake.AddInstance(name, nil)
		s.fake.AddInstance(name+"/snap0", nil)
		return name
	}
	image := upload(t, s.client(t), nil)
	require.NoError(t, s.real.CreateInstance(t.Context(), name, image.Fingerprint))
	require.NoError(t, s.real.CreateSnapshot(t.Context(), name, "snap0"))
	t.Cleanup(func() { require.NoError(t, s.real.DeleteInstance(context.Background(), name)) })
	return name
}

// unsupported is the outcome of a call that this daemon cannot do, which the
// client must say in so many words.
func (s *subject) unsupported(t *testing.T, err error, why string) {
	t.Helper()
	require.ErrorIs(t, err, lxd.ErrUnsupported)
	require.ErrorContains(t, err, why)
	s.results.set(s.column, strings.TrimPrefix(strings.Split(t.Name(), "/")[len(strings.Split(t.Name(), "/"))-1], "/"), "ErrUnsupported: "+why)
}

var uniqueCounter struct {
	sync.Mutex
	n int
}

// unique gives a name that no other test of this run has.
func unique(prefix string) string {
	uniqueCounter.Lock()
	defer uniqueCounter.Unlock()
	uniqueCounter.n++
	return fmt.Sprintf("%s-%d", prefix, uniqueCounter.n)
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

const conformanceDoc = "docs/conformance.md"

func (c *conformanceTable) markdown() string {
	var b strings.Builder
	b.WriteString("# What works where\n\nWritten by the conformance suite (`go test -run TestConformance -update .` beside both real daemons),\nwhich also checks it: every row is a subtest, run over the unix socket and over TLS.\n`ErrUnsupported` is what the client says where the daemon cannot do it.\n\n")
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

// check compares the columns that were run with the document.
func (c *conformanceTable) check(t *testing.T) {
	t.Helper()
	if *update {
		require.Len(t, c.columns, 5, "the table needs both real daemons")
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
// LXD_TEST_LXD_DIRS and LXD_TEST_INCUS_DIRS name them, against real daemons.
// What differs between the two is a bug in lxdtest.
func TestConformance(t *testing.T) {
	table := &conformanceTable{cells: map[[2]string]string{}}
	subjects := conformanceSubjects(t)
	for _, call := range conformanceCalls {
		for _, s := range subjects {
			table.set(s.column, strings.ReplaceAll(call.name, " ", "_"), "yes")
		}
	}
	t.Run("subjects", func(t *testing.T) {
		for _, s := range subjects {
			for _, overTLS := range []bool{false, true} {
				one := *s
				one.tls, one.results = overTLS, table
				name := s.column + " unix"
				if overTLS {
					name = s.column + " TLS"
				}
				t.Run(name, func(t *testing.T) {
					if s.fake != nil {
						t.Parallel()
					}
					for _, call := range conformanceCalls {
						t.Run(call.name, func(t *testing.T) {
							call.run(t, &one)
							if t.Failed() {
								table.set(s.column, strings.ReplaceAll(call.name, " ", "_"), "fails")
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
		leftovers(t, s)
		leftovers(t, s.twin)
	}
}

// leftovers errors where a token is left on a daemon.
func leftovers(t *testing.T, s *subject) {
	t.Helper()
	operations, err := s.client(t).Operations(context.Background())
	require.NoError(t, err)
	for _, op := range operations {
		status := op.Status()
		require.False(t, status.Class == "token" && !status.Done(), "%s has token %s left: %+v", s.column, op.ID(), status)
	}
}

// errOf gives the typed error within err.
func errOf[E error](t *testing.T, err error) E {
	t.Helper()
	var typed E
	require.Truef(t, errors.As(err, &typed), "%T is not a %T: %v", err, typed, err)
	return typed
}
