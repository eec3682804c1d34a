package lxd_test

import (
	"time"

	"github.com/golxd/lxd/lxdtest"
)

// shortRetries is a retry timeout for a server that stays bad.
const shortRetries = 100 * time.Millisecond

// fingerprintOf is the SHA-256 of a certificate.
func fingerprintOf(der []byte) string {
	return lxdtest.Fingerprint(der)
}
