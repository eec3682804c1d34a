package cluster_test

import (
	"os"
	"testing"

	"github.com/golxd/lxd/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Run(m)) }
