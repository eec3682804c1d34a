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

// DownloadOptions configure a download.
type DownloadOptions struct {
	// Progress is called after each read, by the reading goroutine, with the bytes of the image read so far and its total
	// size (-1 if neither the index nor the server has it). It may be nil.
	Progress func(done, total int64)
}

// Download is a download of an image. Its readers return the content of each file as it arrives, and an error instead of
// io.EOF if the file does not match the index.
type Download struct {
	// Metadata is the metadata file of a split image, or the one file of a unified image.
	Metadata *FileReader

	// Rootfs is the root filesystem of a split image, and nil for a unified one. It can be read only after Metadata has
	// been read to its end.
	Rootfs *FileReader

	// Size is the sum of the files' sizes in bytes, or -1 if neither the index nor the server has them.
	Size int64

	fingerprint string
	combined    hash.Hash
	done        int64
	progress    func(done, total int64)
	cancel      context.CancelFunc
}

// Open starts to download an image. It sends the request for the first file; the request for the root filesystem is sent
// when that is first read. The context applies to the whole download. The caller must close the Download.
//
// A file is hashed while it is read. Its last Read returns io.EOF only if the hash in the index matches and, for the
// last file, if the fingerprint matches too; else it returns a *HashError. A download that breaks or stalls resumes
// with a Range request, and is retried for [Options.RetryTimeout] without progress; only a response with at least 4 KiB
// is progress.
//
// If a file is missing, or another than the index says, the client revalidates the index when it is next used, whatever
// its age: the version may have been replaced. Resolve the image and open it again.
func (c *Client) Open(ctx context.Context, image *Image, options *DownloadOptions) (*Download, error) {
	var progress func(done, total int64)
	if options != nil {
		progress = options.Progress
	}
	d, err := c.newDownload(ctx, image, progress)
	if err != nil {
		return nil, err
	}
	err = d.Metadata.start()
	if err == nil && d.Rootfs != nil && d.Rootfs.size < 0 {
		err = d.Rootfs.learnSize()
	}
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	d.setSize()

	return d, nil
}

// newDownload checks the image and returns a download of it that has not sent anything. It must be closed.
func (c *Client) newDownload(ctx context.Context, image *Image, progress func(done, total int64)) (*Download, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	if image == nil || len(image.Files) < 1 || len(image.Files) > 2 {
		return nil, invalid("image.Files", "must be one or two files")
	}
	if !isHash(image.Fingerprint) {
		return nil, invalid("image.Fingerprint", "%.80q is not a SHA-256 hash in lower case", image.Fingerprint)
	}
	for _, file := range image.Files {
		if err := checkPath(file.Path); err != nil {
			return nil, c.fileError(file.Path, badDataf("%w", err))
		}
		if file.SHA256 != "" && !isHash(file.SHA256) {
			return nil, c.fileError(file.Path, badDataf("%q is not a SHA-256 hash in lower case", file.SHA256))
		}
		if file.Size < 0 {
			return nil, c.fileError(file.Path, badDataf("the size is %d", file.Size))
		}
	}

	ctx, cancel := context.WithCancel(ctx)
	d := &Download{fingerprint: image.Fingerprint, combined: sha256.New(), progress: progress, cancel: cancel}
	d.Metadata = c.reader(ctx, d, image.Files[0], image.Split())
	if image.Split() {
		d.Rootfs = c.reader(ctx, d, image.Files[1], true)
	}
	d.setSize()

	return d, nil
}

// setSize sets Size from the sizes of the files.
func (d *Download) setSize() {
	d.Size = d.Metadata.size
	switch {
	case d.Rootfs == nil:
	case d.Size < 0, d.Rootfs.size < 0:
		d.Size = -1
	default:
		d.Size += d.Rootfs.size
	}
}

// count adds n bytes to the progress and reports it.
func (d *Download) count(n int) {
	d.done += int64(n)
	if d.progress != nil {
		d.progress(d.done, d.Size)
	}
}

// Close ends the download; a Read in progress in another goroutine returns [context.Canceled]. It may be called before the
// end of the content, and by Progress. It returns nil.
func (d *Download) Close() error {
	if d == nil || d.cancel == nil {
		return invalid("download", "does not come from Client.Open")
	}
	d.cancel()
	for _, r := range d.files() {
		r.close()
	}

	return nil
}

// files returns the readers of the image's files in order.
func (d *Download) files() []*FileReader {
	if d.Rootfs == nil {
		return []*FileReader{d.Metadata}
	}

	return []*FileReader{d.Metadata, d.Rootfs}
}

// last reports whether the file is the image's last one.
func (d *Download) last(r *FileReader) bool { return d.Rootfs == nil || r == d.Rootfs }

