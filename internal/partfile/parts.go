package partfile

import (
	"encoding/binary"
	"errors"
	"os"
)

// MaxParts is the maximum number of parts of an image.
const MaxParts = 64

// minPart is the smallest part that is worth a connection of its own, in bytes.
const minPart = 1 << 20

// Part is a range of an image that is written independently. Several parts may be
// written at once.
type Part struct {
	From, To int64 // offsets in the image
	Next     int64 // offset of the next Write; what is before it in the part is in the file

	f       *os.File
	stateAt int64 // where Next is stored in the file
}

// While parts are written, the partial file contains their state after the position
// of the image's last byte, so that the next process can resume them: partsMagic,
// and three numbers for each part. A partial file without this state contains the
// beginning of the image and nothing else.
const (
	partsMagic = "golxd/lxd parts\n"
	partState  = 3 * 8
)

// divide returns parts for an image whose first bytes are in the file, or nil if
// there would be fewer than two.
func divide(have, size int64, count int) []*Part {
	n := min(int64(count), (size-have)/minPart)
	if n < 2 {
		return nil
	}
	list := []*Part{{From: 0, To: have, Next: have}}
	for k := range n {
		from := have + (size-have)*k/n
		list = append(list, &Part{From: from, To: have + (size-have)*(k+1)/n, Next: from})
	}
	return list
}

// Parts returns the parts of the file. If it has none yet, Parts divides the missing
// bytes into at most count parts of at least 1 MiB. It returns nil if the file must
// be written sequentially.
func (p *File) Parts(count int) ([]*Part, error) {
	info, err := p.f.Stat()
	size := p.image.Size
	if err != nil || size <= 0 {
		return nil, err
	}
	if info.Size() <= size {
		return p.divide(info.Size(), count)
	}
	state := make([]byte, min(info.Size()-size, int64(len(partsMagic)+(MaxParts+1)*partState+1)))
	if _, err := p.f.ReadAt(state, size); err != nil {
		return nil, err
	}
	list := parseParts(state, size)
	if list == nil {
		// The file is longer than the image, but not because of parts.
		if err := p.truncate(0); err != nil {
			return nil, err
		}
		return p.divide(0, count)
	}
	return p.writable(list), nil
}

// divide divides the bytes after the first have bytes into parts, and stores them in
// the file.
func (p *File) divide(have int64, count int) ([]*Part, error) {
	list := divide(have, p.image.Size, count)
	if list == nil {
		return nil, nil
	}
	if _, err := p.f.WriteAt(formatParts(list), p.image.Size); err != nil {
		return nil, errors.Join(err, p.truncate(have))
	}
	return p.writable(list), nil
}

func (p *File) writable(list []*Part) []*Part {
	for n, part := range list {
		part.f, part.stateAt = p.f, p.image.Size+int64(len(partsMagic)+n*partState+2*8)
	}
	return list
}

// Write writes the next bytes of the part, and stores the new Next in the file.
func (t *Part) Write(b []byte) (int, error) {
	n, err := t.f.WriteAt(b, t.Next)
	t.Next += int64(n)
	if err == nil {
		_, err = t.f.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(t.Next)), t.stateAt)
	}
	return n, err
}

// parseParts reads what formatParts wrote. It returns nil unless the parts cover
// [0, size).
func parseParts(state []byte, size int64) []*Part {
	numbers := len(state) - len(partsMagic)
	if numbers <= 0 || numbers%partState != 0 || string(state[:len(partsMagic)]) != partsMagic {
		return nil
	}
	var list []*Part
	var end int64
	for b := state[len(partsMagic):]; len(b) > 0; b = b[partState:] {
		number := func(n int) int64 { return int64(binary.BigEndian.Uint64(b[8*n:])) }
		p := &Part{From: number(0), To: number(1), Next: number(2)}
		if p.From != end || p.Next < p.From || p.To < p.Next || p.To > size {
			return nil
		}
		end = p.To
		list = append(list, p)
	}
	if end != size {
		return nil
	}
	return list
}

func formatParts(list []*Part) []byte {
	state := []byte(partsMagic)
	for _, p := range list {
		for _, n := range []int64{p.From, p.To, p.Next} {
			state = binary.BigEndian.AppendUint64(state, uint64(n))
		}
	}
	return state
}
