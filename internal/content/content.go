// Package content provides the content of an upload: one reader, or a multipart
// form of two. It determines the length and whether it can be sent again, and
// can hash it while it is sent.
package content

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime/multipart"
	"net/textproto"
	"os"
	"strings"
	"sync/atomic"

	"github.com/golxd/lxd/internal/ctxerr"
)

// ErrOneShot is returned by opening a content for the second time if its reader
// cannot be rewound.
var ErrOneShot = errors.New("reader cannot be rewound")

// ErrChanged is returned if the length of a file changes while it is sent, or if
// a reader has more bytes than its given size.
var ErrChanged = errors.New("content has an unexpected length")

// Source is a reader of the caller.
type Source struct {
	r      io.Reader
	file   *os.File // r if it is a regular file, else nil
	at     io.ReaderAt
	seeker io.Seeker
	start  int64
	size   int64       // -1 if unknown
	used   atomic.Bool // a Read was called or is about to be; meaningful if r cannot be rewound

	// reading is a semaphore for reading and rewinding r: a failed attempt may
	// still be in a Read when the next one starts.
	reading chan struct{}
}

// NewSource returns a source that reads r from its current offset. size is the
// number of bytes, or -1 if it is unknown; it is ignored if r can seek.
func NewSource(r io.Reader, size int64) (*Source, error) {
	s := &Source{r: r, size: size, reading: make(chan struct{}, 1)}
	seeker, ok := r.(io.Seeker)
	if !ok {
		return s, nil
	}
	start, err := seeker.Seek(0, io.SeekCurrent)
	if err != nil {
		// A pipe is an *os.File too, but cannot seek.
		return s, nil //nolint:nilerr // it is read like a reader that cannot seek
	}
	end, err := seeker.Seek(0, io.SeekEnd)
	if err != nil {
		return s, nil //nolint:nilerr // as above
	}
	if _, err := seeker.Seek(start, io.SeekStart); err != nil {
		return nil, fmt.Errorf("rewind the reader: %w", err)
	}
	s.seeker, s.start, s.size = seeker, start, max(end-start, 0)
	s.at, _ = r.(io.ReaderAt)
	if f, ok := r.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			s.file = f
		}
	}
	return s, nil
}

// Size returns the number of bytes, or -1 if it is unknown.
func (s *Source) Size() int64 { return s.size }

// Replayable reports whether the source can be read more than once.
func (s *Source) Replayable() bool { return s.seeker != nil }

// rewind prepares the source for reading from its start.
func (s *Source) rewind(ctx context.Context) error {
	if s.seeker == nil {
		if s.used.Load() {
			return ErrOneShot
		}
		return nil
	}
	if s.at != nil {
		return nil // read by offset
	}
	select {
	case s.reading <- struct{}{}:
	case <-ctx.Done():
		return ctxerr.Of(ctx)
	}
	defer func() { <-s.reading }()
	_, err := s.seeker.Seek(s.start, io.SeekStart)
	return err
}

// Peek returns the first bytes of the source, at most n, which are read again later.
// Of a source that cannot be rewound it returns what one Read returns. The error is
// io.EOF if the source is empty, and otherwise that of ctx: an error of the reader is
// returned by a later read. If ctx ends while a Read blocks, that Read is the last one.
func (s *Source) Peek(ctx context.Context, n int) ([]byte, error) {
	if s.size == 0 {
		return nil, io.EOF
	}
	return s.peekWith(ctx, func() ([]byte, error) { return s.peek(n) })
}

// PeekEnd returns the last bytes of the source, at most n. It returns none if the source
// cannot be rewound or they cannot be read. The error is that of ctx.
func (s *Source) PeekEnd(ctx context.Context, n int) ([]byte, error) {
	if s.seeker == nil {
		return nil, nil
	}
	n = int(min(int64(n), s.size))
	end, err := s.peekWith(ctx, func() ([]byte, error) { return s.peekAt(s.size-int64(n), n), nil })
	if len(end) < n {
		return nil, err
	}
	return end, err
}

// peekWith calls peek while nothing else reads the source.
func (s *Source) peekWith(ctx context.Context, peek func() ([]byte, error)) ([]byte, error) {
	select {
	case s.reading <- struct{}{}:
	case <-ctx.Done():
		return nil, ctxerr.Of(ctx)
	}
	var peeked []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { <-s.reading }()
		peeked, err = peek()
	}()
	if !await(ctx, done) {
		return nil, ctxerr.Of(ctx)
	}
	return peeked, err
}

// peekAt reads at an offset of a source that can be rewound, and leaves the source at its
// start. An error of the reader is returned by a later read.
func (s *Source) peekAt(offset int64, n int) []byte {
	peeked := make([]byte, n)
	if s.at != nil {
		n, _ = s.at.ReadAt(peeked, s.start+offset)
		return peeked[:n]
	}
	if _, err := s.seeker.Seek(s.start+offset, io.SeekStart); err != nil {
		return nil
	}
	n, _ = io.ReadFull(s.r, peeked)
	_, _ = s.seeker.Seek(s.start, io.SeekStart)
	return peeked[:n]
}

