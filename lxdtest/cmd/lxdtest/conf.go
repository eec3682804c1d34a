package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// commandOf returns the name of a family's command, which is also that of the directory
// with its configuration.
func commandOf(family string) string {
	if family == "incus" {
		return "incus"
	}
	return "lxc"
}

// writeConf writes the configuration of the lxc and incus commands, with the servers of
// their family as remotes and a certificate that the servers trust.
func (f *fleet) writeConf(d *directory, cert, key []byte) error {
	files := map[string][]byte{}
	configs := map[string]*strings.Builder{}
	for _, s := range f.Servers {
		s.Conf = d.join(commandOf(s.Family))
		s.ClientCertificate, s.ClientKey = filepath.Join(s.Conf, "client.crt"), filepath.Join(s.Conf, "client.key")
		files[s.ClientCertificate], files[s.ClientKey] = cert, key
		addr := "unix://" + s.Socket
		if s.URL != "" {
			addr = s.URL
			s.ServerCertificate = filepath.Join(s.Conf, "servercerts", s.Name+".crt")
			files[s.ServerCertificate] = s.fake.Certificate()
		}
		config := configs[s.Conf]
		if config == nil {
			config = &strings.Builder{}
			configs[s.Conf] = config
			fmt.Fprintf(config, "default-remote: %s\nremotes:\n", s.Name)
		}
		fmt.Fprintf(config, "  %s:\n    addr: %q\n    auth_type: tls\n    project: default\n    protocol: %s\n    public: false\n", s.Name, addr, s.Family)
	}
	for dir, config := range configs {
		files[filepath.Join(dir, "config.yml")] = []byte(config.String())
		if err := os.MkdirAll(filepath.Join(dir, "servercerts"), 0o700); err != nil {
			return err
		}
	}
	for path, content := range files {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
