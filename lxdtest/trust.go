package lxdtest

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"runtime"
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

// trusts tells whether the server trusts the caller: every caller on the unix
// socket, and one with a trusted certificate on https.
func (s *Server) trusts(r *http.Request) bool {
	if r.TLS == nil {
		return true
	}
	if s.traits.bearer {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if ok && token != "" && slices.Contains(s.opts.BearerTokens, token) {
			return true
		}
	}
	if len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	fingerprint := certFingerprint(r.TLS.PeerCertificates[0])
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	return slices.ContainsFunc(s.trusted, func(t *trust) bool { return t.fingerprint == fingerprint })
}

// Trust adds a client certificate, given as PEM, to those the server trusts.
func (s *Server) Trust(name string, certificate []byte) error {
	block, _ := pem.Decode(certificate)
	if block == nil {
		return fmt.Errorf("lxdtest: no PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("lxdtest: certificate: %w", err)
	}
	return s.addTrust(name, cert, nil)
}

var errTrusted = fail(http.StatusConflict, "Certificate already in trust store")

// addTrust adds a parsed certificate.
func (s *Server) addTrust(name string, cert *x509.Certificate, projects []string) error {
	added := &trust{
		name:        name,
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		fingerprint: certFingerprint(cert),
		projects:    projects,
		restricted:  len(projects) > 0,
	}
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	if slices.ContainsFunc(s.trusted, func(t *trust) bool { return t.fingerprint == added.fingerprint }) {
		return errTrusted
	}
	s.trusted = append(s.trusted, added)
	return nil
}

// Distrust removes every client certificate, that of ClientCertificate too.
func (s *Server) Distrust() {
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	s.trusted = nil
	s.client = nil
}

// ClientCertificate returns a certificate that the server trusts and its key,
// both as PEM. It is the same on every call.
func (s *Server) ClientCertificate() (cert, key []byte) {
	s.trustMu.Lock()
	pair := s.client
	if pair == nil {
		var err error
		if pair, err = newKeyPair("lxdtest client", false); err != nil {
			s.trustMu.Unlock()
			panic(fmt.Sprintf("lxdtest: cannot make a client certificate: %v", err))
		}
		s.client = pair
	}
	s.trustMu.Unlock()
	// That it is trusted already is no failure.
	_ = s.addTrust("lxdtest", pair.tls.Leaf, nil)
	return slices.Clone(pair.cert), slices.Clone(pair.key)
}

// joinToken is what a trust token says, as base64 of JSON.
type joinToken struct {
	ClientName  string    `json:"client_name"`
	Fingerprint string    `json:"fingerprint"`
	Addresses   []string  `json:"addresses"`
	Secret      string    `json:"secret"`
	ExpiresAt   time.Time `json:"expires_at"`
}

// NewTrustToken returns a token with which one client can add its certificate.
func (s *Server) NewTrustToken(clientName string) string {
	s.mu.Lock()
	op := s.newTrustOperation(clientName, nil)
	secret, _ := op.metadata["secret"].(string)
	s.mu.Unlock()
	data, err := json.Marshal(joinToken{
		ClientName: clientName, Fingerprint: s.cert.fingerprint(), Addresses: s.addresses(), Secret: secret,
	})
	if err != nil {
		panic(fmt.Sprintf("lxdtest: cannot write a token: %v", err))
	}
	return base64.StdEncoding.EncodeToString(data)
}

// newTrustOperation makes the operation behind a trust token; the caller holds
// the lock.
func (s *Server) newTrustOperation(clientName string, projects []string) *operation {
	if projects == nil {
		projects = []string{}
	}
	op := s.addOperation("token", "Executing operation", defaultProject, nil, map[string]any{
		"addresses":   s.addresses(),
		"fingerprint": s.cert.fingerprint(),
		"request":     map[string]any{"name": clientName, "type": "client", "projects": projects, "token": true},
		"secret":      newSecret(),
	})
	op.mayCancel = true
	return op
}

// addresses are where https listens.
func (s *Server) addresses() []string {
	if s.address == "" {
		return []string{}
	}
	return []string{s.address}
}

// infoJSON is the metadata of GET /1.0.
type infoJSON struct {
	Config         map[string]any   `json:"config,omitempty"`
	APIExtensions  []string         `json:"api_extensions"`
	APIStatus      string           `json:"api_status"`
	APIVersion     string           `json:"api_version"`
	Auth           string           `json:"auth"`
	Public         bool             `json:"public"`
	AuthMethods    []string         `json:"auth_methods"`
	AuthUserName   string           `json:"auth_user_name,omitempty"`
	AuthUserMethod string           `json:"auth_user_method,omitempty"`
	Environment    *environmentJSON `json:"environment,omitempty"`
}

// environmentJSON is the part of GET /1.0 for trusted callers.
type environmentJSON struct {
	Addresses              []string          `json:"addresses"`
	Architectures          []string          `json:"architectures"`
	Certificate            string            `json:"certificate"`
	CertificateFingerprint string            `json:"certificate_fingerprint"`
	Driver                 string            `json:"driver"`
	DriverVersion          string            `json:"driver_version"`
	Firewall               string            `json:"firewall"`
	Kernel                 string            `json:"kernel"`
	KernelArchitecture     string            `json:"kernel_architecture"`
	KernelFeatures         map[string]string `json:"kernel_features"`
	KernelVersion          string            `json:"kernel_version"`
	LXCFeatures            map[string]string `json:"lxc_features"`
	OSName                 string            `json:"os_name"`
	OSVersion              string            `json:"os_version"`
	Project                string            `json:"project"`
	Server                 string            `json:"server"`
	ServerClustered        bool              `json:"server_clustered"`
	ServerEventMode        string            `json:"server_event_mode"`
	ServerName             string            `json:"server_name"`
	ServerPid              int               `json:"server_pid"`
	ServerVersion          string            `json:"server_version"`
	Storage                string            `json:"storage"`
	StorageVersion         string            `json:"storage_version"`
}

// serveInfo answers GET /1.0.
func (s *Server) serveInfo(w http.ResponseWriter, r *http.Request) error {
	info := infoJSON{
		APIExtensions: s.extensions(), APIStatus: "stable", APIVersion: "1.0",
		Auth: "untrusted", AuthMethods: []string{"tls"},
	}
	if s.traits.bearer {
		info.AuthMethods = append(info.AuthMethods, "bearer")
	}
	if !s.trusts(r) {
		writeSync(w, info)
		return nil
	}
	project := projectParam(r)
	s.mu.Lock()
	known := s.projects[project] != nil
	s.mu.Unlock()
	if !known {
		return errNoProject
	}
	info.Auth = "trusted"
	info.Config = map[string]any{}
	if s.address != "" {
		info.Config["core.https_address"] = s.address
	}
	if s.traits.password && s.opts.TrustPassword != "" {
		info.Config["core.trust_password"] = true
	}
	if s.has("auth_user") {
		info.AuthUserName, info.AuthUserMethod = "root", "unix"
		if r.TLS != nil {
			info.AuthUserName, info.AuthUserMethod = "bearer", "bearer"
			if len(r.TLS.PeerCertificates) > 0 {
				info.AuthUserName, info.AuthUserMethod = certFingerprint(r.TLS.PeerCertificates[0]), "tls"
			}
		}
	}
	info.Environment = &environmentJSON{
		Addresses: s.addresses(), Architectures: []string{"x86_64", "i686"},
		Certificate: string(s.cert.cert), CertificateFingerprint: s.cert.fingerprint(),
		Driver: "lxc", DriverVersion: "5.0.2", Firewall: "nftables",
		Kernel: "Linux", KernelArchitecture: "x86_64", KernelFeatures: map[string]string{}, KernelVersion: "6.1.0",
		LXCFeatures: map[string]string{}, OSName: "lxdtest", OSVersion: runtime.GOOS,
		Project: project, Server: s.traits.family, ServerEventMode: "full-mesh",
		ServerName: "lxdtest", ServerPid: os.Getpid(), ServerVersion: s.traits.version,
	}
	writeSync(w, info)
	return nil
}

// certificatePost is the body of a request to trust a certificate, or to make
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

// serveCertificates lists the trusted certificates.
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
	return nil, fail(http.StatusNotFound, "Certificate not found")
}

