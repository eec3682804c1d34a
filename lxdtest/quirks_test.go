package lxdtest

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStallImages(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		synctest.Test(t, func(t *testing.T) {
			s := newTestServer(t, &Options{Dialect: d, InMemory: true})
			c := newClient(t, s)
			file := UnifiedImage("x", 0)
			stall := s.Inject(StallImages())
			accepted := c.do("POST", "/1.0/images", file)
			synctest.Wait()
			require.Equal(t, 1, stall.Fired())
			running := c.do("GET", accepted.Operation, nil)
			require.EqualValues(t, statusRunning, running.field("status_code"))
			metadata, _ := running.field("metadata").(map[string]any)
			require.Equal(t, d != Incus70, metadata["fingerprint"] == Fingerprint(file))
			require.Equal(t, 404, c.do("GET", "/1.0/images/"+Fingerprint(file), nil).HTTP)
			require.Equal(t, 404, c.do("POST", "/1.0/images/aliases", map[string]any{"name": "x", "target": Fingerprint(file)}).HTTP)
			stall.Release()
			c.wait(accepted)
			require.Equal(t, 200, c.do("GET", "/1.0/images/"+Fingerprint(file), nil).HTTP)
		})
	})
}

func TestFailImages(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	full := s.Inject(FailImages("write: no space left on device"))
	failed := c.do("POST", "/1.0/images", UnifiedImage("x", 0))
	require.Equal(t, "write: no space left on device", c.do("GET", failed.Operation+"/wait", nil).field("err"))
	require.Empty(t, s.Images())
	require.Equal(t, 1, full.Fired())
	full.Remove()
	c.upload(UnifiedImage("x", 0))
	require.Len(t, s.Images(), 1)
}

// TestStallImagesUntilRestart: the image of an operation that a restart ended is
// not stored.
func TestStallImagesUntilRestart(t *testing.T) {
	s := newTestServer(t, nil)
	c := newClient(t, s)
	stall := s.Inject(StallImages())
	c.do("POST", "/1.0/images", UnifiedImage("x", 0))
	require.Eventually(t, func() bool { return stall.Fired() == 1 }, 30*time.Second, time.Millisecond)
	s.Restart()
	stall.Remove()
	require.Empty(t, s.Images())
}

func TestStallUpdates(t *testing.T) {
	for _, racing := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newTestServer(t, &Options{InMemory: true})
			c := newClient(t, s)
			path := "/1.0/images/" + add(t, s, "x", nil)
			etag := c.do("GET", path, nil).Header.Get("Etag")
			stall := s.Inject(StallUpdates())
			if !racing {
				stall.Remove()
			}
			codes := make(chan int)
			for _, writer := range []string{"one", "two"} {
				go func() {
					codes <- c.do("PUT", path, map[string]any{"properties": map[string]string{"by": writer}}, "If-Match", etag).HTTP
				}()
			}
			synctest.Wait()
			stall.Release()
			got := []int{<-codes, <-codes}
			slices.Sort(got)
			if racing {
				require.Equal(t, []int{200, 200}, got, "one of them is lost")
				require.Equal(t, 2, stall.Fired())
			} else {
				require.Equal(t, []int{200, 412}, got)
			}
			require.Contains(t, []string{"one", "two"}, s.Images()[0].Properties["by"])
			require.Len(t, s.Images()[0].Properties, 1)
			again := c.do("PATCH", path, map[string]any{"properties": map[string]string{"by": "three"}}, "If-Match", "stale")
			require.Equal(t, 412, again.HTTP)
		})
	}
}

