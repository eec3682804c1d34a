package simplestreams_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

func TestBadMetadata(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		path    string
		content string
		fault   streamstest.Fault
		is      error
		says    string
	}{
		"no index":             {streamstest.IndexPath, "", streamstest.Status(404), simplestreams.ErrNotFound, "HTTP 404"},
		"gone":                 {streamstest.IndexPath, "", streamstest.Status(410), simplestreams.ErrNotFound, "HTTP 410"},
		"no products":          {streamstest.ProductsPath, "", streamstest.Status(404), simplestreams.ErrNotFound, "HTTP 404"},
		"busy":                 {streamstest.IndexPath, "", streamstest.Status(503), nil, "HTTP 503: Service Unavailable"},
		"no content":           {streamstest.IndexPath, "", streamstest.Status(204), simplestreams.ErrBadData, "HTTP 204"},
		"unasked 304":          {streamstest.IndexPath, "", streamstest.Status(304), simplestreams.ErrBadData, "HTTP 304"},
		"HTML page":            {streamstest.IndexPath, "", streamstest.HTML(), simplestreams.ErrBadData, "HTML"},
		"HTML products":        {streamstest.ProductsPath, "", streamstest.HTML(), simplestreams.ErrBadData, "HTML"},
		"redirect loop":        {streamstest.IndexPath, "", streamstest.RedirectLoop(), simplestreams.ErrRedirect, "redirects"},
		"cut":                  {streamstest.ProductsPath, "", streamstest.Cut(100), io.ErrUnexpectedEOF, "unexpected EOF"},
		"truncated":            {streamstest.ProductsPath, "", streamstest.Truncate(100), simplestreams.ErrBadData, "unexpected EOF"},
		"stalled":              {streamstest.ProductsPath, "", streamstest.Stall(100), simplestreams.ErrStalled, "no data was sent"},
		"stalled headers":      {streamstest.IndexPath, "", streamstest.Stall(-1), simplestreams.ErrStalled, "no data was sent"},
		"not JSON":             {streamstest.IndexPath, "index: yes", nil, simplestreams.ErrBadData, "invalid"},
		"empty":                {streamstest.IndexPath, " ", nil, simplestreams.ErrBadData, "unexpected EOF"},
		"null":                 {streamstest.IndexPath, "null", nil, simplestreams.ErrBadData, "want an object"},
		"array":                {streamstest.IndexPath, "[]", nil, simplestreams.ErrBadData, "want an object"},
		"no index in it":       {streamstest.IndexPath, "{}", nil, simplestreams.ErrBadData, `no "index"`},
		"index is a list":      {streamstest.IndexPath, `{"index":[]}`, nil, simplestreams.ErrBadData, "/index: want an object"},
		"products are a map":   {streamstest.IndexPath, `{"index":{"a":{"products":{}}}}`, nil, simplestreams.ErrBadData, "/index/a/products: want an array"},
		"path is a number":     {streamstest.IndexPath, `{"index":{"a":{"path":1}}}`, nil, simplestreams.ErrBadData, "/index/a/path: want a string"},
		"two documents":        {streamstest.IndexPath, `{"index":{}}{}`, nil, simplestreams.ErrBadData, "trailing data"},
		"path not below":       {streamstest.IndexPath, `{"index":{"a":{"datatype":"image-downloads","path":"../a","products":["p"]}}}`, nil, simplestreams.ErrBadData, "not below"},
		"path to another host": {streamstest.IndexPath, `{"index":{"a":{"datatype":"image-downloads","path":"http://b/a","products":["p"]}}}`, nil, simplestreams.ErrBadData, "not relative"},
		"no path":              {streamstest.IndexPath, `{"index":{"a":{"datatype":"image-downloads","products":["p"]}}}`, nil, simplestreams.ErrBadData, "path is empty"},
		"no products in it":    {streamstest.ProductsPath, `{}`, nil, simplestreams.ErrBadData, `no "products"`},
		"size is text":         {streamstest.ProductsPath, `{"products":{"a":{"versions":{"20240101":{"items":{"b":{"size":"1"}}}}}}}`, nil, simplestreams.ErrBadData, "/b/size: want a number"},
		"size is a fraction":   {streamstest.ProductsPath, `{"products":{"a":{"versions":{"20240101":{"items":{"b":{"size":1.5}}}}}}}`, nil, simplestreams.ErrBadData, "1.5 is not an integer"},
		"versions are a list":  {streamstest.ProductsPath, `{"products":{"a":{"versions":["20240101"]}}}`, nil, simplestreams.ErrBadData, "/products/a/versions: want an object"},
		"many items": {
			streamstest.ProductsPath, `{"products":{"a":{"versions":{"20240101":{"items":{` + strings.Repeat(`"b":{"ftype":"squashfs"},`, 1000) +
				`"c":{"ftype":"lxd.tar.xz"}}}}}}}`, nil, simplestreams.ErrBadData, "/c: the version has more than 1000 items",
		},
		"not UTF-8": {streamstest.ProductsPath, "{\"products\":{\"a\xff\":{}}}", nil, simplestreams.ErrBadData, "UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, _ := standard(t)
			if test.content != "" {
				server.Set(test.path, []byte(test.content))
			}
			server.Fault(test.path, test.fault)
			for _, cache := range []simplestreams.Cache{nil, simplestreams.DirCache(t.TempDir())} {
				client := newClient(t, server, func(o *simplestreams.Options) {
					if errors.Is(test.is, simplestreams.ErrStalled) {
						o.StallTimeout = 300 * time.Millisecond
					}
					o.Cache = cache
				})
				images := 0
				var err error
				for _, err = range client.Images(t.Context()) {
					images++
				}
				require.Equal(t, 1, images, "the error and nothing more")
				require.Error(t, err)
				require.NotErrorIs(t, err, io.EOF)
				require.ErrorContains(t, err, test.says)
				var failed *simplestreams.Error
				require.ErrorAs(t, err, &failed)
				require.Equal(t, server.URL+"/"+test.path, failed.URL)
				if test.is != nil {
					require.ErrorIs(t, err, test.is)
				}
			}
		})
	}
}

