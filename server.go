package lxd

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"

	"github.com/golxd/lxd/internal/daemon"
	"github.com/golxd/lxd/internal/wire"
)

// Server is a server's description of itself, from GET /1.0.
type Server struct {
	// Family is "" if it is unknown: Incus 7 and up tell a client that they do
	// not trust neither their extensions nor their version.
	Family     Family
	Version    string   // such as "5.0.2"; "" if the server does not say
	APIVersion string   // "1.0"
	Extensions []string // of the API; nil if the server does not say
	// Trusted reports whether the server trusts this client.
	Trusted bool
	// Auth is the server's word for it: "trusted" or "untrusted".
	Auth        string
	AuthMethods []string
	// Addresses are the host:port pairs that the server listens on; empty if it
	// does not listen on the network, or does not trust this client.
	Addresses []string
	// Certificate is the server's own, PEM, and CertificateFingerprint its
	// SHA-256.
	Certificate            string
	CertificateFingerprint string
	Name                   string // host name
	Architectures          []string
	Project                string
	Clustered              bool
}

// Has reports whether the server lists an API extension.
func (s *Server) Has(extension string) bool {
	return s != nil && slices.Contains(s.Extensions, extension)
}

// need returns an error if the server does not list an extension:
// ErrUnsupported, or ErrForbidden if it hides its extensions from this client.
func (s *Server) need(what, extension string) error {
	switch {
	case s.Has(extension):
		return nil
	case s.Extensions == nil:
		return fmt.Errorf("%s: %w: the server shows its API extensions only to clients that it trusts; set a client certificate or token in Options that it trusts", what, ErrForbidden)
	}
	return fmt.Errorf("%s: %w: it lacks the API extension %q", what, ErrUnsupported, extension)
}

// daemon returns what differs between the families, for the server's family.
func (s *Server) daemon() *daemon.Family { return daemon.Named(string(s.Family)) }

// serverCache keeps the response to GET /1.0.
type serverCache struct {
	turn chan struct{} // the lock; a channel, so that a context can end the wait for it
	info *Server       // guarded by turn
}

// Server returns the server's description of itself. It is read once, when first
// needed, and again after Trust. As long as the server does not trust this
// client's certificate or token, each call reads it again.
func (c *Client) Server(ctx context.Context) (*Server, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	s, err := c.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	clone := *s
	clone.Extensions = slices.Clone(s.Extensions)
	clone.AuthMethods = slices.Clone(s.AuthMethods)
	clone.Addresses = slices.Clone(s.Addresses)
	clone.Architectures = slices.Clone(s.Architectures)
	return &clone, nil
}

func (c *Client) serverInfo(ctx context.Context, again bool) (*Server, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	select {
	case c.server.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, c.t.connectionError(ctx, &request{method: http.MethodGet, path: "/1.0"}, ctx.Err())
	}
	defer func() { <-c.server.turn }()
	if c.server.info != nil && !again && (c.server.info.Trusted || !c.hasCredentials()) {
		return c.server.info, nil
	}
	response, _, err := get(ctx, c.t, &request{method: http.MethodGet, path: "/1.0"}, checkServer)
	if err != nil {
		return nil, err
	}
	env := response.Environment
	info := &Server{
		Family: Family(daemon.Of(env.Server, response.APIExtensions).Name), Version: env.ServerVersion, APIVersion: response.APIVersion, Extensions: response.APIExtensions,
		Trusted: response.Auth == "trusted", Auth: response.Auth, AuthMethods: response.AuthMethods,
		Addresses: env.Addresses, Certificate: env.Certificate, CertificateFingerprint: env.CertificateFingerprint,
		Name: env.ServerName, Architectures: env.Architectures, Project: env.Project, Clustered: env.ServerClustered,
	}
	c.server.info = info
	return info, nil
}

// checkServer checks that a response is a description of a server.
func checkServer(server *wire.Server) error {
	if server.Auth == "" {
		return errors.New("it does not say whether it trusts this client")
	}
	return nil
}

// hasCredentials reports whether the client sends something that the server may
// come to trust.
func (c *Client) hasCredentials() bool {
	return c.t.token != nil || (c.t.tls != nil && c.t.tls.GetClientCertificate != nil)
}

// need is Server.need for the client's server.
func (c *Client) need(ctx context.Context, what, extension string) error {
	s, err := c.serverInfo(ctx, false)
	if err != nil {
		return err
	}
	return s.need(what, extension)
}

// addresses returns the URLs at which another server may reach this client's
// server.
func (c *Client) addresses(s *Server) []string {
	var urls []string
	add := func(u string) {
		if !slices.Contains(urls, u) {
			urls = append(urls, u)
		}
	}
	if !c.t.unix {
		for _, base := range c.t.members.bases {
			add(base)
		}
	}
	for _, a := range s.Addresses {
		host, _, err := net.SplitHostPort(a)
		if ip := net.ParseIP(host); err != nil || (ip != nil && ip.IsLinkLocalUnicast()) {
			continue
		}
		add("https://" + a)
	}
	return urls
}

// certificate returns the server's certificate, PEM, for another server to
// verify it by; "" if it is unknown.
func (c *Client) certificate(s *Server) string {
	if s.Certificate != "" {
		return s.Certificate
	}
	// The response has none for an untrusted client, but the TLS handshake did.
	if peer := c.t.peer.Load(); peer != nil {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: peer.Raw}))
	}
	return ""
}
