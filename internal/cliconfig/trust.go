package cliconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Trust are the certificates and the key, PEM, with which the command line reaches
// a remote; nil if it has none.
type Trust struct {
	ServerCertificate []byte // the only certificate that is accepted from the server
	CA                []byte // the authority that must have issued the server's certificate

	Certificate, Key         []byte // of the client
	CertificateFile, KeyFile string // their paths, even if they are missing
	// Exposed reports whether others than the owner may access the key's file.
	Exposed bool
}

// Trust reads the files of a remote. Missing files are no error.
func (c *Config) Trust(name string) (*Trust, error) {
	if filepath.Base(name) != name {
		return nil, fmt.Errorf("remote %q: the name is not a valid file name", name)
	}
	r := c.Remotes[name]
	dir := c.Dir
	if r.Global {
		dir = c.Global
	}
	var t Trust
	var err error
	if t.ServerCertificate, err = optional(filepath.Join(dir, "servercerts", name+".crt")); err != nil {
		return nil, err
	}
	if r.Public || r.Protocol == "simplestreams" || r.AuthType == "oidc" {
		return &t, nil
	}
	base := filepath.Join(c.Dir, "client")
	for _, dir := range []string{c.Dir, dir} {
		// Incus 6 can have a certificate for each remote; LXD has one for all.
		own := filepath.Join(dir, "clientcerts", name)
		if exists(own+".crt") && exists(own+".key") {
			base = own
			break
		}
	}
	t.CertificateFile, t.KeyFile = base+".crt", base+".key"
	if t.Certificate, err = optional(t.CertificateFile); err != nil {
		return nil, err
	}
	if t.Key, err = optional(t.KeyFile); err != nil {
		return nil, err
	}
	if t.CA, err = optional(base + ".ca"); err != nil {
		return nil, err
	}
	if t.Key != nil {
		info, err := os.Stat(t.KeyFile)
		if err != nil {
			return nil, err
		}
		t.Exposed = exposed(info)
	}
	return &t, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// optional reads a file, or returns nil if it does not exist.
func optional(path string) ([]byte, error) {
	data, err := ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// OIDCToken returns the access token of an OpenID Connect provider that the
// command line has stored, and its expiry (zero if unknown). Trust has checked the
// name.
func (c *Config) OIDCToken(name string) (token string, expiry time.Time, err error) {
	path := filepath.Join(c.Dir, "oidctokens", name+".json")
	data, err := ReadFile(path)
	if err != nil {
		return "", time.Time{}, err
	}
	var saved struct {
		AccessToken string    `json:"access_token"`
		Expiry      time.Time `json:"expiry"`
	}
	if err := json.Unmarshal(data, &saved); err != nil {
		return "", time.Time{}, &SyntaxError{File: path, Err: err}
	}
	if saved.AccessToken == "" {
		return "", time.Time{}, &SyntaxError{File: path, Err: errors.New("contains no access token")}
	}
	return saved.AccessToken, saved.Expiry, nil
}
