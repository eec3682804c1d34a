// Package near finds the names that are similar to one that does not exist.
package near

import (
	"iter"
	"slices"
)

// Names returns up to five of the names, those that share the longest prefix with a
// name, if that has at least three characters.
func Names(name string, names iter.Seq[string]) []string {
	const few, enough = 5, 3
	best := enough
	var similar []string
	for other := range names {
		common := commonPrefix(other, name)
		switch {
		case common < best:
			continue
		case common > best:
			best, similar = common, similar[:0]
		}
		if len(similar) < few && !slices.Contains(similar, other) {
			similar = append(similar, other)
		}
	}
	return similar
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