func TestNothingListens(t *testing.T) {
	server := streamstest.NewServer(nil)
	client := newClient(t, server, nil)
	server.Close()
	_, err := client.Resolve(t.Context(), "alpine", nil)
	var failed *simplestreams.Error
	require.ErrorAs(t, err, &failed)
	require.Zero(t, failed.StatusCode)
	require.ErrorContains(t, err, "refused")
}

func TestMetadataIsTriedAgain(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]streamstest.Fault{
		"busy": streamstest.Status(http.StatusTooManyRequests), "cut": streamstest.Cut(50), "stalled": streamstest.Stall(50),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, _ := standard(t)
			client := newClient(t, server, func(o *simplestreams.Options) {
				o.RetryTimeout = 0
				o.StallTimeout = time.Second
			})
			server.Fault(streamstest.ProductsPath, streamstest.Times(1, fault))
			require.Len(t, all(t, client), 11)
		})
	}
}

func TestOtherDataIsPassedOver(t *testing.T) {
	files := streamstest.Tree(products("lxd"), nil)
	files[streamstest.IndexPath] = []byte(`{"format":"index:1.0","extra":[{}],"index":{
		"tools":{"datatype":"tool-downloads","path":"missing.json","products":["p"]},
		"none":{"datatype":"image-downloads","path":"missing.json","products":[]},
		"null":{"datatype":"image-downloads","path":"missing.json","products":null},
		"images":{"path":"streams/v1/images.json","products":["a",{"b":[1]}],"datatype":"image-downloads"},
		"again":{"datatype":"image-downloads","path":"streams/v1/images.json","products":["a"]}}}`)
	server := serve(t, files)
	require.Len(t, all(t, newClient(t, server, nil)), 11)
	require.Len(t, server.Requests(), 2)
}

func TestEscapesAndNulls(t *testing.T) {
	hash := streamstest.Hash([]byte("x"))
	server := serve(t, streamstest.Tree(nil, nil))
	server.Set(streamstest.IndexPath, []byte(`{"index":{"a":{"datatype":"image-downl\u006fads","path":"p.json","products":["p"]}}}`))
	server.Set("p.json", []byte(`{"products":{"a\u00e4":{"aliases":"\u00fcber,b\"c","arch":"amd64","os":null,"requirements":null,"support_eol":"never",
		"versions":{"20240101":{"label":null,"items":{"i":{"ftype":"lxd_combined.tar.gz","path":"ordner/\u00fc %41?#.gz","sha256":"`+hash+`","size":null}}}}}}}`))
	server.Set("ordner/ü %41?#.gz", []byte("x"))
	client := newClient(t, server, nil)
	image, err := client.Resolve(t.Context(), `über`, nil)
	require.NoError(t, err)
	require.Equal(t, "aä", image.Product)
	require.Equal(t, `b"c`, image.Aliases[2])
	require.True(t, image.ExpiresAt.IsZero())
	require.NotContains(t, image.Properties, "os")
	require.Equal(t, "x", string(readAll(t, client, image)))
}

