package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// ensureNothing measures Ensure of an image that the alias has.
func (b *bench) ensureNothing() *row {
	e := tlsEndpoint(b.source)
	f, uploaded := b.smallOne()
	const times, alias = 200, "ensured"
	own := func(do string) func(context.Context) (sample, error) {
		return b.own(job{Do: do, Server: e, Fingerprint: f.fingerprint, Alias: alias, Count: times})
	}
	ready := func(ctx context.Context) error {
		if err := uploaded(ctx); err != nil {
			return err
		}
		_, err := own("ensure")(ctx)
		return err
	}
	return &row{
		name: fmt.Sprintf("ensure with nothing to do %d times, TLS", times),
		note: "from a source that knows its fingerprint: Ensure sends one request, with EnsureMissing two, and Exists of the alias two",
		contenders: []contender{
			{ours + " Ensure", ready, own("ensure"), nil},
			{ours + " Ensure, EnsureMissing", ready, own("ensureMissing"), nil},
			{ours + " Exists", ready, own("exists"), nil},
		},
		targets: []target{{against: ours + " Exists", what: wallTime, most: 1.1}},
	}
}

// ensureStreams measures Ensure of many aliases of one simplestreams server.
func (b *bench) ensureStreams() *row {
	j := job{Do: "ensureStreams", Server: tlsEndpoint(b.source), Image: b.webServer + "/" + treeName, Count: len(b.small), Bytes: b.indexBytes}
	shared := j
	shared.Out = b.outDir()
	ready := func(ctx context.Context) error {
		if err := b.emptyOut(ctx); err != nil {
			return err
		}
		_, err := b.own(j)(ctx)
		return err
	}
	return &row{
		name: fmt.Sprintf("%d aliases of a simplestreams server ensured, TLS", j.Count),
		note: fmt.Sprintf("nothing is to do; with a common Cache, which is empty, the client reads the index with 2 requests and %d bytes, without with %d requests and %d bytes",
			j.Bytes, 2*j.Count, int64(j.Count)*j.Bytes),
		contenders: []contender{
			{ours + ", Cache", ready, b.own(shared), b.emptyOut},
			{ours, ready, b.own(j), b.emptyOut},
		},
	}
}

// treeName is the directory of the simplestreams server, below that of the web server.
const treeName = "tree"

func productName(n int) string { return fmt.Sprintf("product-%d", n) }

// makeTree writes the files of a simplestreams server with the small images.
func (b *bench) makeTree() error {
	var products []streamstest.Product
	for n, path := range b.small {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := productName(n)
		products = append(products, streamstest.Product{
			Name: name, Aliases: []string{name}, OS: "Distro", Release: "1",
			Versions: []streamstest.Version{{Serial: "20240101", Family: "lxd", Unified: data}},
		})
	}
	tree := streamstest.Tree(products, nil)
	b.indexBytes = int64(len(tree[streamstest.IndexPath]) + len(tree[streamstest.ProductsPath]))
	for name, data := range tree {
		path := filepath.Join(b.dir, treeName, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			return err
		}
	}
	return nil
}

// known is a source that knows the fingerprint of its image, which the server has.
type known string

func (known) String() string { return "known" }

func (k known) Resolve(context.Context, *lxd.Client) (*lxd.SourceImage, error) {
	return &lxd.SourceImage{Fingerprint: string(k)}, nil
}

func (known) CreateIn(context.Context, *lxd.Images, *lxd.CreateFromOptions) (*lxd.Image, error) {
	return nil, errors.New("the image does not exist")
}

func ensure(policy lxd.EnsurePolicy) func(context.Context, *job) error {
	return func(ctx context.Context, j *job) error {
		return j.repeat(func(c *lxd.Client) error {
			_, err := c.Images.Ensure(ctx, known(j.Fingerprint), &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: j.Alias}}, Policy: policy})
			return err
		})
	}
}

func exists(ctx context.Context, j *job) error {
	return j.repeat(func(c *lxd.Client) error {
		is, err := c.Images.Exists(ctx, j.Alias)
		if err == nil && !is {
			err = fmt.Errorf("%q does not exist", j.Alias)
		}
		return err
	})
}

// repeat calls do Count times with one client.
func (j *job) repeat(do func(*lxd.Client) error) error {
	c, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	for range j.Count {
		if err := do(c); err != nil {
			return err
		}
	}
	return nil
}

// ensureStreams ensures Count aliases of the simplestreams server Image, with a cache in
// the directory Out, if it is set. It fails if the index, of so many Bytes, is not read
// as often as the report says.
func ensureStreams(ctx context.Context, j *job) error {
	counted := &reads{}
	opts := &lxd.FromSimplestreamsOptions{AllowHTTP: true, HTTPClient: &http.Client{Transport: counted}}
	times := j.Count
	if j.Out != "" {
		opts.Cache, times = simplestreams.DirCache(j.Out), 1
	}
	n := 0
	if err := j.repeat(func(c *lxd.Client) error {
		name := productName(n)
		n++
		_, err := c.Images.Ensure(ctx, lxd.FromSimplestreams(j.Image, name, opts), &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: name}}})
		return err
	}); err != nil {
		return err
	}
	if want := (reads{2 * times, int64(times) * j.Bytes}); *counted != want {
		return fmt.Errorf("read %+v, not %+v", *counted, want)
	}
	return nil
}

// reads counts requests and the bytes of their responses.
type reads struct {
	requests int
	bytes    int64
}

func (r *reads) RoundTrip(req *http.Request) (*http.Response, error) {
	r.requests++
	res, err := http.DefaultTransport.RoundTrip(req)
	if err == nil {
		res.Body = &readBody{res.Body, r}
	}
	return res, err
}

type readBody struct {
	io.ReadCloser

	reads *reads
}

func (b *readBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.reads.bytes += int64(n)
	return n, err
}
