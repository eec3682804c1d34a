package streamstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// newCertificates returns a server certificate, and as PEM its authority's certificate and its own.
func newCertificates() (certificate tls.Certificate, authority, own string) {
	authorityKey := newKey()
	root := template("streamstest authority")
	root.IsCA = true
	root.KeyUsage = x509.KeyUsageCertSign
	rootDER := sign(root, root, authorityKey, authorityKey)

	key := newKey()
	der := sign(leaf(), root, key, authorityKey)

	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, encodePEM(rootDER), encodePEM(der)
}

// newSelfSigned returns a self-signed server certificate, also as PEM.
func newSelfSigned() (certificate tls.Certificate, own string) {
	key := newKey()
	der := sign(leaf(), leaf(), key, key)

	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, encodePEM(der)
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true,
	}
}

func leaf() *x509.Certificate {
	t := template("streamstest server")
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.DNSNames = []string{"localhost"}
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}

	return t
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // Cannot happen: crypto/rand does not fail.
	}

	return key
}

func sign(certificate, by *x509.Certificate, key, byKey *ecdsa.PrivateKey) []byte {
	der, err := x509.CreateCertificate(rand.Reader, certificate, by, &key.PublicKey, byKey)
	if err != nil {
		panic(err) // The templates are constant.
	}

	return der
}

func encodePEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
