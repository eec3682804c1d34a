package lxd

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"sync"

	"github.com/golxd/lxd/internal/netconn"
)

// maxConnections is the most that one ExportTo opens, far above what was
// measured to help, so that one call cannot use up a server's connections.
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
		return x.divide(info.Size())
	}
	state := make([]byte, min(info.Size()-x.image.Size, int64(len(partsMagic)+(maxConnections+1)*partState+1)))
	if _, err := x.partial.ReadAt(state, x.image.Size); err != nil {
		return nil, err
	}
	list := parseParts(state, x.image.Size)
	if list == nil {
		// Something else is longer than the image.
		if err := x.cut(0); err != nil {
			return nil, err
		}
		return x.divide(0)
	}
	return list, nil
}

// divide makes parts of what is missing of a file that has the first bytes.
func (x *exportTo) divide(have int64) ([]part, error) {
	list := divide(have, x.image.Size, x.Connections)
	if list == nil {
		return nil, nil
	}
	if _, err := x.partial.WriteAt(formatParts(list), x.image.Size); err != nil {
		return nil, errors.Join(err, x.cut(have))
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
	for _, p := range list {
		have += p.next - p.from
	}
	x.resumed, x.oneShot = have > 0, false
	x.meter.Phase(PhaseReceive, have, x.image.Size)
	if err := x.receiveParts(list); err != nil {
		if !slices.ContainsFunc(list, func(p part) bool { return p.next > p.from }) {
			err = errors.Join(err, x.cut(0)) // there is nothing to go on from
		}
		return nil, err
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

// receiveParts fetches the missing parts. The first error ends all of them.
func (x *exportTo) receiveParts(list []part) error {
	ctx, cancel := context.WithCancel(x.ctx)
	defer cancel()
	missing := make(chan *partTransfer, len(list))
	for n := range list {
		if list[n].next < list[n].to {
			missing <- x.transfer(ctx, list, n)
		}
	}
	close(missing)
	first, ok := <-missing
	if !ok {
		return nil
	}
	// The first alone shows whether the server sends parts.
	if err := first.src.open(); err != nil {
		return err
	}
	var workers sync.WaitGroup
	var once sync.Once
	var failed error
	work := func(t *partTransfer) {
		for ; t != nil; t = <-missing {
			if err := t.run(); err != nil {
				once.Do(func() { failed = err })
				cancel()
				return
			}
		}
	}
	workers.Go(func() { work(first) })
	for range min(x.Connections-1, len(missing)) {
		workers.Go(func() { work(<-missing) })
	}
	workers.Wait()
	return failed
}

// partTransfer fetches the rest of a part. As a writer it puts what comes in its
// place, and behind the image how far the part is.
type partTransfer struct {
	*part
	x        *exportTo
	src      *resuming
	stateAt  int64 // offset of next in the file
	writeErr error // of the file
}

func (x *exportTo) transfer(ctx context.Context, list []part, n int) *partTransfer {
	p := &list[n]
	return &partTransfer{
		part: p, x: x, stateAt: x.image.Size + int64(len(partsMagic)+n*partState+2*8),
		src: &resuming{ctx: ctx, image: x.image, offset: p.next, size: x.image.Size, end: p.to, left: x.image.client.t.retries},
	}
}

func (t *partTransfer) run() error {
	if t.src.body == nil {
		if err := t.src.open(); err != nil {
			return err
		}
	}
	defer func() { _ = t.src.Close() }()
	_, err := netconn.Copy(t, t.src, t.to-t.next)
	if err != nil && t.writeErr == nil {
		return t.x.image.incomplete(t.x.ctx, err)
	}
	return err
}

func (t *partTransfer) Write(b []byte) (int, error) {
	n, err := t.x.partial.WriteAt(b, t.next)
	t.next += int64(n)
	if err == nil {
		_, err = t.x.partial.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(t.next)), t.stateAt)
	}
	t.writeErr = err
	t.x.meter.Add(n)
	return n, err
}
