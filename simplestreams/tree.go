package simplestreams

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// TreeOptions configure a [Tree].
type TreeOptions struct {
	// Grace is how long a file stays after the index has ceased to name it, for those who have read the old index. The
	// default is 24 hours. With a negative value the file is deleted at once.
	Grace time.Duration

	// Signer signs the tree: streams/v1/index.sjson and the products file that it names are then written too. What others
	// have in the index is not in the signed one, and a signed index of others is replaced. Without a Signer, a tree that is
	// signed cannot be changed. By default the tree is not signed.
	Signer Signer

	// Logger receives a debug record for each file that is stored or deleted, and a warning if deleting one fails. By
	// default nothing is logged.
	Logger *slog.Logger
}

// Tree publishes images: it writes a simplestreams tree to a [Store], for a web server to serve. It is safe for concurrent
// use, and several programs may write one tree at the same time.
//
// A change becomes visible at once, when the index is replaced: a client that reads the tree at any moment gets the old or
// the new one, and whatever interrupts a change, one of the two is there. What the index names no more is deleted after
// [TreeOptions.Grace], by the first change, or call of [Tree.Prune], after that.
//
// The tree's products file has the key "golxd" in the index. Other entries of the index, and files that a Tree has not
// stored, remain as they are.
type Tree struct {
	store   Store
	options TreeOptions
	now     func() time.Time

	// changing is the lock of update within this Tree, where waiting is cheaper than a conflict.
	changing chan struct{}
}

// NewTree returns the tree in a store. It reads and writes nothing: a store without a tree has an empty one.
func NewTree(store Store, options *TreeOptions) (*Tree, error) {
	if store == nil {
		return nil, invalid("store", "is nil")
	}
	t := &Tree{store: store, now: time.Now, changing: make(chan struct{}, 1)}
	if options != nil {
		t.options = *options
	}
	if t.options.Grace == 0 {
		t.options.Grace = 24 * time.Hour
	}
	t.options.Grace = max(t.options.Grace, 0)
	if t.options.Logger == nil {
		t.options.Logger = slog.New(slog.DiscardHandler)
	}

	return t, nil
}

// check returns an error for a tree that NewTree has not returned, and for a ctx that is nil or has ended.
func (t *Tree) check(ctx context.Context) error {
	switch {
	case t == nil || t.store == nil:
		return invalid("tree", "is not from NewTree")
	case ctx == nil:
		return invalid("ctx", "is nil")
	}

	return ctxerr.Of(ctx)
}

// Images lists the images of the tree as [Client.Images] does for a client of both families, but only those that a Tree
// has published. The tree is read when the sequence is ranged over, which can be repeated. An error ends the sequence.
func (t *Tree) Images(ctx context.Context) iter.Seq2[*Image, error] {
	return func(yield func(*Image, error) bool) {
		images := &catalog{}
		err := t.check(ctx)
		if err == nil {
			_, err = t.open(ctx, func(r *metadataReader) (err error) {
				images, err = parseAll(r, func(r io.Reader) (*catalog, error) { return decodeCatalog(r, nil) })
				return err
			})
		}
		if err != nil {
			yield(nil, err)
			return
		}
		for i := range images.entries {
			if e := &images.entries[i]; e.broken == nil && !yield(e.image(), nil) {
				return
			}
		}
	}
}

// update changes what the tree lists. change is called with the listing, and changes it; it may be called again, with
// another listing. Files that it adds must have been reserved, also those that are in the store already; otherwise the
// error matches errDeleted. Those that it removes are deleted after the grace period. If the listing remains the same,
// nothing is written.
func (t *Tree) update(ctx context.Context, change func(*listing) error) error {
	if err := t.change(ctx, change); err != nil {
		return err
	}
	if _, err := t.collect(ctx, false); err != nil {
		// The change is made; what could not be deleted is tried again by the next one.
		t.options.Logger.WarnContext(ctx, "deleting files of the tree failed", "error", err)
	}

	return nil
}

