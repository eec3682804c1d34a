package replay_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

const recordings = "../../testdata/envelopes"

// recording is an entry in the index of recorded responses.
type recording struct {
	File        string `json:"file"`
	Over        string `json:"over"`
	Method      string `json:"method"`
	Path        string `json:"path"`
	Status      int    `json:"status"`
	ContentType string `json:"content_type"`
	Location    string `json:"location"`
	ETag        string `json:"etag"`
}

// name is the recording's name, such as "upload-wait".
func (r *recording) name() string {
	return strings.TrimSuffix(strings.TrimSuffix(r.File, ".json"), ".jsonl")
}

// untrusted reports whether the client was not trusted.
func (r *recording) untrusted() bool { return r.Over == "tls untrusted" }

// serves reports whether the response belongs to a request. Of the query's
// parameters only the project counts, and the recursion of the list of images.
func (r *recording) serves(req *http.Request) bool {
	u, err := url.Parse(r.Path)
	return err == nil && r.Method == req.Method && u.EscapedPath() == req.URL.EscapedPath() &&
		(u.Path != "/1.0/images" || u.Query().Get("recursion") == req.URL.Query().Get("recursion")) &&
		(strings.HasPrefix(u.Path, "/1.0/operations") || u.Query().Get("project") == strings.TrimPrefix(req.URL.Query().Get("project"), "default"))
}

// daemon is what was recorded of a daemon.
type daemon struct {
	dir     string // its name in testdata/envelopes
	title   string // such as "LXD 5.0.2"
	index   []recording
	uploads map[string][]byte
}

