// Package fleet_test brings an image to many servers of lxdtest, whose network links are as
// slow as those of real ones are in proportion to the image: up to a hundred of them. Its
// benchmarks compare the time with what is possible.
package fleet_test

import (
	"os"
	"testing"

	"github.com/golxd/lxd/internal/testkit"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		runChild()
		return
	}
	os.Exit(testkit.Run(m))
}
