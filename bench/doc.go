// Command bench compares package lxd with other programs on real daemons, and writes
// the figures to docs/performance.md.
//
//	go run ./bench [-size MiB] [-runs N] [-only regexp] [-out file]
//
// It starts two LXD daemons of its own (see package testdaemon: Linux, root, the
// Debian package lxd) and needs curl, and ip (iproute2) and /dev/net/tun for the
// links between a daemon and a remote client; it measures the lxc command and pylxd
// if they are installed. Every transfer runs in a separate process, that of package
// lxd too, so that wall time, processor time and memory are comparable. The
// contenders of a row take turns. With a job as its only argument, the command is
// such a process.
package main
