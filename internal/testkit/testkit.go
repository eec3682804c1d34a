// Package testkit is what the tests of the package lxd and the suites under
// test/ share: clients, servers and images, assertions on them, and a check that
// nothing is left behind.
package testkit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

var uniqueCounter struct {
	sync.Mutex
	n int
}

// Unique returns a name that no other test has, also not one of another package
// that uses the same daemon.
func Unique(prefix string) string {
	uniqueCounter.Lock()
	defer uniqueCounter.Unlock()
	uniqueCounter.n++
	return fmt.Sprintf("%s-%d-%d", prefix, os.Getpid(), uniqueCounter.n)
}

// ErrOf returns the typed error within err.
func ErrOf[E error](t *testing.T, err error) E {
	t.Helper()
	var typed E
	require.Truef(t, errors.As(err, &typed), "%T is not a %T: %v", err, typed, err)
	return typed
}

// envLong makes the tests of load, of long use and of kills as long as a
// release needs: LXD_TEST_LONG=1.
const envLong = "LXD_TEST_LONG"

// Size returns how large a test is to be.
func Size(t *testing.T, short, long int) int {
	t.Helper()
	if text := os.Getenv(envLong); text != "" {
		on, err := strconv.ParseBool(text)
		require.NoError(t, err, envLong)
		if on {
			return long
		}
	}
	return short
}

// Tree is each file of a directory with its content.
func Tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		tree[path] = string(data)
		return err
	}))
	return tree
}
