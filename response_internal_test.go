package lxd

import (
	"strings"
	"testing"
	"testing/iotest"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/wire"
)

// TestKeptElementsCount: a list that is kept counts the memory of its elements beside
// their bytes; one that is not kept has no limit.
func TestKeptElementsCount(t *testing.T) {
	t.Parallel()
	for size, most := range map[int64]int{0: 62, 1000: 6} {
		for _, limit := range []int64{4000, 0} {
			var n int
			l := &list{limit: limit, size: size, begin: func() { n = 0 }, element: func(dec *jsontext.Decoder) error {
				n++
				return dec.SkipValue()
			}}
			body := &boundedReader{r: iotest.OneByteReader(strings.NewReader(`{"type":"sync","metadata":[` + strings.Repeat("1,", 99) + `1]}`)), one: maxMetadata}
			_, err := wire.Decode(body, l.over(body))
			if limit == 0 {
				require.NoError(t, err)
				require.Equal(t, 100, n)
				continue
			}
			require.ErrorIs(t, err, ErrTooLarge)
			require.LessOrEqual(t, n, most)
		}
	}
}
