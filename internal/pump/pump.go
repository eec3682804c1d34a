// Package pump moves a stream to a consumer and to a hash at the same time.
//
// One goroutine fills blocks from the source, one hashes them, and the caller
// consumes them, so that a transfer takes as long as the slowest of the three
// and not as their sum.
package pump

import (
	"errors"
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

const (
	blockSize = 256 << 10
	// blocks is how far one of the three may fall behind the others before they
	// wait for it. With four they keep stopping each other where a daemon takes
	// its share of two cores; more than eight gain nothing.
	blocks = 8
)

var buffers = sync.Pool{New: func() any { b := make([]byte, blockSize); return &b }}

type block struct {
	buf  *[]byte
	n    int
	uses atomic.Int32 // of the hasher and the consumer
}

// ErrClosed is what a Read or WriteTo returns when the pump is, or was, closed.
var ErrClosed = errors.New("closed")

// Pump is a stream that is hashed while it is consumed by Read or WriteTo,
// from one goroutine.
type Pump struct {
	// A block is in one of the three, or with the one who has taken it out. As
	// each has room for all blocks, putting one back never waits.
	free   chan *block
	toHash chan *block
	toRead chan *block

	stop    chan struct{} // closed by Close
	once    sync.Once
	running atomic.Int32  // of fill and hash
	ended   chan struct{} // closed when both have ended
	srcErr  error         // set before toRead is closed; nil at a plain end

	// Of the consumer. What it still has when the pump is closed goes to nobody
	// else.
	cur *block
	pos int
}

// Start begins to read src and to write it to h. The caller must end the pump
// with Close. count, if not nil, is told of every piece that was read.
func Start(src io.Reader, h hash.Hash, count func(int)) *Pump {
	p := &Pump{
		free: make(chan *block, blocks), toHash: make(chan *block, blocks), toRead: make(chan *block, blocks),
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	for range blocks {
		p.free <- &block{}
	}
	p.running.Store(2)
	go p.fill(src, count)
	go p.hash(h)
	return p
}

func (p *Pump) fill(src io.Reader, count func(int)) {
	defer p.leave()
	defer close(p.toRead)
	defer close(p.toHash)
	for {
		var b *block
		select {
		case b = <-p.free:
		case <-p.stop:
			p.srcErr = ErrClosed
			return
		}
		if b.buf == nil {
			b.buf = buffers.Get().(*[]byte)
		}
		n, err := readFull(src, *b.buf, count)
		b.n = n
		b.uses.Store(2)
		p.toHash <- b
		p.toRead <- b
		if err != nil {
			if err != io.EOF {
				p.srcErr = err
			}
			return
		}
	}
}

// readFull fills b, so that a hash and a write see large blocks even if TLS
// hands out 16 KiB at a time.
func readFull(r io.Reader, b []byte, count func(int)) (n int, err error) {
	for n < len(b) && err == nil {
		var got int
		got, err = r.Read(b[n:])
		n += got
		if count != nil && got > 0 {
			count(got)
		}
	}
	return n, err
}

func (p *Pump) hash(h hash.Hash) {
	defer p.leave()
	for b := range p.toHash {
		h.Write((*b.buf)[:b.n])
		p.release(b)
	}
}

func (p *Pump) release(b *block) {
	if b.uses.Add(-1) == 0 {
		p.free <- b
	}
}

func (p *Pump) closed() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}

// end is what there is behind the last block, when the hash is complete.
func (p *Pump) end() error {
	select {
	case <-p.ended:
	case <-p.stop:
		return ErrClosed
	}
	if p.srcErr != nil {
		return p.srcErr
	}
	return io.EOF
}

// next makes cur a block with something left in it.
func (p *Pump) next() error {
	for p.cur == nil || p.pos == p.cur.n {
		if p.cur != nil {
			p.release(p.cur)
			p.cur, p.pos = nil, 0
		}
		if p.closed() {
			return ErrClosed
		}
		select {
		case b, ok := <-p.toRead:
			if !ok {
				return p.end()
			}
			p.cur, p.pos = b, 0
		case <-p.stop:
			return ErrClosed
		}
	}
	return nil
}

// Read gives io.EOF when everything was read and hashed.
func (p *Pump) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err := p.next(); err != nil {
		return 0, err
	}
	n := copy(b, (*p.cur.buf)[p.pos:p.cur.n])
	p.pos += n
	return n, nil
}

// WriteTo writes everything to w in large blocks. It returns nil when
// everything was written and hashed.
func (p *Pump) WriteTo(w io.Writer) (int64, error) {
	var done int64
	for {
		if err := p.next(); err != nil {
			if err == io.EOF {
				err = nil
			}
			return done, err
		}
		n, err := w.Write((*p.cur.buf)[p.pos:p.cur.n])
		done += int64(n)
		p.pos += n
		if err != nil {
			return done, err
		}
		if p.pos < p.cur.n {
			return done, io.ErrShortWrite
		}
	}
}

// Close ends the stream, from any goroutine and at any time: a Read or WriteTo
// that goes on, and every later one, returns ErrClosed. It waits for nothing; a
// source that blocks must be ended by the caller.
func (p *Pump) Close() {
	p.once.Do(func() {
		close(p.stop)
		select {
		case <-p.ended:
			p.recycle()
		default: // leave does it
		}
	})
}

// leave is the end of fill, or of hash.
func (p *Pump) leave() {
	if p.running.Add(-1) == 0 {
		close(p.ended)
		if p.closed() {
			p.recycle()
		}
	}
}

// recycle gives away the buffers that nobody uses any more: fill and hash have
// ended, and the consumer takes no other block.
func (p *Pump) recycle() {
	for b := range p.toRead { // closed by fill
		buffers.Put(b.buf)
	}
	for {
		select {
		case b := <-p.free:
			if b.buf != nil {
				buffers.Put(b.buf)
			}
		default:
			return
		}
	}
}
