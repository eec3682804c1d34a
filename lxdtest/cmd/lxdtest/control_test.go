package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// quick is a client that does not try again.
func (p *process) quick(s *server) *lxd.Client {
	p.Helper()
	return testkit.NewClient(p.T, "unix://"+s.Socket, &lxd.Options{RetryTimeout: -1})
}

// TestControlFaults injects faults, waits for them, and releases and removes them.
func TestControlFaults(t *testing.T) {
	t.Parallel()
	p := start(t, "-dialect", "lxd50,incus60", "-fault", "incus60:unavailable path=/1.0/events")
	c := p.quick(p.ready.Servers[0])

	var id, other idJSON
	require.Equal(t, 200, p.call("POST", "/lxd50/inject", `{"fault": "cut-request", "bytes": 1000, "method": "POST", "path": "/1.0/images", "times": 1}`, &id))
	_, err := c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(lxdtest.UnifiedImage("x", 1<<20))}, nil)
	require.Error(t, err)
	var fired struct {
		ID    int
		Fault map[string]any
		Fired int
	}
	require.Equal(t, 200, p.call("GET", "/lxd50/fired?id=2&timeout=1m", "", &fired))
	require.Equal(t, 2, id.ID, "the flag's fault is the first")
	require.Equal(t, id.ID, fired.ID)
	require.Equal(t, 1, fired.Fired)
	require.Equal(t, "cut-request", fired.Fault["fault"])
	require.Equal(t, 404, p.call("GET", "/incus60/fired?id=2", "", nil), "it is of the other server")

	// A request that is stalled until release, and one until remove.
	for _, end := range []string{"release", "remove"} {
		require.Equal(t, 200, p.call("POST", "/lxd50/inject", `{"fault": "stall-headers", "path": "/1.0/images", "times": 1}`, &other))
		listed := make(chan error, 1)
		go func() {
			_, err := c.Images.All(t.Context(), nil)
			listed <- err
		}()
		var seen requestJSON
		for seen.Method != "GET" {
			require.Equal(t, 200, p.call("GET", "/lxd50/wait?path=/1.0/images", "", &seen))
		}
		require.False(t, seen.Done)
		body, err := json.Marshal(other)
		require.NoError(t, err)
		require.Equal(t, 200, p.call("POST", "/lxd50/"+end, string(body), nil))
		require.NoError(t, <-listed)
	}
	var all []json.RawMessage
	require.Equal(t, 200, p.call("GET", "/lxd50/fired", "", &all))
	require.Len(t, all, 3)
	require.Equal(t, 200, p.call("GET", "/incus60/fired", "", &all))
	require.Len(t, all, 1)
}

// TestControlWaits: a call that waits ends after its timeout.
func TestControlWaits(t *testing.T) {
	t.Parallel()
	p := start(t, "-fault", "reset path=/none")
	status, text := p.raw("GET", "/lxd50/wait?method=DELETE&path=/1.0/images/*&timeout=1ms", "")
	require.Equal(t, http.StatusRequestTimeout, status)
	require.Contains(t, string(text), "after 1ms")
	require.Equal(t, http.StatusRequestTimeout, p.call("GET", "/lxd50/fired?id=1&timeout=1ms", "", nil))
	_, err := p.quick(p.ready.Servers[0]).Images.All(t.Context(), nil)
	require.NoError(t, err)
	var seen requestJSON
	require.Equal(t, 200, p.call("GET", "/lxd50/wait?method=GET&path=/1.0/images&done=true", "", &seen))
	require.True(t, seen.Done)
	require.Equal(t, 200, seen.Status)
}

