package lxdtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// recording is an entry in the index of recorded responses: a request to a real
// daemon, and the status and headers of its response.
type recording struct {
	File        string            `json:"file"`
	Over        string            `json:"over"`
	Method      string            `json:"method"`
	Path        string            `json:"path"`
	Headers     map[string]string `json:"request_headers"`
	Body        json.RawMessage   `json:"request_body"`
	Status      int               `json:"status"`
	ContentType string            `json:"content_type"`
	Location    string            `json:"location"`
	ETag        string            `json:"etag"`
}

// recordings are the directory of testdata/envelopes, and the recordings in it
// that the dialects are held to.
const recordings = "../testdata/envelopes"

var recordedDialects = map[string]Dialect{
	"lxd-4.0.13": LXD40, "lxd-5.0.2": LXD50, "lxd-6.9": LXD69, "incus-6.0.4": Incus60, "incus-7.0.2": Incus70,
	"incus-7.3": Incus70,
}

// skippedRecordings matches the responses that cannot be reproduced: those of an
// import from an image server that no longer runs, and of an instance's files.
var skippedRecordings = regexp.MustCompile(`^(url-|image-url|publish-|image-published|operations?-running|operation-cancelled|operation-wait-cancelled|wait-timeout)`)

// TestRecordedResponses sends the requests that were recorded with real daemons
// and compares the responses with the recorded ones, texts and ETags included,
// except for times, operation ids, secrets, addresses and the machine's details.
func TestRecordedResponses(t *testing.T) {
	t.Parallel()
	for name, d := range recordedDialects {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(recordings, name)
			data, err := os.ReadFile(filepath.Join(dir, "index.json"))
			require.NoError(t, err)
			var index []recording
			require.NoError(t, json.Unmarshal(data, &index))
			s := newTestServer(t, &Options{Dialect: d, TLS: true})
			replay := &replayer{t: t, s: s, dir: dir, upload: recordedUploads(t, name), otherVersion: !strings.HasSuffix(name, "-"+d.Version()), ids: map[string]string{}, clients: map[string]*client{
				"unix": newClient(t, s), "tls": newTLSClient(t, s, true), "tls untrusted": newTLSClient(t, s, false),
			}}
			compared := 0
			for _, r := range index {
				if strings.HasSuffix(r.File, ".json") && !skippedRecordings.MatchString(r.File) {
					t.Run(strings.TrimSuffix(r.File, ".json"), func(t *testing.T) { replay.play(t, r) })
					compared++
				}
			}
			require.Greater(t, compared, 80)
		})
	}
}

// replayer replays recorded requests.
type replayer struct {
	t      *testing.T
	s      *Server
	dir    string
	upload func(name string) []byte
	// otherVersion says that the dialect is that of another version, which has
	// other extensions.
	otherVersion bool
	ids          map[string]string // recorded operation ids to those of the replay
	clients      map[string]*client
}

var operationURL = regexp.MustCompile(`/1\.0/operations/([0-9a-f-]{36})`)

// play replays one request and compares the response.
func (p *replayer) play(t *testing.T, r recording) {
	recorded, err := os.ReadFile(filepath.Join(p.dir, r.File))
	require.NoError(t, err)
	p.prepare(t, r)
	path := operationURL.ReplaceAllStringFunc(r.Path, func(url string) string {
		if id := p.ids[strings.TrimPrefix(url, "/1.0/operations/")]; id != "" {
			return "/1.0/operations/" + id
		}
		return url
	})
	body, contentType := p.body(t, r)
	c := p.clients[r.Over]
	req, err := http.NewRequestWithContext(t.Context(), r.Method, c.base+path, body)
	require.NoError(t, err)
	if r.Body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for key, value := range r.Headers {
		req.Header.Set(key, value)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := c.http.Do(req)
	require.NoError(t, err)
	got, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())

	if want, own := operationURL.FindStringSubmatch(r.Location), operationURL.FindStringSubmatch(res.Header.Get("Location")); want != nil {
		require.NotNil(t, own, "%s", got)
		p.ids[want[1]] = own[1]
	} else {
		require.Equal(t, r.Location, res.Header.Get("Location"))
	}
	require.Equal(t, r.Status, res.StatusCode, "%s", got)
	require.Equal(t, r.ContentType, res.Header.Get("Content-Type"))
	if strings.HasPrefix(r.Path, "/1.0/images") {
		require.Equal(t, r.ETag, res.Header.Get("Etag"))
	} else {
		// The ETag of GET /1.0 depends on the server's configuration.
		require.Equal(t, r.ETag != "", res.Header.Get("Etag") != "")
	}
	want, have := neutral(t, recorded), neutral(t, got)
	if strings.HasPrefix(r.File, "operations") {
		onlyImageOperations(want)
		onlyImageOperations(have)
	}
	if strings.HasPrefix(r.File, "server") && p.otherVersion {
		delete(want.(map[string]any)["metadata"].(map[string]any), "api_extensions")
		delete(have.(map[string]any)["metadata"].(map[string]any), "api_extensions")
	}
	if failed := `"status":"Failure"`; r.Status == http.StatusAccepted && strings.Contains(string(recorded), failed) && !strings.Contains(string(got), failed) {
		// LXD 4.0.13 sends the operation as it is when it responds, which may be
		// failed already.
		var accepted struct {
			Metadata map[string]any `json:"metadata"`
		}
		require.NoError(t, json.Unmarshal(got, &accepted))
		ended := newClient(t, p.s).do("GET", res.Header.Get("Location")+"/wait", nil)
		require.NoError(t, json.Unmarshal(ended.Metadata, &accepted.Metadata))
		have.(map[string]any)["metadata"] = neutralValue("metadata", accepted.Metadata)
	}
	require.Equal(t, want, have)
}

