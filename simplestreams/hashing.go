package simplestreams

import (
	"hash"
	"sync"
)

const hashBlock = 256 << 10

// hashing computes several hashes of one stream beside the reading of it. Each block is hashed by goroutines of its own
// while the next one fills, so there is nothing to stop if the stream is given up.
type hashing struct {
	hashes  []hash.Hash
	filling []byte
	spare   []byte
	running sync.WaitGroup
}

// Write takes a copy of p.
func (h *hashing) Write(p []byte) (int, error) {
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

// flush has the filled block hashed when the one before it is done.
func (h *hashing) flush() {
	h.running.Wait()
	block := h.filling
	for _, each := range h.hashes {
		h.running.Go(func() { each.Write(block) })
	}
	h.filling, h.spare = h.spare[:0], block
}

// finish hashes what is left. The hashes have to be left alone until it returns.
func (h *hashing) finish() {
	h.running.Wait()
	for _, each := range h.hashes {
		each.Write(h.filling)
	}
	h.filling = h.filling[:0]
}
