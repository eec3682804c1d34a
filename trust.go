package lxd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/wire"
)

// TrustError says that a server did not accept a token or a trust password. It
// matches [ErrForbidden], and wraps the server's error response if there is one.
type TrustError struct {
	Endpoint string
	// Expires is the expiry of the token; zero if it does not expire, and for
	// passwords.
	Expires time.Time
	Problem string
	Err     error
}

// Error says what is wrong with the token or password, and never contains it.
func (e *TrustError) Error() string {
	s := "join " + e.Endpoint + ": " + e.Problem
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the server's error response.
func (e *TrustError) Unwrap() error { return e.Err }

// Is matches [ErrForbidden].
func (e *TrustError) Is(target error) bool { return target == ErrForbidden }

// Join returns a client for the server that issued a token, after making the
// server trust Options.ClientCertificate, which must be set; see [NewKeyPair]. The
// server is reached at the first of the token's addresses that responds, and must
// show the certificate whose fingerprint is in the token: nothing is trusted on
// first use. The client stays pinned to that certificate. To create the client
// again with [New], use its Endpoint, the key pair, and the token's Fingerprint as
// Options.ServerFingerprint.
//
// If the server already trusts the certificate, Join succeeds and the token is
// not used up. If the server does not accept the token, the error is a
// [*TrustError]; if another server is at the address, a [*PinError].
func Join(ctx context.Context, token string, opts *Options) (*Client, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	t, err := parseJoinToken(token)
	if err != nil {
		return nil, err
	}
	var o Options
	if opts != nil {
		o = *opts
	}
	switch {
	case len(o.ClientCertificate) == 0:
		return nil, invalid("Options.ClientCertificate", "is missing; NewKeyPair creates one")
	case len(t.Addresses) == 0:
		return nil, invalid("token", "contains no address; create the client with New and call Trust")
	case o.ServerFingerprint != "" && !strings.EqualFold(o.ServerFingerprint, t.Fingerprint):
		return nil, &PinError{Want: strings.ToLower(o.ServerFingerprint), Got: t.Fingerprint}
	}
	o.ServerFingerprint = t.Fingerprint
	endpoint, err := firstToRespond(ctx, t.Addresses, &o)
	if err != nil {
		return nil, err
	}
	client, err := New(endpoint, &o)
	if err != nil {
		return nil, err
	}
	if err := client.Trust(ctx, token); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return client, nil
}

// firstToRespond probes all addresses of a server at once, since some of them
// often belong to networks that only the server can reach.
func firstToRespond(ctx context.Context, addresses []string, opts *Options) (endpoint string, err error) {
	type result struct {
		endpoint string
		err      error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(addresses))
	for _, address := range addresses {
		go func() {
			r := result{endpoint: "https://" + withPort(address)}
			r.err = probe(ctx, r.endpoint, *opts)
			results <- r
		}()
	}
	var errs []error
	// Wait for all, so that no probe outlives the call.
	for range addresses {
		switch r := <-results; {
		case r.err != nil:
			errs = append(errs, r.err)
		case endpoint == "":
			endpoint = r.endpoint
			cancel()
		}
	}
	if endpoint != "" {
		return endpoint, nil
	}
	return "", errors.Join(errs...)
}

// withPort adds the default port to an address without one, and the brackets of
// IPv6.
func withPort(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), "8443")
}

func probe(ctx context.Context, endpoint string, o Options) error {
	o.RetryTimeout = -1
	client, err := New(endpoint, &o)
	if err != nil {
		return err
	}
	_, err = client.serverInfo(ctx, true)
	return errors.Join(err, client.Close())
}

// Trusted reports whether the server trusts this client. Unlike [Client.Server]
// it always asks the server.
func (c *Client) Trusted(ctx context.Context) (bool, error) {
	if err := c.check(ctx); err != nil {
		return false, err
	}
	info, err := c.serverInfo(ctx, true)
	if err != nil {
		return false, err
	}
	return info.Trusted, nil
}