func TestPathsAreCleaned(t *testing.T) {
	server := serve(t, streamstest.Tree(products("lxd"), func(all streamstest.Object) {
		version := all["alpine:3.20:amd64"].(streamstest.Object)["versions"].(streamstest.Object)["20240301"].(streamstest.Object)
		version["items"].(streamstest.Object)["lxd_combined.tar.gz"].(streamstest.Object)["path"] = ".//images/alpine/./3.20/amd64//20240301/lxd_combined.tar.gz"
	}))
	client := newClient(t, server, nil)
	image, err := client.Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	require.Equal(t, "a unified image", string(readAll(t, client, image)))
}

func TestGzip(t *testing.T) {
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	_, _ = writer.Write(streamstest.Tree(products("lxd"), nil)[streamstest.ProductsPath])
	require.NoError(t, writer.Close())
	server, _ := standard(t)
	server.Set(streamstest.ProductsPath, packed.Bytes())
	server.Fault(streamstest.ProductsPath, streamstest.Header("Content-Encoding", "gzip"))
	require.Len(t, all(t, newClient(t, server, nil)), 11)

	client := newClient(t, server, func(o *simplestreams.Options) { o.MaxMetadataSize = int64(packed.Len()) + 500 })
	_, err := client.Resolve(t.Context(), "alpine", nil)
	require.ErrorIs(t, err, simplestreams.ErrTooLarge, "the limit holds after decompression")
}

func TestMaxMetadataSize(t *testing.T) {
	server, _ := standard(t)
	size := len(streamstest.Tree(products("lxd"), nil)[streamstest.ProductsPath])
	for _, fault := range []streamstest.Fault{nil, streamstest.NoLength()} {
		server.Fault(streamstest.ProductsPath, fault)
		exact := newClient(t, server, func(o *simplestreams.Options) { o.MaxMetadataSize = int64(size) })
		require.Len(t, all(t, exact), 11)
		client := newClient(t, server, func(o *simplestreams.Options) { o.MaxMetadataSize = int64(size) - 1 })
		_, err := client.Resolve(t.Context(), "alpine", nil)
		require.ErrorIs(t, err, simplestreams.ErrTooLarge)
		require.ErrorContains(t, err, streamstest.ProductsPath)
	}
}

func TestRevalidation(t *testing.T) {
	for name, test := range map[string]struct {
		fault  streamstest.Fault
		header string
	}{
		"etag": {nil, "If-None-Match"},
		"date": {streamstest.Header("ETag", ""), "If-Modified-Since"},
		"none": {streamstest.Together(streamstest.Header("ETag", ""), streamstest.Header("Last-Modified", "")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			server, _ := standard(t)
			server.Fault(streamstest.IndexPath, test.fault)
			server.Fault(streamstest.ProductsPath, test.fault)
			client := newClient(t, server, nil)
			require.Len(t, all(t, client), 11)
			server.Requests()
			require.NoError(t, client.Refresh(t.Context()))
			require.Len(t, all(t, client), 11)
			requests := server.Requests()
			require.Len(t, requests, 2, "the TTL has begun anew")
			for _, request := range requests {
				for _, header := range []string{"If-None-Match", "If-Modified-Since"} {
					require.Equal(t, header == test.header, request.Header.Get(header) != "", header)
				}
			}
		})
	}
}