func readDaemon(t *testing.T, dir string) *daemon {
	t.Helper()
	d := &daemon{dir: dir}
	family, version, _ := strings.Cut(dir, "-")
	d.title = map[string]string{"lxd": "LXD ", "incus": "Incus "}[family] + version
	data, err := os.ReadFile(filepath.Join(recordings, dir, "index.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &d.index))
	d.uploads = map[string][]byte{}
	for _, name := range []string{"unified", "other", "profile"} {
		d.uploads[name] = lxdtest.UnifiedImage(name, 0)
	}
	d.uploads["split.metadata"], d.uploads["split.rootfs"] = lxdtest.SplitImage("split", 0)
	d.uploads["vm.metadata"], d.uploads["vm.rootfs"] = lxdtest.VMImage("vm", 0)
	images := d.body(t, "images.json")
	if !bytes.Contains(images, []byte(d.fingerprint("unified"))) {
		// The recording was made with the images in testdata.
		for name := range d.uploads {
			d.uploads[name], err = os.ReadFile(filepath.Join(recordings, "uploads", name))
			require.NoError(t, err)
		}
	}
	for _, name := range []string{"unified", "split", "vm"} {
		require.Contains(t, string(images), d.fingerprint(name))
	}
	return d
}

// fingerprint returns that of an uploaded image.
func (d *daemon) fingerprint(name string) string {
	if d.uploads[name] != nil {
		return lxdtest.Fingerprint(d.uploads[name])
	}
	return lxdtest.Fingerprint(d.uploads[name+".metadata"], d.uploads[name+".rootfs"])
}

func (d *daemon) body(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(recordings, d.dir, file))
	require.NoError(t, err)
	return data
}

// find returns a recording and its place in the index, or nil.
func (d *daemon) find(name string) (*recording, int) {
	for n := range d.index {
		if d.index[n].name() == name {
			return &d.index[n], n
		}
	}
	return nil, 0
}

// player is a server that responds with the recordings of a daemon.
type player struct {
	*daemon
	t           *testing.T
	certificate [sha256.Size]byte // the SHA-256 of the server's

	mu sync.Mutex
	// replayed is the response to be served, at is its place in the index, and as
	// the request that it is served to; nil for the recorded one.
	replayed *recording
	at       int
	as       func(*http.Request) bool
	served   bool
	// absent matches the requests for an image that does not exist before the
	// operation has started; nil for none.
	absent func(*http.Request) bool
	// started is the response that started the operation that replayed is about;
	// nil for none.
	started *recording
	// preparing says that the requests are those before the call: the replayed
	// response is not served, and one that was recorded with a client of other
	// trust is.
	preparing bool
	unknown   []string // the requests that no recording responds to
	// earlier makes the responses those of before a change, until the replayed one
	// has changed it; nil for none.
	earlier  *strings.Replacer
	listedID string // the operation in the list of operations; "" for the recorded list
}

// client returns a client of the server, which is one that the recorded daemon
// trusts or does not trust.
func (p *player) client() *lxd.Client {
	server := httptest.NewUnstartedServer(p)
	opts := &lxd.Options{RetryTimeout: 50 * time.Millisecond}
	if p.replayed.Over == "unix" {
		// The path of a socket is short.
		dir, err := os.MkdirTemp("", "replay")
		require.NoError(p.t, err)
		p.t.Cleanup(func() { require.NoError(p.t, os.RemoveAll(dir)) })
		socket := filepath.Join(dir, "socket")
		listener, err := net.Listen("unix", socket)
		require.NoError(p.t, err)
		require.NoError(p.t, server.Listener.Close())
		server.Listener = listener
		server.Start()
		p.t.Cleanup(server.Close)
		return testkit.NewClient(p.t, "unix://"+socket, opts)
	}
	server.StartTLS()
	p.t.Cleanup(server.Close)
	p.certificate = sha256.Sum256(server.Certificate().Raw)
	opts.ServerCertificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	cert, key, err := lxd.NewKeyPair(nil)
	require.NoError(p.t, err)
	opts.ClientCertificate, opts.ClientKey = cert, key
	return testkit.NewClient(p.t, server.URL, opts)
}

// choose returns the recording that responds to a request: the one to be replayed,
// or the next one of that request that was recorded after it, or the last one
// before it. The caller holds the lock.
func (p *player) choose(req *http.Request) *recording {
	if !p.preparing && p.started != nil && p.started.serves(req) {
		p.absent = nil
		return p.started
	}
	if !p.preparing && (p.as == nil && p.replayed.serves(req) || p.as != nil && p.as(req)) {
		p.served, p.absent = true, nil
		return p.replayed
	}
	if p.absent != nil && !p.preparing && p.absent(req) {
		r, _ := p.find("image-not-found")
		return r
	}
	var before *recording
	for n := range p.index {
		r := &p.index[n]
		if !r.serves(req) || r.Status == http.StatusSwitchingProtocols || r.untrusted() != (p.replayed.untrusted() && !p.preparing) {
			continue
		}
		if n > p.at {
			return r
		}
		before = r
	}
	return before
}

// ServeHTTP responds with a recording.
func (p *player) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	_, _ = io.Copy(io.Discard, req.Body)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listedID != "" && req.Method == http.MethodGet && req.URL.Path == "/1.0/operations" {
		fmt.Fprintf(w, `{"type":"sync","status":"Success","status_code":200,"metadata":{"running":[{"id":%q,"class":"task","status":"Running","status_code":103,"may_cancel":true}]}}`, p.listedID)
		return
	}
	r := p.choose(req)
	switch {
	case r != nil && r != p.replayed && r.name() == "images-urls":
		p.serveURLs(w)
	case p.endsOperation() && req.Method == http.MethodGet && req.URL.Path == "/1.0/operations/"+p.operationID():
		p.serveEnded(w)
	case r != nil && strings.HasSuffix(r.File, ".jsonl"):
		p.serveEvents(w, req, r)
	case r != nil:
		for key, value := range map[string]string{"Content-Type": r.ContentType, "Location": r.Location, "ETag": r.ETag} {
			if value != "" {
				w.Header().Set(key, value)
			}
		}
		w.WriteHeader(r.Status)
		body := p.body(p.t, r.File)
		if p.earlier != nil && (!p.served || p.replayed.Status >= http.StatusBadRequest) {
			body = []byte(p.earlier.Replace(string(body)))
		}
		_, _ = w.Write(body)
	default:
		p.serveElement(w, req)
	}
}

// beforeUpdate makes the responses before the replayed one have earlier in place of
// recorded: the state that an update changes was not recorded.
func (p *player) beforeUpdate(recorded, earlier string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.earlier = strings.NewReplacer(recorded, earlier)
}

// operationID is the id of the operation in the path of the replayed response.
func (p *player) operationID() string {
	id, _, _ := strings.Cut(strings.TrimPrefix(p.replayed.Path, "/1.0/operations/"), "/")
	return id
}

// endsOperation reports whether the operation has ended before the replayed
// response to a wait for it.
func (p *player) endsOperation() bool {
	name := p.replayed.name()
	return p.served && (strings.HasSuffix(name, "-wait") || strings.HasSuffix(name, "wait-cancelled"))
}

