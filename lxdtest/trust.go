package lxdtest

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// trust is a client certificate that the server trusts.
type trust struct {
	name        string
	certificate []byte // PEM
	fingerprint string
	restricted  bool
	projects    []string
}

// trusts reports whether the server trusts the client: every client on the unix
// socket, and on https one with a trusted certificate or bearer token.
func (s *Server) trusts(r *http.Request) bool {
	if r.TLS == nil {
		return true
	}
	if s.hasBearer(r) {
		return true
	}
	if len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	fingerprint := certFingerprint(r.TLS.PeerCertificates[0])
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	return slices.ContainsFunc(s.trusted, func(t *trust) bool { return t.fingerprint == fingerprint })
}

// hasBearer reports whether a request has a bearer token that the server accepts.
func (s *Server) hasBearer(r *http.Request) bool {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return s.traits.bearer && r.TLS != nil && ok && token != "" && slices.Contains(s.opts.BearerTokens, token)
}

// sessionAgent is the form of a User-Agent from which LXD 6.9 can tell what an OpenID
// Connect client is, and that it keeps cookies.
var sessionAgent = regexp.MustCompile(`^LXD [0-9.]+ \([^()]+\) \((?:[^()]+; )?cookiejar(?:; [^()]+)?\)$`)

const sessionCookie = "session_id"

// session begins the session of an OpenID Connect client, unless it has one.
func (s *Server) session(w http.ResponseWriter, r *http.Request) error {
	if !s.opts.OIDCSessions || r.TLS == nil || r.Header.Get("Authorization") == "" || !s.trusts(r) {
		return nil
	}
	if !sessionAgent.MatchString(r.Header.Get("User-Agent")) {
		return statusErrorf(http.StatusForbidden, "Failed parsing user agent")
	}
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	if cookie, err := r.Cookie(sessionCookie); err == nil && slices.Contains(s.sessions, cookie.Value) {
		return nil
	}
	id := newSecret()
	s.sessions = append(s.sessions, id)
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: id, Path: "/", Secure: true, HttpOnly: true})
	return nil
}

// Sessions returns how many OpenID Connect sessions clients have begun; see
// Options.OIDCSessions.
func (s *Server) Sessions() int {
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	return len(s.sessions)
}

// allows reports whether the server trusts the client for the request's project: a
// restricted certificate is trusted only for some.
func (s *Server) allows(r *http.Request) bool {
	project := projectParam(r)
	if name, ok := strings.CutPrefix(r.URL.Path, projectURL("")); ok {
		project = name
	}
	switch {
	case r.URL.Path == "/1.0/projects", r.URL.Path == "/1.0/instances" && r.URL.Query().Get("all-projects") == "true" && s.traits.family == "incus":
		return s.trusts(r) // the list has what the client may see
	}
	return s.allowsProject(r, project)
}

// allowsProject reports whether the client of a request is trusted for a project.
func (s *Server) allowsProject(r *http.Request, project string) bool {
	if !s.trusts(r) {
		return false
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return true
	}
	fingerprint := certFingerprint(r.TLS.PeerCertificates[0])
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	return !slices.ContainsFunc(s.trusted, func(t *trust) bool {
		return t.fingerprint == fingerprint && t.restricted && !slices.Contains(t.projects, project)
	})
}

// refuseProject returns the error for a client that is trusted, but not for the
// project.
func (s *Server) refuseProject(r *http.Request) error {
	if s.traits.family != "incus" || !s.trusts(r) {
		return errForbidden
	}
	return statusErrorf(http.StatusForbidden, "User does not have permission for project %q", projectParam(r))
}

