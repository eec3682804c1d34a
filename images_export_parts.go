package lxd

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"sync"

	"github.com/golxd/lxd/internal/netconn"
)

// maxConnections is the most that one ExportTo opens: more than a server's
// listen queue is sure to hold would only wait there.
const maxConnections = 64

// leastPart is the least that is worth a connection of its own, in bytes.
const leastPart = 1 << 20

// part is a piece of an image that one connection fetches.
type part struct {
	from, to int64 // offsets in the image
	next     int64 // what is before it is in the file
}

// While parts arrive, the partial file holds behind the place of the image's
// last byte which they are and how far each is, so that the next process can go
// on with them: partsMagic, and three numbers for each part. A partial file
// without it has the beginning of the image and nothing else.
const (
	partsMagic = "golxd/lxd parts\n"
	partState  = 3 * 8
)

// divide makes parts of an image of which the first bytes are there.
func divide(have, size int64, connections int) []part {
	n := min(int64(connections), (size-have)/leastPart)
	if n < 2 {
		return nil
	}
	list := []part{{0, have, have}}
	for k := range n {
		from := have + (size-have)*k/n
		list = append(list, part{from, have + (size-have)*(k+1)/n, from})
	}
	return list
}

// parts are what the partial file is divided into, or is to be; nil if it is to
// be written from its beginning to its end.
func (x *exportTo) parts() ([]part, error) {
	info, err := x.partial.Stat()
	if err != nil || x.image.Size <= 0 || x.noRanges {
		return nil, err
	}
	if info.Size() <= x.image.Size {
		return divide(info.Size(), x.image.Size, x.Connections), nil
	}
	state := make([]byte, min(info.Size()-x.image.Size, int64(len(partsMagic)+(maxConnections+1)*partState+1)))
	if _, err := x.partial.ReadAt(state, x.image.Size); err != nil {
		return nil, err
	}
	list := parseParts(state, x.image.Size)
	if list == nil {
		// Something else is longer than the image.
		return divide(0, x.image.Size, x.Connections), x.cut(0)
	}
	return list, nil
}

// parseParts reads what formatParts wrote. It gives nil unless that are parts
// which make up an image of that size.
func parseParts(state []byte, size int64) []part {
	numbers := len(state) - len(partsMagic)
	if numbers <= 0 || numbers%partState != 0 || string(state[:len(partsMagic)]) != partsMagic {
		return nil
	}
	var list []part
	var end int64
	for b := state[len(partsMagic):]; len(b) > 0; b = b[partState:] {
		number := func(n int) int64 { return int64(binary.BigEndian.Uint64(b[8*n:])) }
		p := part{number(0), number(1), number(2)}
		if p.from != end || p.next < p.from || p.to < p.next || p.to > size {
			return nil
		}
		end = p.to
		list = append(list, p)
	}
	if end != size {
		return nil
	}
	return list
}

func formatParts(list []part) []byte {
	state := []byte(partsMagic)
	for _, p := range list {
		for _, n := range []int64{p.from, p.to, p.next} {
			state = binary.BigEndian.AppendUint64(state, uint64(n))
		}
	}
	return state
}

// fetchParts fetches what is missing of the parts, over several connections,
// and verifies the whole. It gives errNoRange if the server sends no parts.
func (x *exportTo) fetchParts(list []part) (*ExportedFiles, error) {
	var have int64
	missing := make(chan int, len(list))
	for n, p := range list {
		have += p.next - p.from
		if p.next < p.to {
			missing <- n
		}
	}
	close(missing)
	x.resumed, x.oneShot = have > 0, false
	if _, err := x.partial.WriteAt(formatParts(list), x.image.Size); err != nil {
		return nil, errors.Join(err, x.dropUnused(list))
	}
	x.meter.Phase(PhaseReceive, have, x.image.Size)
	if err := x.receive(list, missing); err != nil {
		return nil, errors.Join(err, x.dropUnused(list))
	}
	if err := x.partial.Truncate(x.image.Size); err != nil {
		return nil, err
	}
	x.meter.Phase(PhaseVerify, 0, x.image.Size)
	sum := sha256.New()
	if err := hashFile(x.ctx, sum, x.partial, x.meter.Add); err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != x.image.Fingerprint {
		return nil, errors.Join(&FingerprintError{Want: x.image.Fingerprint, Got: got}, x.cut(0))
	}
	return x.unified()
}

// dropUnused empties the partial file if nothing of the parts has come.
func (x *exportTo) dropUnused(list []part) error {
	for _, p := range list {
		if p.next > p.from {
			return nil
		}
	}
	return x.cut(0)
}

// receive fetches the missing parts. The first error ends all of them.
func (x *exportTo) receive(list []part, missing <-chan int) error {
	ctx, cancel := context.WithCancel(x.ctx)
	defer cancel()
	n, ok := <-missing
	if !ok {
		return nil
	}
	// The first alone shows whether the server sends parts.
	first, err := x.openPart(ctx, &list[n])
	if err != nil {
		return err
	}
	var workers sync.WaitGroup
	var once sync.Once
	var failed error
	work := func(n int, src io.ReadCloser) {
		var err error
		for ok := true; ok && err == nil; n, ok = <-missing {
			if src == nil {
				src, err = x.openPart(ctx, &list[n])
			}
			if err == nil {
				err = x.receivePart(list, n, src)
			}
			src = nil
		}
		if err != nil {
			once.Do(func() { failed = err })
			cancel()
		}
	}
	workers.Go(func() { work(n, first) })
	for range x.Connections - 1 {
		if n, ok := <-missing; ok {
			workers.Go(func() { work(n, nil) })
		}
	}
	workers.Wait()
	return failed
}

// openPart asks for the rest of a part.
func (x *exportTo) openPart(ctx context.Context, p *part) (io.ReadCloser, error) {
	r := &resuming{ctx: ctx, image: x.image, offset: p.next, size: x.image.Size, end: p.to, left: x.image.client.t.retries}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

// receivePart writes the rest of a part to its place.
func (x *exportTo) receivePart(list []part, n int, src io.ReadCloser) error {
	defer func() { _ = src.Close() }()
	w := &partWriter{x: x, part: &list[n], state: x.image.Size + int64(len(partsMagic)+n*partState+2*8)}
	_, err := netconn.Copy(w, src, w.part.to-w.part.next)
	if err == nil && w.part.next < w.part.to {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && w.err == nil {
		return x.image.incomplete(x.ctx, err)
	}
	return err
}

// partWriter writes a part, and behind the image how far it is.
type partWriter struct {
	x     *exportTo
	part  *part
	state int64 // offset of part.next in the file
	err   error // of the file
}

func (w *partWriter) Write(b []byte) (int, error) {
	n, err := w.x.partial.WriteAt(b, w.part.next)
	w.part.next += int64(n)
	w.x.meter.Add(n)
	if err == nil {
		_, err = w.x.partial.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(w.part.next)), w.state)
	}
	w.err = err
	return n, err
}
