package signed

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// maxLine is the longest line in bytes that GnuPG 2.2 and 2.4 verify in a document that is signed inline.
const maxLine = 19995

// A Signer signs with one key. It is a [github.com/golxd/lxd/simplestreams.Signer], and safe for concurrent use.
type Signer struct {
	key *openpgp.Entity
}

// NewSigner reads a private key, binary or ASCII armored, as gpg --export-secret-keys writes it. The passphrase is for a
// key that has one. It is an error if there is not exactly one key, or if it cannot sign: it has expired or was revoked, or
// the private part is not there.
func NewSigner(key io.Reader, passphrase []byte) (*Signer, error) {
	keys, err := readKeys(key)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	if len(keys) != 1 {
		return nil, fmt.Errorf("read the key: there are %d, not one", len(keys))
	}
	s := &Signer{key: keys[0]}
	signing, err := s.signing()
	if err != nil {
		return nil, err
	}
	if signing.PrivateKey.Encrypted {
		if len(passphrase) == 0 {
			return nil, fmt.Errorf("the key %s has a passphrase, which is needed to sign; or export a key that has none", signing.PrivateKey.KeyIdString())
		}
		if err := signing.PrivateKey.Decrypt(passphrase); err != nil {
			return nil, fmt.Errorf("decrypt the key with the passphrase: %w", err)
		}
	}

	return s, nil
}

// Sign implements [github.com/golxd/lxd/simplestreams.Signer], with SHA-512. The document must be text of lines of at most
// 19,995 bytes: GnuPG does not verify longer ones in a document that is signed inline. White space at the ends of lines is
// not in the inline document.
func (s *Signer) Sign(document []byte) (inline, detached []byte, err error) {
	if s == nil || s.key == nil {
		return nil, nil, errors.New("the Signer is not from NewSigner")
	}
	for line := range bytes.Lines(document) {
		if len(line) > maxLine {
			return nil, nil, fmt.Errorf("sign the document: a line has %d bytes, and GnuPG verifies at most %d", len(line), maxLine)
		}
	}
	key, err := s.signing()
	if err != nil {
		return nil, nil, err
	}
	config := &packet.Config{DefaultHash: crypto.SHA512}
	var signed, signature bytes.Buffer
	text, err := clearsign.Encode(&signed, key.PrivateKey, config)
	if err == nil {
		_, err = text.Write(document)
	}
	if err == nil {
		err = text.Close()
	}
	if err == nil {
		inline, err = withChecksum(signed.Bytes())
	}
	if err == nil {
		err = openpgp.ArmoredDetachSign(&signature, []*openpgp.Entity{s.key}, bytes.NewReader(document), &openpgp.SignParams{Config: config})
	}
	if err == nil {
		detached, err = withChecksum(signature.Bytes())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("sign the document: %w", err)
	}

	return inline, detached, nil
}

// withChecksum adds the checksum to the armored signature at the end of a text. OpenPGP implementations may leave it out,
// but GnuPG 2.2 takes the end of the armor for content if there is neither a checksum nor padding.
func withChecksum(text []byte) ([]byte, error) {
	at := max(0, bytes.LastIndex(text, []byte("-----BEGIN "+openpgp.SignatureType)))
	block, err := armor.Decode(bytes.NewReader(text[at:]))
	if err != nil {
		return nil, err
	}
	out := bytes.NewBuffer(text[:at:at])
	w, err := armor.EncodeWithChecksumOption(out, block.Type, nil, true)
	if err == nil {
		_, err = io.Copy(w, block.Body)
	}
	if err == nil {
		err = w.Close()
	}
	out.WriteByte('\n')

	return out.Bytes(), err
}

// signing returns the key for signatures, which may be a subkey.
func (s *Signer) signing() (*openpgp.Key, error) {
	key, ok := s.key.SigningKey(time.Now(), nil)
	switch {
	case !ok:
		return nil, fmt.Errorf("the key %s cannot sign: it is expired, was revoked, or is not for signatures", s.key.PrimaryKey.KeyIdString())
	case key.PrivateKey == nil || key.PrivateKey.Dummy():
		return nil, fmt.Errorf("the private part of the key %s is missing: export it with gpg --export-secret-keys", key.PublicKey.KeyIdString())
	}

	return &key, nil
}
