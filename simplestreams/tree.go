package simplestreams

import (
	"context"
	"log/slog"
	"time"
)

// treeContentID is the key of a tree's entry in the index, and the content_id of its products file.
const treeContentID = "golxd"

// TreeOptions configure a [Tree].
type TreeOptions struct {
	// Grace is how long a file stays after the index has stopped to name it, for those who have read the old index. The
	// default is 24 hours; with a negative value it is deleted at once.
	Grace time.Duration

	// Signer signs the tree. By default it is not signed.
	Signer Signer

	// Logger receives a debug record for each file that is stored or deleted. By default nothing is logged.
	Logger *slog.Logger
}

// Tree publishes images in a simplestreams tree.
type Tree struct {
	store   Store
	options TreeOptions
	now     func() time.Time
}

// NewTree returns a tree in a store.
func NewTree(store Store, options *TreeOptions) (*Tree, error) {
	if store == nil {
		return nil, invalid("store", "is nil")
	}
	t := &Tree{store: store, now: time.Now}
	if options != nil {
		t.options = *options
	}

	return t, nil
}

// update changes the tree. change is called with what the tree lists, and changes it; it may be called again with another
// listing. Files that it adds must have been reserved, also those that are in the tree already. Those that it removes are
// deleted after the grace period.
func (t *Tree) update(ctx context.Context, change func(*listing) error) error { panic("skeleton") }

// reserve says that files are about to be stored or listed: they are deleted if they are not listed within a day. size
// and sha256 may be unknown (zero); if they are known, copies finds the file before it is listed. If a file is being
// deleted, the error matches errDeleted: it must be stored under another path.
func (t *Tree) reserve(ctx context.Context, files ...part) error { panic("skeleton") }

// copies returns files that are in the store by their hashes: those that the tree lists, and those that were reserved with
// a hash and stored. reserve them before they are listed.
func (t *Tree) copies(ctx context.Context) (map[digest]part, error) { panic("skeleton") }

// newPath returns a path that no file has had.
func newPath(name string) string { panic("skeleton") }
