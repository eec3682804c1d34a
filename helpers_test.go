package lxd_test

import (
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest"
)

// shortRetries is a retry timeout for a server that never recovers.
const shortRetries = 100 * time.Millisecond

// fingerprintOf returns the SHA-256 of a certificate.
func fingerprintOf(der []byte) string {
	return lxdtest.Fingerprint(der)
}

// shortDir returns a directory whose path is short enough for a socket in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lxd")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

type roundTripper func(*http.Request) (*http.Response, error)

func (r roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return r(req) }
