package lxd_test

import (
	"testing"
	"time"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// fake is a server of lxdtest and a client for it over its unix socket.
type fake struct {
	*lxdtest.Server
	Client *lxd.Client
}

func startFake(t *testing.T) *fake {
	t.Helper()
	return startFakeWith(t, nil, nil)
}

func startFakeWith(t *testing.T, server *lxdtest.Options, client *lxd.Options) *fake {
	t.Helper()
	s := lxdtest.NewServer(server)
	t.Cleanup(s.Close)
	return &fake{Server: s, Client: newClient(t, s.Endpoint(), client)}
}

// shortRetries is a retry timeout for a server that stays bad.
const shortRetries = 100 * time.Millisecond

// fingerprintOf is the SHA-256 of a certificate.
func fingerprintOf(der []byte) string {
	return lxdtest.Fingerprint(der)
}
