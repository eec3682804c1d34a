package simplestreams

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

const indexPath = "streams/v1/index.json"

// stamp says which state of a metadata file is known, and since when.
type stamp struct {
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"last_modified,omitempty"`
	Checked      time.Time `json:"checked"`

	// SHA256 ties the stamp to the stored file: two programs that share a cache may store the two in any order.
	SHA256 string `json:"sha256"`
}

// document is a metadata file that was read.
type document[T any] struct {
	stamp   stamp
	content T
}

// Refresh asks the server for a newer index now, whatever the age of the one that is known. An unchanged index costs a
// request for each of its files, answered with 304.
func (c *Client) Refresh(ctx context.Context) error {
	_, err := c.load(ctx, true)
	return err
}

// load returns the index, read at most once at a time and then kept for the TTL.
func (c *Client) load(ctx context.Context, again bool) (*catalog, error) {
	select {
	case c.loading <- struct{}{}:
		defer func() { <-c.loading }()
	case <-ctx.Done():
		return nil, ctxerr.Of(ctx)
	}
	if err := ctxerr.Of(ctx); err != nil {
		return nil, err
	}
	if c.index != nil && !again && c.fresh(c.index.checked) {
		return c.index, nil
	}

	var before catalog
	if c.index != nil {
		before = *c.index
	}
	index, err := get(ctx, c, indexPath, before.index, again, decodeIndex)
	if err != nil {
		return nil, err
	}
	next := &catalog{checked: index.stamp.Checked, index: index, products: map[string]*document[*productsFile]{}}
	changed := index.content == nil || before.index == nil || len(before.products) == 0
	var files []*productsFile
	for _, path := range index.content {
		if _, twice := next.products[path]; twice {
			continue
		}
		products, err := get(ctx, c, path, before.products[path], again, func(r io.Reader) (*productsFile, error) {
			return decodeProducts(r, c.options.Family, c.aliasPrefix())
		})
		if err != nil {
			return nil, err
		}
		known := before.products[path]
		changed = changed || known == nil || known.content != products.content
		next.products[path] = products
		files = append(files, products.content)
	}
	if changed || len(next.products) != len(before.products) {
		next.arrange(files)
	} else {
		next.entries, next.skipped = before.entries, before.skipped
	}
	c.index = next

	return next, nil
}

// aliasPrefix returns what LXD (5.0.2) takes off the aliases of the one server that it knows to have a single operating
// system. Incus does not.
func (c *Client) aliasPrefix() string {
	if c.server.Host == "cloud-images.ubuntu.com" && c.options.Family != Incus {
		return "ubuntu/"
	}

	return ""
}

func (c *Client) fresh(checked time.Time) bool {
	age := time.Since(checked)
	return age >= 0 && age < c.options.TTL
}

// get returns a metadata file: the known one, the cached one, or a fetched one. The server is asked only if what is known
// is too old, or again is set, and sends the file only if it has changed.
func get[T any](ctx context.Context, c *Client, path string, known *document[T], again bool, parse func(io.Reader) (T, error)) (*document[T], error) {
	if known == nil {
		known = fromCache(ctx, c, path, parse)
	}
	if known != nil && !again && c.fresh(known.stamp.Checked) {
		return known, nil
	}
	var got *document[T]
	err := c.retry(ctx, path, func() (err error) {
		got, err = fetch(ctx, c, path, known, parse)
		return err
	})

	return got, err
}

// fetch asks the server once.
func fetch[T any](ctx context.Context, c *Client, path string, known *document[T], parse func(io.Reader) (T, error)) (*document[T], error) {
	header := http.Header{}
	if known != nil && known.stamp.ETag != "" {
		header.Set("If-None-Match", known.stamp.ETag)
	} else if known != nil && known.stamp.LastModified != "" {
		header.Set("If-Modified-Since", known.stamp.LastModified)
	}
	now := time.Now()
	response, err := c.request(ctx, http.MethodGet, path, header)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()

	switch {
	case response.StatusCode == http.StatusNotModified && known != nil:
		same := *known
		same.stamp.Checked = now
		c.storeStamp(ctx, path, same.stamp)
		return &same, nil
	case response.StatusCode != http.StatusOK:
		return nil, &Error{URL: c.told(path), StatusCode: response.StatusCode, Err: invalidf("want status 200")}
	case response.ContentLength > c.options.MaxMetadataSize:
		return nil, c.fileError(path, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, response.ContentLength, c.options.MaxMetadataSize))
	}

	body := newMetadataReader(response.Body, c.options.MaxMetadataSize)
	got := &document[T]{stamp: stamp{ETag: response.Header.Get("ETag"), LastModified: response.Header.Get("Last-Modified"), Checked: now}}
	if c.options.Cache == nil {
		got.content, err = parseAll(body, parse)
		if err != nil {
			return nil, c.fileError(path, err)
		}

		return got, nil
	}

	if err := c.options.Cache.Store(c.key(path, "json"), body); body.err != nil {
		return nil, c.fileError(path, body.err)
	} else if err != nil {
		c.cacheFailed(ctx, path, err)
		return fetch(ctx, c.withoutCache(), path, known, parse)
	}
	got.stamp.SHA256 = body.sum()
	stored, err := c.options.Cache.Open(c.key(path, "json"))
	if err != nil {
		c.cacheFailed(ctx, path, err)
		return fetch(ctx, c.withoutCache(), path, known, parse)
	}
	defer stored.Close()
	again := newMetadataReader(stored, c.options.MaxMetadataSize)
	got.content, err = parseAll(again, parse)
	switch {
	case again.err != nil, err == nil && again.sum() != got.stamp.SHA256:
		c.cacheFailed(ctx, path, errors.Join(again.err, errors.New("the stored file is not what was stored")))
		return fetch(ctx, c.withoutCache(), path, known, parse)
	case err != nil:
		return nil, c.fileError(path, err)
	}
	c.storeStamp(ctx, path, got.stamp)

	return got, nil
}

// withoutCache returns a client for one request past a failing cache.
func (c *Client) withoutCache() *Client {
	plain := &Client{options: c.options, server: c.server, secrets: c.secrets, http: c.http}
	plain.options.Cache = nil

	return plain
}

// fromCache returns a file from the cache, or nil.
func fromCache[T any](ctx context.Context, c *Client, path string, parse func(io.Reader) (T, error)) *document[T] {
	if c.options.Cache == nil {
		return nil
	}
	known := &document[T]{}
	file, err := c.options.Cache.Open(c.key(path, "stamp"))
	if err != nil {
		return nil
	}
	err = json.NewDecoder(io.LimitReader(file, 64<<10)).Decode(&known.stamp)
	if err := errors.Join(err, file.Close()); err != nil {
		c.cacheFailed(ctx, path, err)
		return nil
	}

	body, err := c.options.Cache.Open(c.key(path, "json"))
	if err != nil {
		return nil
	}
	defer body.Close()
	reader := newMetadataReader(body, c.options.MaxMetadataSize)
	known.content, err = parseAll(reader, parse)
	if err == nil && reader.sum() != known.stamp.SHA256 {
		err = errors.New("the stored file is not the one that was stamped")
	}
	if err != nil {
		c.cacheFailed(ctx, path, err)
		return nil
	}

	return known
}

func (c *Client) storeStamp(ctx context.Context, path string, s stamp) {
	if c.options.Cache == nil || s.SHA256 == "" {
		return
	}
	text, err := json.Marshal(s)
	if err == nil {
		err = c.options.Cache.Store(c.key(path, "stamp"), bytes.NewReader(text))
	}
	if err != nil {
		c.cacheFailed(ctx, path, err)
	}
}

func (c *Client) cacheFailed(ctx context.Context, path string, err error) {
	c.options.Logger.WarnContext(ctx, "simplestreams cache failed", "url", c.told(path), "error", err)
}

// key returns the cache's key for a file of this server. It is a hash, which tells users apart.
func (c *Client) key(path, kind string) string {
	sum := sha256.Sum256([]byte(c.address(path).Redacted()))
	return "simplestreams-" + hex.EncodeToString(sum[:16]) + "." + kind
}

// parseAll parses a whole metadata file. The error tells bad content (ErrInvalid) from content that did not come.
func parseAll[T any](r *metadataReader, parse func(io.Reader) (T, error)) (T, error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	start, _ := buffered.Peek(64)
	content, err := parse(buffered)
	switch {
	case r.err != nil:
		return content, r.err
	case err != nil && strings.HasPrefix(strings.TrimLeft(string(start), "\ufeff \t\r\n"), "<"):
		return content, invalidf("want JSON, have an HTML or XML document")
	case err != nil:
		return content, invalidf("%w", noEOF(err))
	}

	return content, nil
}

// metadataReader limits and hashes a metadata file, and remembers why reading it failed.
type metadataReader struct {
	source io.Reader
	left   int64
	limit  int64
	hash   hash.Hash
	err    error
}

func newMetadataReader(source io.Reader, limit int64) *metadataReader {
	return &metadataReader{source: source, left: limit, limit: limit, hash: sha256.New()}
}

func (r *metadataReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	// One byte more than the limit tells a file of just that size from a longer one.
	if int64(len(p)) > r.left+1 {
		p = p[:r.left+1]
	}
	n, err := r.source.Read(p)
	r.left -= int64(n)
	if r.left < 0 {
		r.err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, r.limit)
		return 0, r.err
	}
	r.hash.Write(p[:n])
	if err != nil && err != io.EOF {
		r.err = err
	}

	return n, err
}

func (r *metadataReader) sum() string { return hex.EncodeToString(r.hash.Sum(nil)) }
