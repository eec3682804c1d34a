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

// Pump is a stream that is hashed while it is consumed by Read or WriteTo,
// from one goroutine.
type Pump struct {
	free   chan *block
	toHash chan *block
	toRead chan *block
	stop   chan struct{}
	ended  sync.WaitGroup
	once   sync.Once
	srcErr error // set before toRead is closed; nil at a plain end

	cur *block
	pos int
}

// Start begins to read src and to write it to h. The caller must end the pump
// with Close. count, if not nil, is told of every piece that was read.
func Start(src io.Reader, h hash.Hash, count func(int)) *Pump {
	p := &Pump{
		free: make(chan *block, blocks), toHash: make(chan *block, blocks), toRead: make(chan *block, blocks),
		stop: make(chan struct{}),
	}
	for range blocks {
		p.free <- &block{}
	}
	p.ended.Add(2)
	go p.fill(src, count)
	go p.hash(h)
	return p
}

func (p *Pump) fill(src io.Reader, count func(int)) {
	defer p.ended.Done()
	defer close(p.toRead)
	defer close(p.toHash)
	for {
		var b *block
		select {
		case b = <-p.free:
		case <-p.stop:
			p.srcErr = errors.New("closed")
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
	defer p.ended.Done()
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

// next makes cur a block with something left in it.
func (p *Pump) next() error {
	for p.cur == nil || p.pos == p.cur.n {
		if p.cur != nil {
			p.release(p.cur)
			p.cur, p.pos = nil, 0
		}
		b, ok := <-p.toRead
		if !ok {
			p.ended.Wait() // the hash is complete now
			if p.srcErr != nil {
				return p.srcErr
			}
			return io.EOF
		}
		p.cur, p.pos = b, 0
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

// Close ends both goroutines and waits for them. A source that blocks must be
// closed before. Nothing may be read afterwards.
func (p *Pump) Close() {
	p.once.Do(func() {
		close(p.stop)
		for b := range p.toRead {
			p.release(b)
		}
		p.ended.Wait()
		if p.cur != nil {
			p.release(p.cur)
			p.cur = nil
		}
		close(p.free)
		for b := range p.free {
			if b.buf != nil {
				buffers.Put(b.buf)
			}
		}
	})
}