// Trust makes the server trust this client's certificate, by a token of the
// server's administrator. On the connection that sends the token, the server must
// show the certificate whose fingerprint is in the token; else the error is a
// [*PinError] and the token is not sent: pass that fingerprint to New as
// Options.ServerFingerprint, or use [Join], which does. If the server already
// trusts the client, Trust succeeds and the token is not used up. If the token has
// been used or revoked, or has expired, the error is a [*TrustError].
func (c *Client) Trust(ctx context.Context, token string) error {
	if err := c.check(ctx); err != nil {
		return err
	}
	t, err := parseJoinToken(token)
	if err != nil {
		return err
	}
	info, err := c.joinable(ctx)
	if err != nil || info.Trusted {
		return err
	}
	at, post := path("certificates"), &wire.CertificatePost{Type: "client", TrustToken: t.text}
	switch {
	case t.identity:
		// LXD 6.9 responds 400 to the token of an identity at certificates.
		at, post.Type = path("auth", "identities", "tls"), ""
	case info.daemon().TokenIsPassword(info.Extensions):
		post.Password, post.TrustToken = t.text, ""
	}
	problem := "the server does not accept the token; it has been used or revoked, or has expired"
	if !t.ExpiresAt.IsZero() && time.Now().After(t.ExpiresAt) {
		problem = "the token expired at " + t.ExpiresAt.Format(time.RFC3339)
	}
	// The certificate of earlier connections says nothing about the next one.
	pinned, closeIdle := c.t.pinned(t.Fingerprint)
	defer closeIdle()
	err = c.join(ctx, pinned, at, post, &TrustError{Expires: t.ExpiresAt, Problem: problem})
	var pin *PinError
	if errors.As(err, &pin) {
		return fmt.Errorf("the token was not issued by the server at %s: %w", c.t.endpoint, pin)
	}
	return err
}

// TrustPasswordOptions configure [Client.TrustPassword].
type TrustPasswordOptions struct {
	// Name is the server's name for the client. The default is the server's
	// choice, which is the client's address (LXD 5.0.2).
	Name string
}

// TrustPassword makes an LXD server trust this client's certificate, by the
// server's trust password (core.trust_password), which exists up to LXD 6.0. If
// the password is wrong, or the server has none set, the error is a
// [*TrustError]. For newer versions of LXD (6.9), for Incus, which has no trust
// passwords, and for a server of unknown family the error matches
// [ErrUnsupported]: ask for a token and call Trust. To the latter two the password
// is not sent. A
// password does not authenticate the server, so the options of [New] must say
// which certificate it has. If the server already trusts the client,
// TrustPassword succeeds.
func (c *Client) TrustPassword(ctx context.Context, password string, opts *TrustPasswordOptions) error {
	if err := c.check(ctx); err != nil {
		return err
	}
	if password == "" {
		return invalid("password", "is empty")
	}
	var o TrustPasswordOptions
	if opts != nil {
		o = *opts
	}
	info, err := c.joinable(ctx)
	if err != nil || info.Trusted {
		return err
	}
	if info.daemon().NoTrustPasswords {
		return fmt.Errorf("join %s: %w: it has no trust passwords; ask for a token and call Trust", c.t.endpoint, ErrUnsupported)
	}
	post := &wire.CertificatePost{Type: "client", Password: password, Name: o.Name}
	return c.join(ctx, c.t, path("certificates"), post, &TrustError{Problem: "the server does not accept the password; it is wrong, or the server has none"})
}

// joinable reads the description of the server again. It returns an error for
// clients that cannot join a server.
func (c *Client) joinable(ctx context.Context) (*Server, error) {
	switch {
	case c.t.unix:
		return nil, invalid("endpoint", "is a unix socket, whose users the server already trusts")
	case c.t.tls.GetClientCertificate == nil:
		return nil, invalid("Options.ClientCertificate", "is missing; NewKeyPair creates one")
	}
	return c.serverInfo(ctx, true)
}

// join sends the request over t to the path at, and checks that the server then
// trusts this client. refused is the error if the server refuses.
func (c *Client) join(ctx context.Context, t *transport, at string, post *wire.CertificatePost, refused *TrustError) error {
	refused.Endpoint = c.t.endpoint
	req := &request{method: http.MethodPost, path: at, body: &jsonBody{post}}
	if _, err := t.call(ctx, req, nil); err != nil {
		var pin *PinError
		if errors.As(err, &pin) {
			return err // the token or password was not sent
		}
		var response *Error
		if errors.As(err, &response) && (response.StatusCode == http.StatusForbidden || response.StatusCode == http.StatusUnauthorized) {
			response.Hint = "" // it asks for a trusted certificate, which is what this call is for
			refused.Err = response
			return refused
		}
		// LXD 5.0.2, Incus 6.0.4 and 7.0.2 respond 500 with this text to an expired
		// token, which need not contain its expiry.
		if errors.As(err, &response) && response.kind == nil && strings.Contains(response.Message, "Token has expired") {
			refused.Err = response
			if refused.Expires.IsZero() {
				refused.Problem = "the token has expired; ask for a new one"
			}
			return refused
		}
		if errors.As(err, &response) && response.StatusCode == http.StatusNotImplemented && post.TrustToken == "" {
			// LXD 6.9.
			return fmt.Errorf("join %s: %w: it has no trust passwords; ask for a token and call Trust: %w", c.t.endpoint, ErrUnsupported, response)
		}
		// The server may have acted, and its response been lost.
		if trusted, terr := c.Trusted(ctx); terr != nil || !trusted {
			return err
		}
		return nil
	}
	trusted, err := c.Trusted(ctx)
	if err == nil && !trusted {
		refused.Problem = "the server accepted the certificate but does not trust it"
		return refused
	}
	return err
}
