package content

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/netconn"
)

// Body is a request body that sends a [Content] once. net/http passes it
// unwrapped to the connection, which calls SendTo; Read and WriteTo do the same
// through user space.
type Body struct {
	content *Content
	sent    func(int)

	// sem is a semaphore for reading the sources and for sending them by the
	// connection, which may block. Close and Err, which other goroutines call,
	// do not wait for it; Finish does, limited by its context.
	sem      chan struct{}
	closed   atomic.Bool
	complete atomic.Bool // the content was read to its end

	part    int
	offset  int64 // within the part
	readErr error

	hasher   *hasher       // for data that passes through user space
	parallel *parallelHash // for data that does not
}

// Options are the options of Open.
type Options struct {
	Sent func(n int) // called with the number of bytes of every step, if not nil
	Hash bool        // compute the fingerprint
}

// Open returns a body that sends the content from its start. Content that is not
// replayable can be opened only once. The previous body must be closed; Open
// waits for a Read that it has not finished, until ctx ends.
func (c *Content) Open(ctx context.Context, opts Options) (*Body, error) {
	for _, p := range c.parts {
		if p.source != nil {
			if err := p.source.rewind(ctx); err != nil {
				return nil, err
			}
		}
	}
	b := &Body{content: c, sent: opts.Sent, sem: make(chan struct{}, 1)}
	if opts.Hash {
		if c.readableAt() {
			b.parallel = startParallelHash(c)
		} else {
			b.hasher = newHasher()
		}
	}
	return b, nil
}

func (c *Content) readableAt() bool {
	for _, p := range c.parts {
		if p.source != nil && p.source.at == nil {
			return false
		}
	}
	return true
}

// Fingerprint returns the SHA-256 of the sources in their order. It must be
// called after the whole body was sent. It waits, until ctx ends, for hashing to
// complete.
func (b *Body) Fingerprint(ctx context.Context) (string, error) {
	switch {
	case b.parallel != nil:
		return b.parallel.wait(ctx)
	case b.hasher != nil:
		if !b.complete.Load() {
			return "", errors.New("the body was not read to its end")
		}
		return b.hasher.sum(), nil
	}
	return "", errors.New("no hash was requested")
}

// Close prevents further reads of the sources. It does not close the caller's
// readers and does not wait for a Read in progress.
func (b *Body) Close() error {
	b.closed.Store(true)
	if b.tryLock() {
		b.unlock()
	}
	return nil
}

// Finish closes the body and waits for a Read in progress. It gives up soon after
// ctx has ended; a blocked Read is then the last one and ends whenever the reader
// does. Finish also waits for a write of the body to a connection, which must be
// able to end.
func (b *Body) Finish(ctx context.Context) {
	_ = b.Close()
	free := make(chan struct{})
	gaveUp := make(chan struct{})
	go func() {
		select {
		case b.sem <- struct{}{}:
			b.unlock()
			close(free)
		case <-gaveUp:
		}
	}()
	await(ctx, free)
	close(gaveUp)
}

// grace is how long to wait for a Read after the context has ended. Most end at
// once.
const grace = 100 * time.Millisecond

