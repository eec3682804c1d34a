package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/golxd/lxd/simplestreams"
	"github.com/golxd/lxd/simplestreams/signed"
)

// config is the file.
type config struct {
	Directory  string
	Grace      string
	Parallel   int
	SigningKey string `yaml:"signing_key"`
	Upstreams  []upstream
}

// upstream is an image server of the file.
type upstream struct {
	URL         string
	Certificate string
	Keyring     string
	AllowHTTP   bool `yaml:"allow_http"`
	Images      []selection
}

// selection is an entry of an upstream's images.
type selection struct {
	Aliases       []string
	Products      []string
	Architectures []string
	Types         []simplestreams.ImageType
	Versions      int
}

// mirror is what the file describes.
type mirror struct {
	tree      *simplestreams.Tree
	upstreams []simplestreams.Upstream
	parallel  int
}

// load reads the file; nothing is sent. Paths in it are relative to its directory.
func load(path string) (*mirror, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var c config
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(&c); err != nil && !errors.Is(err, io.EOF) { // An empty file has no directory.
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	m, err := c.open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func (c *config) open(dir string) (*mirror, error) {
	if c.Directory == "" {
		return nil, errors.New("directory is not set")
	}
	if len(c.Upstreams) == 0 {
		return nil, errors.New("upstreams is not set")
	}
	m := &mirror{parallel: c.Parallel}
	for n, each := range c.Upstreams {
		opened, err := each.open(dir)
		if err != nil {
			m.close()
			return nil, fmt.Errorf("upstreams[%d]: %w", n, err)
		}
		m.upstreams = append(m.upstreams, *opened)
	}
	if err := m.openTree(c, dir); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *mirror) openTree(c *config, dir string) error {
	options := &simplestreams.TreeOptions{}
	if c.Grace != "" {
		grace, err := time.ParseDuration(c.Grace)
		if err != nil {
			return fmt.Errorf("grace %q is not a duration, such as 24h", c.Grace)
		}
		options.Grace = grace
	}
	if c.SigningKey != "" {
		key, err := os.Open(within(dir, c.SigningKey))
		if err != nil {
			return err
		}
		defer key.Close()
		if options.Signer, err = signed.NewSigner(key, nil); err != nil {
			return fmt.Errorf("signing_key: %w", err)
		}
	}
	store, err := simplestreams.NewDirStore(within(dir, c.Directory))
	if err != nil {
		return err
	}
	m.tree, err = simplestreams.NewTree(store, options)
	return err
}

// close closes the connections.
func (m *mirror) close() {
	for _, each := range m.upstreams {
		_ = each.Client.Close()
	}
}

func (u *upstream) open(dir string) (*simplestreams.Upstream, error) {
	options := &simplestreams.Options{AllowHTTP: u.AllowHTTP, UserAgent: "mirror"}
	if u.Certificate != "" {
		certificate, err := os.ReadFile(within(dir, u.Certificate))
		if err != nil {
			return nil, err
		}
		options.Certificate = string(certificate)
	}
	if u.Keyring != "" {
		keyring, err := os.Open(within(dir, u.Keyring))
		if err != nil {
			return nil, err
		}
		defer keyring.Close()
		if options.Verifier, err = signed.NewVerifier(keyring); err != nil {
			return nil, fmt.Errorf("keyring: %w", err)
		}
	}
	client, err := simplestreams.New(u.URL, options)
	switch {
	case errors.Is(err, simplestreams.ErrInsecure):
		return nil, errors.New("url is not https; allow_http: true permits that")
	case err != nil:
		return nil, err
	}
	opened := &simplestreams.Upstream{Client: client}
	for _, each := range u.Images {
		opened.Select = append(opened.Select, simplestreams.Selection(each))
	}
	return opened, nil
}

// within returns the path; a relative one is relative to the directory of the file.
func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
