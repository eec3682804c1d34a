package simplestreams

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

const (
	ledgerPath = "streams/v1/golxd.ledger.json"

	// reserveFor is how long a file may be in the store before it is listed.
	reserveFor = 24 * time.Hour

	// settleFor is how long a listed file stays in the ledger. Within half of that after it has entered the files that it
	// removes in the ledger, an update must have replaced the index: so they are still in the ledger then.
	settleFor = time.Hour
)

// errDeleted says that a file is being deleted, or is deleted, and so must not be listed.
var errDeleted = errors.New("the file was deleted, as nothing listed it")

// ledger has the files of a tree that are listed no more, or not yet: each file is in the ledger before it is stored, and
// stays there until it is listed or deleted, so that a crash at any point leaves no file that nothing knows. Only files in
// it are deleted.
type ledger struct {
	Files map[string]*ledgerFile `json:"files"`

	// Signed is the hash of the index that the signed index is of. It is empty for a tree that is not signed.
	Signed string `json:"signed,omitzero"`
}

type ledgerFile struct {
	Since time.Time `json:"since"` // when Until was last set
	Until time.Time `json:"until"` // when the file is deleted unless it is listed

	// Deleting says that it is being deleted: it must not be listed again.
	Deleting bool `json:"deleting,omitzero"`

	// Size and SHA256 are those of a file that is to be stored; empty if they were not known.
	Size   int64  `json:"size,omitzero"`
	SHA256 string `json:"sha256,omitzero"`
}

// loadLedger reads the ledger.
func (t *Tree) loadLedger(ctx context.Context) (l *ledger, tag string, err error) {
	l = &ledger{}
	content, tag, err := t.store.Load(ctx, ledgerPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	case err != nil:
		return nil, "", treeError(ledgerPath, err)
	default:
		if err = json.Unmarshal(content, l); err != nil {
			return nil, "", treeError(ledgerPath, badDataf("%w", err))
		}
	}
	maps.DeleteFunc(l.Files, func(path string, file *ledgerFile) bool { return file == nil || !storePath(path) })
	if l.Files == nil {
		l.Files = map[string]*ledgerFile{}
	}

	return l, tag, nil
}

// saveLedger replaces the ledger. The error matches ErrConflict if somebody else has done so since it was read.
func (t *Tree) saveLedger(ctx context.Context, l *ledger, tag string) error {
	content, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := t.store.Swap(ctx, ledgerPath, content, tag); err != nil {
		return treeError(ledgerPath, err)
	}

	return nil
}

// changeLedger changes the ledger, again if somebody else does so at the same time.
func (t *Tree) changeLedger(ctx context.Context, change func(*ledger) error) error {
	return again(ctx, func() error {
		l, tag, err := t.loadLedger(ctx)
		if err != nil {
			return err
		}
		if err := change(l); err != nil {
			return err
		}

		return t.saveLedger(ctx, l, tag)
	})
}

// again calls a function until it does not fail with ErrConflict. A conflict means that somebody else has succeeded.
func again(ctx context.Context, try func() error) error {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := try()
		if !errors.Is(err, ErrConflict) {
			return err
		}
		timer := time.NewTimer(rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctxerr.Of(ctx)
		}
	}
}

// hold lets a file stay until a time at least.
func (l *ledger) hold(path string, now, until time.Time) *ledgerFile {
	file := l.Files[path]
	if file == nil {
		file = &ledgerFile{}
		l.Files[path] = file
	}
	file.Since = now
	if file.Until.Before(until) {
		file.Until = until
	}

	return file
}

// reserve enters files in the ledger that are about to be stored: they are deleted if they are not listed within a day.
// Size and hash may be zero; if they are known, copies finds the file before it is listed. If a file is being deleted, the
// error matches errDeleted.
func (t *Tree) reserve(ctx context.Context, files ...part) error {
	if len(files) == 0 {
		return nil
	}

	return t.changeLedger(ctx, func(l *ledger) error {
		now := t.now()
		for _, file := range files {
			entry := l.hold(file.path, now, now.Add(reserveFor))
			if entry.Deleting {
				return treeError(file.path, errDeleted)
			}
			if file.sha256 != (digest{}) {
				entry.Size, entry.SHA256 = file.size, file.sha256.String()
			}
		}

		return nil
	})
}