// await returns when done is closed, or soon after ctx has ended. It reports
// whether done was closed.
func await(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

func (b *Body) lock() { b.sem <- struct{}{} }

func (b *Body) tryLock() bool {
	select {
	case b.sem <- struct{}{}:
		return true
	default:
		return false
	}
}

// unlock releases sem. If the body was closed meanwhile, it stops the hasher too.
func (b *Body) unlock() {
	if b.part == len(b.content.parts) {
		b.complete.Store(true)
	}
	if b.hasher != nil && b.closed.Load() {
		b.hasher.stop()
	}
	<-b.sem
	// Close may have been called after the check above.
	if b.hasher != nil && b.closed.Load() && b.tryLock() {
		b.hasher.stop()
		<-b.sem
	}
}

// Discard finishes a body that was not sent completely, and stops hashing it.
func (b *Body) Discard(ctx context.Context) {
	b.Finish(ctx)
	if b.parallel != nil {
		b.parallel.cancel(ctx)
	}
}

// Err returns the error of the caller's reader that ended the transfer, or nil.
// net/http wraps that error in text of its own.
func (b *Body) Err() error {
	if !b.tryLock() {
		return nil // a Read is in progress, so none has failed
	}
	defer b.unlock()
	return b.readErr
}

var errClosed = errors.New("body is closed")

// Read reads through user space.
func (b *Body) Read(p []byte) (int, error) {
	b.lock()
	defer b.unlock()
	n, err := b.read(p)
	if n > 0 && b.sent != nil {
		b.sent(n)
	}
	return n, err
}

func (b *Body) read(p []byte) (int, error) {
	for {
		switch {
		case b.closed.Load():
			return 0, errClosed
		case b.readErr != nil:
			return 0, b.readErr
		case b.part == len(b.content.parts):
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		cur := b.content.parts[b.part]
		if cur.source == nil {
			n := copy(p, cur.literal[b.offset:])
			b.offset += int64(n)
			if b.offset == int64(len(cur.literal)) {
				b.next()
			}
			if n > 0 {
				return n, nil
			}
			continue
		}
		n, err := b.readSource(cur.source, p)
		if n > 0 && b.hasher != nil {
			b.hasher.write(p[:n])
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (b *Body) readSource(s *Source, p []byte) (n int, err error) {
	last := false
	if s.size >= 0 {
		rest := s.size - b.offset
		if rest == 0 {
			b.next() // the source is empty
			return 0, nil
		}
		if int64(len(p)) >= rest {
			p = p[:rest]
			if err := s.checkUnchanged(); err != nil {
				return 0, b.fail(err)
			}
			if last = s.seeker == nil && rest == 1; s.seeker == nil && rest > 1 {
				p = p[:rest-1]
			}
		}
	}
	switch {
	case s.at != nil:
		n, err = s.at.ReadAt(p, s.start+b.offset)
	case last:
		n, err = b.readLast(s, p)
	default:
		n, err = b.readOnce(s, p)
	}
	b.offset += int64(n)
	switch {
	case errors.Is(err, errClosed):
		return 0, err
	case err == io.EOF && s.size < 0:
		b.next()
		return n, nil
	case err == io.EOF && b.offset < s.size:
		return n, b.fail(fmt.Errorf("read %d of %d bytes: %w", b.offset, s.size, io.ErrUnexpectedEOF))
	case err != nil && err != io.EOF:
		return n, b.fail(err)
	}
	if b.offset == s.size {
		b.next()
	}
	return n, nil
}

// readOnce calls Read of the caller's reader once.
func (b *Body) readOnce(s *Source, p []byte) (int, error) {
	// Set before closed is checked, so that Used is final once the body is
	// closed.
	s.used.Store(true)
	s.reading <- struct{}{}
	defer func() { <-s.reading }()
	if b.closed.Load() {
		return 0, errClosed
	}
	return s.r.Read(p)
}

// readLast reads the last byte of a reader with a given size, into a buffer for
// two. If two bytes are read, the reader has more than its size, and the rest
// would be lost silently, so it fails without returning the last byte. It does
// not call Read again to look for more: on a connection that stays open that
// would block, and consume data that is not part of the image.
func (b *Body) readLast(s *Source, p []byte) (int, error) {
	var two [2]byte
	n, err := b.readOnce(s, two[:])
	if n > 1 {
		return 0, fmt.Errorf("%w: the reader has more than the given %d bytes", ErrChanged, s.size)
	}
	return copy(p, two[:n]), err
}

func (b *Body) next() { b.part, b.offset = b.part+1, 0 }

func (b *Body) fail(err error) error {
	b.readErr = err
	return err
}

// SendTo sends at most n bytes of the rest of the body, files by the connection's
// WriteFile.
func (b *Body) SendTo(w netconn.FileWriter, n int64) (done int64, err error) {
	for done < n {
		b.lock()
		closed, failed, at := b.closed.Load(), b.readErr, b.part
		b.unlock()
		switch {
		case closed:
			return done, errClosed
		case failed != nil:
			return done, failed
		case at == len(b.content.parts):
			return done, nil
		}
		cur := b.content.parts[at]
		var step int64
		if cur.source != nil && cur.source.file != nil && b.hasher == nil {
			step, err = b.sendFile(w, cur.source, n-done)
		} else {
			step, err = netconn.Copy(w, partReader{b, at}, n-done)
		}
		done += step
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// tailSize is the size of the end of a file that is sent only after the file's
// length was checked again, so that a server never gets a complete body of a file
// that changed.
const tailSize = 64 << 10

func (b *Body) sendFile(w netconn.FileWriter, s *Source, n int64) (int64, error) {
	b.lock()
	defer b.unlock()
	if b.closed.Load() {
		return 0, errClosed
	}
	rest := s.size - b.offset
	if rest > tailSize {
		rest -= tailSize
	} else if err := s.checkUnchanged(); err != nil {
		return 0, b.fail(err)
	}
	done, err := w.WriteFile(s.file, s.start+b.offset, min(rest, n), b.sent)
	b.offset += done
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		if changed := s.checkUnchanged(); changed != nil {
			err = changed
		}
		return done, b.fail(err)
	case err != nil:
		return done, err
	}
	if b.offset == s.size {
		b.next()
	}
	return done, nil
}

// partReader reads the rest of one part of a body.
type partReader struct {
	b    *Body
	part int
}

func (r partReader) Read(p []byte) (int, error) {
	r.b.lock()
	defer r.b.unlock()
	if r.b.part != r.part {
		return 0, io.EOF
	}
	n, err := r.b.read(p)
	if n > 0 && r.b.sent != nil {
		r.b.sent(n)
	}
	return n, err
}

// WriteTo sends the body in large blocks; net/http uses it if the length is
// unknown.
func (b *Body) WriteTo(w io.Writer) (int64, error) {
	return netconn.Copy(w, struct{ io.Reader }{b}, 1<<62)
}

// hasher hashes blocks in a separate goroutine, so that it does not delay a
// transfer that is slower than SHA-256.
type hasher struct {
	blocks chan []byte
	free   chan []byte
	done   chan struct{}
	hash   hash.Hash
	once   sync.Once
	cur    []byte
}

const (
	hashBlock  = 256 << 10
	hashBlocks = 4
)

func newHasher() *hasher {
	h := &hasher{
		blocks: make(chan []byte, hashBlocks), free: make(chan []byte, hashBlocks),
		done: make(chan struct{}), hash: sha256.New(),
	}
	for range hashBlocks {
		h.free <- nil
	}
	go func() {
		defer close(h.done)
		for b := range h.blocks {
			h.hash.Write(b)
			h.free <- b[:0]
		}
	}()
	return h
}

func (h *hasher) write(p []byte) {
	for len(p) > 0 {
		if h.cur == nil {
			if h.cur = <-h.free; h.cur == nil {
				h.cur = make([]byte, 0, hashBlock)
			}
		}
		n := min(len(p), hashBlock-len(h.cur))
		h.cur = append(h.cur, p[:n]...)
		p = p[n:]
		if len(h.cur) == hashBlock {
			h.blocks <- h.cur
			h.cur = nil
		}
	}
}

func (h *hasher) stop() {
	h.once.Do(func() {
		if len(h.cur) > 0 {
			h.blocks <- h.cur
		}
		close(h.blocks)
	})
}

func (h *hasher) sum() string {
	h.stop()
	<-h.done
	return hex.EncodeToString(h.hash.Sum(nil))
}

// parallelHash hashes sources that can be read by offset while the kernel sends
// them.
type parallelHash struct {
	stop chan struct{}
	once sync.Once
	done chan struct{}
	sum  string
	err  error
}

func startParallelHash(c *Content) *parallelHash {
	b := &parallelHash{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(b.done)
		h := sha256.New()
		block := make([]byte, hashBlock)
		for _, p := range c.parts {
			if p.source == nil {
				continue
			}
			r := io.NewSectionReader(p.source.at, p.source.start, p.source.size)
			for {
				select {
				case <-b.stop:
					b.err = errClosed
					return
				default:
				}
				n, err := r.Read(block)
				h.Write(block[:n])
				if err == io.EOF {
					break
				}
				if err != nil {
					b.err = err
					return
				}
			}
		}
		b.sum = hex.EncodeToString(h.Sum(nil))
	}()
	return b
}

func (b *parallelHash) wait(ctx context.Context) (string, error) {
	select {
	case <-b.done:
		return b.sum, b.err
	case <-ctx.Done():
		return "", ctxerr.Of(ctx)
	}
}

// cancel stops hashing, and like Finish waits for a read in progress.
func (b *parallelHash) cancel(ctx context.Context) {
	b.once.Do(func() { close(b.stop) })
	await(ctx, b.done)
}
