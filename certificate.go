package lxd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
)

// Certificate is the certificate of a server.
type Certificate struct {
	*x509.Certificate

	// PEM is for Options.ServerCertificate.
	PEM []byte
	// Fingerprint is the SHA-256 of the certificate, 64 hexadecimal digits, as the
	// command lines show it. It is for Options.ServerFingerprint.
	Fingerprint string
}

// FetchCertificate returns the certificate that the server at an https endpoint shows
// now, so that a person can compare it before it is trusted. It is not verified, and
// nothing is sent but the TLS handshake, without a client certificate. Of several
// addresses, the first that responds is asked. Of the options, Dial and Proxy are used.
func FetchCertificate(ctx context.Context, endpoint string, opts *Options) (*Certificate, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	var o Options
	if opts != nil {
		o = Options{Dial: opts.Dial, Proxy: opts.Proxy}
	}
	client, err := New(endpoint, &o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	if client.t.tls == nil {
		return nil, invalid("endpoint", "is a unix socket, which has no certificate; write https://host:port")
	}
	var shown *x509.Certificate
	config := client.t.tls.Clone()
	config.ClientSessionCache = nil
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := checkPin(state, ""); err != nil {
			return err
		}
		shown = state.PeerCertificates[0]
		return nil
	}
	var failures []error
	for _, base := range client.t.members.bases {
		at, err := url.Parse(base)
		if err != nil {
			return nil, err
		}
		conn, err := client.t.conns.secure(ctx, "tcp", at.Host, config)
		if err == nil {
			_ = conn.Close()
			return &Certificate{
				Certificate: shown, PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: shown.Raw}), Fingerprint: certificateFingerprint(shown.Raw),
			}, nil
		}
		failures = append(failures, client.t.connectionError(ctx, &request{method: http.MethodGet, path: path(), base: base}, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(failures...)
}