func (s *Source) peek(n int) ([]byte, error) {
	if s.size >= 0 {
		n = int(min(int64(n), s.size))
	}
	if s.seeker != nil {
		return s.peekAt(0, n), nil
	}
	start := make([]byte, n)
	if n == int(s.size) {
		start = start[:n-1] // the last byte shows whether there are more than size
	}
	var err error
	for n = 0; n == 0 && err == nil && len(start) > 0; {
		n, err = s.r.Read(start)
	}
	start = start[:n]
	s.r = &peeked{start, err, s.r}
	if n == 0 && s.size < 0 && err == io.EOF {
		return nil, io.EOF
	}
	return start, nil
}

// peeked is a reader whose start was read.
type peeked struct {
	start []byte
	err   error // returned with the end of start; nil if r has more
	r     io.Reader
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.start) == 0 && p.err == nil {
		return p.r.Read(b)
	}
	n := copy(b, p.start)
	if p.start = p.start[n:]; len(p.start) > 0 {
		return n, nil
	}
	return n, p.err
}

// checkUnchanged returns ErrChanged if the length of the file has changed.
func (s *Source) checkUnchanged() error {
	if s.file == nil {
		return nil
	}
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	if now := info.Size() - s.start; now != s.size {
		return fmt.Errorf("%s: %w: the size changed from %d to %d bytes", s.file.Name(), ErrChanged, s.size, now)
	}
	return nil
}

// Content is the content of an upload.
type Content struct {
	Type  string // the media type
	parts []part
}

// part is either literal bytes or a source.
type part struct {
	literal []byte
	source  *Source
}

// Unified returns the content of an image in one file.
func Unified(s *Source) *Content {
	return &Content{Type: "application/octet-stream", parts: []part{{source: s}}}
}

// Split returns the content of an image in two files: a multipart form.
func Split(metadata *Source, metadataName string, rootfs *Source, rootfsField, rootfsName string) (*Content, error) {
	var head strings.Builder
	form := multipart.NewWriter(&head)
	if err := form.SetBoundary(rand.Text() + rand.Text()); err != nil {
		return nil, err
	}
	c := &Content{Type: form.FormDataContentType()}
	flushLiteral := func() {
		c.parts = append(c.parts, part{literal: []byte(head.String())})
		head.Reset()
	}
	for _, f := range []struct {
		field, name string
		source      *Source
	}{{"metadata", metadataName, metadata}, {rootfsField, rootfsName, rootfs}} {
		header := textproto.MIMEHeader{}
		header.Set("Content-Disposition", multipart.FileContentDisposition(f.field, f.name))
		header.Set("Content-Type", "application/octet-stream")
		if _, err := form.CreatePart(header); err != nil {
			return nil, err
		}
		flushLiteral()
		c.parts = append(c.parts, part{source: f.source})
	}
	if err := form.Close(); err != nil {
		return nil, err
	}
	flushLiteral()
	return c, nil
}

// Size returns the total number of bytes, or -1 if it is unknown.
func (c *Content) Size() int64 {
	n := c.SourceSize()
	if n < 0 {
		return -1
	}
	for _, p := range c.parts {
		n += int64(len(p.literal))
	}
	return n
}

// SourceSize returns the number of bytes of the sources alone, or -1 if it is
// unknown.
func (c *Content) SourceSize() int64 {
	var n int64
	for _, p := range c.parts {
		switch {
		case p.source == nil:
		case p.source.size < 0:
			return -1
		default:
			n += p.source.size
		}
	}
	return n
}

// Replayable reports whether the content can be opened more than once.
func (c *Content) Replayable() bool {
	for _, p := range c.parts {
		if p.source != nil && !p.source.Replayable() {
			return false
		}
	}
	return true
}

// Used reports whether a reader that cannot be rewound was read from. Once every
// [Body] is closed, the result does not change any more.
func (c *Content) Used() bool {
	for _, p := range c.parts {
		if p.source != nil && p.source.used.Load() {
			return true
		}
	}
	return false
}

// HashAhead hashes the sources in order without sending them. They must be
// replayable. It returns soon after ctx has ended, even if a Read blocks; that
// Read is then the last one and ends whenever the reader does.
func (c *Content) HashAhead(ctx context.Context, count func(int)) (string, error) {
	var sum string
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		sum, err = c.hashAhead(ctx, count)
	}()
	if !await(ctx, done) {
		return "", ctxerr.Of(ctx)
	}
	return sum, err
}

func (c *Content) hashAhead(ctx context.Context, count func(int)) (string, error) {
	sum := sha256.New()
	for _, p := range c.parts {
		if p.source == nil {
			continue
		}
		if err := hashSource(ctx, sum, p.source, count); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func hashSource(ctx context.Context, sum hash.Hash, s *Source, count func(int)) error {
	if err := s.rewind(ctx); err != nil {
		return err
	}
	var r io.Reader = s.r
	if s.at != nil {
		r = io.NewSectionReader(s.at, s.start, s.size)
	}
	block := make([]byte, 256<<10)
	var n int64
	for {
		if err := ctxerr.Of(ctx); err != nil {
			return err
		}
		s.reading <- struct{}{}
		got, err := r.Read(block)
		<-s.reading
		sum.Write(block[:got])
		n += int64(got)
		if count != nil {
			count(got)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if s.size >= 0 && n != s.size {
		return fmt.Errorf("read %d of %d bytes: %w", n, s.size, io.ErrUnexpectedEOF)
	}
	return nil
}
