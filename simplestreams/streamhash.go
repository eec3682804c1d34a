package simplestreams

import (
	"hash"
	"sync"
)

const hashBlock = 256 << 10

// streamHash computes several hashes of a stream while it is read. Goroutines hash each block while the next one fills;
// they end with the block, so an abandoned stream needs no cleanup.
type streamHash struct {
	hashes  []hash.Hash
	filling []byte
	spare   []byte
	running sync.WaitGroup
}

// Write copies p.
func (h *streamHash) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		if h.filling == nil {
			h.filling = make([]byte, 0, hashBlock)
		}
		n := min(len(p), cap(h.filling)-len(h.filling))
		h.filling = append(h.filling, p[:n]...)
		p = p[n:]
		if len(h.filling) == cap(h.filling) {
			h.flush()
		}
	}

	return written, nil
}

// flush starts hashing the full block, after waiting for the previous one.
func (h *streamHash) flush() {
	h.running.Wait()
	block := h.filling
	for _, each := range h.hashes {
		h.running.Go(func() { each.Write(block) })
	}
	h.filling, h.spare = h.spare[:0], block
}

// finish hashes the rest. The hashes must not be used before it returns.
func (h *streamHash) finish() {
	h.running.Wait()
	for _, each := range h.hashes {
		each.Write(h.filling)
	}
	h.filling = h.filling[:0]
}
