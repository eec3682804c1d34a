package concurrency_test

import (
	"os"
	"testing"

	"github.com/golxd/lxd/internal/testkit"
)

// TestMain fails if a test leaves something behind.
func TestMain(m *testing.M) {
	os.Exit(testkit.Run(m))
}
