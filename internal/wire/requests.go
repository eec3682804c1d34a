package wire

import "time"

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

// ImageSource says where a new image comes from.
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

// ImagePut is the body of PUT /1.0/images/{fingerprint}.
type ImagePut struct {
	AutoUpdate bool              `json:"auto_update"`
	ExpiresAt  time.Time         `json:"expires_at,omitzero"`
	Profiles   []string          `json:"profiles"`
	Properties map[string]string `json:"properties"`
	Public     bool              `json:"public"`
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

// Alias is an alias in a request.
type Alias struct {
	Name        string `json:"name,omitempty"`
	Description string `json:"description"`
	Target      string `json:"target,omitempty"`
	Type        string `json:"type,omitempty"`
}

// Rename is the body of a POST that gives a thing another name.
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

// CertificatePost is the body of POST /1.0/certificates.
type CertificatePost struct {
	Type        string   `json:"type"`
	Name        string   `json:"name,omitempty"`
	Certificate string   `json:"certificate,omitempty"`
	Password    string   `json:"password,omitempty"`
	TrustToken  string   `json:"trust_token,omitempty"`
	Restricted  bool     `json:"restricted,omitzero"`
	Projects    []string `json:"projects,omitempty"`
}