// reuse reserves files that are in the store already, such as those that copies returns. If one was deleted in the
// meantime, the error matches errDeleted.
func (t *Tree) reuse(ctx context.Context, files ...part) error {
	if err := t.reserve(ctx, files...); err != nil {
		return err
	}
	for _, file := range files {
		if ok, err := t.exists(ctx, file.path); err != nil {
			return err
		} else if !ok {
			return treeError(file.path, errDeleted)
		}
	}

	return nil
}

func (t *Tree) exists(ctx context.Context, path string) (bool, error) {
	content, err := t.store.Open(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, treeError(path, err)
	}
	_ = content.Close()

	return true, nil
}

// release ends the reservation of files that will not be listed: the next collect deletes them.
func (t *Tree) release(ctx context.Context, files ...part) error {
	if len(files) == 0 {
		return nil
	}

	return t.changeLedger(ctx, func(l *ledger) error {
		for _, file := range files {
			if entry := l.Files[file.path]; entry != nil {
				entry.Until = t.now()
			}
		}

		return nil
	})
}

// abandon releases and deletes files after a failure that is reported already. It goes on if ctx has ended, for a while.
func (t *Tree) abandon(ctx context.Context, files ...part) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := t.release(ctx, files...)
	if err == nil {
		_, err = t.collect(ctx, false)
	}
	if err != nil {
		t.options.Logger.WarnContext(ctx, "deleting files of the tree failed", "error", err)
	}
}

// copies returns the files in the store by their hashes: those that the tree lists, and those that were reserved with a
// hash and stored. Call reuse before they are listed.
func (t *Tree) copies(ctx context.Context) (map[digest]part, error) {
	reserved, _, err := t.loadLedger(ctx)
	if err != nil {
		return nil, err
	}
	_, l, err := t.current(ctx)
	if err != nil {
		return nil, err
	}
	all := l.copies()
	for path, file := range reserved.Files {
		hash, ok := parseDigest(file.SHA256)
		if _, listed := all[hash]; file.Deleting || !ok || listed {
			continue
		}
		if ok, err := t.exists(ctx, path); err != nil {
			return nil, err
		} else if ok {
			all[hash] = part{path: path, size: file.Size, sha256: hash}
		}
	}

	return all, nil
}

// due reports whether collect has something to do with a file.
func (f *ledgerFile) due(now time.Time) bool { return f.Deleting || !now.Before(f.Until) }

// collect deletes the files whose time has come and that are not listed, and returns their paths. With dry set it deletes
// nothing.
func (t *Tree) collect(ctx context.Context, dry bool) ([]string, error) {
	if store, ok := t.store.(*DirStore); ok && !dry {
		if err := store.tidy(t.now().Add(-reserveFor)); err != nil {
			return nil, treeError(scratchDir, err)
		}
	}
	var doomed []string
	err := again(ctx, func() error {
		doomed = nil
		l, tag, err := t.loadLedger(ctx)
		if err != nil {
			return err
		}
		now := t.now()
		work := false
		for _, file := range l.Files {
			work = work || file.due(now)
		}
		if !work {
			return nil
		}
		// The index is read after the ledger: a file that is listed later was reserved later, and Swap notices that.
		index, current, err := t.current(ctx)
		if err != nil {
			return err
		}
		if l.Signed != "" && l.Signed != index.hash {
			return nil // The signed index may still name them.
		}
		listed := current.files()
		listed[index.products], listed[signedPath(index.products)] = true, true
		changed := false
		for path, file := range l.Files {
			switch {
			case !file.due(now):
			case listed[path]:
				if !now.Before(file.Since.Add(settleFor)) {
					delete(l.Files, path)
					changed = true
				}
			default:
				changed = changed || !file.Deleting
				file.Deleting = true
				doomed = append(doomed, path)
			}
		}
		if dry || !changed {
			return nil
		}

		return t.saveLedger(ctx, l, tag)
	})
	if err != nil || dry || len(doomed) == 0 {
		return doomed, err
	}

	var failed []error
	deleted := doomed[:0]
	for _, path := range doomed {
		if err := t.store.Delete(ctx, path); err != nil {
			failed = append(failed, treeError(path, err))
			continue
		}
		t.options.Logger.DebugContext(ctx, "deleted a file of the tree", "path", path)
		deleted = append(deleted, path)
	}
	if err := t.changeLedger(ctx, func(l *ledger) error {
		for _, path := range deleted {
			delete(l.Files, path)
		}

		return nil
	}); err != nil {
		failed = append(failed, err)
	}

	return deleted, errors.Join(failed...)
}
