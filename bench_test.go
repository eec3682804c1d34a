package lxd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// The benchmarks need no daemon. Compare two states of the package with
//
//	make gobench BENCHFLAGS=-count=10 > old.txt; …; benchstat old.txt new.txt

const benchImages = 10_000

// cannedServer serves prepared responses on a unix socket, and discards uploads
// away: what is measured is the client.
func cannedServer(b *testing.B, routes map[string]http.HandlerFunc) *lxd.Client {
	b.Helper()
	dir, err := os.MkdirTemp("", "lxd") // short enough for a socket
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(dir, "unix.socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /1.0", respondWith(map[string]any{
		"api_version": "1.0", "auth": "trusted", "api_extensions": []string{}, "environment": map[string]any{"server": "lxd", "server_version": "5.0.2"},
	}))
	for pattern, handler := range routes {
		mux.HandleFunc(pattern, handler)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener)
	}()
	client, err := lxd.New(path, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		client.Close()
		server.Close()
		<-ended
		os.RemoveAll(dir)
	})
	return client
}

// respondWith returns a handler that always sends the same metadata.
func respondWith(metadata any) http.HandlerFunc {
	data, err := json.Marshal(map[string]any{"type": "sync", "status": "Success", "status_code": 200, "metadata": metadata})
	if err != nil {
		panic(err)
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data)
	}
}

func manyImages() []lxd.Image {
	images := make([]lxd.Image, benchImages)
	for n := range images {
		images[n] = lxd.Image{
			Fingerprint: fmt.Sprintf("%064x", n), Architecture: "x86_64", Type: lxd.Container, Size: 123 << 20,
			Filename: fmt.Sprintf("image-%d.tar.xz", n), Profiles: []string{"default"}, Project: "default",
			Aliases:   []lxd.Alias{{Name: fmt.Sprintf("distribution/%d", n), Description: "one of many images"}},
			CreatedAt: time.Unix(1700000000, 0).UTC(), UploadedAt: time.Unix(1700000000, 123456789).UTC(),
			Properties: map[string]string{
				"architecture": "amd64", "description": "Distribution 24.04 LTS amd64 (release) (20260101)", "label": "release",
				"os": "distribution", "release": "noble", "serial": "20260101", "type": "squashfs", "version": "24.04",
			},
			UpdateSource: &lxd.UpdateSource{Alias: "24.04", Protocol: "simplestreams", Server: "https://images.example.net/releases"},
		}
	}
	return images
}

func BenchmarkList(b *testing.B) {
	client := cannedServer(b, map[string]http.HandlerFunc{"GET /1.0/images": respondWith(manyImages())})
	ctx := context.Background()
	b.Run("Each", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			for _, err := range client.Images.Each(ctx, nil) {
				if err != nil {
					b.Fatal(err)
				}
				n++
			}
			if n != benchImages {
				b.Fatalf("listed %d", n)
			}
		}
	})
	b.Run("All", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if images, err := client.Images.All(ctx, nil); err != nil || len(images) != benchImages {
				b.Fatalf("listed %d: %v", len(images), err)
			}
		}
	})
	// As clients usually do it: the body, then the envelope, then its metadata.
	b.Run("TwoPasses", func(b *testing.B) {
		socket := strings.TrimPrefix(client.Endpoint(), "unix://")
		pool := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}
		defer pool.CloseIdleConnections()
		b.ReportAllocs()
		for b.Loop() {
			res, err := (&http.Client{Transport: pool}).Get("http://unix/1.0/images?recursion=1")
			if err != nil {
				b.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil {
				b.Fatal(err)
			}
			var envelope struct {
				Metadata json.RawMessage `json:"metadata"`
			}
			var images []lxd.Image
			if err := json.Unmarshal(body, &envelope); err != nil {
				b.Fatal(err)
			}
			if err := json.Unmarshal(envelope.Metadata, &images); err != nil || len(images) != benchImages {
				b.Fatalf("listed %d: %v", len(images), err)
			}
		}
	})
}

