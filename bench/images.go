package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/golxd/lxd/internal/testdaemon"
)

// sum hashes the files, which also loads them into the page cache.
func (f *imageFiles) sum() error {
	h := sha256.New()
	for _, path := range []string{f.image, f.rootfs} {
		if path == "" {
			continue
		}
		r, err := os.Open(path)
		if err != nil {
			return err
		}
		n, err := io.Copy(h, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
		f.size += n
	}
	f.fingerprint = hex.EncodeToString(h.Sum(nil))
	return nil
}

// remove returns a function that deletes an image from a daemon, if it exists.
func remove(d *testdaemon.Daemon, fingerprint string) func(context.Context) error {
	return func(ctx context.Context) error {
		err := d.Do(ctx, http.MethodDelete, "/1.0/images/"+fingerprint, nil, nil)
		var refused *testdaemon.Error
		if errors.As(err, &refused) && refused.Code == http.StatusNotFound {
			return nil
		}
		return err
	}
}

// empty returns a function that deletes all images of a daemon.
func empty(d *testdaemon.Daemon) func(context.Context) error {
	return func(ctx context.Context) error {
		var urls []string
		if err := d.Do(ctx, http.MethodGet, "/1.0/images", nil, &urls); err != nil {
			return err
		}
		for _, url := range urls {
			if err := d.Do(ctx, http.MethodDelete, url, nil, nil); err != nil {
				return err
			}
		}
		return nil
	}
}

// ensure returns a function that uploads an image to a daemon, unless it exists.
func (b *bench) ensure(d *testdaemon.Daemon, f imageFiles) func(context.Context) error {
	return func(ctx context.Context) error {
		err := d.Do(ctx, http.MethodGet, "/1.0/images/"+f.fingerprint, nil, nil)
		var refused *testdaemon.Error
		if err == nil || !errors.As(err, &refused) || refused.Code != http.StatusNotFound {
			return err
		}
		_, err = b.curlUpload(ctx, unixEndpoint(d), f)
		return err
	}
}

// emptyOut empties the directory for downloads.
func (b *bench) emptyOut(context.Context) error {
	return errors.Join(os.RemoveAll(b.outDir()), os.Mkdir(b.outDir(), 0o700))
}

func (b *bench) outDir() string { return filepath.Join(b.dir, "out") }

// settle returns a function that waits until a daemon has no running operations.
func settle(d *testdaemon.Daemon) func(context.Context) error {
	return func(ctx context.Context) error {
		var operations map[string][]string
		if err := d.Do(ctx, http.MethodGet, "/1.0/operations", nil, &operations); err != nil {
			return err
		}
		for _, url := range operations["running"] {
			err := d.Do(ctx, http.MethodGet, url+"/wait?timeout=-1", nil, nil)
			var refused *testdaemon.Error
			if err != nil && !(errors.As(err, &refused) && refused.Code == http.StatusNotFound) {
				return err
			}
		}
		return nil
	}
}