// TestControlState shows what is there, and takes it back.
func TestControlState(t *testing.T) {
	t.Parallel()
	p := start(t, "-dialect", "a=lxd50,b=lxd50,c=incus60", "-image", "web=debian/13", "-fault", "latency pause=1ms")
	a, b := p.ready.Servers[0], p.ready.Servers[1]
	var images []imageJSON
	names := func(server string) (names []string) {
		require.Equal(t, 200, p.call("GET", "/"+server+"/images", "", &images))
		for _, image := range images {
			names = append(names, image.Aliases...)
		}
		return names
	}
	require.Equal(t, []string{"web"}, names("a"))
	require.Equal(t, "13", images[0].Properties["release"])
	require.True(t, images[0].ExpiresAt.IsZero())
	var added struct{ Fingerprint string }
	require.Equal(t, 200, p.call("POST", "/a/images", `{"image": "db=debian/12 size=20000"}`, &added))
	require.ElementsMatch(t, []string{"web", "db"}, names("a"))
	var id idJSON
	require.Equal(t, 200, p.call("POST", "/a/snapshot", "", &id))
	image, err := p.client(a).Images.Get(t.Context(), added.Fingerprint)
	require.NoError(t, err)
	require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
	require.Equal(t, []string{"web"}, names("a"))
	body, err := json.Marshal(id)
	require.NoError(t, err)
	for _, server := range []string{"a", "b"} {
		require.Equal(t, 200, p.call("POST", "/"+server+"/restore", string(body), nil))
		require.ElementsMatch(t, []string{"web", "db"}, names(server))
		var faults []json.RawMessage
		require.Equal(t, 200, p.call("GET", "/"+server+"/fired", "", &faults))
		require.Empty(t, faults)
	}
	dir := t.TempDir()
	image, err = p.client(b).Images.Get(t.Context(), added.Fingerprint)
	require.NoError(t, err)
	_, err = image.ExportTo(t.Context(), dir, nil)
	require.NoError(t, err)
	status, text := p.raw("POST", "/c/restore", string(body))
	require.Equal(t, 400, status)
	require.Contains(t, string(text), "Incus 6.0.4")
	require.Equal(t, 404, p.call("POST", "/a/restore", `{"id": 99}`, nil))

	require.Equal(t, 200, p.call("POST", "/a/reset", "", nil))
	require.Equal(t, []string{"web"}, names("a"))
	var faults []json.RawMessage
	require.Equal(t, 200, p.call("GET", "/a/fired", "", &faults))
	require.Len(t, faults, 1)
	remote, err := lxd.Remote("a", &lxd.Options{Family: lxd.LXD, ConfigDir: a.Conf})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, remote.Close()) })
	require.True(t, testkit.Trusted(t, remote), "it still trusts the certificate")

	var requests []requestJSON
	require.Equal(t, 200, p.call("GET", "/a/requests", "", &requests))
	require.Equal(t, "/1.0", requests[len(requests)-1].Path)
	require.Equal(t, 200, p.call("DELETE", "/a/requests", "", nil))
	require.Equal(t, 200, p.call("GET", "/a/requests", "", &requests))
	require.Empty(t, requests)
}

// TestControlAtOnce: a fault that is injected during a reset is one that other calls know.
func TestControlAtOnce(t *testing.T) {
	t.Parallel()
	p := start(t)
	require.Equal(t, 200, p.call("POST", "/lxd50/inject", `{"fault": "stall-headers", "path": "/1.0/profiles"}`, nil))
	request := func(text string) net.Conn {
		conn, err := net.Dial("unix", p.ready.Servers[0].Socket)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, err = io.WriteString(conn, text)
		require.NoError(t, err)
		return conn
	}
	// The reset waits for the upload, and before that removes the fault.
	request("POST /1.0/images HTTP/1.1\r\nHost: lxd\r\nContent-Length: 1000\r\n\r\n")
	stalled := request("GET /1.0/profiles HTTP/1.1\r\nHost: lxd\r\n\r\n")
	for _, path := range []string{"/1.0/images", "/1.0/profiles"} {
		require.Equal(t, 200, p.call("GET", "/lxd50/wait?path="+path, "", nil))
	}
	reset := make(chan int)
	go func() { reset <- p.call("POST", "/lxd50/reset", "", nil) }()
	_, err := io.ReadFull(stalled, make([]byte, 1))
	require.NoError(t, err)
	var id idJSON
	require.Equal(t, 200, p.call("POST", "/lxd50/inject", `{"fault": "html", "path": "/1.0/images"}`, &id))
	require.Equal(t, 200, <-reset)
	require.Equal(t, 200, p.call("GET", fmt.Sprintf("/lxd50/fired?id=%d", id.ID), "", nil))
}

