// Package lxdtest provides an LXD or Incus image server for tests, in the
// manner of net/http/httptest: it runs in the test's own process and needs
// neither a daemon nor root.
//
//	server := lxdtest.NewServer(nil)
//	defer server.Close()
//	// server.Endpoint() is "unix:///tmp/lxdtest…/unix.socket".
//
// # What it is
//
// The server really does with images what the daemons do: uploads are spooled,
// checked and hashed; operations run, fail and are forgotten after 5 seconds;
// exports honor Range and If-Range. It supports ETags, filters, projects,
// aliases with any character, secrets, events, imports over HTTP, and copies
// from and to other servers, whether lxdtest's or not. It has no networks or
// storage. Of instances it has what images need: they are added (AddInstance) or
// created by a client from an image, started, stopped, published and deleted.
//
// Options.Dialect selects the daemon to imitate: LXD40, LXD50, LXD69, Incus60 or
// Incus70. They differ in headers, in extensions, in what they tell untrusted
// clients, in what they refuse and in which words, in the fields of operations,
// and in the form of a failed wait. A daemon's oddities are reproduced too: LXD40
// and LXD50 ignore the profiles of an upload, Incus60 and Incus70 ignore the
// X-LXD-* headers, and LXD50, Incus60 and Incus70 crash on an upload with
// properties that uses a token without properties. Every dialect
// crashes on an upload with a properties header if the image's metadata.yaml
// has no properties. Crashed reports a crash; Restart restarts the server.
//
// # A service under test
//
// Pass the service Endpoint, or with Options.TLS set URL, Certificate and
// ClientCertificate, then check what it left behind: Images, Aliases, Files,
// Running, Tokens, Requests, Accepted, Open.
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
// UnifiedImage, SplitImage and VMImage return images that real daemons accept
// too; the same seed yields the same fingerprint. AddImageFile adds an image of the
// disk without reading it into memory.
//
// A service that works in the background is waited for without polling: WaitRequest
// returns the next request with a method and path, Request.Wait waits for its end and
// Injection.Wait until a fault has fired.
//
//	request, err := server.WaitRequest(ctx, "POST", "/1.0/images")
//	…
//	err = request.Wait(ctx) // request.Status() is that of the response
//
// A program that is not a test uses Start, which returns an error, with Options.Socket,
// Options.Address and Options.OnRequest. ParseDialect and ParseFault read what a user has
// written.
//
// # Faults
//
// Inject makes the server fail as servers and networks do in the field. Faults
// can be injected at any time:
//
//	fault := server.Inject(lxdtest.CutResponse(1 << 20).On("GET", "/1.0/images/*/export").Times(2))
//	…
//	if fault.Fired() != 2 { … }
//
//	fault                what the client sees
//	Refuse               no connection
//	Reset                the connection reset before the response header; the request was not processed
//	LoseResponse         the same, but the request was processed
//	CutResponse          the connection reset after n bytes of the response body
//	CutRequest           the connection reset after n bytes of its own body
//	StallHeaders         no response until Release
//	Latency              each response delayed
//	StallResponse        a response that stops after n bytes until Release
//	StallRequest         a body that is not read beyond n bytes until Release
//	HalfOpen             a connection that stays open but silent
//	SlowLoris            a response sent byte by byte
//	Corrupt              one corrupted byte
//	ShortLength          a body and a Content-Length that are too short
//	TruncateRootfs       a split image whose second part is truncated, in a complete form
//	Unavailable          503
//	TooManyRequests      429 with Retry-After
//	Status               any other error status
//	EarlyResponse        an error in the middle of its upload
//	Call                 what a function does to the server at the moment of the request
//	HTML                 200 and a web page
//	EndlessJSON          200 and JSON that never ends
//	Redirect             307
//	RateLimit            a slow network link, which all connections share
//	RestartServer        the server restarting in the middle of the request
//	DuplicateEvents      each operation event twice
//	ReorderEvents        an operation event after the next one
//	DropEvents           event sockets that are closed
//	ForgetOperations     operations forgotten as soon as they end
//	StallOperations      operations that keep running until Release
//
// These are not failures: real daemons behave like this in ordinary use, and the
// documentation of each says which.
//
//	StallImages          an image that does not exist yet when its operation names it
//	FailImages           images that are not stored, such as for want of space
//	StallUpdates         updates with the same If-Match that all succeed
//	LoseInsert           an upload that fails because another one was faster
//	LoseContent          an image whose file is gone
//	CacheStreams         a simplestreams index that is up to an hour old
//	SlowRename           an alias whose renaming takes long
//
// Faults can be written as text and as JSON, by the names of these functions in lower case
// with dashes; see ParseFault and Fault.UnmarshalJSON:
//
//	cut-response bytes=1048576 method=GET path=/1.0/images/*/export times=2
//	{"fault": "cut-response", "bytes": 1048576, "method": "GET", "path": "/1.0/images/*/export", "times": 2}
//
// Restart and Shutdown affect the whole server: addresses and images are kept,
// operations and secrets are lost.
//
// # Many tests
//
// A server starts in about a millisecond, so that each test can have its own. What takes
// longer is to fill it. Snapshot remembers what a server has, and Restore gives it back, to
// the same server or to a new one, without copying an image:
//
//	var template = lxdtest.NewServer(nil)
//	var filled *lxdtest.Snapshot
//
//	func TestMain(m *testing.M) {
//		… // 1,000 times template.AddImage or AddImageFile
//		filled = template.Snapshot()
//		m.Run()
//		template.Close()
//	}
//
//	func TestPrune(t *testing.T) {
//		server := lxdtest.NewServer(nil)
//		defer server.Close()
//		if err := server.Restore(filled); err != nil { … }
//		…
//	}
//
// Tests that share one server, one after another, begin with Restore or Reset: both also
// remove faults, forget requests and operations, and wait for what the test before has left
// in progress, whose effects the next test therefore never sees. Addresses, certificates
// and idle connections stay, so that the client of all tests can be the same.
//
// # Time
//
// With Options.InMemory the server opens no socket and can run in a bubble of
// testing/synctest, where the five seconds until an operation is forgotten, the
// ten between two pings and a client's own backoff pass at once. Connections
// come from DialContext, or from the *http.Client that Client returns. DialContext suits
// http.Transport and the Dial of lxd.Options: for the network "unix" it returns a
// connection like that of the unix socket, for others one to the https side, and it ignores
// the address, so that Endpoint and URL both work:
//
//	synctest.Test(t, func(t *testing.T) {
//		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
//		defer server.Close()
//		client, err := lxd.New(server.Endpoint(), &lxd.Options{Dial: server.DialContext})
//		…
//		defer client.Close()
//		…
//	})
//
// The server and its clients must be made in the bubble and closed in it. Two such servers
// copy from each other when Options.Dial of the one is the DialContext of the other.
//
// # Fidelity
//
// Image files are read with package imagefile, whose tests upload a table of good
// and bad images to each dialect and to LXD 5.0.2, Incus 6.0.4 and 7.0.2: the same
// are accepted, with the same metadata, and refused in the same words.
//
// The package's tests replay requests recorded with LXD 4.0.13, 5.0.2, 6.9, Incus
// 6.0.4, 7.0.2 and 7.3 (which Incus70 imitates too, but for its extensions) and
// require the recorded responses, events included. With -tags clients, the
// lxc and incus commands and pylxd run against it, in the test's process and as the
// command github.com/golxd/lxd/lxdtest/cmd/lxdtest, which is for programs in other
// languages.
//
// # Differences from the daemons
//
// Syntax errors of a metadata.yaml are those of LXD and Incus 6.0.4 also with
// Incus70. A squashfs is taken for one without metadata. Published images are
// compressed with gzip or not at all. Images are not refreshed automatically, and
// expired ones are not deleted. What no recording shows of LXD40 and LXD69 is as
// in LXD50.
package lxdtest
