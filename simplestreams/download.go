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
	"github.com/golxd/lxd/internal/rangeread"
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
// with a Range request, and is retried for [Options.RetryTimeout] without progress: a response that brings less than 4 KiB
// is none.
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
	if err := d.Metadata.start(); err != nil {
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

// Close ends the download, and a Read that is under way in another goroutine, with [context.Canceled]. Progress may call
// it. Closing early is no error.
func (d *Download) Close() error {
	d.cancel()
	for _, r := range []*FileReader{d.Metadata, d.Rootfs} {
		if r != nil {
			r.close()
		}
	}

	return nil
}

// last reports whether the image ends with the file.
func (d *Download) last(r *FileReader) bool { return d.Rootfs == nil || r == d.Rootfs }

// FileReader reads one file of an image. It is for one goroutine at a time.
type FileReader struct {
	// File is the file's description in the index.
	File File

	client   *Client
	ctx      context.Context
	download *Download
	size     int64 // -1 if not known

	mu     sync.Mutex        // guards source against Close
	source *rangeread.Reader // nil before the first request

	hash    hash.Hash
	hashing hashing
	err     error
}

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
	if r.source == nil {
		if err := r.start(); err != nil {
			return 0, r.fail(err)
		}
	}

	n, err := r.source.Read(p)
	r.take(p[:n])
	if err == nil && r.source.Offset() == r.source.Size() {
		// What was found out comes with the last bytes: who knows the size may read no further.
		_, err = r.source.Read(make([]byte, 1))
	}
	switch {
	case err == io.EOF:
		return n, r.fail(r.verify())
	case err != nil:
		return n, r.fail(r.failure(err))
	}

	return n, nil
}

// fail makes the error the last one of this reader.
func (r *FileReader) fail(err error) error {
	r.close()
	r.err = err

	return err
}

func (r *FileReader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.source != nil {
		_ = r.source.Close()
	}
}

// take accounts for new bytes.
func (r *FileReader) take(p []byte) {
	if len(p) == 0 {
		return
	}
	_, _ = r.hashing.Write(p)
	r.download.done += int64(len(p))
	if r.download.progress != nil {
		r.download.progress(r.download.done, r.download.Size)
	}
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

// start asks for the file.
func (r *FileReader) start() error {
	source, err := rangeread.Start(r.ctx, rangeread.Options{
		Open: r.open, Size: r.size, Verified: true, ReadOver: true,
		Retry: r.client.policy(), StallTimeout: r.client.options.StallTimeout,
		Broken: func(offset int64, err error) error { return fmt.Errorf("%w after %d bytes", err, offset) },
		Retrying: func(_ int64, err error) {
			r.client.logRetry(r.ctx, r.File.Path, err)
		},
	})
	if err != nil {
		return r.failure(err)
	}
	r.size = source.Size()
	r.mu.Lock()
	r.source = source
	r.mu.Unlock()
	if r.ctx.Err() != nil {
		// A Close that came before has not seen the source.
		r.close()
	}

	return nil
}

// open sends one request for the file or, as the header says, for the rest of it.
func (r *FileReader) open(ctx context.Context, header http.Header) (*http.Response, error) {
	if header == nil {
		header = http.Header{}
	}
	header.Set("Accept-Encoding", "identity")
	response, err := r.client.send(ctx, http.MethodGet, r.File.Path, header)
	if err != nil {
		return nil, err
	}
	switch whole := response.StatusCode == http.StatusOK; {
	case !whole && response.StatusCode != http.StatusPartialContent:
		err = &Error{URL: r.client.told(r.File.Path), StatusCode: response.StatusCode, Err: invalidf("want status 200")}
	case whole && r.File.Size > 0 && response.ContentLength >= 0 && response.ContentLength != r.File.Size:
		err = r.client.fileError(r.File.Path, invalidf("the server has %d bytes, the index says %d", response.ContentLength, r.File.Size))
	}
	if err != nil {
		_ = response.Body.Close()
		return nil, err
	}

	return response, nil
}

// failure returns the error of this package for one of the source.
func (r *FileReader) failure(err error) error {
	switch {
	case errors.Is(err, rangeread.ErrClosed):
		err = ctxerr.Of(r.ctx)
	case errors.Is(err, rangeread.ErrChanged), errors.Is(err, rangeread.ErrRange):
		err = invalidf("%w", err)
	}

	return r.client.errorOf(r.File.Path, err)
}

// learnSize asks the server for the length of a file for which the index has none. Where HEAD is refused, or tells no
// length, GET decides.
func (r *FileReader) learnSize() error {
	return r.client.retry(r.ctx, r.File.Path, func() error {
		response, err := r.client.request(r.ctx, http.MethodHead, r.File.Path, http.Header{"Accept-Encoding": {"identity"}})
		if err != nil {
			var failed *Error
			if errors.As(err, &failed) && failed.StatusCode != 0 && !failed.Transient() && !errors.Is(err, ErrNotFound) {
				return nil
			}
			return err
		}
		if response.StatusCode == http.StatusOK && response.ContentLength > 0 {
			r.size = response.ContentLength
		}

		return response.Body.Close()
	})
}

// isHash reports whether text is a SHA-256 hash in lower-case hexadecimal.
func isHash(text string) bool {
	return len(text) == hex.EncodedLen(sha256.Size) && strings.Trim(text, "0123456789abcdef") == ""
}
