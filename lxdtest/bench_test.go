package lxdtest

import (
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

// addImages adds n small images, each with an alias.
func addImages(tb testing.TB, s *Server, n int) {
	tb.Helper()
	for i := range n {
		name := fmt.Sprintf("image-%d", i)
		_, err := s.AddImage(UnifiedImage(name, 0), &AddOptions{Aliases: []string{name}})
		require.NoError(tb, err)
	}
}

// BenchmarkAddImage preloads a server with 1,000 images.
func BenchmarkAddImage(b *testing.B) {
	for b.Loop() {
		s := NewServer(nil)
		addImages(b, s, 1000)
		s.Close()
	}
}

// BenchmarkSnapshot takes a snapshot of 1,000 images.
func BenchmarkSnapshot(b *testing.B) {
	s := NewServer(nil)
	defer s.Close()
	addImages(b, s, 1000)
	for b.Loop() {
		s.Snapshot()
	}
}

// BenchmarkRestore restores a snapshot of 1,000 images: into the server that it is of, and
// into a new one.
func BenchmarkRestore(b *testing.B) {
	s := NewServer(nil)
	defer s.Close()
	addImages(b, s, 1000)
	snap := s.Snapshot()
	b.Run("same", func(b *testing.B) {
		for b.Loop() {
			require.NoError(b, s.Restore(snap))
		}
	})
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			other := NewServer(nil)
			require.NoError(b, other.Restore(snap))
			other.Close()
		}
	})
}

// BenchmarkList lists 10,000 images with their attributes, and finds one.
func BenchmarkList(b *testing.B) {
	s := NewServer(nil)
	defer s.Close()
	addImages(b, s, 10_000)
	client := s.Client()
	get := func(b *testing.B, path string) {
		res, err := client.Get("http://lxd/1.0/" + path)
		require.NoError(b, err)
		n, err := io.Copy(io.Discard, res.Body)
		require.NoError(b, err)
		require.NoError(b, res.Body.Close())
		b.SetBytes(n)
	}
	b.Run("recursion", func(b *testing.B) {
		for b.Loop() {
			get(b, "images?recursion=1")
		}
	})
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			get(b, "images/"+Fingerprint(UnifiedImage("image-1", 0)))
		}
	})
	b.Run("Images", func(b *testing.B) {
		for b.Loop() {
			require.Len(b, s.Images(), 10_000)
		}
	})
}