// onlyImageOperations removes the operations that a daemon runs when it starts,
// which some recordings include.
func onlyImageOperations(response any) {
	groups, _ := response.(map[string]any)["metadata"].(map[string]any)
	for status, list := range groups {
		operations := slices.DeleteFunc(list.([]any), func(op any) bool {
			fields, ok := op.(map[string]any)
			return ok && fields["description"] != "Downloading image"
		})
		groups[status] = operations
		if len(operations) == 0 {
			delete(groups, status)
		}
	}
}

// prepare sends the requests that the recorder sent without recording them.
func (p *replayer) prepare(t *testing.T, r recording) {
	c := &client{t, p.clients["unix"].http, "http://lxd"}
	switch r.File {
	case "profile-not-found.json":
		c.upload(p.upload("prefix-1"))
		c.upload(p.upload("prefix-2"))
	case "operation-failure.json":
		failed := c.do("POST", "/1.0/images", p.upload("unified"))
		c.wait(failed)
		p.ids[operationURL.FindStringSubmatch(r.Path)[1]] = strings.TrimPrefix(failed.Operation, "/1.0/operations/")
	case "copy-accepted.json":
		p.s.AddProject("copies", true)
	}
}

// recordedUploads returns the images of a recording by name. Those of testdata
// were the generated ones when the recordings of the other daemons were made.
func recordedUploads(t *testing.T, recording string) func(name string) []byte {
	switch recording {
	case "lxd-4.0.13", "lxd-6.9", "incus-7.3":
		return func(name string) []byte {
			data, err := os.ReadFile(filepath.Join(recordings, "uploads", name))
			require.NoError(t, err)
			return data
		}
	}
	images := map[string][]byte{
		"unified": UnifiedImage("unified", 0), "other": UnifiedImage("other", 0),
		"profile": UnifiedImage("profile", 0), "events": UnifiedImage("events", 0),
	}
	images["split.metadata"], images["split.rootfs"] = SplitImage("split", 0)
	images["vm.metadata"], images["vm.rootfs"] = VMImage("vm", 0)
	images["prefix-1"], images["prefix-2"] = sharedPrefix()
	return func(name string) []byte {
		require.NotNil(t, images[name], name)
		return images[name]
	}
}

// sharedPrefix returns two images whose fingerprints begin with the same two
// characters: the same images as the recorder's.
func sharedPrefix() (first, second []byte) {
	seen := map[string][]byte{}
	for i := 0; ; i++ {
		image := UnifiedImage(fmt.Sprintf("prefix %d", i), 0)
		prefix := Fingerprint(image)[:2]
		if other, found := seen[prefix]; found {
			return other, image
		}
		seen[prefix] = image
	}
}