// TestControlServer: tokens, restarts, and what a server tells of itself.
func TestControlServer(t *testing.T) {
	t.Parallel()
	p := start(t, "-dialect", "incus60")
	var tokens []string
	var made struct{ Token string }
	require.Equal(t, 200, p.call("POST", "/incus60/tokens", `{"name": "ci"}`, &made))
	require.Equal(t, 200, p.call("GET", "/incus60/tokens", "", &tokens))
	require.Len(t, tokens, 1)
	c, err := lxd.Join(t.Context(), made.Token, testkit.Joiner(t))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.Equal(t, 200, p.call("GET", "/incus60/tokens", "", &tokens))
	require.Empty(t, tokens)

	socket := p.ready.Servers[0].Socket
	require.Equal(t, 200, p.call("POST", "/incus60/shutdown", "", nil))
	_, err = net.Dial("unix", socket)
	require.Error(t, err)
	require.Equal(t, 200, p.call("POST", "/incus60/restart", "{}", nil))
	conn, err := net.Dial("unix", socket)
	require.NoError(t, err)

	var status map[string]any
	for status["open"] != 1.0 { // the server may not have accepted it yet
		require.Equal(t, 200, p.call("GET", "/incus60", "", &status))
	}
	require.NoError(t, conn.Close()) // the daemon accepts no other before a request on it
	require.Equal(t, "incus60", status["name"])
	require.Equal(t, socket, status["socket"])
	require.NotContains(t, status, "crashed")
	// Incus 6.0.4 crashes on properties for an image without any.
	var bare bytes.Buffer
	tarball := tar.NewWriter(&bare)
	metadata := "architecture: x86_64\ncreation_date: 1\n"
	require.NoError(t, tarball.WriteHeader(&tar.Header{Name: "metadata.yaml", Size: int64(len(metadata))}))
	_, err = io.WriteString(tarball, metadata)
	require.NoError(t, err)
	require.NoError(t, tarball.WriteHeader(&tar.Header{Name: "rootfs/", Typeflag: tar.TypeDir}))
	require.NoError(t, tarball.Close())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://incus/1.0/images", &bare)
	require.NoError(t, err)
	req.Header.Set("X-Incus-properties", "a=b")
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}
	if res, err := transport.RoundTrip(req); err == nil {
		_ = res.Body.Close() // the response can be faster than the crash
	}
	require.Eventually(t, func() bool {
		p.call("GET", "/incus60", "", &status)
		return status["crashed"] != nil
	}, 10*time.Second, time.Millisecond)

	var servers fleet
	require.Equal(t, 200, p.call("GET", "/servers", "", &servers))
	require.Equal(t, socket, servers.Servers[0].Socket)
	require.Equal(t, p.ready.Control, servers.Control)
	require.Equal(t, 200, p.call("POST", "/stop", "", nil))
	require.Equal(t, 0, <-p.code)
	p.code <- 0
}

// TestControlAddressTaken: a server that cannot listen again is an error in words.
func TestControlAddressTaken(t *testing.T) {
	t.Parallel()
	p := start(t)
	var id idJSON
	require.Equal(t, 200, p.call("POST", "/lxd50/inject", `{"fault": "refuse"}`, &id))
	taken, err := net.Listen("tcp", strings.TrimPrefix(p.ready.Servers[0].URL, "https://"))
	require.NoError(t, err)
	for _, call := range [][2]string{{"remove", fmt.Sprintf(`{"id": %d}`, id.ID)}, {"restart", ""}} {
		status, text := p.raw("POST", "/lxd50/"+call[0], call[1])
		require.Equal(t, 500, status)
		require.Contains(t, string(text), "address already in use")
	}
	require.NoError(t, taken.Close())
	require.Equal(t, 200, p.call("POST", "/lxd50/restart", "", nil))
	_, err = p.quick(p.ready.Servers[0]).Images.All(t.Context(), nil)
	require.NoError(t, err)
}

