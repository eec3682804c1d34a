package lxdtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// imageServer serves an image for imports from a URL. The headers in change
// replace the correct ones.
func imageServer(t *testing.T, family Dialect, file []byte, change map[string]string) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	web := httptest.NewServer(mux)
	t.Cleanup(web.Close)
	mux.HandleFunc("HEAD /image", func(w http.ResponseWriter, r *http.Request) {
		prefix := family.traits().importHeader
		if r.Header.Get(prefix+"Server-Version") != family.Version() || r.Header.Get(prefix+"Server-Architectures") == "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		headers := map[string]string{"Image-Hash": Fingerprint(file), "Image-URL": web.URL + "/file"}
		for name, value := range change {
			headers[name] = value
		}
		for name, value := range headers {
			w.Header().Set(prefix+name, value)
		}
	})
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(file) })
	return web
}

// TestImportsShareADownload: an import of an image that another one downloads waits for
// that one.
func TestImportsShareADownload(t *testing.T) {
	file := UnifiedImage("web", 5000)
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	const imports = 3
	var resolved sync.WaitGroup
	resolved.Add(imports)
	var downloads atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodHead:
			defer resolved.Done()
			w.Header().Set("LXD-Image-URL", "http://"+r.Host+"/file")
			w.Header().Set("LXD-Image-Hash", Fingerprint(file))
		default:
			downloads.Add(1)
			resolved.Wait()
			_, _ = w.Write(file)
		}
	}))
	t.Cleanup(web.Close)
	var started []*apiResponse
	for range imports {
		started = append(started, c.do("POST", "/1.0/images", map[string]any{"source": map[string]string{"type": "url", "mode": "pull", "url": web.URL}}))
	}
	for _, operation := range started {
		require.Equal(t, Fingerprint(file), c.wait(operation).field("metadata").(map[string]any)["fingerprint"])
	}
	require.EqualValues(t, 1, downloads.Load())
}

func TestImportFromURL(t *testing.T) {
	file := UnifiedImage("web", 5000)
	for _, d := range []Dialect{LXD40, LXD50, Incus60, Incus70} {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		from := func(url string) *apiResponse {
			return c.do("POST", "/1.0/images", map[string]any{
				"public": true, "aliases": []map[string]string{{"name": "web"}},
				"source": map[string]string{"type": "url", "mode": "pull", "url": url},
			})
		}
		for _, bad := range []map[string]string{{"Image-Hash": ""}, {"Image-URL": ""}, {"Image-Hash": Fingerprint(nil)}} {
			require.Regexp(t, "Missing|Hash mismatch", c.failure(from(imageServer(t, d, file, bad).URL+"/image")))
			require.Empty(t, s.Images())
		}
		web := imageServer(t, d, file, nil)
		done := c.wait(from(web.URL + "/image"))
		require.Equal(t, Fingerprint(file), done.field("metadata").(map[string]any)["fingerprint"])
		img := s.Images()[0]
		require.True(t, img.Public)
		require.Equal(t, []string{"web"}, img.Aliases)
		require.Equal(t, "web", img.Properties["seed"])
	}
	s := newTestServer(t, &Options{Dialect: LXD69, InMemory: true})
	got := newClient(t, s).do("POST", "/1.0/images", map[string]any{"source": map[string]string{"type": "url", "url": "http://x"}})
	require.Equal(t, 400, got.HTTP)
	require.Equal(t, "Image download from client-specified URL is not supported", got.Error)
}

