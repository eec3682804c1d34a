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

// stamp is the state of a metadata file: its validators, and when it was last validated.
type stamp struct {
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"last_modified,omitempty"`
	Checked      time.Time `json:"checked"`

	// SHA256 is the hash of the stored file that the stamp belongs to: two programs that share a cache may store files
	// and stamps in any order.
	SHA256 string `json:"sha256"`
}

// document is a parsed metadata file.
type document[T any] struct {
	path    string
	stamp   stamp
	content T
}

// Refresh revalidates the index now, whatever its age. If it is unchanged, that takes one request for each of its files,
// with a 304 as response.
func (c *Client) Refresh(ctx context.Context) error {
	_, err := c.load(ctx, true)
	return err
}

// load returns the index, which it reads if there is none, if it is older than the TTL, or if force is set. Only one call
// reads at a time.
func (c *Client) load(ctx context.Context, force bool) (*catalog, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	select {
	case c.loading <- struct{}{}:
		defer func() { <-c.loading }()
	case <-ctx.Done():
		return nil, ctxerr.Of(ctx)
	}
	if err := ctxerr.Of(ctx); err != nil {
		return nil, err
	}
	force = force || c.doubtful.Load()
	if c.index != nil && !force && c.fresh(c.index.checked) {
		return c.index, nil
	}

	next, err := c.read(ctx, force)
	if errors.Is(err, ErrNotFound) && !force {
		// The index that was kept lists a file that is gone.
		next, err = c.read(ctx, true)
	}
	if err != nil {
		return nil, err
	}
	c.index = next
	c.doubtful.Store(false)

	return next, nil
}

// read returns the index. The caller holds the lock.
func (c *Client) read(ctx context.Context, force bool) (*catalog, error) {
	var before catalog
	if c.index != nil {
		before = *c.index
	}
	index, err := getVerified(ctx, c, indexPath, before.index, force, func(r io.Reader) ([]string, error) {
		return decodeIndex(r, c.daemons)
	})
	if err != nil {
		return nil, err
	}
	next := &catalog{checked: index.stamp.Checked, index: index, products: map[string]*document[*productsFile]{}}
	changed := index.content == nil || before.index == nil || len(before.products) == 0
	var files []*productsFile
	for _, path := range index.content {
		if _, ok := next.products[path]; ok {
			continue
		}
		products, err := getVerified(ctx, c, path, before.products[path], force, func(r io.Reader) (*productsFile, error) {
			return decodeProducts(r, c.daemons, c.aliasPrefix())
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
		next.entries, next.omitted = before.entries, before.omitted
	}

	return next, nil
}

// aliasPrefix returns the prefix that LXD 5.0.2 removes from the aliases of the one server that it knows to have a single
// operating system. Incus does not.
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

// get returns a metadata file: the known one, the cached one, or a downloaded one. It sends a request only if there is
// none, if it is older than the TTL, or if force is set; the server sends the file only if it has changed.
func get[T any](ctx context.Context, c *Client, path string, known *document[T], force bool, parse func(io.Reader) (T, error)) (*document[T], error) {
	if known == nil || known.path != path {
		known = fromCache(ctx, c, path, parse)
	}
	if known != nil && !force && c.fresh(known.stamp.Checked) {
		return known, nil
	}
	var fetched *document[T]
	err := c.retry(ctx, path, func() (err error) {
		fetched, err = fetch(ctx, c, path, known, parse)
		return err
	})

	return fetched, err
}

// fetch sends one request for a metadata file.
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
		return nil, &Error{URL: c.publicURL(path), StatusCode: response.StatusCode, Err: badDataf("want status 200")}
	case response.ContentLength > c.options.MaxMetadataSize:
		return nil, c.fileError(path, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, response.ContentLength, c.options.MaxMetadataSize))
	}

	body := newMetadataReader(response.Body, c.options.MaxMetadataSize)
	got := &document[T]{path: path, stamp: stamp{ETag: response.Header.Get("ETag"), LastModified: response.Header.Get("Last-Modified"), Checked: now}}
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
	reread := newMetadataReader(stored, c.options.MaxMetadataSize)
	got.content, err = parseAll(reread, parse)
	switch {
	case reread.err != nil, err == nil && reread.sum() != got.stamp.SHA256:
		c.cacheFailed(ctx, path, errors.Join(reread.err, errors.New("the cached file has been altered")))
		return fetch(ctx, c.withoutCache(), path, known, parse)
	case err != nil:
		return nil, c.fileError(path, err)
	}
	c.storeStamp(ctx, path, got.stamp)

	return got, nil
}

// withoutCache returns a client that does not use the cache, for a request after the cache has failed.
func (c *Client) withoutCache() *Client {
	plain := &Client{options: c.options, daemons: c.daemons, server: c.server, secrets: c.secrets, http: c.http}
	plain.options.Cache = nil

	return plain
}

// fromCache returns a file from the cache, or nil if the cache does not have it.
func fromCache[T any](ctx context.Context, c *Client, path string, parse func(io.Reader) (T, error)) *document[T] {
	if c.options.Cache == nil {
		return nil
	}
	known := &document[T]{path: path}
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
		err = errors.New("the cached file does not match its stamp")
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
	c.options.Logger.WarnContext(ctx, "simplestreams cache failed", "url", c.publicURL(path), "error", err)
}

// key returns the cache key of a file. It is a hash that includes the server's user name: users may see different files.
func (c *Client) key(path, kind string) string {
	sum := sha256.Sum256([]byte(c.address(path).Redacted()))
	return "simplestreams-" + hex.EncodeToString(sum[:16]) + "." + kind
}

// parseAll parses a whole metadata file. The error is the reader's if reading failed, and otherwise an ErrBadData.
func parseAll[T any](r *metadataReader, parse func(io.Reader) (T, error)) (T, error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	start, _ := buffered.Peek(64)
	content, err := parse(buffered)
	switch {
	case r.err != nil:
		return content, r.err
	case errors.Is(err, ErrSignature):
		return content, err
	case err != nil && strings.HasPrefix(strings.TrimLeft(string(start), "\ufeff \t\r\n"), "<"):
		return content, badDataf("want JSON, have an HTML or XML document")
	case err != nil:
		return content, badDataf("%w", noEOF(err))
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
	// Reading one byte more than the limit distinguishes a file of that size from a longer one.
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