func TestRefreshSeesWhatIsNew(t *testing.T) {
	server, client := standard(t)
	before := all(t, client)
	changed := products("lxd")
	changed[2].Versions = append(changed[2].Versions, streamstest.Version{Serial: "20990101", Unified: []byte("a newer image")})
	for path, content := range streamstest.Tree(changed, nil) {
		server.Set(path, content)
	}
	require.Equal(t, before, all(t, client), "within the TTL")
	require.NoError(t, client.Refresh(t.Context()))
	image, err := client.Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	require.Equal(t, "20990101", image.Version)
	require.Equal(t, "a newer image", string(readAll(t, client, image)))

	server.Set(streamstest.IndexPath, []byte(`{"index":{}}`))
	require.NoError(t, client.Refresh(t.Context()))
	require.Empty(t, all(t, client))

	server.Fault(streamstest.IndexPath, streamstest.Status(500))
	require.Error(t, client.Refresh(t.Context()))
	require.Empty(t, all(t, client), "a failed refresh leaves what is known")
}

// treeTransport returns a transport that serves a tree on every host.
func treeTransport(tree map[string][]byte, requests *int) http.RoundTripper {
	return transportFunc(func(r *http.Request) (*http.Response, error) {
		*requests++
		content := tree[strings.TrimPrefix(r.URL.Path, "/")]
		return &http.Response{
			StatusCode: 200, ContentLength: int64(len(content)), Header: http.Header{},
			Body: io.NopCloser(bytes.NewReader(content)), Request: r,
		}, nil
	})
}

func TestServerWithOneOperatingSystem(t *testing.T) {
	tree := streamstest.Tree(products("both"), nil)
	for family, alias := range map[simplestreams.Family]string{"": "noble", simplestreams.LXD: "noble", simplestreams.Incus: "ubuntu/noble"} {
		requests := 0
		client, err := simplestreams.New("https://cloud-images.ubuntu.com", &simplestreams.Options{
			Family: family, HTTPClient: &http.Client{Transport: treeTransport(tree, &requests)},
		})
		require.NoError(t, err)
		for _, ref := range []string{alias, "ubuntu/noble"} {
			image, err := client.Resolve(t.Context(), ref, &simplestreams.ResolveOptions{Architecture: "amd64"})
			require.NoError(t, err)
			require.Contains(t, image.Aliases, alias+"/amd64")
		}
	}
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requests := 0
		transport := treeTransport(streamstest.Tree(products("lxd"), nil), &requests)
		for _, test := range []struct {
			ttl, wait time.Duration
			requests  int
		}{{0, time.Hour - time.Second, 2}, {0, time.Hour, 4}, {time.Minute, time.Minute, 4}, {-1, 0, 4}} {
			requests = 0
			client, err := simplestreams.New("https://images.example.net", &simplestreams.Options{
				TTL: test.ttl, HTTPClient: &http.Client{Transport: transport},
			})
			require.NoError(t, err)
			require.Len(t, all(t, client), 11)
			time.Sleep(test.wait)
			require.Len(t, all(t, client), 11)
			require.Equal(t, test.requests, requests)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for name, test := range map[string]struct {
		header   func() string
		min, max time.Duration
	}{
		"seconds":  {func() string { return "7" }, 7 * time.Second, 7 * time.Second},
		"date":     {func() string { return time.Now().Add(time.Minute).UTC().Format(http.TimeFormat) }, 59 * time.Second, time.Minute},
		"past":     {func() string { return time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat) }, 50 * time.Millisecond, 100 * time.Millisecond},
		"nonsense": {func() string { return "-5" }, 50 * time.Millisecond, 100 * time.Millisecond},
		"none":     {func() string { return "" }, 50 * time.Millisecond, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				requests := 0
				good := treeTransport(streamstest.Tree(products("lxd"), nil), &requests)
				refused := false
				client, err := simplestreams.New("https://images.example.net", &simplestreams.Options{HTTPClient: &http.Client{
					Transport: transportFunc(func(r *http.Request) (*http.Response, error) {
						if refused {
							return good.RoundTrip(r)
						}
						refused = true
						return &http.Response{
							StatusCode: 503, Header: http.Header{"Retry-After": {test.header()}}, Body: http.NoBody, Request: r,
						}, nil
					}),
				}})
				require.NoError(t, err)
				start := time.Now()
				require.Len(t, all(t, client), 11)
				require.GreaterOrEqual(t, time.Since(start), test.min)
				require.LessOrEqual(t, time.Since(start), test.max)
				require.Equal(t, 2, requests)
			})
		})
	}
}

