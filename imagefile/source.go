package imagefile

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"

	"github.com/golxd/lxd/internal/ctxerr"
)

// blockSize is the size of one read of a file.
const blockSize = 128 << 10

// source reads a file, counts and hashes it, and returns when its context ends, even if the reader blocks.
type source struct {
	ctx    context.Context
	limit  int64     // what may be read
	hash   hash.Hash // nil if nobody wants it
	count  int64
	err    error // sticky; io.EOF at the end
	next   error // came with the last block, and becomes err when more is wanted
	block  []byte
	rest   []byte // of block, not consumed yet
	wanted chan struct{}
	got    chan result
}

type result struct {
	n   int
	err error
}

// errLimit says that a file is larger than MaxSize.
var errLimit = errors.New("is larger than MaxSize")

// newSource starts to read r when asked. The caller must call close.
func newSource(ctx context.Context, r io.Reader, limit int64, sum hash.Hash) *source {
	s := &source{ctx: ctx, limit: limit, hash: sum, block: make([]byte, blockSize), wanted: make(chan struct{}), got: make(chan result, 1)}
	go func() {
		for range s.wanted {
			n, err := r.Read(s.block)
			s.got <- result{n, err}
		}
	}()
	return s
}

// close ends the goroutine, as soon as a read that is under way returns.
func (s *source) close() { close(s.wanted) }

// fill reads the next block. It never returns with neither bytes nor an error.
func (s *source) fill() error {
	for empty := 0; s.err == nil; empty++ {
		if err := ctxerr.Of(s.ctx); err != nil {
			s.err = err
			break
		}
		if empty == 100 {
			s.err = io.ErrNoProgress
			break
		}
		if s.next != nil {
			s.err = s.next
			break
		}
		s.wanted <- struct{}{}
		select {
		case r := <-s.got:
			s.next = r.err
			if r.n == 0 {
				continue
			}
			if s.count += int64(r.n); s.count > s.limit {
				s.err = errLimit
				return s.err
			}
			if s.hash != nil {
				s.hash.Write(s.block[:r.n])
			}
			s.rest = s.block[:r.n]
			return nil
		case <-s.ctx.Done():
			s.err = ctxerr.Of(s.ctx)
		}
	}
	return s.err
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// drain reads the rest of the file, for its hash and size.
func (s *source) drain() error {
	s.rest = nil
	for {
		if err := s.fill(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// failure is an error of reading the file: neither its end nor what is in it. nil if there was none.
func (s *source) failure() error {
	if s.err == nil || errors.Is(s.err, io.EOF) || errors.Is(s.err, errLimit) {
		return nil
	}
	return s.err
}

// newHash is the hash of a fingerprint.
func newHash() hash.Hash { return sha256.New() }
