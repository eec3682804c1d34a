package ensure_test

import (
	"os"
	"testing"

	"github.com/golxd/lxd/internal/testkit"
)

// TestMain is also that of the programs that the tests start. It fails if a test leaves
// something behind.
func TestMain(m *testing.M) {
	if text := os.Getenv(envJob); text != "" {
		os.Exit(runJob(text))
	}
	os.Exit(testkit.Run(m))
}
