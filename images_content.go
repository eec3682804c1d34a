package lxd

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// ContentOptions has no options yet.
type ContentOptions struct{}

// Content is the content of a unified image as an [io.ReadSeekCloser], such as
// [http.ServeContent] needs to serve it with ranges. The image is read from the
// server at the offset of the next Read; if the connection breaks, the reading
// resumes, as that of [Export] does.
//
// A reading from the beginning is verified like that of an Export: the end of the
// content is held back until all has arrived and has the image's fingerprint. A
// reading from another offset cannot be verified, as the fingerprint is that of the
// whole. An image's content never changes, so its fingerprint is a strong ETag.
//
// A Content must be closed. Close may be called at any time and from any goroutine;
// the other methods are not safe for concurrent use.
type Content struct {
	image  *Image
	ctx    context.Context //nolint:containedctx // of the readings
	cancel context.CancelFunc
	size   int64
	offset int64

	mu     sync.Mutex    // guards the fields below, as Close may be called concurrently
	stream io.ReadCloser // at offset; nil until a Read needs it
	closed bool
}

// Content returns the content of a unified image, for reading at any offset until
// ctx ends. It asks the server for the first byte. If the image is split, the error
// matches [ErrUnsupported]: the servers send its two files in one response, without
// ranges; use Export. From a server that ignores ranges (a proxy may be one), what
// comes before the offset is received and dropped.
func (i *Image) Content(ctx context.Context, _ *ContentOptions) (*Content, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := i.check(); err != nil {
		return nil, err
	}
	first, err := i.content(ctx, 0, 1, true)
	if err != nil {
		return nil, err
	}
	defer func() { _ = first.Close() }()
	split, _, err := first.form()
	if err != nil {
		return nil, err
	}
	size := first.Size()
	switch {
	case split:
		return nil, fmt.Errorf("read image %s at an offset: it is two files: %w; use Image.Export", i.Fingerprint, ErrUnsupported)
	case size < 0:
		return nil, fmt.Errorf("read image %s at an offset: %w: its length is unknown; use Image.Export", i.Fingerprint, ErrUnsupported)
	}
	if first.Status() == http.StatusPartialContent {
		_, _ = io.Copy(io.Discard, first) // so that the connection can be used again
	}
	ctx, cancel := context.WithCancel(ctx)
	return &Content{image: i, ctx: ctx, cancel: cancel, size: size}, nil
}

// Size returns the length of the content in bytes.
func (c *Content) Size() int64 {
	if c == nil {
		return 0
	}
	return c.size
}

// Read reads at the current offset.
func (c *Content) Read(p []byte) (int, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	stream, err := c.open()
	if err != nil || len(p) == 0 {
		return 0, err
	}
	n, err := stream.Read(p)
	c.offset += int64(n)
	if err != nil && err != io.EOF {
		if c.isClosed() {
			return n, c.errClosed()
		}
		err = c.image.contentError(c.ctx, err)
	}
	return n, err
}

// open returns the stream at the current offset.
func (c *Content) open() (io.Reader, error) {
	c.mu.Lock()
	stream, closed := c.stream, c.closed
	c.mu.Unlock()
	switch {
	case closed:
		return nil, c.errClosed()
	case stream != nil:
		return stream, nil
	case c.offset >= c.size:
		return nil, io.EOF
	}
	var err error
	if c.offset == 0 {
		stream, err = c.image.Export(c.ctx, nil)
	} else {
		stream, err = c.image.content(c.ctx, c.offset, 0, true)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		if err == nil {
			_ = stream.Close()
		}
		return nil, c.errClosed()
	case err != nil:
		return nil, err
	}
	c.stream = stream
	return stream, nil
}

// Seek sets the offset of the next Read, as [io.Seeker] says. It sends nothing.
func (c *Content) Seek(offset int64, whence int) (int64, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += c.offset
	case io.SeekEnd:
		offset += c.size
	default:
		return 0, invalid("whence", "is %d, not io.SeekStart, io.SeekCurrent or io.SeekEnd", whence)
	}
	if offset < 0 {
		return 0, invalid("offset", "is before the beginning of the content")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, c.errClosed()
	}
	if offset != c.offset && c.stream != nil {
		_ = c.stream.Close()
		c.stream = nil
	}
	c.offset = offset
	return offset, nil
}

// Close ends the reading. A Read in another goroutine returns soon; it and all later
// calls return an error that wraps [net.ErrClosed]. It may be called more than once.
func (c *Content) Close() error {
	if err := c.check(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.cancel()
	if c.stream != nil {
		_ = c.stream.Close()
	}
	return nil
}

// check returns an error if the content does not come from an image.
func (c *Content) check() error {
	if c == nil || c.image == nil {
		return invalid("content", "does not come from Image.Content")
	}
	return nil
}

func (c *Content) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// errClosed is the error of the methods after Close.
func (c *Content) errClosed() error {
	return fmt.Errorf("content of image %s: %w", c.image.Fingerprint, net.ErrClosed)
}
