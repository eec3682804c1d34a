// Package lxdtest is an images server of LXD and of Incus for tests, in the
// manner of net/http/httptest: it runs in the test's own process and needs
// neither a daemon nor root.
//
//	server := lxdtest.NewServer(nil)
//	defer server.Close()
//	// server.Endpoint() is "unix:///tmp/lxdtest…/unix.socket".
//
// # What it is
//
// It does what the daemons do with images, for real: uploads are spooled,
// checked and hashed; operations run, fail and are forgotten after 5 seconds;
// exports obey Range and If-Range; ETags, filters, projects, aliases with any
// character, secrets, events, imports over HTTP, and copies from and to other
// servers, lxdtest's or not. It has no instances, networks or storage; just
// enough of instances to publish images from (AddInstance).
//
// Options.Dialect picks the daemon to speak like: LXD50, LXD69 or Incus60.
// They differ in headers, in extensions, in what they refuse, and in how a
// failed wait looks. Where a daemon does something odd, so does its dialect:
// LXD50 ignores the profiles of an upload, Incus60 does not see the X-LXD-*
// headers, and an upload with properties for a token that has none ends both.
// An upload with a properties header whose metadata.yaml has no properties ends
// every dialect. Crashed tells, Restart brings the server back.
//
// # A service under test
//
// Give the service Endpoint, or URL with Certificate and ClientCertificate
// where Options.TLS is set, and look at what it left behind: Images, Aliases,
// Files, Running, Tokens, Requests, Accepted, Open.
//
//	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
//	defer server.Close()
//	fingerprint, err := server.AddImage(lxdtest.UnifiedImage("web", 1<<20), &lxdtest.AddOptions{Aliases: []string{"web"}})
//	cert, key := server.ClientCertificate()
//	service := mypkg.New(server.URL(), server.Certificate(), cert, key)
//	…
//	if tokens := server.Tokens(); len(tokens) > 0 {
//		t.Errorf("secrets were left behind: %v", tokens)
//	}
//
// UnifiedImage, SplitImage and VMImage make images that real daemons accept
// too; the same seed gives the same fingerprint.
//
// # Faults
//
// What goes wrong in the field is injected by name, with Inject, at any time:
//
//	fault := server.Inject(lxdtest.CutResponse(1 << 20).On("GET", "/1.0/images/*/export").Times(2))
//	…
//	if fault.Fired() != 2 { … }
//
//	fault                what the client sees
//	Refuse               no connection
//	Reset                the connection reset before a header; nothing was done
//	LoseAnswer           the same, but the server has done it
//	CutResponse          the connection reset after n bytes of the answer
//	CutRequest           the connection reset after n bytes of its own body
//	StallHeaders         no answer, until Release
//	StallResponse        an answer that stops after n bytes, until Release
//	StallRequest         a body that is not read on after n bytes, until Release
//	HalfOpen             a connection on which nothing comes or goes any more
//	SlowLoris            a byte at a time
//	Corrupt              one byte flipped
//	ShortLength          a body and a Content-Length that are too short
//	TruncateRootfs       a split image whose second part is short, in a whole form
//	Unavailable          503
//	TooManyRequests      429 with Retry-After
//	Status               any other refusal
//	EarlyAnswer          an error in the middle of its upload
//	HTML                 200 and a web page
//	EndlessJSON          200 and JSON without an end
//	Redirect             307
//	RestartServer        the server restarted in the middle of the request
//	DuplicateEvents      each operation event twice
//	ReorderEvents        an operation event after the next one
//	DropEvents           no event socket
//	ForgetOperations     operations gone as soon as they end
//	StallOperations      operations that run on until Release
//
// Restart and Shutdown do to the whole server what their names say; addresses
// and images stay, operations and secrets go.
//
// # Time
//
// With Options.InMemory the server opens no socket and fits in a bubble of
// testing/synctest, where the five seconds of an operation, the ten between
// two pings and a client's own backoff pass at once. Its connections come from
// DialContext, which fits http.Transport, or ready made from Client:
//
//	synctest.Test(t, func(t *testing.T) {
//		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
//		defer server.Close()
//		client := server.Client()
//		…
//	})
//
// Two such servers copy from each other when Options.Dial of the one is the
// DialContext of the other.
//
// # How it is held to the daemons
//
// Its tests send it the requests that were once recorded with LXD 5.0.2 and
// Incus 6.0.4 and insist on the recorded answers, events included. With -tags
// clients the lxc and incus commands and pylxd do their image work on it.
//
// # Where it differs from the daemons
//
// Tarballs packed with xz, lzma or zstd pass by their first bytes: their
// metadata is not read, and the image is a container for x86_64. Publishing
// knows no compression but gzip and none. A refresh does not run by itself, and
// expired images stay. A server that is restarted has forgotten its operations,
// but not who it trusts. The extensions of LXD69 are those that matter to
// images, not all of that version.
package lxdtest
