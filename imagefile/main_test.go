package imagefile_test

import (
	"os"
	"testing"

	"github.com/golxd/lxd/internal/testkit"
)

// TestMain fails if a goroutine, a file descriptor or a temporary file is left behind.
func TestMain(m *testing.M) { os.Exit(testkit.Run(m)) }