type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestCache(t *testing.T) {
	server, _ := standard(t)
	dir := filepath.Join(t.TempDir(), "made when needed")
	open := func(ttl time.Duration) *simplestreams.Client {
		return newClient(t, server, func(o *simplestreams.Options) {
			o.Cache = simplestreams.DirCache(dir)
			o.TTL = ttl
		})
	}
	want := all(t, open(0))
	require.Len(t, server.Requests(), 2)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Len(t, files, 4)

	require.Equal(t, want, all(t, open(0)))
	require.Empty(t, server.Requests(), "fresh entries need no request")

	require.Equal(t, want, all(t, open(-1)))
	for _, request := range server.Requests() {
		require.NotEmpty(t, request.Header.Get("If-None-Match"))
	}

	// Whatever happens to the files, the result is right.
	for _, file := range files {
		for _, damage := range []func() error{
			func() error { return os.WriteFile(file, []byte("{}"), 0o600) },
			func() error { return os.WriteFile(file, nil, 0o600) },
			func() error { return os.Remove(file) },
			func() error {
				content, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				return os.WriteFile(file, bytes.ReplaceAll(content, []byte("2024"), []byte("2023")), 0o600)
			},
		} {
			require.NoError(t, damage())
			require.Equal(t, want, all(t, open(0)))
			server.Requests()
		}
	}

	server.Set(streamstest.ProductsPath, []byte("not JSON"))
	_, err = open(-1).Resolve(t.Context(), "alpine", nil)
	require.ErrorIs(t, err, simplestreams.ErrBadData)
	server.Set(streamstest.ProductsPath, streamstest.Tree(products("lxd"), nil)[streamstest.ProductsPath])
	require.Equal(t, want, all(t, open(-1)), "bad content does not stay in the cache")

	server.Fault(streamstest.ProductsPath, streamstest.Cut(100))
	server.Set(streamstest.ProductsPath, []byte(strings.Repeat(" ", 1000)))
	_, err = open(-1).Resolve(t.Context(), "alpine", nil)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	left, err := filepath.Glob(filepath.Join(dir, "new-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestFailingCache(t *testing.T) {
	server, client := standard(t)
	want := all(t, client)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for name, cache := range map[string]simplestreams.Cache{
		"not a folder": simplestreams.DirCache(file), "keeps nothing": forgetful{}, "alters": altering{},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, want, all(t, newClient(t, server, func(o *simplestreams.Options) { o.Cache = cache })))
		})
	}
}

type forgetful struct{}

func (forgetful) Open(string) (io.ReadCloser, error) { return nil, fs.ErrNotExist }
func (forgetful) Store(_ string, content io.Reader) error {
	_, err := io.Copy(io.Discard, content)
	return err
}

type altering struct{ forgetful }

func (altering) Open(string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(`{"index":{}, "products":{}}`)), nil
}

func TestConcurrentUseReadsTheIndexOnce(t *testing.T) {
	server, client := standard(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			image, err := client.Resolve(t.Context(), "alpine", nil)
			if err != nil || image.Product != "alpine:3.20:amd64" {
				t.Error(image, err)
			}
			if err := client.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
			for _, err := range client.Images(t.Context()) {
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	whole := 0
	for _, request := range server.Requests() {
		if request.Header.Get("If-None-Match") == "" {
			whole++
		}
	}
	require.Equal(t, 2, whole)
}

func TestContextEndsLoading(t *testing.T) {
	server, _ := standard(t)
	server.Fault(streamstest.ProductsPath, streamstest.Stall(100))
	client := newClient(t, server, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			// One is loading and the others wait for it.
			if _, err := client.Resolve(ctx, "alpine", nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	require.Less(t, time.Since(start), 20*time.Second)

	server.Fault(streamstest.ProductsPath, nil)
	require.Len(t, all(t, client), 11)
}

// TestReplacedVersion has an index in the cache that lists files which the server has replaced since.
func TestReplacedVersion(t *testing.T) {
	old := streamstest.Product{Name: "p", Aliases: []string{"p"}, Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte("old")}}}
	next := old
	next.Versions = []streamstest.Version{{Serial: "20240102", Unified: []byte("new")}}
	same := old
	same.Versions = []streamstest.Version{{Serial: "20240101", Unified: []byte("replaced")}}
	hash := old
	hash.Versions = []streamstest.Version{{Serial: "20240101", Unified: []byte("olD")}}
	for name, replacement := range map[string]streamstest.Product{"new files": next, "another length": same, "another hash": hash} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, streamstest.Tree([]streamstest.Product{old}, nil))
			cache := simplestreams.DirCache(t.TempDir())
			cached := func(o *simplestreams.Options) { o.Cache = cache }
			_, err := newClient(t, server, cached).Resolve(t.Context(), "p", nil)
			require.NoError(t, err)
			server.Set("images/p/20240101/lxd_combined.tar.gz", nil)
			for path, content := range streamstest.Tree([]streamstest.Product{replacement}, nil) {
				server.Set(path, content)
			}

			client := newClient(t, server, cached)
			image, err := client.Resolve(t.Context(), "p", nil)
			require.NoError(t, err)
			require.Equal(t, streamstest.Hash([]byte("old")), image.Fingerprint, "the index is fresh")
			download, err := client.Open(t.Context(), image, nil)
			if err == nil {
				_, err = io.Copy(io.Discard, download.Metadata)
				require.NoError(t, download.Close())
			}
			require.Error(t, err)
			image, err = client.Resolve(t.Context(), "p", nil)
			require.NoError(t, err)
			require.Equal(t, replacement.Versions[0].Unified, readAll(t, client, image))

			server.Requests()
			_, err = client.Resolve(t.Context(), "p", nil)
			require.NoError(t, err)
			require.Empty(t, server.Requests(), "the index is trusted again")
		})
	}
}

