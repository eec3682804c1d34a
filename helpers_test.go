package lxd_test

import (
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest"
)

// shortRetries is a retry timeout for a server that stays bad.
const shortRetries = 100 * time.Millisecond

// fingerprintOf is the SHA-256 of a certificate.
func fingerprintOf(der []byte) string {
	return lxdtest.Fingerprint(der)
}

// shortDir is a folder whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lxd")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

type roundTripper func(*http.Request) (*http.Response, error)

func (r roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return r(req) }
