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

// Body is one sending of a [Content]. It is a request's body: net/http hands it
// unwrapped to the connection, which lets it send itself (SendTo); where
// somebody else reads it, Read and WriteTo do the same through user space.
type Body struct {
	content *Content
	sent    func(int)

	// turn holds an element while a source is read, or sent by the connection,
	// which may block: Close and Err, which come from other goroutines, do not
	// wait for it, and Finish does under a context.
	turn   chan struct{}
	closed atomic.Bool
	whole  atomic.Bool // everything was read

	part   int
	offset int64 // within the part
	failed error

	hasher *hasher // of what passes through user space
	beside *beside // of what does not
}

// Options of one sending.
type Options struct {
	Sent func(n int) // told of every step; nil for nobody
	Hash bool        // compute the fingerprint
}

// Open begins a sending. A content that is not replayable can be opened once.
// It waits for a Read in which the sending before, which must be closed, may
// still be, and ctx ends that.
func (c *Content) Open(ctx context.Context, opts Options) (*Body, error) {
	for _, p := range c.parts {
		if p.source != nil {
			if err := p.source.rewind(ctx); err != nil {
				return nil, err
			}
		}
	}
	b := &Body{content: c, sent: opts.Sent, turn: make(chan struct{}, 1)}
	if opts.Hash {
		if c.readableAt() {
			b.beside = hashBeside(c)
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

// Fingerprint gives the SHA-256 of the sources in their order. It must be
// called after the whole body was sent. ctx ends a hashing that is still behind.
func (b *Body) Fingerprint(ctx context.Context) (string, error) {
	switch {
	case b.beside != nil:
		return b.beside.wait(ctx)
	case b.hasher != nil:
		if !b.whole.Load() {
			return "", errors.New("the body was not read to its end")
		}
		return b.hasher.sum(), nil
	}
	return "", errors.New("no hash was asked for")
}

// Close ends the sending: no other Read of a source begins. It does not close
// the caller's readers, and does not wait for a Read that goes on in one.
func (b *Body) Close() error {
	b.closed.Store(true)
	if b.tryLock() {
		b.unlock()
	}
	return nil
}

// Finish closes the body and waits until no source is read any more. It gives up
// soon after ctx has ended: then a Read that blocks goes on, as the last, and
// comes to its end with the reader. The connection must be free to end: a body
// that is being written to one is waited for too.
func (b *Body) Finish(ctx context.Context) {
	_ = b.Close()
	free := make(chan struct{})
	gaveUp := make(chan struct{})
	go func() {
		select {
		case b.turn <- struct{}{}:
			b.unlock()
			close(free)
		case <-gaveUp:
		}
	}()
	await(ctx, free)
	close(gaveUp)
}

// grace is how long a Read may take to end when the context has ended: most do
// at once.
const grace = 100 * time.Millisecond

// await returns when done is closed, or soon after ctx has ended. It says whether
// done was closed.
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

func (b *Body) lock() { b.turn <- struct{}{} }

func (b *Body) tryLock() bool {
	select {
	case b.turn <- struct{}{}:
		return true
	default:
		return false
	}
}

// unlock ends a reading of the sources. Where the body was closed meanwhile, it
// ends the hashing too.
func (b *Body) unlock() {
	if b.part == len(b.content.parts) {
		b.whole.Store(true)
	}
	if b.hasher != nil && b.closed.Load() {
		b.hasher.stop()
	}
	<-b.turn
	// Close may have come between the two.
	if b.hasher != nil && b.closed.Load() && b.tryLock() {
		b.hasher.stop()
		<-b.turn
	}
}

// Discard finishes a sending that failed, and ends its hashing.
func (b *Body) Discard(ctx context.Context) {
	b.Finish(ctx)
	if b.beside != nil {
		b.beside.cancel(ctx)
	}
}

// Err gives the error of the caller's own reader that ended the sending, if one
// did. net/http wraps it in words of its own.
func (b *Body) Err() error {
	if !b.tryLock() {
		return nil // a Read goes on, so none has failed
	}
	defer b.unlock()
	return b.failed
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
		case b.failed != nil:
			return 0, b.failed
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
			b.next() // it is empty
			return 0, nil
		}
		if int64(len(p)) >= rest {
			p = p[:rest]
			if err := s.unchanged(); err != nil {
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

// readOnce is one Read of the caller's reader.
func (b *Body) readOnce(s *Source, p []byte) (int, error) {
	// In this order, so that who closes and then asks for it knows.
	s.used.Store(true)
	s.reading <- struct{}{}
	defer func() { <-s.reading }()
	if b.closed.Load() {
		return 0, errClosed
	}
	return s.r.Read(p)
}

// readLast reads the last byte of a reader whose size the caller has stated, with
// room for one more: where that comes with it, the reader holds more than its
// size, and the rest would be lost without a word, so the last byte is held back
// from the server. There is no other Read to look for more: of a connection that
// stays open it would not return, and take what is not the image's.
func (b *Body) readLast(s *Source, p []byte) (int, error) {
	var two [2]byte
	n, err := b.readOnce(s, two[:])
	if n > 1 {
		return 0, fmt.Errorf("%w: the reader holds more than the given size of %d bytes", ErrChanged, s.size)
	}
	return copy(p, two[:n]), err
}

func (b *Body) next() { b.part, b.offset = b.part+1, 0 }

func (b *Body) fail(err error) error {
	b.failed = err
	return err
}

// SendTo sends what is left, at most n bytes, files by the connection's own
// means.
func (b *Body) SendTo(w netconn.FileWriter, n int64) (done int64, err error) {
	for done < n {
		b.lock()
		closed, failed, at := b.closed.Load(), b.failed, b.part
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
			step, err = netconn.Copy(w, onePart{b, at}, n-done)
		}
		done += step
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// lastStretch of a file is held back until its length was looked at again, so
// that a server never has a whole body of a file that changed.
const lastStretch = 64 << 10

func (b *Body) sendFile(w netconn.FileWriter, s *Source, n int64) (int64, error) {
	b.lock()
	defer b.unlock()
	if b.closed.Load() {
		return 0, errClosed
	}
	rest := s.size - b.offset
	if rest > lastStretch {
		rest -= lastStretch
	} else if err := s.unchanged(); err != nil {
		return 0, b.fail(err)
	}
	done, err := w.WriteFile(s.file, s.start+b.offset, min(rest, n), b.sent)
	b.offset += done
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		if changed := s.unchanged(); changed != nil {
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

// onePart reads a body up to the end of one part.
type onePart struct {
	b    *Body
	part int
}

func (r onePart) Read(p []byte) (int, error) {
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

// WriteTo sends a body of unknown length in large blocks.
func (b *Body) WriteTo(w io.Writer) (int64, error) {
	return netconn.Copy(w, struct{ io.Reader }{b}, 1<<62)
}

// hasher hashes blocks in a goroutine of its own, so that it adds nothing to
// the time of a transfer that is slower than SHA-256.
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

// beside hashes sources that can be read by offset while the kernel sends them.
type beside struct {
	stop chan struct{}
	once sync.Once
	done chan struct{}
	sum  string
	err  error
}

func hashBeside(c *Content) *beside {
	b := &beside{stop: make(chan struct{}), done: make(chan struct{})}
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

func (b *beside) wait(ctx context.Context) (string, error) {
	select {
	case <-b.done:
		return b.sum, b.err
	case <-ctx.Done():
		return "", ctxerr.Of(ctx)
	}
}

// cancel ends the hashing, and waits for a read that goes on as Finish does.
func (b *beside) cancel(ctx context.Context) {
	b.once.Do(func() { close(b.stop) })
	await(ctx, b.done)
}