// FileReader reads one file of an image. It is for one goroutine at a time.
type FileReader struct {
	// File is the file's description in the index.
	File File

	client   *Client
	ctx      context.Context
	download *Download
	size     int64 // -1 if not known
	from     int64 // the offset of the first byte to request; what is before it has been hashed

	mu     sync.Mutex        // guards source against Close
	source *rangeread.Reader // nil before the first request

	hash    hash.Hash
	hashing streamHash
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
func (r *FileReader) Name() string {
	if r == nil {
		return ""
	}

	return r.File.Path[strings.LastIndexByte(r.File.Path, '/')+1:]
}

// Size returns the file's length in bytes, or -1 if neither the index nor the server has it.
func (r *FileReader) Size() int64 {
	if r == nil {
		return -1
	}

	return r.size
}

// Read reads the next bytes of the file. After an error it returns the same error again.
func (r *FileReader) Read(p []byte) (int, error) {
	if r == nil || r.download == nil {
		return 0, invalid("file", "does not come from Client.Open")
	}
	if r.err != nil {
		return 0, r.err
	}
	if r == r.download.Rootfs && !errors.Is(r.download.Metadata.err, io.EOF) {
		return 0, errors.New("simplestreams: the metadata must be read to its end before the root filesystem")
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
		// Verify with the last bytes: a caller that knows the size may read no further.
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

// fail closes the source and makes err the result of all further reads.
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

// take hashes new bytes and reports the progress.
func (r *FileReader) take(p []byte) {
	if len(p) == 0 {
		return
	}
	_, _ = r.hashing.Write(p)
	r.download.count(len(p))
}

// verify returns io.EOF if the file, and after the last file the image, has the hash in the index.
func (r *FileReader) verify() error {
	r.hashing.finish()
	url := r.client.publicURL(r.File.Path)
	if r.File.SHA256 != "" {
		if sum := hex.EncodeToString(r.hash.Sum(nil)); sum != r.File.SHA256 {
			return r.doubt(&HashError{File: url, Expected: r.File.SHA256, Actual: sum})
		}
	}
	if !r.download.last(r) {
		return io.EOF
	}
	if sum := hex.EncodeToString(r.download.combined.Sum(nil)); sum != r.download.fingerprint {
		if r.download.Rootfs != nil {
			url = r.client.publicURL(r.download.Metadata.File.Path) + " followed by " + url
		}
		return r.doubt(&HashError{File: url, Expected: r.download.fingerprint, Actual: sum})
	}

	return io.EOF
}

// start sends the first request for the file.
func (r *FileReader) start() error {
	source, err := rangeread.Start(r.ctx, rangeread.Options{
		Open: r.open, From: r.from, Size: r.size, Verified: true, ReadOver: true,
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
		// A Close before this has not closed the source.
		r.close()
	}

	return nil
}

// open sends one request for the file, or for the part of it that the header asks for.
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
		err = &Error{URL: r.client.publicURL(r.File.Path), StatusCode: response.StatusCode, Err: badDataf("want status 200")}
	case whole && r.File.Size > 0 && response.ContentLength >= 0 && response.ContentLength != r.File.Size:
		err = r.client.fileError(r.File.Path, badDataf("the server has %d bytes, the index says %d", response.ContentLength, r.File.Size))
	}
	if err != nil {
		_ = response.Body.Close()
		return nil, err
	}

	return response, nil
}

// failure translates an error of the source to one of this package.
func (r *FileReader) failure(err error) error {
	switch {
	case errors.Is(err, rangeread.ErrClosed):
		err = ctxerr.Of(r.ctx)
	case errors.Is(err, rangeread.ErrChanged), errors.Is(err, rangeread.ErrRange):
		err = badDataf("%w", err)
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrBadData) {
		err = r.doubt(err)
	}

	return r.client.toFileError(r.File.Path, err)
}

// doubt makes the client revalidate the index, and returns err, which says that the file is not as in the index.
func (r *FileReader) doubt(err error) error {
	r.client.doubtful.Store(true)
	return err
}

// learnSize asks the server for the length of a file that has none in the index. If HEAD fails, or its response has no
// length, the size stays unknown until the GET, which decides. It returns an error only if the context has ended.
func (r *FileReader) learnSize() error {
	response, err := r.client.request(r.ctx, http.MethodHead, r.File.Path, http.Header{"Accept-Encoding": {"identity"}})
	if err != nil {
		if r.ctx.Err() != nil {
			return err
		}
		return nil
	}
	if response.StatusCode == http.StatusOK && response.ContentLength > 0 {
		r.size = response.ContentLength
	}

	return response.Body.Close()
}

// isHash reports whether text is a SHA-256 hash in lower-case hexadecimal.
func isHash(text string) bool {
	return len(text) == hex.EncodedLen(sha256.Size) && strings.Trim(text, "0123456789abcdef") == ""
}
