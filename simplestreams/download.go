package simplestreams

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/golxd/lxd/internal/ctxerr"
)

// DownloadOptions changes how an image is downloaded.
type DownloadOptions struct {
	// Progress is called after each read, by the goroutine that reads, with the bytes of the image so far and in all
	// (-1 if neither the index nor the server tells). The default is not to be called.
	Progress func(done, total int64)
}

// Download is an image on its way. Its readers give each file as it comes, and an error in the place of io.EOF if the
// file is not the one in the index.
type Download struct {
	// Metadata is the metadata file of a split image, and the whole of a unified one.
	Metadata *FileReader

	// Rootfs is the root filesystem of a split image, and nil for a unified one. It is to be read after Metadata, which
	// has to be read to its end.
	Rootfs *FileReader

	// Size is the sum of the files' sizes in bytes, or -1 if neither the index nor the server tells.
	Size int64

	fingerprint string
	combined    hash.Hash
	done        int64
	progress    func(done, total int64)
	cancel      context.CancelFunc
}

// Open begins to download an image. The request for the first file is made at once, the one for the root filesystem when
// it is first read. The context covers the whole download. The result has to be closed.
//
// A file is hashed while it is read. Its last Read returns io.EOF only if the hash in the index fits and, for the last
// file, if the fingerprint fits too; else it returns a *HashError. A download that is cut or stalls goes on where it was,
// with a Range request, as long as new bytes come: see [Options.Retries].
func (c *Client) Open(ctx context.Context, image *Image, options *DownloadOptions) (*Download, error) {
	if image == nil || len(image.Files) < 1 || len(image.Files) > 2 {
		return nil, errors.New("simplestreams: an image has one or two files")
	}
	if !isHash(image.Fingerprint) {
		return nil, fmt.Errorf("simplestreams: fingerprint: %q is not a SHA-256 hash in lower case", image.Fingerprint)
	}
	for _, file := range image.Files {
		if err := checkPath(file.Path); err != nil {
			return nil, c.fileError(file.Path, invalidf("%w", err))
		}
		if file.SHA256 != "" && !isHash(file.SHA256) {
			return nil, c.fileError(file.Path, invalidf("%q is not a SHA-256 hash in lower case", file.SHA256))
		}
		if file.Size < 0 {
			return nil, c.fileError(file.Path, invalidf("the size is %d", file.Size))
		}
	}

	ctx, cancel := context.WithCancel(ctx)
	d := &Download{fingerprint: image.Fingerprint, combined: sha256.New(), cancel: cancel}
	if options != nil {
		d.progress = options.Progress
	}
	d.Metadata = c.reader(ctx, d, image.Files[0], image.Split())
	if err := d.Metadata.connect(); err != nil {
		cancel()
		return nil, err
	}
	d.Size = d.Metadata.size
	if image.Split() {
		d.Rootfs = c.reader(ctx, d, image.Files[1], true)
		if d.Rootfs.size < 0 {
			if err := d.Rootfs.learnSize(); err != nil {
				_ = d.Close()
				return nil, err
			}
		}
		if d.Size >= 0 && d.Rootfs.size >= 0 {
			d.Size += d.Rootfs.size
		} else {
			d.Size = -1
		}
	}

	return d, nil
}

// Close ends the download, a Read that is under way too. Closing early is no error.
func (d *Download) Close() error {
	d.cancel()
	for _, r := range []*FileReader{d.Metadata, d.Rootfs} {
		// A Read that holds the lock meets the end of the context; so may one whose Progress calls Close.
		if r != nil && r.mu.TryLock() {
			r.close()
			r.mu.Unlock()
		}
	}

	return nil
}

// last reports whether the image ends with the file.
func (d *Download) last(r *FileReader) bool { return d.Rootfs == nil || r == d.Rootfs }

// FileReader reads one file of an image.
type FileReader struct {
	// File is the file's description in the index.
	File File

	client   *Client
	ctx      context.Context
	download *Download
	size     int64 // -1 if not known

	mu     sync.Mutex // guards what follows against Close
	offset int64

	hash    hash.Hash
	hashing hashing

	response  *answer
	etag      string
	modified  string
	attempts  int // without a new byte
	reconnect int // in all
	cut       error
	err       error
}

// maxReconnects bounds how often one file is asked for, whatever comes in between.
const maxReconnects = 100

func (c *Client) reader(ctx context.Context, d *Download, file File, split bool) *FileReader {
	r := &FileReader{File: file, client: c, ctx: ctx, download: d, size: file.Size, hash: sha256.New()}
	if file.Size == 0 {
		r.size = -1
	}
	r.hashing.hashes = []hash.Hash{d.combined}
	switch {
	case !split:
		r.hash = d.combined
	case file.SHA256 != "":
		r.hashing.hashes = append(r.hashing.hashes, r.hash)
	}

	return r
}

// Name returns the last part of the file's path, such as "rootfs.squashfs". It comes from the server.
func (r *FileReader) Name() string { return r.File.Path[strings.LastIndexByte(r.File.Path, '/')+1:] }

// Size returns the file's length in bytes, or -1 if neither the index nor the server tells.
func (r *FileReader) Size() int64 { return r.size }