// TestWrongCombinedHash: the files of a split image are those of the index, but not
// together those of the fingerprint. The index is read again.
func TestWrongCombinedHash(t *testing.T) {
	split := streamstest.Product{Name: "p", Aliases: []string{"p"}, Versions: []streamstest.Version{{
		Serial: "20240101", Metadata: []byte("metadata"), Roots: map[string][]byte{"squashfs": []byte("root")},
	}}}
	wrong := streamstest.Hash([]byte("another"))
	server := serve(t, streamstest.Tree([]streamstest.Product{split}, func(products streamstest.Object) {
		version := products["p"].(streamstest.Object)["versions"].(streamstest.Object)["20240101"].(streamstest.Object)
		version["items"].(streamstest.Object)["lxd.tar.xz"].(streamstest.Object)["combined_squashfs_sha256"] = wrong
	}))
	client := newClient(t, server, nil)
	image, err := client.Resolve(t.Context(), "p", nil)
	require.NoError(t, err)
	require.Equal(t, wrong, image.Fingerprint)
	download, err := client.Open(t.Context(), image, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, download.Close()) }()
	_, err = io.Copy(io.Discard, download.Metadata)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, download.Rootfs)
	var failed *simplestreams.HashError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, wrong, failed.Expected)

	for path, content := range streamstest.Tree([]streamstest.Product{split}, nil) {
		server.Set(path, content)
	}
	image, err = client.Resolve(t.Context(), "p", nil)
	require.NoError(t, err)
	require.Equal(t, streamstest.Hash([]byte("metadataroot")), image.Fingerprint)
}

// TestProductsFileIsGone has an index in the cache that lists a products file which no longer exists.
func TestProductsFileIsGone(t *testing.T) {
	files := streamstest.Tree(products("lxd"), nil)
	server := serve(t, files)
	dir := t.TempDir()
	cached := func(o *simplestreams.Options) { o.Cache = simplestreams.DirCache(dir) }
	require.NoError(t, newClient(t, server, cached).Refresh(t.Context()))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries { // the cache may drop entries: only the index remains
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		require.NoError(t, err)
		if bytes.Equal(content, files[streamstest.ProductsPath]) {
			require.NoError(t, os.Remove(filepath.Join(dir, entry.Name())))
		}
	}
	server.Set("streams/v1/moved.json", files[streamstest.ProductsPath])
	server.Set(streamstest.ProductsPath, nil)
	index := bytes.Replace(files[streamstest.IndexPath], []byte("images.json"), []byte("moved.json"), 1)
	require.NotEqual(t, files[streamstest.IndexPath], index)
	server.Set(streamstest.IndexPath, index)
	_, err = newClient(t, server, cached).Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)

	server.Set("streams/v1/moved.json", nil)
	client := newClient(t, server, func(o *simplestreams.Options) { o.TTL = -1 })
	server.Requests()
	_, err = client.Resolve(t.Context(), "alpine", nil)
	require.ErrorIs(t, err, simplestreams.ErrNotFound)
	require.LessOrEqual(t, len(server.Requests()), 4, "once more, not for ever")
}
