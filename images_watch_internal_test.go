package lxd

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestWatchNotesLittle: what a slow loop has not read yet takes little memory, and none of
// it is lost.
func TestWatchNotesLittle(t *testing.T) {
	t.Parallel()
	for name, note := range map[string]func(s *stale, n int){
		"images":  func(s *stale, n int) { s.addImage(imageKey{fingerprint: fmt.Sprint(n)}) },
		"aliases": func(s *stale, n int) { s.addAlias(aliasKey{name: fmt.Sprint(n)}, "") },
		"renamed": func(s *stale, n int) { s.addAlias(aliasKey{name: fmt.Sprint(n)}, fmt.Sprint(n-1)) },
	} {
		var s stale
		for n := range 100 * maxStale {
			note(&s, n)
			require.LessOrEqual(t, len(s.images)+len(s.aliases), maxStale, name)
			require.LessOrEqual(t, len(s.renamed), maxStale, name)
			require.True(t, s.all || len(s.images)+len(s.aliases) > n, name)
		}
		require.True(t, s.all, name)
	}
}
