package lxd

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// PinError says that a server showed another certificate than the pinned one.
type PinError struct {
	Want string // SHA-256, hexadecimal
	Got  string
}

// Error returns both fingerprints.
func (e *PinError) Error() string {
	return fmt.Sprintf("the server's certificate has the SHA-256 fingerprint %s, not %s: it was renewed, or this is another server", e.Got, e.Want)
}

// Transient is false: the server will show the same certificate again.
func (e *PinError) Transient() bool { return false }

// tlsConfig returns the configuration for an https endpoint, without the name of
// the server. seen receives the certificate of the server, once it is accepted.
func (o *Options) tlsConfig(seen func(*x509.Certificate)) (*tls.Config, error) {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		RootCAs:            o.RootCAs,
		ClientSessionCache: tls.NewLRUClientSessionCache(32),
	}
	for _, option := range []struct {
		field string
		pem   []byte
	}{
		{"Options.ClientCertificate", o.ClientCertificate},
		{"Options.ClientKey", o.ClientKey},
		{"Options.ServerCertificate", o.ServerCertificate},
	} {
		if isPath(option.pem) {
			return nil, invalid(option.field, "is a path; give the file's content")
		}
	}
	switch {
	case len(o.ClientCertificate) > 0 && len(o.ClientKey) > 0:
		pair, err := tls.X509KeyPair(o.ClientCertificate, o.ClientKey)
		if err != nil {
			return nil, invalid("Options.ClientCertificate", "and ClientKey do not match: %v", err)
		}
		// Set as a function, as tls.Config.Certificates would be filtered by the
		// server's list of authorities, which has no self-signed certificates.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	case len(o.ClientCertificate) > 0:
		return nil, invalid("Options.ClientKey", "is missing")
	case len(o.ClientKey) > 0:
		return nil, invalid("Options.ClientCertificate", "is missing")
	}
	want := strings.ToLower(o.ServerFingerprint)
	if want != "" {
		if raw, err := hex.DecodeString(want); err != nil || len(raw) != sha256.Size {
			return nil, invalid("Options.ServerFingerprint", "is not the hexadecimal SHA-256 of a certificate")
		}
	}
	if len(o.ServerCertificate) > 0 {
		cert, err := parseCertificate(o.ServerCertificate)
		if err != nil {
			return nil, invalid("Options.ServerCertificate", "%v", err)
		}
		sum := certificateFingerprint(cert.Raw)
		if want != "" && want != sum {
			return nil, invalid("Options.ServerFingerprint", "is not the fingerprint of Options.ServerCertificate")
		}
		want = sum
	}
	config.InsecureSkipVerify = want != "" // the pin below is stricter
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := checkPin(state, want); err != nil {
			return err
		}
		seen(state.PeerCertificates[0])
		return nil
	}
	return config, nil
}

// checkPin returns a PinError if a server has shown another certificate than that
// of the fingerprint want; "" allows any.
func checkPin(state tls.ConnectionState, want string) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	if got := certificateFingerprint(state.PeerCertificates[0].Raw); want != "" && got != want {
		return &PinError{Want: want, Got: got}
	}
	return nil
}

// isPath reports whether data is the path of a PEM file, not its content.
func isPath(data []byte) bool {
	text := strings.TrimSpace(string(data))
	if text == "" || len(text) > 4096 || strings.ContainsAny(text, "\n\x00") || strings.Contains(text, "-----") {
		return false
	}
	if strings.ContainsAny(text, `/\`) {
		return true
	}
	switch filepath.Ext(text) {
	case ".crt", ".pem", ".key", ".cer", ".cert":
		return true
	}
	return false
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("is not a PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot be parsed: %w", err)
	}
	return cert, nil
}

func certificateFingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}