const benchSize = 64 << 20

// discards reads an upload, and responds with a finished operation.
func discards(w http.ResponseWriter, r *http.Request) {
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 1<<20)); err != nil {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(w, `{"type":"async","status":"Operation created","status_code":100,"operation":"/1.0/operations/1",`+
		`"metadata":{"id":"1","class":"task","status":"Success","status_code":200,"metadata":{}}}`)
}

// hasNot responds that there is no such image.
func hasNot(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, `{"type":"error","error_code":404,"error":"Image not found"}`)
}

func benchFile(b *testing.B, size int64) *os.File {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "image"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	if err := lxdtest.WriteUnifiedImage(f, b.Name(), size); err != nil {
		b.Fatal(err)
	}
	return f
}

func BenchmarkUpload(b *testing.B) {
	client := cannedServer(b, map[string]http.HandlerFunc{"POST /1.0/images": discards, "GET /1.0/images/{fingerprint}": hasNot})
	f := benchFile(b, benchSize)
	given := strings.Repeat("0", 64)
	split := benchFile(b, 0)
	for name, opts := range map[string]func() *lxd.CreateOptions{
		"Plain":  func() *lxd.CreateOptions { return &lxd.CreateOptions{Fingerprint: given} },
		"Hashed": func() *lxd.CreateOptions { return &lxd.CreateOptions{} },
		"Progress": func() *lxd.CreateOptions {
			return &lxd.CreateOptions{Fingerprint: given, Progress: func(lxd.Progress) {}}
		},
		"Split": func() *lxd.CreateOptions { return &lxd.CreateOptions{Fingerprint: given, Rootfs: f} },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				o := opts()
				image := f
				if o.Rootfs != nil {
					image = split
				}
				for _, file := range []*os.File{f, split} {
					if _, err := file.Seek(0, io.SeekStart); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := client.Images.Create(context.Background(), image, o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkExport(b *testing.B) {
	metadata, rootfs := lxdtest.SplitImage("bench", benchSize)
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	unified, err := server.AddImage(lxdtest.UnifiedImage("bench", benchSize), nil)
	if err != nil {
		b.Fatal(err)
	}
	split, err := server.AddImage(metadata, &lxdtest.AddOptions{Rootfs: rootfs})
	if err != nil {
		b.Fatal(err)
	}
	cert, key := server.ClientCertificate()
	for way, endpoint := range map[string]string{"Unix": server.Endpoint(), "TLS": server.URL()} {
		o := &lxd.Options{}
		if way == "TLS" {
			o = &lxd.Options{ClientCertificate: cert, ClientKey: key, ServerCertificate: server.Certificate()}
		}
		client, err := lxd.New(endpoint, o)
		if err != nil {
			b.Fatal(err)
		}
		defer client.Close()
		for kind, fingerprint := range map[string]string{"Unified": unified, "Split": split} {
			b.Run(kind+way, func(b *testing.B) {
				image, err := client.Images.Get(context.Background(), fingerprint)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(image.Size)
				b.ReportAllocs()
				for b.Loop() {
					export, err := image.Export(context.Background(), nil)
					if err != nil {
						b.Fatal(err)
					}
					for err == nil {
						if _, err = io.Copy(io.Discard, export); err == nil {
							err = export.Next()
						}
					}
					export.Close()
					if !errors.Is(err, io.EOF) {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, `{"type":"error","error_code":404,"error":"Image not found"}`)
}

// BenchmarkRelay copies between two servers of this process, whose own work is
// in the figures.
func BenchmarkRelay(b *testing.B) {
	source := lxdtest.NewServer(nil)
	defer source.Close()
	fingerprint, err := source.AddImage(lxdtest.UnifiedImage("relay", benchSize), nil)
	if err != nil {
		b.Fatal(err)
	}
	from, err := lxd.New(source.Endpoint(), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	to := cannedServer(b, map[string]http.HandlerFunc{"POST /1.0/images": discards, "GET /1.0/images/{fingerprint}": notFound})
	image, err := from.Images.Get(context.Background(), fingerprint)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(image.Size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := image.Copy(context.Background(), to, &lxd.CopyOptions{Mode: lxd.CopyRelay}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	image := manyImages()[0]
	client := cannedServer(b, map[string]http.HandlerFunc{"GET /1.0/images/{fingerprint}": respondWith(image)})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Images.Get(context.Background(), image.Fingerprint); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEnsure is Ensure with nothing to do, beside Exists of the alias.
func BenchmarkEnsure(b *testing.B) {
	image := manyImages()[0]
	image.Aliases = []lxd.Alias{{Name: "web"}}
	requests := 0
	counted := func(respond http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			requests++
			respond(w, r)
		}
	}
	client := cannedServer(b, map[string]http.HandlerFunc{
		"GET /1.0/images/{fingerprint}": counted(respondWith(image)),
		"GET /1.0/images/aliases/web":   counted(respondWith(map[string]any{"name": "web", "type": "container", "target": image.Fingerprint})),
	})
	opts := &lxd.EnsureOptions{Aliases: image.Aliases}
	for _, bench := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"Ensure", func(ctx context.Context) error {
			ensured, err := client.Images.Ensure(ctx, known(image.Fingerprint), opts)
			if err == nil && len(ensured.Changes) > 0 {
				err = fmt.Errorf("changes: %v", ensured.Changes)
			}
			return err
		}},
		{"Exists", func(ctx context.Context) error {
			exists, err := client.Images.Exists(ctx, "web")
			if err == nil && !exists {
				err = errors.New("the alias does not exist")
			}
			return err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			requests = 0
			for b.Loop() {
				if err := bench.do(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(requests)/float64(b.N), "requests/op")
		})
	}
}

// known is a source that knows the fingerprint of its image.
type known string

func (known) String() string { return "known" }

func (k known) Resolve(context.Context, *lxd.Client) (*lxd.SourceImage, error) {
	return &lxd.SourceImage{Fingerprint: string(k)}, nil
}

func (known) CreateIn(context.Context, *lxd.Images, *lxd.CreateFromOptions) (*lxd.Image, error) {
	return nil, errors.New("the image exists")
}

// BenchmarkEnsureMany is Ensure of 200 aliases of a simplestreams server, of which
// nothing is to do.
func BenchmarkEnsureMany(b *testing.B) {
	tree, names := manyProducts(b, 200)
	server := streamstest.NewServer(tree)
	b.Cleanup(server.Close)
	fake := lxdtest.NewServer(nil)
	b.Cleanup(fake.Close)
	fake.Inject(lxdtest.CacheStreams())
	client, err := lxd.New(fake.Endpoint(), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	ensure := func(b *testing.B, cache simplestreams.Cache, reads *reads) {
		opts := &lxd.FromSimplestreamsOptions{AllowHTTP: true, Cache: cache, HTTPClient: &http.Client{Transport: reads}}
		for _, name := range names {
			if _, err := client.Images.Ensure(context.Background(), lxd.FromSimplestreams(server.URL, name, opts), &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: name}}}); err != nil {
				b.Fatal(err)
			}
		}
	}
	ensure(b, simplestreams.DirCache(b.TempDir()), &reads{RoundTripper: http.DefaultTransport})
	for _, cached := range []bool{true, false} {
		b.Run(fmt.Sprintf("cache=%t", cached), func(b *testing.B) {
			b.ReportAllocs()
			reads := &reads{RoundTripper: http.DefaultTransport}
			for b.Loop() {
				var cache simplestreams.Cache
				if cached {
					cache = simplestreams.DirCache(b.TempDir())
				}
				ensure(b, cache, reads)
			}
			b.ReportMetric(float64(reads.requests.Load())/float64(b.N), "index-requests/op")
			b.ReportMetric(float64(reads.bytes.Load())/float64(b.N), "index-bytes/op")
		})
	}
}
