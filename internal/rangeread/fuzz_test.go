package rangeread

import (
	"errors"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

// contentRange takes leading zeros for no part of a number.
var contentRange = regexp.MustCompile(`^bytes 0*(\d+)-0*(\d+)/0*(\d+|\*)$`)

// FuzzContentRange takes only ranges that lie within what there is.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 5-9/10", "bytes 0-0/1", "bytes 5-8/10", "bytes */10", "bytes 9-5/10", "bytes 5-9/*", "bytes -5-9/10", "bytes 5-9223372036854775807/9223372036854775807", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		from, end, total, err := Parse(header)
		if err != nil {
			if !errors.Is(err, ErrRange) {
				t.Fatalf("%v is not an ErrRange", err)
			}
			return
		}
		if from < 0 || end <= from || (total >= 0 && total < end) {
			t.Fatalf("%q is from %d to %d of %d", header, from, end, total)
		}
		size := "*"
		if total >= 0 {
			size = strconv.FormatInt(total, 10)
		}
		told := contentRange.FindStringSubmatch(header)
		if want := []string{header, strconv.FormatInt(from, 10), strconv.FormatInt(end-1, 10), size}; !slices.Equal(want, told) {
			t.Fatalf("%q is read as %q", told, want)
		}
	})
}
