// Command bench measures package lxd against the programs that people use in
// its place, on real daemons, and writes the figures to docs/performance.md.
//
//	go run ./bench [-size MiB] [-runs N] [-only regexp] [-out file]
//
// It starts two LXD daemons of its own (see package testdaemon: Linux, root,
// the package lxd installed) and needs curl, and ip (iproute2) and /dev/net/tun
// for the lines between a daemon and a far client; what the lxc command and
// pylxd do is measured where they are installed. Every transfer runs in a
// process of its own, package lxd's too, so that time, processor time and memory
// compare. The contenders of a row take turns. Given a job as its only argument,
// it is such a process.
package main
