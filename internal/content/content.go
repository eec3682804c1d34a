// Package content holds what an upload sends: one reader, or a multipart form
// of two, and knows its length, whether it can be sent again, and how to hash
// it beside the sending.
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

// ErrOneShot says that a content whose reader cannot be rewound was opened a
// second time.
var ErrOneShot = errors.New("reader cannot be rewound")

// ErrChanged says that a file had another length at the end of the sending than
// at its beginning, or that a reader holds more than its stated size.
var ErrChanged = errors.New("content has another length than expected")

// Source is one reader of the caller.
type Source struct {
	r      io.Reader
	file   *os.File // set where r is a regular file
	at     io.ReaderAt
	seeker io.Seeker
	start  int64
	size   int64       // -1 where unknown
	used   atomic.Bool // a reader that cannot be rewound was, or may be, read

	// reading is held while r is read or rewound: a sending that failed may be
	// in a Read when the next one begins.
	reading chan struct{}
}

// NewSource looks at what r can do. Reading begins where r stands now. size is
// the number of bytes if the caller knows it, or -1; it is ignored where r
// tells it itself.
func NewSource(r io.Reader, size int64) (*Source, error) {
	s := &Source{r: r, size: size, reading: make(chan struct{}, 1)}
	seeker, ok := r.(io.Seeker)
	if !ok {
		return s, nil
	}
	start, err := seeker.Seek(0, io.SeekCurrent)
	if err != nil {
		// A pipe is an *os.File too, but cannot seek.
		return s, nil //nolint:nilerr // it is read like any other reader
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

// Size is the number of bytes, or -1 where unknown.
func (s *Source) Size() int64 { return s.size }

// Replayable says whether the source can be read more than once.
func (s *Source) Replayable() bool { return s.seeker != nil }

// rewind makes the source ready to be read (again).
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

// unchanged errors where a file no longer has the length it began with.
func (s *Source) unchanged() error {
	if s.file == nil {
		return nil
	}
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	if now := info.Size() - s.start; now != s.size {
		return fmt.Errorf("%s: %w: it had %d bytes, now %d", s.file.Name(), ErrChanged, s.size, now)
	}
	return nil
}

// Content is the body of an upload.
type Content struct {
	Type  string // the media type
	parts []part
}

// part is either literal bytes or a source.
type part struct {
	literal []byte
	source  *Source
}

// Unified is the content of an image in one file.
func Unified(s *Source) *Content {
	return &Content{Type: "application/octet-stream", parts: []part{{source: s}}}
}

// Split is the content of an image in two files.
func Split(metadata *Source, metadataName string, rootfs *Source, rootfsField, rootfsName string) (*Content, error) {
	var head strings.Builder
	form := multipart.NewWriter(&head)
	if err := form.SetBoundary(rand.Text() + rand.Text()); err != nil {
		return nil, err
	}
	c := &Content{Type: form.FormDataContentType()}
	cut := func() {
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
		cut()
		c.parts = append(c.parts, part{source: f.source})
	}
	if err := form.Close(); err != nil {
		return nil, err
	}
	cut()
	return c, nil
}

// Size is the number of bytes in all, or -1 where unknown.
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

// SourceSize is the number of bytes of the sources alone, or -1 where unknown.
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

// Replayable says whether the content can be opened more than once.
func (c *Content) Replayable() bool {
	for _, p := range c.parts {
		if p.source != nil && !p.source.Replayable() {
			return false
		}
	}
	return true
}

// Used says whether a reader that cannot be rewound was read from. After the
// Close of every [Body] the answer is final.
func (c *Content) Used() bool {
	for _, p := range c.parts {
		if p.source != nil && p.source.used.Load() {
			return true
		}
	}
	return false
}

// HashAhead hashes the sources one after another without sending anything.
// They must be replayable. Soon after ctx has ended it returns, also if a Read
// blocks: that is then the last, and comes to its end with the reader.
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
