package simplestreams

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Cache keeps metadata files for a client. It has to be safe for concurrent use. What it loses is fetched again and what
// it alters is noticed by its hash, so a cache can drop entries as it likes. A failing cache is logged and otherwise
// ignored.
type Cache interface {
	// Open returns what was stored under the key, or an error. The key consists of letters, digits, "-" and ".", and is
	// fit to be a file name.
	Open(key string) (io.ReadCloser, error)

	// Store reads content to its end and keeps it under the key, in the place of what was there. If content ends with an
	// error, Store returns an error and keeps what was there.
	Store(key string, content io.Reader) error
}

// DirCache returns a cache in a folder, which is made when it is first needed. Programs can share it: files appear under
// their names only when they are whole. Nothing is ever removed; there are two files for each metadata file of a server.
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
