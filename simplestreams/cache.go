package simplestreams

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Cache stores metadata files for a client. It must be safe for concurrent use. It may drop entries at any time: a missing
// entry is downloaded again, and an altered one is detected by its hash. Errors of a cache are logged and otherwise
// ignored.
type Cache interface {
	// Open returns the content stored under the key, or an error. The key consists of letters, digits, "-" and ".", and
	// is a valid file name.
	Open(key string) (io.ReadCloser, error)

	// Store reads content to its end and stores it under the key, replacing an earlier entry. If reading content fails,
	// Store returns an error and keeps the earlier entry.
	Store(key string, content io.Reader) error
}

// DirCache returns a cache in a directory, which is created when it is first needed. Programs can share it: files get
// their names only when they are complete. Nothing is ever removed; each metadata file of a server takes two files.
func DirCache(dir string) Cache { return dirCache(dir) }

type dirCache string

func (d dirCache) Open(key string) (io.ReadCloser, error) {
	file, err := os.Open(filepath.Join(string(d), key))
	if err != nil {
		return nil, fmt.Errorf("simplestreams cache: %w", err)
	}

	return file, nil
}

func (d dirCache) Store(key string, content io.Reader) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("simplestreams cache: %w", err)
		}
	}()
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(string(d), "new-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(string(d), key))
	}
	if err != nil {
		_ = os.Remove(file.Name())
	}

	return err
}
