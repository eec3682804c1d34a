package simplestreams

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
