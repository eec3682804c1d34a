package lxd

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/user"
	"time"
)

// KeyType is the type of a private key.
type KeyType string

// The types of keys. Servers accept all of them (LXD 5.0.2, Incus 6.0.4).
const (
	P256    KeyType = "P-256"   // the fastest to connect with
	P384    KeyType = "P-384"   // what the lxc and incus commands use
	Ed25519 KeyType = "Ed25519" // not supported by every web browser
)

// KeyPairOptions configure [NewKeyPair].
type KeyPairOptions struct {
	// Type is the type of the key. The default is P256, with which a connection
	// takes two thirds of the time of one with P384.
	Type KeyType
	// Name is the certificate's common name. The default is user@host, as with
	// the lxc and incus commands.
	Name string
	// Lifetime is how long the certificate is valid. The default is ten years,
	// as with the commands.
	Lifetime time.Duration
}

// NewKeyPair creates a self-signed client certificate and its private key, both
// PEM, for Options.ClientCertificate and Options.ClientKey. The lxc and incus
// commands can use them too, as client.crt and client.key. The certificate is
// valid from one minute before the call, for servers whose clocks are behind.
// Store the key so that nobody else can read it (mode 0600).
func NewKeyPair(opts *KeyPairOptions) (certificate, key []byte, err error) {
	var o KeyPairOptions
	if opts != nil {
		o = *opts
	}
	if o.Lifetime < 0 {
		return nil, nil, invalid("KeyPairOptions.Lifetime", "is negative")
	}
	if o.Lifetime == 0 {
		o.Lifetime = 10 * 365 * 24 * time.Hour
	}
	if o.Name == "" {
		o.Name = userAtHost()
	}
	private, block, err := newKey(o.Type)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("generate a serial number: %w", err)
	}
	// Servers refuse a certificate that is not valid yet, and their clocks may be
	// behind this one.
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: o.Name},
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     now.Add(o.Lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},

		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, fmt.Errorf("create a client certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(block), nil
}

func newKey(kind KeyType) (crypto.Signer, *pem.Block, error) {
	var curve elliptic.Curve
	switch kind {
	case "", P256:
		curve = elliptic.P256()
	case P384:
		curve = elliptic.P384()
	case Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, nil, fmt.Errorf("generate a key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return nil, nil, fmt.Errorf("encode the key: %w", err)
		}
		return private, &pem.Block{Type: "PRIVATE KEY", Bytes: der}, nil
	default:
		return nil, nil, invalid("KeyPairOptions.Type", "is %q, not %q, %q or %q", kind, P256, P384, Ed25519)
	}
	private, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate a key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the key: %w", err)
	}
	return private, &pem.Block{Type: "EC PRIVATE KEY", Bytes: der}, nil
}

func userAtHost() string {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil && h != "" {
		host = h
	}
	return name + "@" + host
}