// Read reads the next bytes of the file. After an error it returns the same error again.
func (r *FileReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	if r == r.download.Rootfs && !errors.Is(r.download.Metadata.err, io.EOF) {
		return 0, errors.New("simplestreams: the root filesystem comes after the metadata, which has not been read to its end")
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := ctxerr.Of(r.ctx); err != nil {
		return 0, r.fail(r.client.fileError(r.File.Path, err))
	}

	for {
		if r.response == nil {
			if err := r.connect(); err != nil {
				return 0, r.fail(err)
			}
		}
		n, err := r.response.body.Read(p)
		if n > 0 {
			if err := r.take(p[:n]); err != nil {
				return 0, r.fail(err)
			}
		}
		switch {
		case err == io.EOF && (r.size < 0 || r.offset == r.size):
			r.close()
			return n, r.fail(r.verify())
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
			fallthrough
		case err != nil:
			r.close()
			r.cut = r.client.fileError(r.File.Path, fmt.Errorf("%w after %d bytes", err, r.offset))
			if r.ctx.Err() != nil {
				return n, r.fail(r.cut)
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// fail makes the error the last one of this reader.
func (r *FileReader) fail(err error) error {
	r.close()
	r.err = err

	return err
}

func (r *FileReader) close() {
	if r.response != nil {
		_ = r.response.body.Close()
		r.response = nil
	}
}

// take accounts for new bytes.
func (r *FileReader) take(p []byte) error {
	if r.size >= 0 && r.offset+int64(len(p)) > r.size {
		return r.client.fileError(r.File.Path, invalidf("the file is longer than its %d bytes", r.size))
	}
	r.offset += int64(len(p))
	r.attempts = 0
	_, _ = r.hashing.Write(p)
	r.download.done += int64(len(p))
	if r.download.progress != nil {
		r.download.progress(r.download.done, r.download.Size)
	}

	return nil
}

// verify returns io.EOF if the file, and with the last file the image, is what the index says.
func (r *FileReader) verify() error {
	r.hashing.finish()
	url := r.client.told(r.File.Path)
	if r.File.SHA256 != "" {
		if sum := hex.EncodeToString(r.hash.Sum(nil)); sum != r.File.SHA256 {
			return &HashError{File: url, Expected: r.File.SHA256, Actual: sum}
		}
	}
	if !r.download.last(r) {
		return io.EOF
	}
	if sum := hex.EncodeToString(r.download.combined.Sum(nil)); sum != r.download.fingerprint {
		if r.download.Rootfs != nil {
			url = r.client.told(r.download.Metadata.File.Path) + " followed by " + url
		}
		return &HashError{File: url, Expected: r.download.fingerprint, Actual: sum}
	}

	return io.EOF
}

// connect asks for the rest of the file, as often as the options allow.
func (r *FileReader) connect() error {
	for {
		err := r.cut
		r.cut = nil
		if err == nil {
			if err = r.connectOnce(); err == nil {
				return nil
			}
		}
		if !mayRetry(err) || r.attempts >= r.client.options.Retries || r.reconnect >= maxReconnects {
			return err
		}
		if pause := r.client.pause(r.ctx, r.attempts, err); pause != nil {
			return r.client.fileError(r.File.Path, pause)
		}
		r.attempts++
		r.reconnect++
	}
}

func (r *FileReader) connectOnce() error {
	header := http.Header{"Accept-Encoding": {"identity"}}
	if r.offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", r.offset))
		switch {
		case r.etag != "" && !strings.HasPrefix(r.etag, "W/"):
			header.Set("If-Range", r.etag)
		case r.modified != "":
			header.Set("If-Range", r.modified)
		}
	}
	response, err := r.client.request(r.ctx, http.MethodGet, r.File.Path, header)
	if err != nil {
		return err
	}
	if err := r.accept(response); err != nil {
		_ = response.body.Close()
		return err
	}
	r.response = response

	return nil
}

// accept checks that a response is the rest of the file, or skips what of it is already here.
func (r *FileReader) accept(response *answer) error {
	etag, modified := response.Header.Get("ETag"), response.Header.Get("Last-Modified")
	if r.offset > 0 && (etag != r.etag || modified != r.modified) {
		return r.client.fileError(r.File.Path, invalidf("the file was replaced while it was downloaded"))
	}
	r.etag, r.modified = etag, modified

	switch {
	case response.StatusCode == http.StatusPartialContent && r.offset > 0:
		var from, to int64
		content := response.Header.Get("Content-Range")
		if n, _ := fmt.Sscanf(content, "bytes %d-%d/", &from, &to); n != 2 || from != r.offset {
			return r.client.fileError(r.File.Path, invalidf("asked for the bytes from %d on and got %q", r.offset, content))
		}

		return nil
	case response.StatusCode != http.StatusOK:
		return &Error{URL: r.client.told(r.File.Path), StatusCode: response.StatusCode, Err: invalidf("want status 200")}
	}

	if response.ContentLength >= 0 {
		if r.size >= 0 && r.size != response.ContentLength {
			return r.client.fileError(r.File.Path, invalidf("the server has %d bytes, the index says %d", response.ContentLength, r.size))
		}
		r.size = response.ContentLength
	}
	// A server without ranges sends all of it again. The hash at the end covers what comes from both answers.
	if _, err := io.CopyN(io.Discard, response.body, r.offset); err != nil {
		return r.client.fileError(r.File.Path, fmt.Errorf("%w while skipping the first %d bytes", noEOF(err), r.offset))
	}

	return nil
}

// learnSize asks the server for the length of a file for which the index has none.
func (r *FileReader) learnSize() error {
	response, err := r.client.requestRetrying(r.ctx, http.MethodHead, r.File.Path, http.Header{"Accept-Encoding": {"identity"}})
	if err != nil {
		return err
	}
	r.size = response.ContentLength

	return response.body.Close()
}

// isHash reports whether text is a SHA-256 hash in lower-case hexadecimal.
func isHash(text string) bool {
	return len(text) == hex.EncodedLen(sha256.Size) && strings.Trim(text, "0123456789abcdef") == ""
}
