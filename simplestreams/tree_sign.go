package simplestreams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// sign makes the signed index one of the index, unless it is.
func (t *Tree) sign(ctx context.Context) error {
	if t.options.Signer == nil {
		return nil
	}

	return again(ctx, func() error {
		// The signed index is read before the index: if another program replaces both in between, Swap notices that.
		_, tag, err := t.store.Load(ctx, signedIndexPath)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return treeError(signedIndexPath, err)
		}
		index, err := t.loadIndex(ctx)
		if err != nil || index.tag == "" {
			return err
		}
		l, _, err := t.loadLedger(ctx)
		if err != nil || l.Signed == index.hash && tag != "" {
			return err
		}
		var products []byte
		index, err = t.open(ctx, func(r *metadataReader) (err error) {
			products, err = io.ReadAll(r)
			return err
		})
		if err != nil {
			return err
		}
		var names []string
		if index.products != "" {
			signed := signedPath(index.products)
			there, err := t.exists(ctx, signed)
			if err == nil && !there {
				err = t.reserve(ctx, part{path: signed})
				if err == nil {
					err = t.signProducts(ctx, index.products, func(w io.Writer) error {
						_, err := w.Write(products)
						return err
					})
				}
			}
			if err != nil {
				return err
			}
			listed, err := decodeListing(bytes.NewReader(products), nil)
			if err != nil {
				return treeError(index.products, badDataf("%w", err))
			}
			names = listed.names()
		}
		own := &treeIndex{members: []member{{"format", []byte(`"index:1.0"`)}, {name: "index"}}}
		path := ""
		if index.products != "" {
			path = signedPath(index.products)
		}
		content, err := own.encode(path, names)
		if err != nil {
			return treeError(signedIndexPath, err)
		}
		inline, _, err := t.options.Signer.Sign(content)
		if err != nil {
			return treeError(signedIndexPath, fmt.Errorf("signing failed: %w", err))
		}
		if err := t.store.Swap(ctx, signedIndexPath, inline, tag); err != nil {
			return treeError(signedIndexPath, err)
		}
		if err := t.changeLedger(ctx, func(l *ledger) error { l.Signed = index.hash; return nil }); err != nil {
			return err
		}
		now, err := t.loadIndex(ctx)
		if err == nil && now.tag != index.tag {
			err = treeError(indexPath, ErrConflict)
		}

		return err
	})
}

// signProducts stores the signed products file beside the one with a path.
func (t *Tree) signProducts(ctx context.Context, path string, encode func(io.Writer) error) error {
	if t.options.Signer == nil {
		return nil
	}
	var document bytes.Buffer
	if err := encode(&document); err != nil {
		return treeError(path, err)
	}
	path = signedPath(path)
	inline, _, err := t.options.Signer.Sign(document.Bytes())
	if err != nil {
		return treeError(path, fmt.Errorf("signing failed: %w", err))
	}
	if err := t.store.Put(ctx, path, bytes.NewReader(inline)); err != nil {
		return treeError(path, err)
	}

	return nil
}
