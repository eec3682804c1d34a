package lxd_test

import (
	"os"
	"testing"

	"github.com/golxd/lxd/internal/testkit"
)

func TestMain(m *testing.M) {
	if os.Getenv(envExportEndpoint) != "" {
		os.Exit(m.Run()) // a child that is killed tidies nothing up
	}
	os.Exit(testkit.Run(m))
}
