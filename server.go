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

// Server is what a server says of itself.
type Server struct {
	// Family is "" where the server does not tell this client: Incus 7 and up
	// tell a client that they do not trust neither their extensions nor their
	// version.
	Family     Family
	Version    string   // such as "5.0.2"; "" where the server does not tell
	APIVersion string   // "1.0"
	Extensions []string // of the API; nil where the server does not tell
	// Trusted says whether the server trusts this client.
	Trusted bool
	// Auth is the server's word for it: "trusted" or "untrusted".
	Auth        string
	AuthMethods []string
	// Addresses are host:port pairs that the server listens on; empty where it
	// does not listen on the network, or this client is not trusted.
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

// Has says whether the server tells that it has an API extension.
func (s *Server) Has(extension string) bool { return slices.Contains(s.Extensions, extension) }

// need returns the error for an extension that the server does not tell to
// have: ErrUnsupported, or ErrForbidden where it does not tell its extensions to
// this client.
func (s *Server) need(what, extension string) error {
	switch {
	case s.Has(extension):
		return nil
	case s.Extensions == nil:
		return fmt.Errorf("%s: %w: the server tells its API extensions only to clients that it trusts; give Options a client certificate or token that it trusts", what, ErrForbidden)
	}
	return fmt.Errorf("%s: %w: it lacks the API extension %q", what, ErrUnsupported, extension)
}

// daemon is the row of the server's family in the table of what differs.
func (s *Server) daemon() *daemon.Family { return daemon.Named(string(s.Family)) }

// serverCache keeps what GET /1.0 said.
type serverCache struct {
	turn chan struct{} // held while reading
	info *Server       // guarded by turn
}

// Server tells what the server says of itself. It is read once, when first
// needed, and again after Trust. As long as the server does not trust this
// client's certificate or token, it is read each time.
func (c *Client) Server(ctx context.Context) (*Server, error) {
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
	select {
	case c.server.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, c.t.connectionError(ctx, &request{method: http.MethodGet, path: "/1.0"}, ctx.Err())
	}
	defer func() { <-c.server.turn }()
	if c.server.info != nil && !again && (c.server.info.Trusted || !c.hasCredentials()) {
		return c.server.info, nil
	}
	answer, _, err := get(ctx, c.t, &request{method: http.MethodGet, path: "/1.0"}, holdServer)
	if err != nil {
		return nil, err
	}
	env := answer.Environment
	info := &Server{
		Family: Family(daemon.Of(env.Server, answer.APIExtensions).Name), Version: env.ServerVersion, APIVersion: answer.APIVersion, Extensions: answer.APIExtensions,
		Trusted: answer.Auth == "trusted", Auth: answer.Auth, AuthMethods: answer.AuthMethods,
		Addresses: env.Addresses, Certificate: env.Certificate, CertificateFingerprint: env.CertificateFingerprint,
		Name: env.ServerName, Architectures: env.Architectures, Project: env.Project, Clustered: env.ServerClustered,
	}
	c.server.info = info
	return info, nil
}

// holdServer checks that what a server said of itself is that.
func holdServer(server *wire.Server) error {
	if server.Auth == "" {
		return errors.New("it does not say whether it trusts this client")
	}
	return nil
}

// hasCredentials says whether the server may come to trust this client.
func (c *Client) hasCredentials() bool {
	return c.t.token != nil || (c.t.tls != nil && c.t.tls.GetClientCertificate != nil)
}

// need is Server.need.
func (c *Client) need(ctx context.Context, what, extension string) error {
	s, err := c.serverInfo(ctx, false)
	if err != nil {
		return err
	}
	return s.need(what, extension)
}

// addresses are the URLs at which another server may reach this client's.
func (c *Client) addresses(s *Server) []string {
	var urls []string
	add := func(u string) {
		if !slices.Contains(urls, u) {
			urls = append(urls, u)
		}
	}
	if !c.t.unix {
		add(c.t.base)
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

// certificate is the server's, PEM, as another server is to be told it.
func (c *Client) certificate(s *Server) string {
	if s.Certificate != "" {
		return s.Certificate
	}
	// An untrusted client is not told, but has seen it.
	if peer := c.t.peer.Load(); peer != nil {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: peer.Raw}))
	}
	return ""
}
