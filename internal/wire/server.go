package wire

// Server is the metadata of GET /1.0.
type Server struct {
	APIVersion    string      `json:"api_version"`
	APIExtensions []string    `json:"api_extensions"`
	Auth          string      `json:"auth"`
	AuthMethods   []string    `json:"auth_methods"`
	Public        bool        `json:"public"`
	Environment   Environment `json:"environment"`
}

// Environment is the part of the description that only trusted clients receive.
type Environment struct {
	Server                 string   `json:"server"`
	ServerVersion          string   `json:"server_version"`
	ServerName             string   `json:"server_name"`
	ServerClustered        bool     `json:"server_clustered"`
	Addresses              []string `json:"addresses"`
	Architectures          []string `json:"architectures"`
	Certificate            string   `json:"certificate"`
	CertificateFingerprint string   `json:"certificate_fingerprint"`
	Project                string   `json:"project"`
}

// Instance is what this module needs of an instance.
type Instance struct {
	Name     string            `json:"name"`
	Project  string            `json:"project"`
	Type     string            `json:"type"`
	Status   string            `json:"status"`
	Location string            `json:"location"`
	Config   map[string]string `json:"config"`
}
