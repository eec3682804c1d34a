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

// sum reads the files, which also brings them into the page cache.
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

// without deletes an image from a daemon, if it is there.
func without(d *testdaemon.Daemon, fingerprint string) func(context.Context) error {
	return func(ctx context.Context) error {
		err := d.Do(ctx, http.MethodDelete, "/1.0/images/"+fingerprint, nil, nil)
		var refused *testdaemon.Error
		if errors.As(err, &refused) && refused.Code == http.StatusNotFound {
			return nil
		}
		return err
	}
}

// empty deletes all images of a daemon.
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

// with makes sure that a daemon has an image.
func (b *bench) with(d *testdaemon.Daemon, f imageFiles) func(context.Context) error {
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

// fresh empties the folder that downloads go to.
func (b *bench) fresh(context.Context) error {
	return errors.Join(os.RemoveAll(b.outFolder()), os.Mkdir(b.outFolder(), 0o700))
}

func (b *bench) outFolder() string { return filepath.Join(b.folder, "out") }

// settle waits until a daemon does nothing any more.
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