// streamServer serves a simplestreams tree with a unified image with the alias
// u, and a split one, both a container and a virtual machine, with the alias s/x.
func streamServer(t *testing.T, family string) (web *httptest.Server, unified, container, vm string) {
	t.Helper()
	files := map[string][]byte{"u": UnifiedImage("stream", 0)}
	files["m"], files["r"] = SplitImage("stream", 0)
	_, files["d"] = VMImage("stream", 0)
	item := func(ftype, name string, more map[string]string) map[string]any {
		sum := sha256.Sum256(files[name])
		out := map[string]any{"ftype": ftype, "path": "files/" + name, "sha256": hex.EncodeToString(sum[:]), "size": len(files[name])}
		for key, value := range more {
			out[key] = value
		}
		return out
	}
	unified, container, vm = Fingerprint(files["u"]), Fingerprint(files["m"], files["r"]), Fingerprint(files["m"], files["d"])
	split := map[string]any{
		"m": item(family+".tar.xz", "m", map[string]string{"combined_squashfs_sha256": container, "combined_disk-kvm-img_sha256": vm}),
		"r": item("squashfs", "r", nil), "d": item("disk-kvm.img", "d", nil),
	}
	products := map[string]any{"products": map[string]any{
		"a": map[string]any{"aliases": "u", "arch": "amd64", "os": "Test", "release": "one", "release_title": "One", "versions": map[string]any{
			"20240101": map[string]any{"items": map[string]any{"u": item(family+"_combined.tar.gz", "u", nil)}},
			"20230101": map[string]any{"items": split},
		}},
		"b": map[string]any{"aliases": "other,s/x", "arch": "amd64", "os": "Test", "release": "two", "versions": map[string]any{
			"20240101_05:00": map[string]any{"label": "daily", "items": split},
		}},
	}}
	index := map[string]any{"index": map[string]any{"images": map[string]any{
		"datatype": "image-downloads", "path": "streams/v1/images.json", "products": []string{"a", "b"},
	}}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /streams/v1/index.json", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(index) })
	mux.HandleFunc("GET /streams/v1/images.json", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(products) })
	mux.HandleFunc("GET /files/{name}", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(files[r.PathValue("name")]) })
	web = httptest.NewServer(mux)
	t.Cleanup(web.Close)
	return web, unified, container, vm
}

func TestImportFromSimplestreams(t *testing.T) {
	for _, d := range []Dialect{LXD50, Incus60} {
		web, unified, container, vm := streamServer(t, d.Family())
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		from := func(more map[string]string) *apiResponse {
			source := map[string]string{"type": "image", "mode": "pull", "protocol": "simplestreams", "server": web.URL}
			for key, value := range more {
				source[key] = value
			}
			return c.do("POST", "/1.0/images", map[string]any{"source": source})
		}
		require.Equal(t, "Failed getting remote image info: Failed getting image: The requested image couldn't be found",
			c.failure(from(map[string]string{"alias": "nope"})))
		for _, wanted := range []struct {
			source      map[string]string
			fingerprint string
		}{
			{map[string]string{"alias": "u"}, unified},
			{map[string]string{"alias": "s/x/amd64"}, container},
			{map[string]string{"alias": "other", "image_type": "virtual-machine"}, vm},
			{map[string]string{"fingerprint": container[:20]}, container},
		} {
			done := c.wait(from(wanted.source))
			require.Equal(t, wanted.fingerprint, done.field("metadata").(map[string]any)["fingerprint"])
			_, ok := s.Image(wanted.fingerprint)
			require.True(t, ok)
		}
		require.Len(t, s.Images(), 3)
		img, _ := s.Image(container)
		require.Equal(t, "Test  amd64 (daily) (20240101_05:00)", img.Properties["description"])
		refreshed := c.wait(c.do("POST", "/1.0/images/"+vm+"/refresh", nil))
		require.Equal(t, map[string]any{"refreshed": false}, refreshed.field("metadata"))
	}
}

