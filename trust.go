package lxd

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/wire"
)

// TrustError says that a server did not take a token or a trust password. It is
// an [ErrForbidden], and wraps the server's answer where there was one.
type TrustError struct {
	Endpoint string
	// Expires is when the token ended or ends; zero for one without an end, and
	// for passwords.
	Expires time.Time
	Problem string
	Err     error
}

// Error tells what is wrong with the token or password, and never holds it.
func (e *TrustError) Error() string {
	s := "join " + e.Endpoint + ": " + e.Problem
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the server's answer.
func (e *TrustError) Unwrap() error { return e.Err }

// Is makes a TrustError an [ErrForbidden].
func (e *TrustError) Is(target error) bool { return target == ErrForbidden }

// JoinToken is what a server's administrator gives to somebody whose client the
// server shall trust: "lxc config trust add --name …" and "incus config trust
// add …" print one as text. It serves once.
type JoinToken struct {
	ClientName  string    // what the server calls the client
	Fingerprint string    // SHA-256 of the server's certificate
	Addresses   []string  // host:port pairs where the server listens
	ExpiresAt   time.Time // zero for never
}

// maxToken bounds the text of a token.
const maxToken = 64 << 10

// ParseJoinToken reads the text of a token; space around it and line ends in it
// are ignored. What it has to be secret about is not in the result.
func ParseJoinToken(token string) (*JoinToken, error) {
	t, _, err := parseJoinToken(token)
	return t, err
}

// parseJoinToken gives the text without white space, too.
func parseJoinToken(token string) (t *JoinToken, text string, err error) {
	text = strings.Join(strings.Fields(token), "")
	var content struct {
		ClientName  string    `json:"client_name"`
		Fingerprint string    `json:"fingerprint"`
		Addresses   []string  `json:"addresses"`
		Secret      string    `json:"secret"`
		ExpiresAt   time.Time `json:"expires_at"`
	}
	switch {
	case text == "":
		return nil, "", invalid("token", "is empty")
	case len(text) > maxToken:
		return nil, "", invalid("token", "is longer than %d characters", maxToken)
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, "", invalid("token", "is not base64; was all of it copied?")
	}
	// The decoder's error would tell part of the secret.
	if json.Unmarshal(data, &content) != nil || content.Secret == "" {
		return nil, "", invalid("token", "is not one that a server makes for a client to join")
	}
	fingerprint := strings.ToLower(content.Fingerprint)
	if raw, err := hex.DecodeString(fingerprint); err != nil || len(raw) != 32 {
		return nil, "", invalid("token", "does not hold the fingerprint of a server")
	}
	t = &JoinToken{ClientName: content.ClientName, Fingerprint: fingerprint, Addresses: content.Addresses}
	// Servers write the year 1 for never (Incus 6.0.4).
	if content.ExpiresAt.Year() > 1970 {
		t.ExpiresAt = content.ExpiresAt
	}
	return t, text, nil
}

// Join makes a client for the server that a token is from, and has the server
// trust the certificate of the options, which must have one; see [NewKeyPair].
// The server is reached at the first of the token's addresses that answers, and
// must show the certificate whose fingerprint is in the token: nothing is
// trusted on first use. The client stays bound to that certificate; what it
// takes to make it anew is its Endpoint, the key pair and the token's
// Fingerprint as Options.ServerFingerprint.
//
// It is no error when the server trusts the certificate already; the token is
// then not used up. A token that the server does not take gives a
// [*TrustError], another server at the address a [*PinError].
func Join(ctx context.Context, token string, opts *Options) (*Client, error) {
	t, _, err := parseJoinToken(token)
	if err != nil {
		return nil, err
	}
	var o Options
	if opts != nil {
		o = *opts
	}
	switch {
	case len(o.ClientCertificate) == 0:
		return nil, invalid("Options.ClientCertificate", "is missing; NewKeyPair makes one")
	case len(t.Addresses) == 0:
		return nil, invalid("token", "holds no address; make the client with New and call Trust")
	case o.ServerFingerprint != "" && !strings.EqualFold(o.ServerFingerprint, t.Fingerprint):
		return nil, &PinError{Want: strings.ToLower(o.ServerFingerprint), Got: t.Fingerprint}
	}
	o.ServerFingerprint = t.Fingerprint
	endpoint, err := firstAnswer(ctx, t.Addresses, &o)
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

// firstAnswer asks all addresses of one server at once, since some of them are
// often of networks that only the server is in.
func firstAnswer(ctx context.Context, addresses []string, opts *Options) (endpoint string, err error) {
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
	// All are waited for, so that none outlives the call.
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

// withPort completes an address without a port, and the brackets of IPv6.
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

// Trusted asks the server whether it trusts this client; unlike in
// [Client.Server] the answer is never an old one.
func (c *Client) Trusted(ctx context.Context) (bool, error) {
	info, err := c.serverInfo(ctx, true)
	if err != nil {
		return false, err
	}
	return info.Trusted, nil
}

// Trust has the server trust this client's certificate by a token of its
// administrator. The server must show the certificate whose fingerprint is in
// the token on the connection that carries it, else this is a [*PinError] and
// the token is not sent: give New that fingerprint as
// Options.ServerFingerprint, or use [Join], which does. It
// is no error when the server trusts the client already; the token is then not
// used up. A token that was used, has expired or was revoked gives a
// [*TrustError].
func (c *Client) Trust(ctx context.Context, token string) error {
	t, text, err := parseJoinToken(token)
	if err != nil {
		return err
	}
	info, err := c.joinable(ctx)
	if err != nil || info.Trusted {
		return err
	}
	post := &wire.CertificatePost{Type: "client", TrustToken: text}
	if info.daemon().TokenIsPassword(info.Extensions) {
		post.Password, post.TrustToken = text, ""
	}
	problem := "the server does not take the token; it was used before, was revoked, or has expired"
	if !t.ExpiresAt.IsZero() && time.Now().After(t.ExpiresAt) {
		problem = "the token expired at " + t.ExpiresAt.Format(time.RFC3339)
	}
	// Which certificate was seen before says nothing of the next connection.
	pinned, release := c.t.pinned(t.Fingerprint)
	defer release()
	err = c.join(ctx, pinned, post, &TrustError{Expires: t.ExpiresAt, Problem: problem})
	var pin *PinError
	if errors.As(err, &pin) {
		return fmt.Errorf("the token is not of the server at %s: %w", c.t.endpoint, pin)
	}
	return err
}

// TrustPasswordOptions are what the server shall note of the client.
type TrustPasswordOptions struct {
	// Name is what the server calls the client. Default: the server's choice,
	// which is its address of the client (LXD 5.0.2).
	Name string
}

// TrustPassword has an LXD server trust this client's certificate by the
// server's trust password (core.trust_password), which there is up to LXD 6.0.
// A wrong one gives a [*TrustError]; so does a server that has none. Incus, and a
// server that does not tell what it is, have none at all: [ErrUnsupported], and
// the password is not sent. A password proves nothing of the server, so
// the options of [New] must tell which certificate it has. It is no error when
// the server trusts the client already.
func (c *Client) TrustPassword(ctx context.Context, password string, opts *TrustPasswordOptions) error {
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
	return c.join(ctx, c.t, post, &TrustError{Problem: "the server does not take the password; it is wrong, or the server has none"})
}

// joinable tells what the server is, anew, and refuses clients that cannot
// join one.
func (c *Client) joinable(ctx context.Context) (*Server, error) {
	switch {
	case c.t.unix:
		return nil, invalid("endpoint", "is a unix socket, whose users the server trusts already")
	case c.t.tls.GetClientCertificate == nil:
		return nil, invalid("Options.ClientCertificate", "is missing; NewKeyPair makes one")
	}
	return c.serverInfo(ctx, true)
}

// join sends the request by way of t, and reads anew what the server thinks of
// this client. refused is the error where the server does not want to.
func (c *Client) join(ctx context.Context, t *transport, post *wire.CertificatePost, refused *TrustError) error {
	refused.Endpoint = c.t.endpoint
	req := &request{method: http.MethodPost, path: path("certificates"), body: &jsonBody{post}}
	if _, err := t.call(ctx, req, nil); err != nil {
		var pin *PinError
		if errors.As(err, &pin) {
			return err // nothing was sent
		}
		var answer *Error
		if errors.As(err, &answer) && (answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusUnauthorized) {
			answer.Hint = "" // it is about the certificate that was to be trusted
			refused.Err = answer
			return refused
		}
		// The answer may have got lost on its way.
		if trusted, terr := c.Trusted(ctx); terr != nil || !trusted {
			return err
		}
		return nil
	}
	trusted, err := c.Trusted(ctx)
	if err == nil && !trusted {
		refused.Problem = "the server took the certificate and does not trust it"
		return refused
	}
	return err
}
