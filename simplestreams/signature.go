package simplestreams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Verifier verifies the signatures of a server's metadata documents, see [Options.Verifier]. It must be safe for
// concurrent use. Package simplestreams/signed has one for OpenPGP keyrings.
type Verifier interface {
	// VerifyInline returns the content of a document that is signed inline, as a .sjson file is: exactly the bytes that
	// the signature covers. It returns an error if there is no valid signature of a trusted key, or if the file has
	// anything before or after the signed document.
	VerifyInline(signed []byte) (document []byte, err error)

	// VerifyDetached returns an error unless the signature, the content of a .gpg file, is a valid one of a trusted key
	// for the document.
	VerifyDetached(document, signature []byte) error
}

// Signer signs the metadata documents of a tree. It must be safe for concurrent use. Package simplestreams/signed has one
// for OpenPGP keys.
type Signer interface {
	// Sign returns the document signed inline, the content of its .sjson file, and its detached signature, the content of
	// its .gpg file (ASCII armored). An error means that nothing is to be published.
	Sign(document []byte) (inline, detached []byte, err error)
}

// getVerified returns a metadata file as get does. With a Verifier, it returns the content of the signed file instead,
// which parse receives only when the signature has been verified.
func getVerified[T any](ctx context.Context, c *Client, path string, known *document[T], force bool, parse func(io.Reader) (T, error)) (*document[T], error) {
	if c.options.Verifier == nil {
		return get(ctx, c, path, known, force, parse)
	}
	base := strings.TrimSuffix(strings.TrimSuffix(path, ".sjson"), ".json")
	inline, err := get(ctx, c, base+".sjson", known, force, verified(parse, c.options.Verifier.VerifyInline))
	if !errors.Is(err, ErrNotFound) {
		return inline, err
	}

	detached, err := getDetached(ctx, c, base+".json", known, force, parse)
	if errors.Is(err, ErrSignature) && !errors.Is(err, ErrNotFound) && !force {
		// One of the two files may be from the cache, or of the moment at which the server replaces them.
		detached, err = getDetached(ctx, c, base+".json", known, true, parse)
	}

	return detached, err
}

// getDetached returns a metadata file that has its signature in a file of its own.
func getDetached[T any](ctx context.Context, c *Client, path string, known *document[T], force bool, parse func(io.Reader) (T, error)) (*document[T], error) {
	signature, err := get(ctx, c, path+".gpg", nil, force, io.ReadAll)
	if errors.Is(err, ErrNotFound) {
		return nil, c.fileError(path, fmt.Errorf("%w: the server has neither a signed file (.sjson) nor a signature (.json.gpg): %w", ErrSignature, err))
	}
	if err != nil {
		return nil, err
	}

	return get(ctx, c, path, known, force, verified(parse, func(document []byte) ([]byte, error) {
		return document, c.options.Verifier.VerifyDetached(document, signature.content)
	}))
}

// verified returns a parse function that verifies the whole file first. What verify returns is parsed.
func verified[T any](parse func(io.Reader) (T, error), verify func([]byte) ([]byte, error)) func(io.Reader) (T, error) {
	return func(r io.Reader) (T, error) {
		var none T
		file, err := io.ReadAll(r)
		if err != nil {
			return none, err
		}
		document, err := verify(file)
		if err != nil {
			return none, fmt.Errorf("%w: %w", ErrSignature, err)
		}

		return parse(bytes.NewReader(document))
	}
}