func TestRefreshReplacesImage(t *testing.T) {
	source := newTestServer(t, &Options{TLS: true})
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	old := add(t, source, "old", &AddOptions{Public: true, Aliases: []string{"current"}})
	c.wait(c.do("POST", "/1.0/images", map[string]any{
		"auto_update": true, "aliases": []map[string]string{{"name": "mine"}},
		"source": map[string]string{"type": "image", "mode": "pull", "protocol": "lxd", "server": source.URL(),
			"certificate": string(source.Certificate()), "alias": "current"},
	}))
	require.Equal(t, old, s.Aliases()["mine"])
	fresh := add(t, source, "fresh", &AddOptions{Public: true})
	require.Equal(t, 200, newClient(t, source).do("PUT", "/1.0/images/aliases/current", map[string]any{"target": fresh}).HTTP)
	refreshed := c.wait(c.do("POST", "/1.0/images/"+old+"/refresh", nil))
	require.Equal(t, map[string]any{"refreshed": true}, refreshed.field("metadata"))
	require.Equal(t, fresh, s.Aliases()["mine"])
	require.Len(t, s.Images(), 1)
	require.True(t, s.Images()[0].AutoUpdate)
	require.Contains(t, c.failure(c.do("POST", "/1.0/images/"+add(t, s, "local", nil)+"/refresh", nil)), "Image source not found")
}

func TestRegistries(t *testing.T) {
	web, unified, _, _ := streamServer(t, "lxd")
	s := newTestServer(t, &Options{Dialect: LXD69, InMemory: true, WithExtensions: []string{"image_registries"}})
	c := newClient(t, s)
	s.AddRegistry("reg", web.URL)
	require.Equal(t, 201, c.do("POST", "/1.0/image-registries", map[string]any{
		"name": "two", "protocol": "simplestreams", "config": map[string]string{"url": "https://example.com"}}).HTTP)
	require.Equal(t, 400, c.do("POST", "/1.0/image-registries", map[string]any{
		"name": "three", "protocol": "simplestreams", "config": map[string]string{"url": "http://example.com"}}).HTTP)
	require.Equal(t, 409, c.do("POST", "/1.0/image-registries", map[string]any{
		"name": "reg", "protocol": "simplestreams", "config": map[string]string{"url": "https://example.com"}}).HTTP)
	require.Equal(t, "simplestreams", c.do("GET", "/1.0/image-registries/reg", nil).field("protocol"))
	require.Contains(t, c.failure(c.do("POST", "/1.0/images", map[string]any{"source": map[string]string{
		"type": "image", "mode": "pull", "protocol": "simplestreams", "server": web.URL, "alias": "u"}})), "registry")
	c.wait(c.do("POST", "/1.0/images", map[string]any{"source": map[string]string{
		"type": "image", "mode": "pull", "image_registry": "reg", "alias": "u"}}))
	_, ok := s.Image(unified)
	require.True(t, ok)
	require.Equal(t, 200, c.do("DELETE", "/1.0/image-registries/two", nil).HTTP)
	require.Equal(t, 404, c.do("DELETE", "/1.0/image-registries/two", nil).HTTP)
}

func TestPublish(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		s.AddInstance("web1", nil)
		s.AddInstance("web1/snap0", &InstanceOptions{Content: []byte("then")})
		s.AddInstance("busy", &InstanceOptions{Running: true})
		publish := func(kind, name string) *apiResponse {
			return c.do("POST", "/1.0/images", map[string]any{
				"properties": map[string]string{"from": name}, "aliases": []map[string]string{{"name": "of " + name}},
				"source": map[string]string{"type": kind, "name": name},
			})
		}
		for kind, name := range map[string]string{"instance": "web1", "snapshot": "web1/snap0"} {
			c.wait(publish(kind, name))
			img, ok := s.Image(s.Aliases()["of "+name])
			require.True(t, ok)
			require.Equal(t, name, img.Properties["from"])
		}
		require.Equal(t, "Cannot export a running instance as an image", c.failure(publish("instance", "busy")))
		if d == LXD40 || d == LXD50 {
			require.Equal(t, 404, publish("instance", "none").HTTP)
		} else {
			require.Contains(t, c.failure(publish("instance", "none")), "Instance not found")
		}
		require.Equal(t, "Invalid images JSON", publish("other", "web1").Error)
		require.Equal(t, "Stopped", c.do("GET", "/1.0/instances/web1", nil).field("status"))
		require.Equal(t, 404, c.do("GET", "/1.0/instances/none", nil).HTTP)
	})
}
