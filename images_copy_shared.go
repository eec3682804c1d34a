package lxd

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/retry"
)

const (
	sharedBlockSize = 256 << 10
	// sharedBlocks is the size of the window: how far the fastest reader may be ahead of
	// the slowest one.
	sharedBlocks = 64
	// Readers may make the others wait for this time, and this part of the time since
	// the beginning, in total. After that, those that are behind continue without the
	// others.
	sharedGrace    = 250 * time.Millisecond
	sharedPatience = 20 // a part of 1/20
)

var sharedBuffers = sync.Pool{New: func() any { return new([sharedBlockSize]byte) }}

// relayContent is the content of an image as its server sends it.
type relayContent struct {
	io.ReadCloser
	header http.Header
	size   int64 // -1 if it is unknown
	// split says that it is a form, with this boundary.
	split    bool
	boundary string
}

// relayContent reads the content of the image from the beginning.
func (i *Image) relayContent(ctx context.Context) (*relayContent, error) {
	src, err := i.content(ctx, 0, 0, false)
	if err != nil {
		return nil, retry.Permanent(&sourceError{err}) // it was retried
	}
	split, boundary, err := src.form()
	if err != nil {
		_ = src.Close()
		return nil, err
	}
	return &relayContent{src, src.Header(), src.Size(), split, boundary}, nil
}

// sharedContent is the content of an image that is read from its server once, and by
// several readers here at the same time. One goroutine reads it into a window that moves
// on with the slowest reader. A reader that is too slow for the others loses the window,
// and continues with a reading of its own.
type sharedContent struct {
	image  *Image
	done   chan struct{} // closed when the server is not read any more
	cancel func()        // the reading from the server

	mu      sync.Mutex
	more    sync.Cond       // the readers wait for opened, blocks and err
	less    sync.Cond       // fill waits for blocks to be read, and for readers to wait or leave
	opened  *relayContent   // the content as it was opened; nil before
	blocks  []sharedBlock   // the window
	first   int             // the number of the first of them
	err     error           // of opening and reading; io.EOF after the last block
	readers []*sharedReader // that read from the window
}

type sharedBlock struct {
	buffer *[sharedBlockSize]byte
	length int
}

// sharedReader is one of the readers. It holds the window until it is closed.
type sharedReader struct {
	shared *sharedContent
	ctx    context.Context //nolint:containedctx // of the reader's transfer
	stop   func() bool     // waking it when ctx ends

	// Guarded by shared.mu.
	block  int            // the number of the block that is read next
	offset int            // in that block
	waits  bool           // for the next block
	behind bool           // it has lost the window
	own    *contentReader // after that
	closed bool
}

// errBehind ends the reading of a split image, which cannot continue elsewhere.
var errBehind = errors.New("this server is too slow for the others of the relay")

// shareContent starts to read an image for n readers. ctx is that of the reading from the
// server. All readers must be closed.
func (i *Image) shareContent(ctx context.Context, n int) (*sharedContent, []*sharedReader) {
	ctx, cancel := context.WithCancel(ctx)
	s := &sharedContent{image: i, done: make(chan struct{}), cancel: cancel}
	s.more.L, s.less.L = &s.mu, &s.mu
	for range n {
		s.readers = append(s.readers, &sharedReader{shared: s})
	}
	readers := slices.Clone(s.readers)
	go s.fill(ctx)
	return s, readers
}

// fill reads the content as long as there are readers.
func (s *sharedContent) fill(ctx context.Context) {
	defer close(s.done)
	defer s.cancel()
	src, err := s.image.relayContent(ctx)
	s.mu.Lock()
	s.opened, s.err = src, err
	s.more.Broadcast()
	s.mu.Unlock()
	if err != nil {
		return
	}
	defer func() { _ = src.Close() }()
	patience := sharedTimer{began: time.Now()}
	for s.hasRoom(ctx, &patience) {
		b := sharedBlock{buffer: sharedBuffers.Get().(*[sharedBlockSize]byte)}
		var err error
		for b.length < sharedBlockSize && err == nil {
			var n int
			n, err = src.Read(b.buffer[b.length:])
			b.length += n
		}
		s.mu.Lock()
		if b.length > 0 {
			s.blocks = append(s.blocks, b)
		} else {
			sharedBuffers.Put(b.buffer)
		}
		s.err = err
		s.more.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// sharedTimer measures how long readers have made the others wait.
type sharedTimer struct {
	began time.Time
	total time.Duration
	since time.Time // of a wait that goes on; zero for none
}

// left returns for how long the wait may go on.
func (t *sharedTimer) left() time.Duration {
	return sharedGrace + time.Since(t.began)/sharedPatience - t.total - time.Since(t.since)
}

// hasRoom waits for room in the window, and takes it from the readers that are behind if
// others have waited too long for them. It reports whether there are readers left.
func (s *sharedContent) hasRoom(ctx context.Context, patience *sharedTimer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer context.AfterFunc(ctx, s.wakeFill)()
	for len(s.readers) > 0 && ctx.Err() == nil {
		s.advance()
		if len(s.blocks) < sharedBlocks {
			patience.end()
			return true
		}
		if !slices.ContainsFunc(s.readers, func(r *sharedReader) bool { return r.waits }) {
			patience.end() // all are busy: nobody is held
			s.less.Wait()
			continue
		}
		if patience.since.IsZero() {
			patience.since = time.Now()
		}
		left := patience.left()
		if left <= 0 {
			s.leaveBehind()
			continue
		}
		timer := time.AfterFunc(left, s.wakeFill)
		s.less.Wait()
		timer.Stop()
	}
	return false
}

// end ends a wait.
func (t *sharedTimer) end() {
	if !t.since.IsZero() {
		t.total += time.Since(t.since)
		t.since = time.Time{}
	}
}

func (s *sharedContent) wakeFill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.less.Signal()
}

func (s *sharedContent) wakeReaders() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.more.Broadcast()
}