// TestStallPatches: a PATCH that is overtaken writes the other attributes as they were.
func TestStallPatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, &Options{InMemory: true})
		c := newClient(t, s)
		path := "/1.0/images/" + add(t, s, "x", nil)
		stall := s.Inject(StallUpdates().Times(1))
		code := make(chan int)
		go func() {
			code <- c.do("PATCH", path, map[string]any{"properties": map[string]string{"by": "one"}}).HTTP
		}()
		synctest.Wait()
		require.Equal(t, 200, c.do("PATCH", path, map[string]any{"public": true, "properties": map[string]string{"also": "two"}}).HTTP)
		require.True(t, s.Images()[0].Public)
		stall.Release()
		require.Equal(t, 200, <-code)
		require.False(t, s.Images()[0].Public)
		require.Equal(t, "one", s.Images()[0].Properties["by"])
		require.NotContains(t, s.Images()[0].Properties, "also")
	})
}

func TestLoseInsert(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		file := UnifiedImage("x", 0)
		fault := s.Inject(LoseInsert().Times(1))
		header := d.traits().uploadHeader
		accepted := c.do("POST", "/1.0/images", file, header+"public", "1", header+"properties", "mine=yes")
		want := "UNIQUE constraint failed: images.project_id, images.fingerprint"
		if d == Incus70 {
			want = "Image record already exists"
		}
		require.Equal(t, want, c.failure(accepted))
		metadata, _ := c.do("GET", accepted.Operation, nil).field("metadata").(map[string]any)
		require.NotContains(t, slices.Collect(maps.Keys(metadata)), "fingerprint")
		require.Equal(t, 1, fault.Fired())
		img, ok := s.Image(Fingerprint(file))
		require.True(t, ok)
		require.False(t, img.Public)
		require.NotContains(t, img.Properties, "mine")
		exported, body, err := c.get("/1.0/images/" + Fingerprint(file) + "/export")
		require.NoError(t, err)
		require.Equal(t, 200, exported.StatusCode)
		require.Equal(t, file, body)
		require.Equal(t, "Image with same fingerprint already exists", c.failure(c.do("POST", "/1.0/images", file)))
	})
}

func TestCacheStreams(t *testing.T) {
	for _, cached := range []bool{false, true} {
		tree, unified, _, _ := streamServer(t, "lxd")
		reads := 0
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/streams/v1/index.json" {
				reads++
			}
			tree.Config.Handler.ServeHTTP(w, r)
		}))
		t.Cleanup(web.Close)
		now := time.Now()
		s := newTestServer(t, &Options{InMemory: true, Now: func() time.Time { return now }})
		c := newClient(t, s)
		fault := s.Inject(CacheStreams())
		if !cached {
			fault.Remove()
		}
		get := func(alias string) {
			t.Helper()
			c.wait(c.do("POST", "/1.0/images", map[string]any{"source": map[string]string{
				"type": "image", "mode": "pull", "protocol": "simplestreams", "server": web.URL, "alias": alias,
			}}))
		}
		get("u")
		require.Equal(t, 1, reads)
		now = now.Add(59 * time.Minute)
		get("s/x")
		c.wait(c.do("POST", "/1.0/images/"+unified+"/refresh", nil))
		if !cached {
			require.Equal(t, 3, reads)
			require.Zero(t, fault.Fired())
			continue
		}
		require.Equal(t, 1, reads)
		require.Equal(t, 2, fault.Fired())
		now = now.Add(time.Minute)
		get("u")
		require.Equal(t, 2, reads, "after an hour")
		get("u")
		require.Equal(t, 2, reads)
		fault.Remove()
		get("u")
		require.Equal(t, 3, reads)
	}
}

func TestSlowRename(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, &Options{InMemory: true})
		c := newClient(t, s)
		add(t, s, "1", &AddOptions{Aliases: []string{"x"}})
		fault := s.Inject(SlowRename(10 * time.Second).Times(1))
		begin := time.Now()
		require.Equal(t, 201, c.do("POST", "/1.0/images/aliases/x", map[string]any{"name": "y"}).HTTP)
		require.Equal(t, 10*time.Second, time.Since(begin))
		require.Equal(t, 1, fault.Fired())
		require.Equal(t, 201, c.do("POST", "/1.0/images/aliases/y", map[string]any{"name": "z"}).HTTP)
		require.Equal(t, 10*time.Second, time.Since(begin))
		require.Contains(t, s.Aliases(), "z")
	})
}
