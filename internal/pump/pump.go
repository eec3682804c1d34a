// Package pump copies a stream to a consumer and to a hash at the same time.
//
// One goroutine fills blocks from the source, one hashes them, and the caller
// consumes them, so that a transfer takes as long as the slowest of the three, and
// not as long as all together.
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
	// blocks is the number of blocks that one of the three may be behind before
	// the others wait for it. With four they often wait for each other if a daemon
	// uses part of two cores; more than eight gain nothing.
	blocks = 8
)

var buffers = sync.Pool{New: func() any { b := make([]byte, blockSize); return &b }}

type block struct {
	buf  *[]byte
	n    int
	uses atomic.Int32 // by the hasher and the consumer
}

// ErrClosed is returned by Read and WriteTo when the pump is closed.
var ErrClosed = errors.New("closed")

// Pump is a stream that is hashed while one goroutine consumes it by Read or
// WriteTo.
type Pump struct {
	// A block is in one of the three channels, or owned by the goroutine that has
	// received it. Each channel has room for all blocks, so sending never blocks.
	free   chan *block
	toHash chan *block
	toRead chan *block

	stop    chan struct{} // closed by Close
	once    sync.Once
	running atomic.Int32  // how many of fill and hash are running
	ended   chan struct{} // closed when both have returned
	srcErr  error         // set before toRead is closed; nil for io.EOF

	// The consumer's blocks: the current one, and the one after it, which verify
	// holds back. They are not recycled when the pump is closed.
	cur, held *block
	pos       int
	verify    func() error // nil to hold nothing back
}

// Start starts to read src and to write it to h. The caller must end the pump with
// Close. count, if not nil, is called with the length of each read.
//
// verify, if not nil, is called by Read or WriteTo when all of src was read and
// hashed. Until it has returned nil, the last block, which is at least one byte
// unless src is empty, is not returned; so it never is if src or verify fails. The
// error of verify is returned as it is.
func Start(src io.Reader, h hash.Hash, count func(int), verify func() error) *Pump {
	p := &Pump{
		verify: verify,
		free:   make(chan *block, blocks), toHash: make(chan *block, blocks), toRead: make(chan *block, blocks),
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
	defer p.exit()
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

// readFull fills b, so that the hash and the consumer get large blocks even if TLS
// returns 16 KiB at a time.
func readFull(r io.Reader, b []byte, count func(int)) (n int, err error) {
	for n < len(b) && err == nil {
		var read int
		read, err = r.Read(b[n:])
		n += read
		if count != nil && read > 0 {
			count(read)
		}
	}
	return n, err
}

func (p *Pump) hash(h hash.Hash) {
	defer p.exit()
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

// end waits until the hash is complete, and returns the error after the last block.
func (p *Pump) end() error {
	select {
	case <-p.ended:
	case <-p.stop:
		return ErrClosed
	}
	if p.srcErr != nil {
		return p.srcErr
	}
	if p.verify != nil {
		if err := p.verify(); err != nil {
			return err
		}
		p.verify = nil
	}
	return io.EOF
}

// next makes cur a block with unread bytes.
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
			switch {
			case !ok && p.held == nil:
				return p.end()
			case !ok:
				if err := p.end(); err != io.EOF {
					return err
				}
				p.cur, p.held = p.held, nil
			case p.verify == nil:
				p.cur = b
			case b.n == 0:
				p.release(b)
			default:
				p.cur, p.held = p.held, b
			}
		case <-p.stop:
			return ErrClosed
		}
	}
	return nil
}

// Read returns io.EOF when everything has been read and hashed.
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

// WriteTo writes everything to w in large blocks. It returns nil when everything has
// been written and hashed.
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

// Close ends the stream: a Read or WriteTo in progress, and every later one, returns
// ErrClosed. It may be called from any goroutine and at any time. It does not wait; a
// source that blocks must be closed by the caller.
func (p *Pump) Close() {
	p.once.Do(func() {
		close(p.stop)
		select {
		case <-p.ended:
			p.recycle()
		default: // exit will do it
		}
	})
}

// exit is called when fill or hash returns; the last call recycles the buffers of a
// closed pump.
func (p *Pump) exit() {
	if p.running.Add(-1) == 0 {
		close(p.ended)
		if p.closed() {
			p.recycle()
		}
	}
}

// recycle returns the unused buffers to the pool: fill and hash have returned, and
// the consumer receives no other block.
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