// advance frees the blocks that all readers have read. The caller holds the lock.
func (s *sharedContent) advance() {
	slowest := s.first + len(s.blocks)
	for _, r := range s.readers {
		slowest = min(slowest, r.block)
	}
	for ; s.first < slowest; s.first++ {
		sharedBuffers.Put(s.blocks[0].buffer)
		s.blocks = slices.Delete(s.blocks, 0, 1)
	}
}

// leaveBehind takes the window from the readers of its first block. The caller holds the
// lock.
func (s *sharedContent) leaveBehind() {
	s.readers = slices.DeleteFunc(s.readers, func(r *sharedReader) bool {
		r.behind = r.block == s.first
		return r.behind
	})
	s.more.Broadcast()
}

// open waits until the content is opened. It is called at most once.
func (r *sharedReader) open(ctx context.Context) (*relayContent, error) {
	s := r.shared
	r.ctx, r.stop = ctx, context.AfterFunc(ctx, s.wakeReaders)
	s.mu.Lock()
	for s.opened == nil && s.err == nil && ctx.Err() == nil {
		s.more.Wait()
	}
	opened, err := s.opened, s.err
	s.mu.Unlock()
	switch {
	case opened != nil:
		c := *opened
		c.ReadCloser = r
		return &c, nil
	case err == nil:
		err = ctx.Err()
	}
	_ = r.Close()
	return nil, err
}

// Read reads from the window, and from the server if the window is lost.
func (r *sharedReader) Read(p []byte) (int, error) {
	if r.own == nil {
		n, err := r.readWindow(p)
		if !errors.Is(err, errBehind) || r.shared.opened.split {
			return n, err
		}
		if err := r.readOwn(); err != nil {
			return 0, err
		}
	}
	return r.own.Read(p)
}

func (r *sharedReader) readWindow(p []byte) (int, error) {
	s := r.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	end := func() bool { return r.block == s.first+len(s.blocks) }
	if !r.behind && end() && s.err == nil {
		r.waits = true
		s.less.Signal()
		for !r.behind && end() && s.err == nil && !r.closed && r.ctx.Err() == nil {
			s.more.Wait()
		}
		r.waits = false
	}
	switch {
	case r.closed:
		return 0, net.ErrClosed
	case r.behind:
		return 0, errBehind
	case r.ctx.Err() != nil:
		return 0, r.ctx.Err()
	case end():
		return 0, s.err
	}
	b := s.blocks[r.block-s.first]
	n := copy(p, b.buffer[r.offset:b.length])
	if r.offset += n; r.offset == b.length {
		r.block, r.offset = r.block+1, 0
		s.less.Signal()
	}
	return n, nil
}

// readOwn begins a reading of the server where that of the window has ended.
func (r *sharedReader) readOwn() error {
	own, err := r.shared.image.content(r.ctx, int64(r.block)*sharedBlockSize+int64(r.offset), 0, false)
	if err != nil {
		return err
	}
	r.shared.mu.Lock()
	defer r.shared.mu.Unlock()
	if r.closed {
		_ = own.Close()
		return net.ErrClosed
	}
	r.own = own
	return nil
}

// Close may be called at any time, and more than once.
func (r *sharedReader) Close() error {
	s := r.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	s.readers = slices.DeleteFunc(s.readers, func(other *sharedReader) bool { return other == r })
	if len(s.readers) == 0 {
		s.cancel() // a read that blocks, too
	}
	s.less.Signal()
	s.more.Broadcast()
	if r.stop != nil {
		r.stop()
	}
	if r.own != nil {
		return r.own.Close()
	}
	return nil
}
