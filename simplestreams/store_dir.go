package simplestreams

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// scratchDir is the directory for files that are not complete, within that of a [DirStore].
const scratchDir = ".golxd"

// DirStore is a [Store] in a directory.
type DirStore struct {
	root *os.Root
	dir  string
}

// NewDirStore returns a store in a directory, which is created if there is none.
func NewDirStore(dir string) (*DirStore, error) {
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("simplestreams: %w", err)
	}
	if err := os.MkdirAll(absolute, 0o755); err != nil {
		return nil, fmt.Errorf("simplestreams: %w", err)
	}
	root, err := os.OpenRoot(absolute)
	if err != nil {
		return nil, fmt.Errorf("simplestreams: %w", err)
	}

	return &DirStore{root: root, dir: absolute}, nil
}

// scratch returns the absolute path of the directory for files that are to be adopted.
func (s *DirStore) scratch() string { return filepath.Join(s.dir, scratchDir) }

// adopt moves a file from the scratch directory to its path in the store. name is relative to the scratch directory.
func (s *DirStore) adopt(_ context.Context, path, name string) error {
	return s.root.Rename(scratchDir+"/"+name, path)
}