// TestControlRefuses: what is wrong is refused in words, and nothing happens.
func TestControlRefuses(t *testing.T) {
	t.Parallel()
	p := start(t)
	for _, refused := range []struct {
		method, path, body string
		status             int
		words              string
	}{
		{"GET", "/", "", 404, `no server \"\"; there are lxd50, and the calls GET /servers`},
		{"POST", "/lxd40/reset", "", 404, `no server \"lxd40\"`},
		{"GET", "/lxd50/reset", "", 404, "no call GET /lxd50/reset; there are DELETE /lxd50/requests, GET /lxd50, GET /lxd50/fired,"},
		{"POST", "/lxd50/reset/all", "", 404, "no call POST /lxd50/reset/all"},
		{"POST", "/lxd50/reset?now=true", "", 400, `unknown parameter \"now\"; the call has none`},
		{"POST", "/lxd50/reset", `{"now": true}`, 400, `unknown field \"now\"`},
		{"POST", "/lxd50/inject", ``, 400, "there is no fault"},
		{"POST", "/lxd50/inject", `{}`, 400, "no such fault"},
		{"POST", "/lxd50/inject", `{"fault": "cut"}`, 400, "the faults are"},
		{"POST", "/lxd50/inject", `{"fault": "reset", "bytes": 1}`, 400, "has no bytes"},
		{"POST", "/lxd50/inject", `{"fault": "reset", "url": `, 400, "unexpected EOF"},
		{"POST", "/lxd50/inject", `{"fault": "reset"} {}`, 400, "more than one JSON value"},
		{"POST", "/lxd50/release", `{"id": 7}`, 404, "no fault 7"},
		{"POST", "/lxd50/remove", ``, 404, "no fault 0"},
		{"GET", "/lxd50/fired?id=x", ``, 400, "is not a number"},
		{"GET", "/lxd50/fired?timeout=1s", ``, 400, "needs the id"},
		{"GET", "/lxd50/fired?id=1&id=2", ``, 400, "is there twice"},
		{"GET", "/lxd50/fired?id=1;timeout=1s", ``, 400, "invalid semicolon"},
		{"GET", "/lxd50/wait?path=%zz", ``, 400, "invalid URL escape"},
		{"GET", "/lxd50/wait?timeout=1", ``, 400, "is not a duration"},
		{"GET", "/lxd50/wait?done=no", ``, 400, "can only be true"},
		{"GET", "/lxd50/wait?path=[", ``, 400, "syntax error"},
		{"GET", "/lxd50/wait?url=x", ``, 400, "there are method, path"},
		{"POST", "/lxd50/tokens", `{}`, 400, "needs the name"},
		{"POST", "/lxd50/images", `{"image": "debian/13"}`, 400, "is not ALIAS=SPEC"},
		{"POST", "/lxd50/images", `{"image": "a=debian/13 project=none"}`, 400, `no project \"none\"`},
		{"POST", "/stop", `{"all": true}`, 400, "unknown field"},
	} {
		status, text := p.raw(refused.method, refused.path, refused.body)
		require.Equal(t, refused.status, status, "%s %s %s", refused.method, refused.path, text)
		require.Contains(t, string(text), refused.words)
		require.True(t, json.Valid(text))
		require.NotContains(t, string(text), "lxdtest: ")
	}
	require.Equal(t, 200, p.call("GET", "/servers", "", nil), "it runs")
	require.DirExists(t, filepath.Join(p.ready.Dir, "lxd50"))
}

// TestControlEnds: the command ends while a call waits.
func TestControlEnds(t *testing.T) {
	t.Parallel()
	p := start(t)
	waiting, err := net.Dial("unix", p.ready.Control.Socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = waiting.Close() })
	_, err = waiting.Write([]byte("GET /lxd50/wait?timeout=10m HTTP/1.1\r\nHost: x\r\n\r\n"))
	require.NoError(t, err)
	require.NoError(t, waiting.SetReadDeadline(time.Now().Add(time.Minute)))
	require.Equal(t, 200, p.call("GET", "/lxd50", "", nil))
	require.Equal(t, 0, p.end())
}

// TestControlEarly: a script that only waits for the socket gets the whole line too.
func TestControlEarly(t *testing.T) {
	t.Parallel()
	d := &directory{path: shortDir(t)}
	ctx, cancel := context.WithCancel(t.Context())
	c, err := startControl(ctx, cancel, &fleet{}, &settings{}, d)
	require.NoError(t, err)
	defer c.close()
	conn, err := net.Dial("unix", d.join(controlSocket))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "GET /servers HTTP/1.0\r\n\r\n")
	require.NoError(t, err)
	response, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Contains(t, string(response), `"control":{"socket":"`+d.join(controlSocket)+`"}`)
}
