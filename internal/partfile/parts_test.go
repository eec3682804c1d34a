package partfile

import (
	"bytes"
	"testing"
)

// FuzzParts checks that only parts that cover the image are accepted.
func FuzzParts(f *testing.F) {
	f.Add(formatParts(divide(100, 4<<20, 3)), int64(4<<20))
	f.Add(formatParts([]*Part{{From: 0, To: 5, Next: 2}, {From: 5, To: 9, Next: 9}}), int64(9))
	f.Add(formatParts([]*Part{{From: 0, To: 5, Next: 6}}), int64(5))
	f.Add(formatParts([]*Part{{From: 0, To: 5, Next: 2}, {From: 6, To: 9, Next: 9}}), int64(9))
	f.Add([]byte(partsMagic), int64(1))
	f.Fuzz(func(t *testing.T, state []byte, size int64) {
		list := parseParts(state, size)
		if list == nil {
			return
		}
		var at int64
		for _, p := range list {
			if p.From != at || p.Next < p.From || p.Next > p.To {
				t.Fatalf("%v is taken for an image of %d bytes", list, size)
			}
			at = p.To
		}
		if at != size || !bytes.Equal(formatParts(list), state) {
			t.Fatalf("%v is taken for an image of %d bytes", list, size)
		}
	})
}