// serveCertificate answers GET of one trusted certificate.
func (s *Server) serveCertificate(w http.ResponseWriter, _ *http.Request, name string) error {
	s.trustMu.Lock()
	t, err := s.findTrust(name)
	s.trustMu.Unlock()
	if err != nil {
		return err
	}
	// What is in the list never changes.
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

// serveAddCertificate trusts a certificate, or makes a token for one.
func (s *Server) serveAddCertificate(w http.ResponseWriter, r *http.Request) error {
	var post certificatePost
	if err := readJSON(r, &post); err != nil {
		return err
	}
	trusted := s.trusts(r)
	if post.Token {
		if !trusted {
			return errForbidden
		}
		s.mu.Lock()
		answer := s.render(s.newTrustOperation(post.Name, post.Projects))
		s.mu.Unlock()
		writeOperation(w, answer)
		return nil
	}
	if post.Type != "client" && post.Type != "" {
		return fail(http.StatusBadRequest, "Unknown request type %s", post.Type)
	}
	name, projects := post.Name, post.Projects
	var token *operation
	if !trusted {
		var err error
		if token, err = s.admits(post); err != nil {
			return err
		}
	}
	cert, err := s.joiningCertificate(r, post)
	if err != nil {
		return err
	}
	if token != nil {
		s.mu.Lock()
		request, _ := token.metadata["request"].(map[string]any)
		if asked, _ := request["name"].(string); asked != "" {
			name = asked
		}
		projects, _ = request["projects"].([]string)
		used := token.status == statusRunning
		if used {
			// A token serves once.
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

// admits checks the password or the token of an untrusted caller.
func (s *Server) admits(post certificatePost) (token *operation, err error) {
	// A token travels as the password before explicit_trust_token; Incus never
	// had passwords.
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
			s.mu.Lock()
			defer s.mu.Unlock()
			if op := s.tokenWith(join.Secret); op != nil && op.metadata["request"] != nil {
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

// joiningCertificate returns the certificate in the body, or the one of the
// connection.
func (s *Server) joiningCertificate(r *http.Request, post certificatePost) (*x509.Certificate, error) {
	if post.Certificate != "" {
		// It comes as base64 of the certificate, without a PEM frame, or as PEM.
		data, err := base64.StdEncoding.DecodeString(post.Certificate)
		if block, _ := pem.Decode([]byte(post.Certificate)); block != nil {
			data, err = block.Bytes, nil
		}
		if err != nil {
			return nil, fail(http.StatusBadRequest, "%v", err)
		}
		cert, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, fail(http.StatusBadRequest, "Invalid certificate material: %v", err)
		}
		return cert, nil
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, fail(http.StatusBadRequest, "No client certificate provided")
	}
	return r.TLS.PeerCertificates[0], nil
}
