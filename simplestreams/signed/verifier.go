package signed

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// A Verifier trusts the keys of a keyring. It is a [github.com/golxd/lxd/simplestreams.Verifier], and safe for concurrent
// use.
//
// A signature is valid if one of the keys made it, and the key may sign, and is neither expired nor revoked at the time of
// the call; a revocation must be in the keyring. Signatures with MD5, SHA-1 or RIPEMD-160, and those of DSA keys and of
// RSA keys of less than 2047 bits, are refused. Of several signatures one must be valid.
type Verifier struct {
	keys openpgp.EntityList
}

// NewVerifier reads a keyring of public keys, binary or ASCII armored (one or more blocks), as gpg --export writes it. To
// trust several keyrings, use an [io.MultiReader] of those of one kind.
func NewVerifier(keyring io.Reader) (*Verifier, error) {
	keys, err := readKeys(keyring)
	if err != nil {
		return nil, fmt.Errorf("read the keyring: %w", err)
	}

	return &Verifier{keys: keys}, nil
}

// VerifyInline implements [github.com/golxd/lxd/simplestreams.Verifier]. It returns the signed text with "\n" for the ends
// of its lines, and without the white space before them and the last end, which signatures do not cover.
func (v *Verifier) VerifyInline(signed []byte) ([]byte, error) {
	if !bytes.HasPrefix(signed, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) {
		return nil, errors.New("the file does not begin with a signed document")
	}
	block, rest := clearsign.Decode(signed)
	switch {
	case block == nil:
		return nil, errors.New("the file is not a signed document")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("the file does not end after the signed document")
	}
	if err := v.verify(block.Bytes, block.ArmoredSignature.Body); err != nil {
		return nil, err
	}

	return bytes.ReplaceAll(block.Bytes, []byte("\r\n"), []byte("\n")), nil
}

// VerifyDetached implements [github.com/golxd/lxd/simplestreams.Verifier]. The signature may be binary or ASCII armored.
func (v *Verifier) VerifyDetached(document, signature []byte) error {
	packets := io.Reader(bytes.NewReader(signature))
	if armored(signature) {
		block, err := armor.Decode(packets)
		if err != nil {
			return fmt.Errorf("decode the signature: %w", err)
		}
		packets = block.Body
	}

	return v.verify(document, packets)
}

func (v *Verifier) verify(document []byte, signature io.Reader) error {
	if v == nil || len(v.keys) == 0 {
		return errors.New("the Verifier is not from NewVerifier")
	}
	made, key, err := openpgp.VerifyDetachedSignature(v.keys, bytes.NewReader(document), signature, nil)
	if err != nil {
		return err
	}
	// That was the state of the key when the signature was made, according to the signature.
	if _, ok := key.SigningKeyById(time.Now(), *made.IssuerKeyId, nil); !ok {
		return fmt.Errorf("the key %s is expired, or was revoked", key.PrimaryKey.KeyIdString())
	}

	return nil
}

// readKeys returns the keys of a keyring, at least one.
func readKeys(keyring io.Reader) (openpgp.EntityList, error) {
	source := bufio.NewReader(keyring)
	start, err := source.Peek(64)
	if len(start) == 0 {
		if err == nil || err == io.EOF {
			err = errors.New("it is empty")
		}
		return nil, err
	}
	var keys openpgp.EntityList
	if !armored(start) {
		keys, err = openpgp.ReadKeyRing(source)
	} else {
		err = eachBlock(source, func(body io.Reader) error {
			some, err := openpgp.ReadKeyRing(body)
			keys = append(keys, some...)
			return err
		})
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w (is it from gpg --export?)", err)
	case len(keys) == 0:
		return nil, errors.New("it has no keys")
	}

	return keys, nil
}

// eachBlock calls read with the content of each armored block.
func eachBlock(source *bufio.Reader, read func(body io.Reader) error) error {
	for {
		block, err := armor.Decode(source)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := read(block.Body); err != nil {
			return err
		}
	}
}

// armored reports whether the text begins as an armored block does.
func armored(start []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(start), []byte("-----BEGIN "))
}
