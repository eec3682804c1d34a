// Package testdaemon runs real LXD and Incus daemons for tests.
//
// [Start] starts a daemon in a new directory, independent of any others on the
// machine, and returns when it responds on its unix socket and over TLS to a
// client certificate that it trusts. [Daemon.Close] kills it and removes the
// directory and all mounts in it. The daemons must be installed ("lxd" or
// "incus-base" on Debian), run on Linux only and need root.
//
// A test suite usually runs under the command internal/cmd/testdaemons, which
// starts the daemons once and passes their directories in the environment
// variables [EnvLXD] and [EnvIncus]; [FromEnv] reads them. Such a directory
// contains:
//
//	unix.socket      the daemon's socket
//	test-url         its https URL, such as https://127.0.0.1:23456
//	test-version     the version that it reports, such as 5.0.2
//	test-server.crt  its certificate, PEM
//	test-client.crt  a client certificate that it trusts, PEM
//	test-client.key  the key of that certificate, PEM
//	test-password    its trust password (LXD before 6 only)
//	test-binary      its executable (optional; for tests that start daemons of the same kind)
//	test-daemon.log  its log
//
// The package uses only net/http, so that it does not share bugs with the client
// under test.
package testdaemon
