package lxdtest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// everything returns what clients see of a server's state.
func (c *client) everything() map[string]string {
	c.t.Helper()
	seen := map[string]string{}
	for _, path := range []string{
		"images?recursion=1", "images?recursion=1&project=own", "images/aliases?recursion=1", "projects?recursion=1",
		"profiles?recursion=1", "instances?recursion=1", "image-registries?recursion=1", "certificates?recursion=1", "operations",
	} {
		seen[path] = string(c.do("GET", "/1.0/"+path, nil).Metadata)
	}
	var images []imageJSON
	require.NoError(c.t, json.Unmarshal([]byte(seen["images?recursion=1"]), &images))
	for _, img := range images {
		res, err := c.http.Get(c.base + "/1.0/images/" + img.Fingerprint + "/export")
		require.NoError(c.t, err)
		data, err := io.ReadAll(res.Body)
		require.NoError(c.t, err)
		require.NoError(c.t, res.Body.Close())
		if img.Type == "container" && bytes.Contains(data, []byte("rootfs/")) {
			require.Equal(c.t, img.Fingerprint, Fingerprint(data))
		}
		require.Equal(c.t, 200, res.StatusCode)
	}
	return seen
}

// furnish gives a server something of each kind.
func furnish(t *testing.T, s *Server) {
	t.Helper()
	s.AddProject("own", true)
	s.AddProject("shared", false)
	s.AddProfile("fast")
	s.AddInstance("web1", &InstanceOptions{Running: true})
	s.AddRegistry("streams", "https://example.com")
	pair, err := newKeyPair("somebody")
	require.NoError(t, err)
	require.NoError(t, s.Trust("somebody", pair.cert, "own"))
	_, err = s.AddImage(UnifiedImage("one", 10_000), &AddOptions{Aliases: []string{"one", "first"}})
	require.NoError(t, err)
	_, err = s.AddImage(UnifiedImage("one", 10_000), &AddOptions{Project: "own", Aliases: []string{"one"}})
	require.NoError(t, err)
	meta, root := SplitImage("two", 10_000)
	_, err = s.AddImage(meta, &AddOptions{Rootfs: root, Public: true})
	require.NoError(t, err)
}

// ruin changes everything that furnish has added.
func ruin(t *testing.T, s *Server, c *client) {
	t.Helper()
	one := Fingerprint(UnifiedImage("one", 10_000))
	require.Equal(t, 200, c.do("PUT", "/1.0/images/"+one, map[string]any{"public": true, "properties": map[string]string{"a": "b"}}).HTTP)
	require.Equal(t, 200, c.do("PUT", "/1.0/images/aliases/first", map[string]any{"target": one, "description": "new"}).HTTP)
	require.Equal(t, 201, c.do("POST", "/1.0/images/aliases/one", map[string]any{"name": "uno"}).HTTP)
	c.wait(c.do("DELETE", "/1.0/images/"+one+"?project=own", nil))
	require.Equal(t, 200, c.do("DELETE", "/1.0/projects/own", nil).HTTP)
	c.wait(c.do("DELETE", "/1.0/images/"+one, nil))
	c.wait(c.do("PUT", "/1.0/instances/web1/state", map[string]any{"action": "stop"}))
	require.Equal(t, 200, c.do("DELETE", "/1.0/image-registries/streams", nil).HTTP)
	require.Equal(t, 201, c.do("POST", "/1.0/profiles", map[string]any{"name": "slow"}).HTTP)
	s.Distrust()
	c.upload(UnifiedImage("three", 0))
	s.NewTrustToken("x")
}

func TestRestore(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		opts := &Options{Dialect: d, InMemory: true, WithExtensions: []string{"image_registries"}}
		s := newTestServer(t, opts)
		c := newClient(t, s)
		fresh := c.everything()
		furnish(t, s)
		want := c.everything()
		snap := s.Snapshot()

		for range 2 {
			ruin(t, s, c)
			fault := s.Inject(Unavailable().On("GET", "/1.0"))
			require.NoError(t, s.Restore(snap))
			require.Empty(t, s.Requests())
			require.Equal(t, want, c.everything())
			require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)
			require.Zero(t, fault.Fired())
		}

		// Another server has its own links, and so outlives the first one.
		first := NewServer(opts)
		require.NoError(t, first.Restore(snap))
		other := newTestServer(t, opts)
		require.NoError(t, other.Restore(first.Snapshot()))
		first.Close()
		oc := newClient(t, other)
		require.Equal(t, want, oc.everything())
		ruin(t, other, oc)
		require.Equal(t, want, c.everything())

		s.Reset()
		require.Equal(t, fresh, c.everything())
	})
}

// imageFiles returns how many files of images a server has on disk.
func imageFiles(t *testing.T, s *Server) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "image-*"))
	require.NoError(t, err)
	return len(files)
}

