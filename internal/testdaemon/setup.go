package testdaemon

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

// setUp starts a new daemon, configures its https address and makes it trust a
// client certificate.
func (d *Daemon) setUp(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.writeRegistries(); err != nil {
		return err
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	if err := d.listenTLS(ctx); err != nil {
		return err
	}
	if err := d.readServer(ctx); err != nil {
		return err
	}
	if err := d.trustClient(ctx); err != nil {
		return err
	}
	if err := d.setTrustPassword(ctx); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	if err := d.waitUntilReady(ready); err != nil {
		return err
	}
	return d.writeFiles()
}

// SetConfig sets keys of the daemon's configuration; others are not changed.
func (d *Daemon) SetConfig(ctx context.Context, config map[string]string) error {
	return d.Do(ctx, "PATCH", "/1.0", map[string]any{"config": config}, nil)
}

// listenTLS makes the daemon listen on a loopback address. Another process may
// take the port meanwhile, so it tries several ports.
func (d *Daemon) listenTLS(ctx context.Context) error {
	var err error
	for range 5 {
		var address string
		if address, err = freeAddress(ctx, d.host); err != nil {
			return err
		}
		if err = d.SetConfig(ctx, map[string]string{"core.https_address": address}); err == nil {
			d.URL = "https://" + address
			return nil
		}
	}
	return err
}

// freeAddress returns an address whose port is below the range that the kernel
// uses for outgoing connections, so that it is still free when a daemon
// restarts.
func freeAddress(ctx context.Context, host string) (string, error) {
	const lowest, highest = 12000, 32000
	var listen net.ListenConfig
	var err error
	for range 100 {
		address := net.JoinHostPort(host, strconv.Itoa(lowest+mathrand.IntN(highest-lowest)))
		var listener net.Listener
		if listener, err = listen.Listen(ctx, "tcp", address); err != nil {
			continue
		}
		if err = listener.Close(); err == nil {
			return address, nil
		}
	}
	return "", fmt.Errorf("testdaemon: no free port: %w", err)
}

// readServer reads the daemon's certificate and version.
func (d *Daemon) readServer(ctx context.Context) error {
	var info struct {
		Environment struct {
			Certificate string `json:"certificate"`
			Version     string `json:"server_version"`
		} `json:"environment"`
	}
	if err := d.Do(ctx, "GET", "/1.0", nil, &info); err != nil {
		return err
	}
	if info.Environment.Certificate == "" || info.Environment.Version == "" {
		return errors.New("testdaemon: the daemon does not report its certificate and version")
	}
	d.ServerCertificate, d.Version = []byte(info.Environment.Certificate), info.Environment.Version
	return nil
}

// setTrustPassword sets one on an LXD that has the setting: LXD 6 refuses it with
// 400.
func (d *Daemon) setTrustPassword(ctx context.Context) error {
	if d.Family != LXD {
		return nil
	}
	password := rand.Text()
	err := d.SetConfig(ctx, map[string]string{"core.trust_password": password})
	var refusal *Error
	switch {
	case errors.As(err, &refusal) && refusal.Code == http.StatusBadRequest:
		return nil
	case err != nil:
		return err
	}
	d.TrustPassword = password
	return nil
}

func (d *Daemon) trustClient(ctx context.Context) error {
	certificate, key, err := newClientPair()
	if err != nil {
		return err
	}
	d.ClientCertificate, d.ClientKey = certificate, key
	return d.Trust(ctx, "test-client", certificate)
}

// Trust makes the daemon trust a client certificate (PEM), restricted to the projects
// if there are any.
func (d *Daemon) Trust(ctx context.Context, name string, certificate []byte, projects ...string) error {
	block, _ := pem.Decode(certificate)
	if block == nil {
		return errors.New("testdaemon: the client certificate is not PEM")
	}
	return d.Do(ctx, "POST", "/1.0/certificates", map[string]any{
		"type":        "client",
		"name":        name,
		"certificate": base64.StdEncoding.EncodeToString(block.Bytes),
		"restricted":  len(projects) > 0,
		"projects":    projects,
	}, nil)
}

// newClientPair creates a self-signed ECDSA P-256 client certificate and its
// key, both PEM, valid for a day.
func newClientPair() (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("testdaemon: create a client key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, fmt.Errorf("testdaemon: create a serial number: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "test-client"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, fmt.Errorf("testdaemon: create a client certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("testdaemon: encode the client key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}

// TLSConfig returns a client configuration with the trusted client certificate,
// which accepts only this daemon's certificate.
func (d *Daemon) TLSConfig() (*tls.Config, error) {
	pair, err := tls.X509KeyPair(d.ClientCertificate, d.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("testdaemon: load the client certificate: %w", err)
	}
	block, _ := pem.Decode(d.ServerCertificate)
	if block == nil {
		return nil, errors.New("testdaemon: the server's certificate is not PEM")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS13,
		// The certificate is self-signed; VerifyConnection compares it instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if !bytes.Equal(state.PeerCertificates[0].Raw, block.Bytes) {
				return errors.New("testdaemon: another server responds at the daemon's address")
			}
			return nil
		},
	}, nil
}

// pingTLS completes a TLS handshake with the https address.
func (d *Daemon) pingTLS(ctx context.Context) error {
	config, err := d.TLSConfig()
	if err != nil {
		return err
	}
	dialer := tls.Dialer{Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", d.URL[len("https://"):])
	if err != nil {
		return fmt.Errorf("testdaemon: %w", err)
	}
	return conn.Close()
}
