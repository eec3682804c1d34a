package lxdtest

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// certificateJSON is a trusted certificate on the wire.
type certificateJSON struct {
	Name        string   `json:"name"`
	Type        string   `json:"type"`
	Restricted  bool     `json:"restricted"`
	Projects    []string `json:"projects"`
	Certificate string   `json:"certificate"`
	Fingerprint string   `json:"fingerprint"`
}

func (t *trust) render() certificateJSON {
	projects := t.projects
	if projects == nil {
		projects = []string{}
	}
	return certificateJSON{t.name, "client", t.restricted, projects, string(t.certificate), t.fingerprint}
}

// certificatePost is the body of a request to trust a certificate, or to create
// a token for one.
type certificatePost struct {
	Name        string   `json:"name"`
	Type        string   `json:"type"`
	Projects    []string `json:"projects"`
	Certificate string   `json:"certificate"`
	Password    string   `json:"password"`
	TrustToken  string   `json:"trust_token"`
	Token       bool     `json:"token"`
}

// serveCertificates handles GET of the list of trusted certificates.
func (s *Server) serveCertificates(w http.ResponseWriter, r *http.Request) error {
	s.trustMu.Lock()
	urls, full := []string{}, []certificateJSON{}
	for _, t := range s.trusted {
		urls = append(urls, "/1.0/certificates/"+t.fingerprint)
		full = append(full, t.render())
	}
	s.trustMu.Unlock()
	if r.URL.Query().Get("recursion") == "1" {
		writeSync(w, full)
	} else {
		writeSync(w, urls)
	}
	return nil
}

// findTrust returns a trusted certificate by its fingerprint or a prefix; the
// caller holds trustMu.
func (s *Server) findTrust(name string) (*trust, error) {
	for _, t := range s.trusted {
		if name != "" && strings.HasPrefix(t.fingerprint, name) {
			return t, nil
		}
	}
	return nil, statusErrorf(http.StatusNotFound, "Certificate not found")
}

// serveCertificate handles GET of one trusted certificate.
func (s *Server) serveCertificate(w http.ResponseWriter, _ *http.Request, name string) error {
	s.trustMu.Lock()
	t, err := s.findTrust(name)
	s.trustMu.Unlock()
	if err != nil {
		return err
	}
	// A *trust is never modified, so it can be read without the lock.
	out := t.render()
	writeETag(w, etagOf(out), out)
	return nil
}

// serveDeleteCertificate removes a trusted certificate.
func (s *Server) serveDeleteCertificate(w http.ResponseWriter, _ *http.Request, name string) error {
	s.trustMu.Lock()
	t, err := s.findTrust(name)
	s.trusted = slices.DeleteFunc(s.trusted, func(other *trust) bool { return other == t })
	s.trustMu.Unlock()
	if err != nil {
		return err
	}
	writeEmpty(w)
	return nil
}

// serveAddCertificate adds a trusted certificate, or creates a token for one.
func (s *Server) serveAddCertificate(w http.ResponseWriter, r *http.Request) error {
	var post certificatePost
	if err := readJSON(r, &post); err != nil {
		return err
	}
	trusted := s.trusts(r)
	if post.Token && s.has("certificate_token") {
		if !trusted {
			return errForbidden
		}
		s.mu.Lock()
		response := s.render(s.newTrustOperation(r, post.Name, post.Projects))
		s.mu.Unlock()
		writeOperation(w, response)
		return nil
	}
	if post.Type != "client" && post.Type != "" {
		return statusErrorf(http.StatusBadRequest, "Unknown request type %s", post.Type)
	}
	name, projects := post.Name, post.Projects
	var token *operation
	if !trusted {
		var err error
		if token, err = s.checkCredentials(post); err != nil {
			return err
		}
	}
	cert, err := s.clientCertificate(r, post)
	if err != nil {
		return err
	}
	if token != nil {
		s.mu.Lock()
		request, _ := token.metadata["request"].(map[string]any)
		if tokenName, _ := request["name"].(string); tokenName != "" {
			name = tokenName
		}
		projects, _ = request["projects"].([]string)
		used := token.status == statusRunning
		if used {
			// A token can be used only once.
			s.cancelOperation(token)
		}
		s.mu.Unlock()
		if !used {
			return errForbidden
		}
	}
	if name == "" {
		name = "lxdtest"
	}
	if err := s.addTrust(name, cert, projects); err != nil {
		return err
	}
	writeCreated(w, "/1.0/certificates/"+url.PathEscape(certFingerprint(cert)))
	return nil
}

