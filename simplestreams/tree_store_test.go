package simplestreams_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"testing/fstest"

	"github.com/golxd/lxd/simplestreams"
)

// memStore is a Store in memory, with faults.
type memStore struct {
	mu    sync.Mutex
	files map[string][]byte
	calls int

	// fault is called before each call with its number, from 1 on, and after it. An error is that of the call.
	fault func(call int, after bool) error
}

func newMemStore() *memStore { return &memStore{files: map[string][]byte{}} }

func tagOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// do makes a call.
func (s *memStore) do(ctx context.Context, call func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	s.calls++
	number, fault := s.calls, s.fault
	s.mu.Unlock()
	if fault != nil {
		if err := fault(number, false); err != nil {
			return err
		}
	}
	s.mu.Lock()
	err := call()
	s.mu.Unlock()
	if err == nil && fault != nil {
		err = fault(number, true)
	}

	return err
}

func (s *memStore) load(path string) ([]byte, error) {
	content, ok := s.files[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}

	return content, nil
}

func (s *memStore) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	var content []byte
	err := s.do(ctx, func() (err error) {
		content, err = s.load(path)
		return err
	})
	if err != nil {
		return nil, err
	}

	return io.NopCloser(bytes.NewReader(content)), nil
}

func (s *memStore) Load(ctx context.Context, path string) (content []byte, tag string, err error) {
	err = s.do(ctx, func() (err error) {
		content, err = s.load(path)
		return err
	})
	if err != nil {
		return nil, "", err
	}

	return content, tagOf(content), nil
}

func (s *memStore) Put(ctx context.Context, path string, content io.Reader) error {
	read, err := io.ReadAll(content)
	if err != nil {
		return err
	}

	return s.do(ctx, func() error {
		s.files[path] = read
		return nil
	})
}

func (s *memStore) Swap(ctx context.Context, path string, content []byte, tag string) error {
	return s.do(ctx, func() error {
		have, ok := s.files[path]
		if ok != (tag != "") || ok && tagOf(have) != tag {
			return fmt.Errorf("%s: %w", path, simplestreams.ErrConflict)
		}
		s.files[path] = bytes.Clone(content)

		return nil
	})
}

func (s *memStore) Delete(ctx context.Context, path string) error {
	return s.do(ctx, func() error {
		delete(s.files, path)
		return nil
	})
}

// names returns the paths, in order.
func (s *memStore) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()

	return slices.Sorted(maps.Keys(s.files))
}

// live is a file system of what a store has.
type live struct{ *memStore }

func (l live) Open(name string) (fs.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	content, err := l.load(name)
	if err != nil {
		return nil, err
	}

	return fstest.MapFS{name: {Data: content}}.Open(name)
}

// errStore is the error of a call that fails.
var errStore = errors.New("the store has failed")

// faults are ways in which a store fails at call number n.
var faults = map[string]func(call int, after bool, n int) bool{
	"crash":   func(call int, after bool, n int) bool { return call >= n && !after },
	"once":    func(call int, after bool, n int) bool { return call == n && !after },
	"unknown": func(call int, after bool, n int) bool { return call == n && after },
}