// Trust adds a PEM certificate to the client certificates that the server trusts.
// With projects it is restricted to these.
func (s *Server) Trust(name string, certificate []byte, projects ...string) error {
	block, _ := pem.Decode(certificate)
	if block == nil {
		return fmt.Errorf("lxdtest: no PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("lxdtest: certificate: %w", err)
	}
	return s.addTrust(name, cert, projects)
}

// clientName is the name of the certificate of ClientCertificate.
const clientName = "lxdtest"

var errTrusted = statusErrorf(http.StatusConflict, "Certificate already in trust store")

// addTrust adds a parsed certificate.
func (s *Server) addTrust(name string, cert *x509.Certificate, projects []string) error {
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	return s.trust(newTrust(name, cert, projects))
}

func newTrust(name string, cert *x509.Certificate, projects []string) *trust {
	return &trust{
		name:        name,
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		fingerprint: certFingerprint(cert),
		projects:    projects,
		restricted:  len(projects) > 0,
	}
}

// trust adds a certificate; the caller holds trustMu.
func (s *Server) trust(added *trust) error {
	if slices.ContainsFunc(s.trusted, func(t *trust) bool { return t.fingerprint == added.fingerprint }) {
		return errTrusted
	}
	s.trusted = append(s.trusted, added)
	return nil
}

// Distrust removes all trusted client certificates, including that of
// ClientCertificate.
func (s *Server) Distrust() {
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	s.trusted = nil
	s.client = nil
}

// ClientCertificate returns a certificate that the server trusts and its key,
// both as PEM. Until Distrust, every call returns the same.
func (s *Server) ClientCertificate() (cert, key []byte) {
	s.trustMu.Lock()
	pair := s.client
	if pair == nil {
		var err error
		if pair, err = newKeyPair("lxdtest client"); err != nil {
			s.trustMu.Unlock()
			panic(fmt.Sprintf("lxdtest: cannot make a client certificate: %v", err))
		}
		s.client = pair
	}
	s.trustMu.Unlock()
	// The error means that it is already trusted.
	_ = s.addTrust(clientName, pair.tls.Leaf, nil)
	return slices.Clone(pair.cert), slices.Clone(pair.key)
}

// joinTokenExpiry is how long the join tokens of LXD 6.9 are valid.
const joinTokenExpiry = 15 * 24 * time.Hour

// joinToken is the content of a trust token, which is base64 of JSON.
type joinToken struct {
	ClientName  string    `json:"client_name"`
	Fingerprint string    `json:"fingerprint"`
	Addresses   []string  `json:"addresses"`
	Secret      string    `json:"secret"`
	ExpiresAt   time.Time `json:"expires_at"`
	Type        string    `json:"type,omitempty"`
}

// encode returns the text of the token.
func (t joinToken) encode() string {
	data, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("lxdtest: cannot write a token: %v", err))
	}
	return base64.StdEncoding.EncodeToString(data)
}

// identityType is the type of the identity that a token is for, if it is not for a
// trusted certificate.
const identityType = "Client certificate"

// NewIdentityToken returns the token of a new TLS identity, as "lxc auth identity
// create tls/NAME" prints it. It is for dialects with such identities: LXD69. The
// server accepts it only at /1.0/auth/identities/tls.
func (s *Server) NewIdentityToken(name string) string {
	if !s.has("access_management_tls") {
		panic("lxdtest: the dialect has no TLS identities")
	}
	secret := newSecret()
	s.trustMu.Lock()
	s.identities[secret] = name
	s.trustMu.Unlock()
	return joinToken{
		ClientName: name, Fingerprint: s.cert.fingerprint(), Addresses: s.addresses(), Secret: secret,
		ExpiresAt: s.now().Add(joinTokenExpiry), Type: identityType,
	}.encode()
}

// NewTrustToken returns a token with which one client can add its certificate,
// once.
func (s *Server) NewTrustToken(clientName string) string {
	s.mu.Lock()
	op := s.newTrustOperation(nil, clientName, nil)
	secret, _ := op.metadata["secret"].(string)
	s.mu.Unlock()
	return joinToken{
		ClientName: clientName, Fingerprint: s.cert.fingerprint(), Addresses: s.addresses(), Secret: secret,
	}.encode()
}

// newTrustOperation creates the operation of a trust token; r may be nil. The
// caller holds the lock.
func (s *Server) newTrustOperation(r *http.Request, clientName string, projects []string) *operation {
	if projects == nil {
		projects = []string{}
	}
	token := task{
		description: "Executing operation",
		project:     defaultProject,
		metadata: map[string]any{
			"addresses":   s.addresses(),
			"fingerprint": s.cert.fingerprint(),
			"request":     map[string]any{"name": clientName, "type": "client", "projects": projects, "token": true},
			"secret":      newSecret(),
		},
		mayCancel: true,
	}
	if s.traits.storesOperations {
		token.description = "Certificate add token"
		token.metadata["expiresAt"] = s.now().Add(joinTokenExpiry)
	}
	return s.addOperation("token", token, r)
}

// addresses returns the addresses on which https listens.
func (s *Server) addresses() []string {
	if s.address == "" {
		return []string{}
	}
	return []string{s.address}
}
