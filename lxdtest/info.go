package lxdtest

import (
	"net/http"
	"os"
	"runtime"
)

// infoJSON is the metadata of GET /1.0.
type infoJSON struct {
	Config        any      `json:"config,omitempty"`
	APIExtensions []string `json:"api_extensions"`
	APIStatus     string   `json:"api_status"`
	APIVersion    string   `json:"api_version"`
	Auth          string   `json:"auth"`
	Public        bool     `json:"public"`
	AuthMethods   []string `json:"auth_methods"`
	// Only LXD 6.9 has this field.
	ClientCertificate *bool            `json:"client_certificate,omitempty"`
	AuthUserName      string           `json:"auth_user_name,omitempty"`
	AuthUserMethod    string           `json:"auth_user_method,omitempty"`
	Environment       *environmentJSON `json:"environment,omitempty"`
}

// environmentJSON is the part of GET /1.0 for trusted clients.
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

// serveInfo handles GET /1.0.
func (s *Server) serveInfo(w http.ResponseWriter, r *http.Request) error {
	info := infoJSON{
		APIExtensions: s.extensions(), APIStatus: "stable", APIVersion: "1.0",
		Auth: "untrusted", AuthMethods: []string{"tls"},
	}
	if s.traits.bearer {
		info.AuthMethods = append(info.AuthMethods, "bearer")
	}
	if s.traits.storesOperations {
		presented := r.TLS != nil && len(r.TLS.PeerCertificates) > 0
		info.ClientCertificate = &presented
	}
	if !s.trusts(r) {
		if s.traits.hidesInfo {
			info.APIExtensions = nil
		}
		switch {
		case s.traits.family == "incus":
			info.Config = map[string]any{}
		case s.traits.storesOperations:
			info.Config = map[string]any(nil)
		}
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
	config := map[string]any{}
	if s.address != "" {
		config["core.https_address"] = s.address
	}
	if s.traits.password && s.opts.TrustPassword != "" {
		config["core.trust_password"] = true
	}
	info.Config = config
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
	writeETag(w, etagOf(info.Config), info)
	return nil
}
