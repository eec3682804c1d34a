package simplestreams

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/partfile"
)

const (
	// scratchDir is the directory for files that are not complete, within that of a DirStore. Web servers must not show it,
	// and NewHandler does not: nothing in it has been verified.
	scratchDir = ".golxd"

	// scratchPrefix begins the names of files that Put and Swap have not completed.
	scratchPrefix = "put-"

	lockFile = "lock"
)

// DirStore is a [Store] in a directory. Programs of one user can share it. Files get their names when they are complete
// and synced to disk. A path must not contain a name that begins with ".", and does not lead out of the directory by
// symbolic links. The directory .golxd in it has the files that are not complete; all must be on one file system.
type DirStore struct {
	root *os.Root
	dir  string

	// swapping is the lock of Swap within this process: waiting for it is faster than for that of the file.
	swapping chan struct{}
}

// NewDirStore returns a store in a directory, which is created if there is none. The caller should close it.
func NewDirStore(dir string) (*DirStore, error) {
	if dir == "" {
		return nil, invalid("dir", `is empty; "." is the current directory`)
	}
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

	return &DirStore{root: root, dir: absolute, swapping: make(chan struct{}, 1)}, nil
}

// Close releases the directory. The store cannot be used any more.
func (s *DirStore) Close() error {
	if s == nil || s.root == nil {
		return invalid("store", "is not from NewDirStore")
	}

	return s.root.Close()
}

// FS returns the files, for [NewHandler]. It cannot be used after Close.
func (s *DirStore) FS() fs.FS {
	if s == nil || s.root == nil {
		return noFiles{}
	}

	return s.root.FS()
}

// noFiles is a file system without files.
type noFiles struct{}

func (noFiles) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// check returns an error for a call that cannot be made.
func (s *DirStore) check(ctx context.Context, name string) error {
	switch {
	case s == nil || s.root == nil:
		return invalid("store", "is not from NewDirStore")
	case ctx == nil:
		return invalid("ctx", "is nil")
	case !storePath(name):
		return invalid("path", "%.200q is not the path of a file: it must be relative, without \"..\" and names that begin with \".\"", name)
	}

	return ctxerr.Of(ctx)
}

// storePath reports whether a file of a tree can have the path.
func storePath(name string) bool {
	return fs.ValidPath(name) && name[0] != '.' && !strings.Contains(name, "/.") && filepath.IsLocal(filepath.FromSlash(name)) &&
		!strings.ContainsAny(name, "\\\x00")
}

// Open implements [Store].
func (s *DirStore) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := s.check(ctx, name); err != nil {
		return nil, err
	}

	return openRegular(s.root.FS(), name)
}

// openRegular opens a file. Anything else is not opened: a named pipe would block.
func openRegular(files fs.FS, name string) (fs.File, error) {
	info, err := fs.Stat(files, name)
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, err
	}

	return files.Open(name)
}

// Load implements [Store].
func (s *DirStore) Load(ctx context.Context, name string) (content []byte, tag string, err error) {
	file, err := s.Open(ctx, name)
	if err != nil {
		return nil, "", err
	}
	defer file.Close()
	content, err = io.ReadAll(file)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(content)

	return content, hex.EncodeToString(sum[:]), nil
}

// Put implements [Store].
func (s *DirStore) Put(ctx context.Context, name string, content io.Reader) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}

	return s.write(ctx, name, content, time.Time{})
}

// Swap implements [Store]. The modification time of the new file is at least one second after that of the old one: web
// servers make the ETag of it.
func (s *DirStore) Swap(ctx context.Context, name string, content []byte, tag string) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	select {
	case s.swapping <- struct{}{}:
		defer func() { <-s.swapping }()
	case <-ctx.Done():
		return ctxerr.Of(ctx)
	}
	if err := s.root.MkdirAll(scratchDir, 0o700); err != nil {
		return err
	}
	lock, err := partfile.Lock(ctx, filepath.Join(s.dir, scratchDir, lockFile), 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()

	_, have, err := s.Load(ctx, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if have != tag {
		return fmt.Errorf("%s: %w", name, ErrConflict)
	}
	var after time.Time
	if info, err := s.root.Stat(name); err == nil {
		after = info.ModTime().Truncate(time.Second).Add(time.Second)
	}

	return s.write(ctx, name, bytes.NewReader(content), after)
}

// write writes a file beside its place, syncs it and gives it its name. Its modification time is not before after.
func (s *DirStore) write(ctx context.Context, name string, content io.Reader, after time.Time) (err error) {
	if err := s.root.MkdirAll(scratchDir, 0o700); err != nil {
		return err
	}
	temporary := scratchDir + "/" + scratchPrefix + rand.Text()
	file, err := s.root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		_ = file.Close()
		if err != nil {
			_ = s.root.Remove(temporary)
		}
	}()
	if _, err := io.CopyBuffer(struct{ io.Writer }{file}, struct{ io.Reader }{&ctxReader{ctx, content}}, make([]byte, copyBlock)); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if info, err := file.Stat(); err != nil {
		return err
	} else if info.ModTime().Before(after) {
		if err := s.root.Chtimes(temporary, after, after); err != nil {
			return err
		}
	}
	if err := file.Close(); err != nil {
		return err
	}
	if err := ctxerr.Of(ctx); err != nil {
		return err
	}

	return s.rename(temporary, name)
}

// rename moves a complete file to its place.
func (s *DirStore) rename(from, name string) error {
	dir := path.Dir(name)
	for attempt := 1; ; attempt++ {
		err := s.root.MkdirAll(dir, 0o755)
		if err == nil {
			err = s.root.Rename(from, name)
		}
		if err == nil {
			break
		}
		// Delete may just have removed the directory, as it was empty.
		if attempt == 10 || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for ; ; dir = path.Dir(dir) {
		if err := s.syncDir(dir); err != nil {
			return err
		}
		if dir == "." {
			return nil
		}
	}
}

// syncDir makes the names in a directory durable, where the system can do that.
func (s *DirStore) syncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	dir, err := s.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}

	return nil
}

// Delete implements [Store]. It also removes the directories of the file that are empty then.
func (s *DirStore) Delete(ctx context.Context, name string) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		// A link to a directory is somebody's intention.
		if info, err := s.root.Lstat(dir); err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
			return nil
		}
		if err := s.root.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}

	return nil
}

// scratch creates the directory for files that are to be adopted, and returns its path.
func (s *DirStore) scratch() (string, error) {
	if err := s.root.MkdirAll(scratchDir, 0o700); err != nil {
		return "", err
	}

	return filepath.Join(s.dir, scratchDir), nil
}

// adopt syncs a complete file of the scratch directory and moves it to its path in the store.
func (s *DirStore) adopt(ctx context.Context, name, scratchName string, file *partfile.File) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	if err := file.Settle(ctx); err != nil {
		return err
	}

	return s.rename(scratchDir+"/"+scratchName, name)
}

// tidy removes what calls of Put and Swap have left that were killed before a time.
func (s *DirStore) tidy(before time.Time) error {
	entries, err := fs.ReadDir(s.root.FS(), scratchDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), scratchPrefix) {
			continue
		}
		info, err := entry.Info()
		if err == nil && info.ModTime().Before(before) {
			err = s.root.Remove(scratchDir + "/" + entry.Name())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}

	return nil
}

// ctxReader ends with a context, between two reads.
type ctxReader struct {
	ctx    context.Context
	source io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := ctxerr.Of(r.ctx); err != nil {
		return 0, err
	}

	return r.source.Read(p)
}