var errNoPasswords = statusErrorf(http.StatusNotImplemented, "Password authentication is no longer supported, please update your client")

// checkCredentials checks the password or token of an untrusted client. It
// returns the operation of the token, or nil for a password.
func (s *Server) checkCredentials(post certificatePost) (token *operation, err error) {
	if s.traits.refusesPassword && post.Password != "" {
		return nil, errNoPasswords
	}
	// Without explicit_trust_token LXD expects a token as the password; Incus
	// never had passwords.
	var text string
	if s.traits.family == "incus" || s.has("explicit_trust_token") {
		text = post.TrustToken
	}
	if text == "" && s.traits.family == "lxd" {
		text = post.Password
	}
	if data, err := base64.StdEncoding.DecodeString(text); err == nil {
		var join joinToken
		if json.Unmarshal(data, &join) == nil && join.Secret != "" {
			if join.Type != "" {
				return nil, statusErrorf(http.StatusBadRequest, "Cannot use a token of an identity to add a certificate")
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if op := s.findToken(join.Secret); op != nil && op.metadata["request"] != nil {
				return op, nil
			}
			return nil, errForbidden
		}
	}
	if s.traits.password && s.opts.TrustPassword != "" && post.Password == s.opts.TrustPassword {
		return nil, nil
	}
	return nil, errForbidden
}

// serveAddIdentity trusts the certificate of the client that has the token of a TLS
// identity.
func (s *Server) serveAddIdentity(w http.ResponseWriter, r *http.Request) error {
	var post certificatePost
	if err := readJSON(r, &post); err != nil {
		return err
	}
	var join joinToken
	data, err := base64.StdEncoding.DecodeString(post.TrustToken)
	if err != nil || json.Unmarshal(data, &join) != nil {
		return errForbidden
	}
	cert, err := s.clientCertificate(r, post)
	if err != nil {
		return err
	}
	s.trustMu.Lock()
	name, ok := s.identities[join.Secret]
	delete(s.identities, join.Secret)
	s.trustMu.Unlock()
	if !ok {
		return errForbidden
	}
	if err := s.addTrust(name, cert, nil); err != nil {
		return err
	}
	writeCreated(w, "/1.0/auth/identities/tls/"+certFingerprint(cert))
	return nil
}

// clientCertificate returns the certificate in the body, or otherwise that of
// the connection.
func (s *Server) clientCertificate(r *http.Request, post certificatePost) (*x509.Certificate, error) {
	if post.Certificate != "" {
		// The certificate is base64 of DER, without the PEM lines, or PEM.
		data, err := base64.StdEncoding.DecodeString(post.Certificate)
		if block, _ := pem.Decode([]byte(post.Certificate)); block != nil {
			data, err = block.Bytes, nil
		}
		if err != nil {
			return nil, statusErrorf(http.StatusBadRequest, "%v", err)
		}
		cert, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, statusErrorf(http.StatusBadRequest, "Invalid certificate material: %v", err)
		}
		return cert, nil
	}
	if r.TLS == nil {
		return nil, statusErrorf(http.StatusBadRequest, "Can't use TLS data on non-TLS link")
	}
	if len(r.TLS.PeerCertificates) == 0 {
		return nil, statusErrorf(http.StatusBadRequest, "No client certificate provided")
	}
	return r.TLS.PeerCertificates[0], nil
}