// change is update without deleting.
func (t *Tree) change(ctx context.Context, change func(*listing) error) error {
	select {
	case t.changing <- struct{}{}:
		defer func() { <-t.changing }()
	case <-ctx.Done():
		return ctxerr.Of(ctx)
	}
	if err := again(ctx, func() error { return t.replace(ctx, change) }); err != nil {
		return err
	}

	return t.sign(ctx)
}

// errUnknown says that the files of a change must not be deleted, as the change may have been made.
var errUnknown = errors.New("whether the change was made is not known")

// replace makes a change, unless somebody else makes another one at the same time: then the error matches ErrConflict.
func (t *Tree) replace(ctx context.Context, change func(*listing) error) (err error) {
	index, l, err := t.current(ctx)
	if err != nil {
		return err
	}
	before := l.files()
	if err := change(l); err != nil {
		return err
	}
	hash := sha256.New()
	if err := l.encode(hash); err != nil {
		return fmt.Errorf("simplestreams: %w", err)
	}
	products := ""
	if len(l.products) > 0 {
		sum := digest(hash.Sum(nil))
		if strings.HasPrefix(index.products, productsPrefix(sum)) {
			return nil
		}
		products = newProductsPath(sum)
	} else if index.products == "" {
		return nil
	}
	content, err := index.encode(products, l.names())
	if err != nil {
		return treeError(indexPath, err)
	}

	defer func() {
		if err != nil && products != "" && !errors.Is(err, errUnknown) {
			t.abandon(ctx, part{path: products}, part{path: signedPath(products)})
		}
	}()
	enter := func() error { return t.enter(ctx, index.products, products, before, l.files()) }
	if err := enter(); err != nil {
		return err
	}
	entered := t.now()
	if products != "" {
		if err := t.putProducts(ctx, products, l); err != nil {
			return err
		}
	}
	if t.now().Sub(entered) > settleFor/2 {
		if err := enter(); err != nil {
			return err
		}
	}
	if err := t.store.Swap(ctx, indexPath, content, index.tag); err != nil {
		if !errors.Is(err, ErrConflict) {
			err = fmt.Errorf("%w; %w", err, errUnknown)
		}
		return treeError(indexPath, err)
	}
	t.options.Logger.DebugContext(ctx, "replaced the index of the tree", "products", products)

	return nil
}

// enter enters a change in the ledger: the files that are listed no more, the products files, and that those which are new
// are about to be listed.
func (t *Tree) enter(ctx context.Context, oldProducts, newProducts string, before, after map[string]bool) error {
	return t.changeLedger(ctx, func(l *ledger) error {
		if l.Signed != "" && t.options.Signer == nil {
			signed, err := t.exists(ctx, signedIndexPath)
			if err != nil {
				return err
			}
			if signed {
				return invalid("TreeOptions.Signer", "is nil, but the tree is signed: set it, or delete %s", signedIndexPath)
			}
			l.Signed = ""
		}
		now := t.now()
		for path := range after {
			if before[path] {
				continue
			}
			if file := l.Files[path]; file == nil || file.Deleting {
				return treeError(path, errDeleted)
			}
			l.hold(path, now, now.Add(reserveFor))
		}
		for path := range before {
			if !after[path] {
				l.hold(path, now, now.Add(t.options.Grace))
			}
		}
		for path, until := range map[string]time.Time{oldProducts: now.Add(t.options.Grace), newProducts: now.Add(reserveFor)} {
			if path == "" {
				continue
			}
			l.hold(path, now, until)
			if l.Signed != "" || t.options.Signer != nil {
				l.hold(signedPath(path), now, until)
			}
		}

		return nil
	})
}

// putProducts stores a products file, and the signed one.
func (t *Tree) putProducts(ctx context.Context, path string, l *listing) error {
	reader, writer := io.Pipe()
	go func() { _ = writer.CloseWithError(l.encode(writer)) }()
	err := t.store.Put(ctx, path, reader)
	_ = reader.Close()
	if err != nil {
		return treeError(path, err)
	}

	return t.signProducts(ctx, path, l.encode)
}

// newPath returns a path for a file that no file has had.
func newPath(name string) string {
	return "images/" + strings.ToLower(rand.Text()) + "/" + name
}
