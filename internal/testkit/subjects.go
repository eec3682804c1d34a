package testkit

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/lxdtest"
)

// Subject is a daemon, real or not, that a test runs against.
type Subject struct {
	Column string // of the conformance table
	Family lxd.Family
	Fake   *lxdtest.Server    // nil for a real one
	Real   *testdaemon.Daemon // nil for a fake
	TLS    bool               // Client connects over TLS
	URLs   string             // of all members of its cluster; empty without one
	Twin   *Subject           // another daemon of the same kind
}

// Subjects are the dialects of lxdtest, and the real daemons that the
// environment names: two of each kind, for copies.
func Subjects(t *testing.T) []*Subject {
	t.Helper()
	var subjects []*Subject
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD40, lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60, lxdtest.Incus70} {
		pair := [2]*Subject{}
		for n := range pair {
			server := lxdtest.NewServer(&lxdtest.Options{Dialect: dialect, TLS: true, Skopeo: true})
			t.Cleanup(server.Close)
			pair[n] = &Subject{Column: "lxdtest " + dialect.String(), Family: lxd.Family(dialect.Family()), Fake: server}
		}
		pair[0].Twin, pair[1].Twin = pair[1], pair[0]
		subjects = append(subjects, pair[0])
	}
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	var names []string // in their order
	byName := map[string][]*Subject{}
	for _, d := range slices.Concat(lxds, incuses) {
		if len(byName[d.Name()]) == 0 {
			names = append(names, d.Name())
		}
		byName[d.Name()] = append(byName[d.Name()], &Subject{Column: d.Name(), Family: lxd.Family(d.Family), Real: d})
	}
	for _, name := range names {
		pair := byName[name]
		require.Len(t, pair, 2, "%s: the suite copies between two daemons of one kind and version", name)
		pair[0].Twin, pair[1].Twin = pair[1], pair[0]
		subjects = append(subjects, pair[0])
	}
	return subjects
}

// Parallel is t.Parallel, unless real daemons take part: other tests look at what is on
// those.
func Parallel(t *testing.T) {
	t.Helper()
	if os.Getenv(testdaemon.EnvLXD)+os.Getenv(testdaemon.EnvIncus) == "" {
		t.Parallel()
	}
}

// Cluster starts a cluster of three daemons like a real one. Its client over TLS has
// the addresses of all members, of which the first is used. Its twin is the daemon
// itself.
func (s *Subject) Cluster(t *testing.T) *Subject {
	t.Helper()
	members := testdaemon.NewCluster(t, s.Real.Family, 3, &testdaemon.Options{Binary: s.Real.Binary})
	urls := make([]string, len(members))
	for n, d := range members {
		urls[n] = d.URL
	}
	return &Subject{Column: s.Column + " cluster", Family: s.Family, Real: members[0], URLs: strings.Join(urls, ","), Twin: s}
}

// Clustered says whether the daemon is a member of a cluster.
func (s *Subject) Clustered() bool { return s.URLs != "" }

// Client is a trusted one, over the unix socket or TLS.
func (s *Subject) Client(t *testing.T) *lxd.Client {
	t.Helper()
	if s.TLS {
		return s.TLSClient(t)
	}
	endpoint := ""
	if s.Fake != nil {
		endpoint = s.Fake.Endpoint()
	} else {
		endpoint = "unix://" + s.Real.Socket
	}
	return NewClient(t, endpoint, nil)
}

// TLSClient is a trusted one, over TLS.
func (s *Subject) TLSClient(t *testing.T) *lxd.Client {
	t.Helper()
	if s.Fake != nil {
		cert, key := s.Fake.ClientCertificate()
		return NewClient(t, s.Fake.URL(), &lxd.Options{ClientCertificate: cert, ClientKey: key, ServerCertificate: s.Fake.Certificate()})
	}
	return NewClient(t, cmp.Or(s.URLs, s.Real.URL), &lxd.Options{
		ClientCertificate: s.Real.ClientCertificate, ClientKey: s.Real.ClientKey, ServerCertificate: s.Real.ServerCertificate,
	})
}

// Stranger is a client that the daemon does not trust.
func (s *Subject) Stranger(t *testing.T, opts lxd.Options) *lxd.Client {
	t.Helper()
	if s.Fake != nil {
		opts.ServerCertificate = s.Fake.Certificate()
		return NewClient(t, s.Fake.URL(), &opts)
	}
	opts.ServerCertificate = s.Real.ServerCertificate
	return NewClient(t, cmp.Or(s.URLs, s.Real.URL), &opts)
}

// Pushes says whether the daemon can push images.
func (s *Subject) Pushes(t *testing.T) bool {
	t.Helper()
	server, err := s.Client(t).Server(t.Context())
	require.NoError(t, err)
	return server.Has("images_push_relay")
}

// AddProfile makes a profile and returns its name.
func (s *Subject) AddProfile(t *testing.T) string {
	t.Helper()
	name := Unique("profile")
	if s.Fake != nil {
		s.Fake.AddProfile(name)
		return name
	}
	require.NoError(t, s.Real.CreateProfile(t.Context(), "", name))
	return name
}

// AddProject makes a project and returns its name.
func (s *Subject) AddProject(t *testing.T) string {
	t.Helper()
	name := Unique("project")
	if s.Fake != nil {
		s.Fake.AddProject(name, true)
		return name
	}
	require.NoError(t, s.Real.CreateProject(t.Context(), name))
	return name
}

// AddSharedProject makes a project that shares the images of the default one, and
// returns its name.
func (s *Subject) AddSharedProject(t *testing.T) string {
	t.Helper()
	name := Unique("shared")
	if s.Fake != nil {
		s.Fake.AddProject(name, false)
		return name
	}
	require.NoError(t, s.Real.CreateSharedProject(t.Context(), name))
	return name
}

// Restricted is a client that the daemon trusts in these projects only.
func (s *Subject) Restricted(t *testing.T, projects ...string) *lxd.Client {
	t.Helper()
	opts := Joiner(t)
	if s.Fake != nil {
		opts.ServerCertificate = s.Fake.Certificate()
		require.NoError(t, s.Fake.Trust(Unique("restricted"), opts.ClientCertificate, projects...))
		return NewClient(t, s.Fake.URL(), opts)
	}
	opts.ServerCertificate = s.Real.ServerCertificate
	require.NoError(t, s.Real.Trust(t.Context(), Unique("restricted"), opts.ClientCertificate, projects...))
	return NewClient(t, s.Real.URL, opts)
}

// AddInstance makes a stopped instance with a snapshot called "snap0".
func (s *Subject) AddInstance(t *testing.T) string {
	t.Helper()
	name := Unique("instance")
	if s.Fake != nil {
		s.Fake.AddInstance(name, nil)
		s.Fake.AddInstance(name+"/snap0", nil)
		return name
	}
	image := Upload(t, s.Client(t), nil)
	require.NoError(t, s.Real.CreateInstance(t.Context(), name, image.Fingerprint))
	require.NoError(t, s.Real.CreateSnapshot(t.Context(), name, "snap0"))
	t.Cleanup(func() { require.NoError(t, s.Real.DeleteInstance(context.Background(), name)) })
	return name
}

// RequireNoTokens fails if a token remains on a daemon.
func RequireNoTokens(t *testing.T, s *Subject) {
	t.Helper()
	operations, err := s.Client(t).Operations(context.Background())
	require.NoError(t, err)
	for _, op := range operations {
		status := op.Status()
		require.False(t, status.Class == "token" && !status.Done(), "%s has token %s left: %+v", s.Column, op.ID(), status)
	}
}
