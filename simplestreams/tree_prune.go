package simplestreams

import (
	"context"
	"fmt"
)

// PruneOptions are the options of [Tree.Prune].
type PruneOptions struct {
	// Keep is how many versions of each product remain, the newest ones. The default is all of them. Products of
	// [Tree.Mirror] remain as they are.
	Keep int

	// DryRun changes nothing: the report says what would be done.
	DryRun bool
}

// PruneReport is what [Tree.Prune] has done.
type PruneReport struct {
	// Removed are the versions that the index names no more. Their files are deleted after [TreeOptions.Grace].
	Removed []TreeVersion

	// Deleted are the paths of the files that were deleted.
	Deleted []string
}

// TreeVersion names a version of a product.
type TreeVersion struct{ Product, Version string }

// Prune removes old versions, and deletes the files that the index names no more and whose time has come (see
// [TreeOptions.Grace]), with those that are left of programs that were killed more than a day ago. Call it from time to time
// if there are few changes, each of which deletes such files too. The report is also returned with an error, with what was
// done before.
func (t *Tree) Prune(ctx context.Context, options *PruneOptions) (*PruneReport, error) {
	if err := t.check(ctx); err != nil {
		return nil, err
	}
	var set PruneOptions
	if options != nil {
		set = *options
	}
	if set.Keep < 0 {
		return nil, invalid("PruneOptions.Keep", "is %d", set.Keep)
	}
	report := &PruneReport{}
	var removed []TreeVersion
	prune := func(l *listing) error {
		removed = nil
		if set.Keep == 0 {
			return nil
		}
		for _, name := range l.names() {
			product := l.products[name]
			attributes, err := product.text(mirrorAttribute)
			if err != nil {
				return err
			}
			if attributes[mirrorAttribute] != "" {
				continue
			}
			for _, serial := range product.older(set.Keep) {
				removed = append(removed, TreeVersion{name, serial})
				delete(product.versions, serial)
			}
		}

		return nil
	}
	var err error
	if set.DryRun {
		var l *listing
		if _, l, err = t.current(ctx); err == nil {
			err = prune(l)
		}
	} else {
		err = t.change(ctx, prune)
	}
	if err != nil {
		return report, err
	}
	report.Removed = removed
	report.Deleted, err = t.collect(ctx, set.DryRun)

	return report, err
}

// Remove removes versions of a product, or with none the whole product. Their files are deleted after [TreeOptions.Grace].
// A product or version that the tree does not list is an [ErrNotFound], and then nothing is removed.
func (t *Tree) Remove(ctx context.Context, product string, versions ...string) error {
	if err := t.check(ctx); err != nil {
		return err
	}

	return t.update(ctx, func(l *listing) error {
		listed := l.products[product]
		if listed == nil {
			return fmt.Errorf("simplestreams: product %q: %w", product, ErrNotFound)
		}
		for _, version := range versions {
			if listed.versions[version] == nil {
				return fmt.Errorf("simplestreams: product %q, version %q: %w", product, version, ErrNotFound)
			}
		}
		for _, version := range versions {
			delete(listed.versions, version)
		}
		if len(versions) == 0 || len(listed.versions) == 0 {
			delete(l.products, product)
		}

		return nil
	})
}
