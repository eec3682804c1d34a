// Command lxdtest serves the images of LXD and Incus without a daemon and without root, for
// tests of programs in any language. Each server is one of package lxdtest; its
// documentation says what it does, and what the faults are. docs/testing.md has examples.
//
//	go run github.com/golxd/lxd/lxdtest/cmd/lxdtest -dialect lxd50,incus60 -image web=debian/13
//
// When the servers serve, it prints one line of JSON on standard output. It ends with
// SIGINT, SIGTERM, SIGHUP (unless that is ignored) or POST /stop, with -with-parent also after its parent process,
// and removes what it has made. It goes on if nobody reads its standard error. The exit code is 0 then, 2 for wrong flags, and 1 for other
// failures.
//
// # Flags
//
//	-dialect [NAME=]DIALECT   a server: lxd40, lxd50 (the default), lxd69, incus60 or incus70
//	-dir DIRECTORY            where everything is; the default is a temporary directory
//	-socket PATH              the unix socket, if there is one server
//	-tls ADDRESS              of https; the default is a free port of 127.0.0.1; none
//	-control ADDRESS|PATH     of the control socket
//	-image [NAME:]ALIAS[,ALIAS…]=SPEC
//	-project [NAME:]PROJECT   a project with images and profiles of its own
//	-profile [NAME:]PROFILE   a profile of the default project
//	-fault [NAME:]FAULT       as lxdtest.ParseFault reads it
//	-trust-password PASSWORD  with which clients add their certificate, on LXD before 6
//	-with-parent              end when the parent process has ended
//	-log                      log each request on standard error
//
// Flags for servers, images, projects, profiles and faults can be repeated, and -dialect can
// be a list with commas. Several servers are a fleet. A server that has no NAME is called
// like its dialect, a second one lxd50-2. Flags that name no server are for all.
//
// The SPEC of an image is OS/RELEASE, such as debian/13, for an image that is made and has
// these properties; FILE for a unified image; or METADATA+ROOTFS for a split one, of a
// virtual machine if ROOTFS is a qcow2 disk. Files are not copied, and must not change.
// Options follow, with a space before each: public, project=NAME, and for images that are made
// split, vm and size=BYTES. The same SPEC makes the same image, with the same fingerprint.
//
// # The directory
//
//	lxc/, incus/        configurations for LXD_CONF and INCUS_CONF, with the servers of the
//	                    family as remotes (the first is the default) and a certificate that
//	                    they trust
//	NAME/unix.socket    for LXD_SOCKET and INCUS_SOCKET
//	control.socket
//
// A directory that exists is used if it has no other files with these names. What a process
// that was killed has left in it is replaced. One that another process uses is refused.
//
// # The line on standard output
//
//	{"servers": [{"name", "dialect", "family", "version", "socket", "url", "server_certificate",
//	  "client_certificate", "client_key", "conf"}], "control": {"socket" or "url"}, "dir", "pid"}
//
// The certificates and the key are paths, and conf is the directory lxc or incus.
//
// # The control socket
//
// It speaks plain HTTP with JSON. An unknown field, parameter or call is refused with an
// error in words, {"error": "…"}, and the status 400 or 404. NAME is that of a server. A call
// without a result returns {}.
//
//	GET /servers             the line on standard output
//	POST /stop               ends the command
//	GET /NAME                the server, and whether it has crashed, running operations, connections
//	POST /NAME/inject        injects a fault: {"fault": "cut-response", "bytes": 1000, "method": "GET",
//	                         "path": "/1.0/images/*/export", "times": 2}; returns {"id": 1}
//	POST /NAME/release       {"id": 1} ends the fault's stalls
//	POST /NAME/remove        {"id": 1} ends the fault
//	GET /NAME/fired          the faults, and how often each has fired; ?id=1 is one; with
//	                         &timeout=30s after it has fired
//	GET /NAME/requests       what was requested, in order of arrival
//	DELETE /NAME/requests    forgets that
//	GET /NAME/wait           ?method=POST&path=/1.0/images&timeout=30s waits for a request that no
//	                         call has returned before, with &done=true also until the server has
//	                         finished with it; after the timeout, 60s by default, the status is 408.
//	                         A request that has arrived, but is not done then, counts as returned
//	GET /NAME/images         the images of all projects
//	POST /NAME/images        {"image": "web=debian/13 public"} adds one, as -image does; returns its
//	                         fingerprint
//	GET /NAME/tokens         the tokens and secrets that were neither used nor cancelled
//	POST /NAME/tokens        {"name": "ci"} makes a trust token, for "incus remote add"
//	POST /NAME/restart       restarts the server: operations are lost, images are not
//	POST /NAME/shutdown      stops it until restart
//	POST /NAME/reset         makes it as it was when the command started, with the flags' faults
//	POST /NAME/snapshot      returns {"id": 2}
//	POST /NAME/restore       {"id": 2} removes the faults, and brings back what the server had at a
//	                         snapshot, also at one of another server of the same dialect
//
// Anyone who can connect to the control socket or to a server's unix socket may do
// everything, and added images can be any files that the command can read.
package main
