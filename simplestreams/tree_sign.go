package simplestreams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/go-json-experiment/json/jsontext"
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
		inline, err := t.signInline(signedIndexPath, content)
		if err != nil {
			return err
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
	inline, err := t.signInline(path, document.Bytes())
	if err != nil {
		return err
	}
	if err := t.store.Put(ctx, path, bytes.NewReader(inline)); err != nil {
		return treeError(path, err)
	}

	return nil
}

// signInline returns a document, which it may change, signed inline. Each value is on a line of its own first: GnuPG does
// not verify long lines.
func (t *Tree) signInline(path string, document jsontext.Value) ([]byte, error) {
	if err := document.Format(jsontext.AllowDuplicateNames(true), jsontext.WithIndent("")); err != nil {
		return nil, treeError(path, err)
	}
	inline, _, err := t.options.Signer.Sign(append(document, '\n'))
	if err != nil {
		return nil, treeError(path, fmt.Errorf("signing failed: %w", err))
	}

	return inline, nil
}
