package ensure_test

import (
	"os"
	"slices"
	"testing"

	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestMain is also that of the programs that the tests start. It fails if a test leaves
// something behind.
func TestMain(m *testing.M) {
	if text := os.Getenv(envJob); text != "" {
		os.Exit(runJob(text))
	}
	os.Exit(testkit.Run(m))
}

// subjects are the real daemons, and one dialect of each family: a program is started
// hundreds of times.
func subjects(t *testing.T) []*testkit.Subject {
	return slices.DeleteFunc(testkit.Subjects(t), func(s *testkit.Subject) bool {
		return s.Fake != nil && s.Fake.Dialect() != lxdtest.LXD50 && s.Fake.Dialect() != lxdtest.Incus70
	})
}
