// Package testdaemon runs real LXD and Incus daemons for tests.
//
// [Start] runs one daemon in a fresh folder of its own, beside any others on
// the machine, and returns when it answers on its unix socket and over TLS
// with a client certificate that it trusts. [Daemon.Close] ends it and removes
// the folder with all that the daemon mounted there. Daemons have to be
// installed ("lxd" or "incus-base" on Debian), run on Linux only and need root.
//
// A test suite usually runs under the command internal/cmd/testdaemons, which
// starts the daemons once and names their folders in the environment
// variables [EnvLXD] and [EnvIncus]; [FromEnv] reads them. The files in such a
// folder are:
//
//	unix.socket      the daemon's own socket
//	test-url         its https address, such as https://127.0.0.1:23456
//	test-server.crt  its certificate, PEM
//	test-client.crt  a client certificate that it trusts, PEM
//	test-client.key  the key of that certificate, PEM
//	test-password    its trust password (LXD only)
//	test-daemon.log  its log
//
// The package uses net/http alone, so that it cannot share a mistake with the
// client under test.
package testdaemon