// serveURLs responds with the URLs of the images that were there at the end of the
// recording: images-urls was recorded before the last uploads.
func (p *player) serveURLs(w http.ResponseWriter) {
	var list struct{ Metadata []lxd.Image }
	require.NoError(p.t, json.Unmarshal(p.body(p.t, "images-all-projects.json"), &list))
	urls := []string{}
	for _, image := range list.Metadata {
		urls = append(urls, "/1.0/images/"+image.Fingerprint)
	}
	require.NoError(p.t, json.NewEncoder(w).Encode(map[string]any{"type": "sync", "status": "Success", "status_code": 200, "metadata": urls}))
}

// serveEnded responds with the failed or cancelled operation, of which only the
// response to a wait was recorded: an error that does not describe the operation.
func (p *player) serveEnded(w http.ResponseWriter) {
	if strings.HasPrefix(p.replayed.name(), "upload-duplicate") {
		// The recorded operation that failed is that of another such upload.
		r, _ := p.find("operation-failure")
		_, other, _ := strings.Cut(r.Path, "/operations/")
		_, _ = w.Write(bytes.ReplaceAll(p.body(p.t, r.File), []byte(other), []byte(p.operationID())))
		return
	}
	var refused struct{ Error string }
	require.NoError(p.t, json.Unmarshal(p.body(p.t, p.replayed.File), &refused))
	status, code := "Failure", 400
	if strings.HasSuffix(p.replayed.name(), "cancelled") {
		status, code = "Cancelled", 401
	}
	fmt.Fprintf(w, `{"type":"sync","status":"Success","status_code":200,"metadata":{"id":%q,"class":"task","status":%q,"status_code":%d,"err":%q}}`, p.operationID(), status, code, refused.Error)
}

// serveElement responds with an element of a recorded list: an image that was
// recorded in lists only; or with a project, of which none was recorded.
func (p *player) serveElement(w http.ResponseWriter, req *http.Request) {
	if name, ok := strings.CutPrefix(req.URL.Path, "/1.0/projects/"); ok && req.Method == http.MethodGet {
		if name != "copies" {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write(p.body(p.t, "path-not-found.json"))
			return
		}
		fmt.Fprintf(w, `{"type":"sync","status":"Success","status_code":200,"metadata":{"name":%q,"config":{"features.images":"true"}}}`, name)
		return
	}
	if name, ok := strings.CutPrefix(req.URL.Path, "/1.0/images/"); ok && req.Method == http.MethodGet && (p.preparing || !p.replayed.untrusted()) {
		for _, file := range []string{"images.json", "images-all-projects.json"} {
			var list struct{ Metadata []json.RawMessage }
			require.NoError(p.t, json.Unmarshal(p.body(p.t, file), &list))
			for _, element := range list.Metadata {
				if bytes.Contains(element, []byte(name)) {
					fmt.Fprintf(w, `{"type":"sync","status":"Success","status_code":200,"metadata":%s}`, element)
					return
				}
			}
		}
	}
	p.unknown = append(p.unknown, req.Method+" "+req.URL.Path)
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, `{"type":"error","error":"not recorded","error_code":404}`)
}

// serveEvents sends recorded events, and then waits until the client closes the
// connection.
func (p *player) serveEvents(w http.ResponseWriter, req *http.Request, r *recording) {
	var upgrader websocket.Upgrader
	socket, err := upgrader.Upgrade(w, req, nil)
	if err != nil {
		return
	}
	defer func() { _ = socket.Close() }()
	for line := range strings.Lines(string(p.body(p.t, r.File))) {
		if err := socket.WriteMessage(websocket.TextMessage, []byte(line)); err != nil {
			return
		}
	}
	_, _, _ = socket.ReadMessage()
}

// prepare changes what the server responds.
func (p *player) prepare(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// image reads an image for a call on it.
func (p *player) image(c *lxd.Client, fingerprint string) *lxd.Image {
	p.prepare(func() { p.preparing = true })
	image, err := c.Images.Get(p.t.Context(), fingerprint)
	require.NoError(p.t, err)
	p.prepare(func() { p.preparing = false })
	return image
}

// operation returns the operation of the replayed response, as one that runs.
func (p *player) operation(c *lxd.Client) *lxd.Operation {
	p.prepare(func() { p.listedID = p.operationID() })
	list, err := c.Operations(p.t.Context())
	require.NoError(p.t, err)
	require.Len(p.t, list, 1)
	p.prepare(func() { p.listedID = "" })
	return list[0]
}

// upload returns the bytes of an uploaded image as a file to be sent.
func (p *player) upload(name string) io.ReadSeeker {
	data := p.uploads[name]
	require.NotEmpty(p.t, data, name)
	return bytes.NewReader(data)
}
