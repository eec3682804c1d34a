package wire

import (
	"encoding/base64"
	"time"

	"github.com/golxd/lxd/internal/redact"
)

// A body with secrets has a method Secrets that returns them.

// ImagePost is the body of POST /1.0/images.
type ImagePost struct {
	Aliases     []Alias           `json:"aliases"`
	AutoUpdate  bool              `json:"auto_update,omitzero"`
	Compression string            `json:"compression_algorithm,omitempty"`
	ExpiresAt   time.Time         `json:"expires_at,omitzero"`
	Filename    string            `json:"filename,omitempty"`
	Format      string            `json:"format,omitempty"`
	Profiles    []string          `json:"profiles,omitempty"`
	Properties  map[string]string `json:"properties"`
	Public      bool              `json:"public,omitzero"`
	Source      *ImageSource      `json:"source"`
}

// ImageSource is the source of a new image.
type ImageSource struct {
	Type          string `json:"type,omitempty"`
	Mode          string `json:"mode,omitempty"`
	URL           string `json:"url,omitempty"`
	Name          string `json:"name,omitempty"`
	Server        string `json:"server,omitempty"`
	Protocol      string `json:"protocol,omitempty"`
	Certificate   string `json:"certificate,omitempty"`
	Alias         string `json:"alias,omitempty"`
	Fingerprint   string `json:"fingerprint,omitempty"`
	Secret        string `json:"secret,omitempty"`
	Project       string `json:"project,omitempty"`
	ImageType     string `json:"image_type,omitempty"`
	ImageRegistry string `json:"image_registry,omitempty"`
}

// Secrets returns the image's secret, and those of the source's URLs.
func (p *ImagePost) Secrets() *redact.Secrets {
	if p.Source == nil {
		return nil
	}
	return redact.Join(redact.Hide(p.Source.Secret), redact.HideURL(p.Source.URL), redact.HideURL(p.Source.Server))
}

// InstancePost is an ImagePost without properties, which are in no other request null
// or missing: see Marshal.
type InstancePost struct {
	*ImagePost
	Properties struct{} `json:"properties,omitzero"`
}

// ImagePut is the body of PUT /1.0/images/{fingerprint}.
type ImagePut struct {
	AutoUpdate bool              `json:"auto_update"`
	ExpiresAt  time.Time         `json:"expires_at,omitzero"`
	Profiles   []string          `json:"profiles"`
	Properties map[string]string `json:"properties"`
	Public     bool              `json:"public"`
}

// ImagePatch is the body of PATCH /1.0/images/{fingerprint}. What is absent stays;
// Properties are merged.
type ImagePatch struct {
	AutoUpdate *bool             `json:"auto_update,omitzero"`
	Properties map[string]string `json:"properties,omitempty"`
	Public     *bool             `json:"public,omitzero"`
}

// ImageExport is the body of POST /1.0/images/{fingerprint}/export.
type ImageExport struct {
	Target      string   `json:"target"`
	Secret      string   `json:"secret"`
	Certificate string   `json:"certificate"`
	Aliases     []Alias  `json:"aliases"`
	Project     string   `json:"project,omitempty"`
	Profiles    []string `json:"profiles,omitempty"`
}

// Secrets returns the token's secret, and those of the target's URL.
func (e *ImageExport) Secrets() *redact.Secrets {
	return redact.Join(redact.Hide(e.Secret), redact.HideURL(e.Target))
}

// Alias is an alias in a request.
type Alias struct {
	Name        string `json:"name,omitempty"`
	Description string `json:"description"`
	Target      string `json:"target,omitempty"`
	Type        string `json:"type,omitempty"`
}

// Rename is the body of a POST that renames an object.
type Rename struct {
	Name string `json:"name"`
}

// ImageRegistry is the body of POST /1.0/image-registries.
type ImageRegistry struct {
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Protocol    string            `json:"protocol"`
	Config      map[string]string `json:"config"`
}

// Secrets returns those of the registry's URL.
func (r *ImageRegistry) Secrets() *redact.Secrets { return redact.HideURL(r.Config["url"]) }

// CertificatePost is the body of POST /1.0/certificates, and with only TrustToken
// that of POST /1.0/auth/identities/tls.
type CertificatePost struct {
	Type        string   `json:"type,omitempty"`
	Name        string   `json:"name,omitempty"`
	Certificate string   `json:"certificate,omitempty"`
	Password    string   `json:"password,omitempty"`
	TrustToken  string   `json:"trust_token,omitempty"`
	Restricted  bool     `json:"restricted,omitzero"`
	Projects    []string `json:"projects,omitempty"`
}

// Secrets returns the password, the token, and the secret in the token.
func (p *CertificatePost) Secrets() *redact.Secrets {
	all := redact.Hide(p.Password, p.TrustToken)
	for _, text := range []string{p.Password, p.TrustToken} {
		var token struct {
			Secret string `json:"secret"`
		}
		if data, err := base64.StdEncoding.DecodeString(text); err == nil && Unmarshal(data, &token) == nil {
			all = redact.Join(all, redact.Hide(token.Secret))
		}
	}
	return all
}