// body returns the body of a recorded request.
func (p *replayer) body(t *testing.T, r recording) (body io.Reader, contentType string) {
	t.Helper()
	split := func(root string, meta, file []byte) (io.Reader, string) {
		data, contentType := formAs(t, []string{"metadata", root}, []string{"metadata", root}, meta, file)
		return strings.NewReader(string(data)), contentType
	}
	switch r.File {
	case "upload-accepted.json", "upload-duplicate-accepted.json":
		return bytes.NewReader(p.upload("unified")), ""
	case "upload-wrong-fingerprint-accepted.json":
		return bytes.NewReader(p.upload("other")), ""
	case "upload-not-an-image-accepted.json":
		return strings.NewReader("no tarball"), ""
	case "profile-not-found.json":
		return bytes.NewReader(p.upload("profile")), ""
	case "upload-split-accepted.json":
		return split("rootfs", p.upload("split.metadata"), p.upload("split.rootfs"))
	case "upload-vm-accepted.json":
		return split("rootfs.img", p.upload("vm.metadata"), p.upload("vm.rootfs"))
	case "bad-json.json":
		return strings.NewReader("{"), ""
	case "copy-accepted.json":
		var post map[string]any
		require.NoError(t, json.Unmarshal(r.Body, &post))
		source := post["source"].(map[string]any)
		source["server"], source["certificate"] = p.s.URL(), string(p.s.Certificate())
		data, err := json.Marshal(post)
		require.NoError(t, err)
		return strings.NewReader(string(data)), ""
	}
	if r.Body == nil {
		return nil, ""
	}
	return strings.NewReader(string(r.Body)), ""
}

// neutral decodes a response and replaces the values that differ every time.
func neutral(t *testing.T, data []byte) any {
	t.Helper()
	var value any
	require.NoError(t, json.Unmarshal(data, &value), "%s", data)
	return neutralValue("", value)
}

var (
	anyTime = regexp.MustCompile(`^20(2[5-9]|[3-9]\d)-\d\d-\d\dT.*Z$`)
	anyUUID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
)

func neutralValue(key string, value any) any {
	switch value := value.(type) {
	case map[string]any:
		if value["addresses"] != nil {
			// The fingerprint of the server's certificate.
			delete(value, "fingerprint")
		}
		for name, inner := range value {
			switch name {
			case "environment", "config":
				// These describe the machine and its configuration.
				if content, ok := inner.(map[string]any); ok && len(content) > 0 && key == "metadata" {
					delete(value, name)
					continue
				}
			case "download_progress":
				delete(value, name)
				continue
			case "restricted", "certificate", "password", "description", "trust_token":
				// Token operations repeat these fields of the request, which
				// are empty here.
				if key == "request" {
					delete(value, name)
					continue
				}
			}
			value[name] = neutralValue(name, inner)
		}
		return value
	case []any:
		if key == "addresses" {
			return "ADDRESSES"
		}
		for i := range value {
			value[i] = neutralValue(key, value[i])
		}
		// Incus 6.0.4 lists images in any order.
		slices.SortFunc(value, func(a, b any) int {
			x, _ := json.Marshal(a)
			y, _ := json.Marshal(b)
			return strings.Compare(string(x), string(y))
		})
		return value
	case string:
		switch {
		case key == "auth_user_name" && len(value) == 64:
			return "FINGERPRINT"
		case key == "secret", key == "certificate" && value != "", key == "server":
			return strings.ToUpper(key)
		case anyTime.MatchString(value) && value != "2030-01-02T03:04:05Z":
			return "TIME"
		}
		return anyUUID.ReplaceAllString(value, "UUID")
	}
	return value
}

// TestRecordedEvents repeats the requests during which events were recorded,
// and compares the events.
func TestRecordedEvents(t *testing.T) {
	for name, d := range recordedDialects {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(recordings, name, "events.jsonl"))
			require.NoError(t, err)
			s := newTestServer(t, &Options{Dialect: d})
			c := newClient(t, s)
			socket := listen(t, s, "?type=operation,lifecycle")
			image := recordedUploads(t, name)("events")
			alias := map[string]any{"name": "events", "target": Fingerprint(image)}
			c.upload(image)
			c.do("POST", "/1.0/images/aliases", alias)
			c.do("PUT", "/1.0/images/aliases/events", alias)
			c.do("POST", "/1.0/images/aliases/events", map[string]any{"name": "events2"})
			c.do("DELETE", "/1.0/images/aliases/events2", nil)
			c.do("PATCH", "/1.0/images/"+Fingerprint(image), map[string]any{"properties": map[string]string{"a": "b"}})
			c.wait(c.do("DELETE", "/1.0/images/"+Fingerprint(image), nil))
			lines := slices.Collect(strings.Lines(string(data)))
			want, got := make([]any, len(lines)), make([]any, len(lines))
			for n, line := range lines {
				_, message, err := socket.ReadMessage()
				require.NoError(t, err)
				want[n], got[n] = neutral(t, []byte(line)), neutral(t, message)
			}
			if last := len(lines) - 2; d == LXD40 {
				// The deletion's event and the end of its operation came in either order.
				require.ElementsMatch(t, want[last:], got[last:])
				want, got = want[:last], got[:last]
			}
			require.Equal(t, want, got)
		})
	}
}