// TestSnapshotFiles sees that files are shared, and removed with what uses them.
func TestSnapshotFiles(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	furnish(t, s)
	require.Equal(t, 4, imageFiles(t, s))
	snap := s.Snapshot()
	s.Reset()
	require.Equal(t, 4, imageFiles(t, s), "the snapshot has them")

	other := newTestServer(t, &Options{InMemory: true})
	require.NoError(t, other.Restore(snap))
	require.Equal(t, 4, imageFiles(t, other))
	require.NoError(t, other.Restore(snap))
	require.Equal(t, 4, imageFiles(t, other))
	other.Reset()
	require.Zero(t, imageFiles(t, other))
}

func TestRestoreErrors(t *testing.T) {
	first := NewServer(&Options{InMemory: true})
	furnish(t, first)
	snap := first.Snapshot()
	first.Close()

	s := newTestServer(t, &Options{InMemory: true})
	fingerprint, err := s.AddImage(UnifiedImage("kept", 0), nil)
	require.NoError(t, err)
	fault := s.Inject(Unavailable())
	err = s.Restore(snap)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "must not be closed before")
	require.Equal(t, 1, imageFiles(t, s))

	require.EqualError(t, first.Restore(snap), "lxdtest: restore: the server is closed")
	first.Reset()

	newer := newTestServer(t, &Options{InMemory: true, Dialect: Incus70})
	require.EqualError(t, s.Restore(newer.Snapshot()), "lxdtest: restore: the snapshot is that of Incus 7.0.2, the server is LXD 5.0.2")

	_, ok := s.Image(fingerprint)
	require.True(t, ok)
	require.Equal(t, 503, newClient(t, s).do("GET", "/1.0", nil).HTTP)
	require.Equal(t, 1, fault.Fired())
}

// TestResetInProgress resets a server in the middle of everything that takes long. Nothing
// of it has an effect afterwards, and each client gets a response or an error.
func TestResetInProgress(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, s *Server, c *client) {
		furnish(t, s)
		type result struct {
			what, body string
			err        error
		}
		results := make(chan result, 10)
		send := func(what, method, path string, body io.Reader) {
			go func() {
				var data []byte
				req, err := http.NewRequestWithContext(t.Context(), method, c.base+path, body)
				if err == nil {
					var res *http.Response
					if res, err = c.http.Do(req); err == nil {
						data, err = io.ReadAll(res.Body)
						_ = res.Body.Close()
					}
				}
				results <- result{what, string(data), err}
			}()
		}
		for what, fault := range map[string]Fault{
			"request": StallRequest(1000).On("POST", "/1.0/images").Times(1),
			"header":  StallHeaders().On("DELETE", "/1.0/images/*"),
			"rename":  SlowRename(24 * time.Hour),
			"body":    StallResponse(100).On("GET", "/1.0/images/*/export"),
			"ever":    Call(func(r *http.Request) { <-r.Context().Done() }).On("GET", "/1.0/profiles"),
		} {
			stall := s.Inject(fault)
			switch what {
			case "request":
				send(what, "POST", "/1.0/images", bytes.NewReader(UnifiedImage("late", 100_000)))
				require.NoError(t, stall.Wait(t.Context(), 1))
			case "header":
				send(what, "DELETE", "/1.0/images/"+Fingerprint(UnifiedImage("one", 10_000)), nil)
			case "rename":
				send(what, "POST", "/1.0/images/aliases/one", bytes.NewReader([]byte(`{"name": "late"}`)))
			case "body":
				send(what, "GET", "/1.0/images/"+Fingerprint(UnifiedImage("one", 10_000))+"/export", nil)
			case "ever":
				send(what, "GET", "/1.0/profiles", nil)
			}
			require.NoError(t, stall.Wait(t.Context(), 1))
		}
		work := s.Inject(StallImages())
		operation := c.do("POST", "/1.0/images", UnifiedImage("later", 0), "Content-Type", "application/octet-stream").Operation
		require.NoError(t, work.Wait(t.Context(), 1))
		send("wait", "GET", operation+"/wait", nil)
		_, err := s.WaitRequest(t.Context(), "GET", operation+"/wait")
		require.NoError(t, err)
		s.NewTrustToken("x")
		require.NotEmpty(t, s.Tokens())
		socket := listen(t, s, "")

		start := time.Now()
		s.Reset()
		require.LessOrEqual(t, time.Since(start), time.Second)
		for range 6 {
			got := <-results
			// The context of the one that waits for ever ends only with its connection.
			require.Equal(t, got.what == "ever", got.err != nil, "%s: %v", got.what, got.err)
			if got.what == "wait" {
				require.Contains(t, got.body, `"status":"Cancelled"`)
			}
		}
		for err == nil {
			_, _, err = socket.ReadMessage()
		}
		var closed *websocket.CloseError
		require.ErrorAs(t, err, &closed)
		time.Sleep(48 * time.Hour)
		require.Empty(t, s.Images())
		require.Empty(t, s.Aliases())
		require.Empty(t, s.Running())
		require.Empty(t, s.Tokens())
		require.Equal(t, 404, c.do("GET", operation, nil).HTTP)
		c.upload(UnifiedImage("late", 100_000))
		require.Len(t, s.Images(), 1)
	})
}

// TestResetEvents sees that an open event socket does not delay Reset.
func TestResetEvents(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, s *Server, _ *client) {
		listen(t, s, "")
		start := time.Now()
		s.Reset()
		require.Zero(t, time.Since(start))
	})
}

// TestResetServes resets servers that do not serve.
func TestResetServes(t *testing.T) {
	s := newTestServer(t, &Options{TLS: true})
	url := s.URL()
	trusted := newTLSClient(t, s, true)
	for name, stop := range map[string]func(){
		"shut down": s.Shutdown,
		"crashed":   func() { s.crashWith("x") },
		"refuses":   func() { s.Inject(Refuse()) },
	} {
		t.Run(name, func(t *testing.T) {
			stop()
			s.Reset()
			require.Nil(t, s.Crashed())
			require.Equal(t, url, s.URL())
			// The certificate of ClientCertificate is still trusted.
			require.Equal(t, 200, trusted.do("GET", "/1.0/projects", nil).HTTP)
		})
	}
	cert, _ := s.ClientCertificate()
	s.Reset()
	again, _ := s.ClientCertificate()
	require.Equal(t, cert, again)
	s.Distrust()
	s.Reset()
	require.Equal(t, 403, trusted.do("GET", "/1.0/projects", nil).HTTP)
}

// TestResetCrash resets a server while an operation crashes it.
func TestResetCrash(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	crashes := imageWithMetadata(t, "architecture: x86_64\ncreation_date: 1704067200\n")
	for range 100 {
		// The operation is at a different point each time.
		post, err := http.NewRequestWithContext(t.Context(), "POST", "http://lxd/1.0/images", bytes.NewReader(crashes))
		require.NoError(t, err)
		post.Header.Set("X-LXD-properties", "a=b")
		if res, err := c.http.Do(post); err == nil {
			_ = res.Body.Close() // the response can be faster than the crash
		}
		s.Reset()
		require.Nil(t, s.Crashed())
		require.Equal(t, 200, c.do("GET", "/1.0", nil).HTTP)
	}
}

func TestAddImageFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		return path
	}
	meta, root := SplitImage("split", 5000)
	vmMeta, disk := VMImage("vm", 0)
	unified := write("unified.tar", UnifiedImage("unified", 5000))
	metaPath, rootPath := write("meta.tar", meta), write("root.tar", root)
	vmPath, diskPath := write("vm.tar", vmMeta), write("disk.qcow2", disk)
	bad := write("bad.tar", []byte("no image"))
	before, err := os.ReadDir(dir)
	require.NoError(t, err)

	s := NewServer(&Options{InMemory: true})
	defer s.Close()
	c := newClient(t, s)
	for _, test := range []struct {
		file, rootfs string
		want         [][]byte
		kind         string
	}{
		{unified, "", [][]byte{UnifiedImage("unified", 5000)}, "container"},
		{metaPath, rootPath, [][]byte{meta, root}, "container"},
		{vmPath, diskPath, [][]byte{vmMeta, disk}, "virtual-machine"},
	} {
		for range 2 { // It can be deleted and added again.
			fingerprint, err := s.AddImageFile(test.file, test.rootfs, &AddOptions{Aliases: []string{"x"}})
			require.NoError(t, err)
			require.Equal(t, Fingerprint(test.want...), fingerprint)
			img, ok := s.Image(fingerprint)
			require.True(t, ok)
			require.Equal(t, test.kind, img.Type)
			require.Equal(t, []string{"x"}, img.Aliases)
			files, err := s.Files(fingerprint)
			require.NoError(t, err)
			require.Equal(t, test.want, files)
			require.Zero(t, imageFiles(t, s), "they are not copied")
			c.wait(c.do("DELETE", "/1.0/images/"+fingerprint, nil))
		}
	}
	for _, test := range []struct{ file, rootfs, want string }{
		{filepath.Join(dir, "none"), "", "no such file"},
		{metaPath, filepath.Join(dir, "none"), "no such file"},
		{bad, "", "Unsupported compression"},
		{bad, rootPath, "Unsupported compression"},
		{dir, "", "is a directory"},
	} {
		_, err := s.AddImageFile(test.file, test.rootfs, nil)
		require.ErrorContains(t, err, "lxdtest: add image: ")
		require.ErrorContains(t, err, test.want)
	}
	_, err = s.AddImageFile(unified, "", &AddOptions{Rootfs: root})
	require.ErrorContains(t, err, "AddOptions.Rootfs")

	// Other servers use the same files.
	_, err = s.AddImageFile(metaPath, rootPath, nil)
	require.NoError(t, err)
	other := newTestServer(t, &Options{InMemory: true})
	require.NoError(t, other.Restore(s.Snapshot()))
	require.Zero(t, imageFiles(t, other))
	s.Close()
	files, err := other.Files(Fingerprint(meta, root))
	require.NoError(t, err)
	require.Equal(t, [][]byte{meta, root}, files)
	other.Reset()
	after, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, after, len(before))
}
