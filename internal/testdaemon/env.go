package testdaemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The environment variables with the directories of running daemons,
// comma-separated.
const (
	EnvLXD   = "LXD_TEST_LXD_DIRS"
	EnvIncus = "LXD_TEST_INCUS_DIRS"
)

// The files that Start creates in a daemon's directory.
const (
	urlName         = "test-url"
	versionName     = "test-version"
	serverCertName  = "test-server.crt"
	clientCertName  = "test-client.crt"
	clientKeyName   = "test-client.key"
	passwordName    = "test-password"
	binaryName      = "test-binary"
	listSeparator   = ","
	privateFileMode = 0o600
)

// FromEnv returns the daemons whose directories are in the environment variables
// [EnvLXD] and [EnvIncus]: none if they are unset or empty. They belong to
// another process; Close does nothing to them.
func FromEnv() (lxd, incus []*Daemon, err error) {
	if lxd, err = openAll(LXD, os.Getenv(EnvLXD)); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", EnvLXD, err)
	}
	if incus, err = openAll(Incus, os.Getenv(EnvIncus)); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", EnvIncus, err)
	}
	return lxd, incus, nil
}

// Distinct returns the first daemon of each family and version.
func Distinct(daemons []*Daemon) []*Daemon {
	var first []*Daemon
	for _, d := range daemons {
		if !slices.ContainsFunc(first, func(f *Daemon) bool { return f.Name() == d.Name() }) {
			first = append(first, d)
		}
	}
	return first
}

// Environ returns the "name=value" environment variables from which [FromEnv]
// reads these daemons.
func Environ(daemons ...*Daemon) []string {
	dirs := map[Family][]string{}
	for _, d := range daemons {
		dirs[d.Family] = append(dirs[d.Family], d.Dir)
	}
	return []string{
		EnvLXD + "=" + strings.Join(dirs[LXD], listSeparator),
		EnvIncus + "=" + strings.Join(dirs[Incus], listSeparator),
	}
}

func openAll(family Family, list string) ([]*Daemon, error) {
	var daemons []*Daemon
	for dir := range strings.SplitSeq(list, listSeparator) {
		if dir = strings.TrimSpace(dir); dir == "" {
			continue
		}
		d, err := open(family, dir)
		if err != nil {
			return nil, err
		}
		daemons = append(daemons, d)
	}
	return daemons, nil
}

// open returns the daemon in a directory from the files that writeFiles wrote.
func open(family Family, dir string) (*Daemon, error) {
	d := newDaemon(family, dir)
	var url, version, password, binary []byte
	for name, dst := range map[string]*[]byte{
		urlName:        &url,
		versionName:    &version,
		serverCertName: &d.ServerCertificate,
		clientCertName: &d.ClientCertificate,
		clientKeyName:  &d.ClientKey,
		passwordName:   &password,
		binaryName:     &binary,
	} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if (name == passwordName || name == binaryName) && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("testdaemon: read the daemon's directory: %w", err)
		}
		*dst = data
	}
	d.URL = strings.TrimSpace(string(url))
	d.TrustPassword = strings.TrimSpace(string(password))
	d.Version = strings.TrimSpace(string(version))
	d.Binary = strings.TrimSpace(string(binary))
	return d, nil
}

func (d *Daemon) writeFiles() error {
	files := map[string][]byte{
		urlName:        []byte(d.URL + "\n"),
		versionName:    []byte(d.Version + "\n"),
		serverCertName: d.ServerCertificate,
		clientCertName: d.ClientCertificate,
		clientKeyName:  d.ClientKey,
	}
	if d.Binary != "" {
		files[binaryName] = []byte(d.Binary + "\n")
	}
	if d.TrustPassword != "" {
		files[passwordName] = []byte(d.TrustPassword + "\n")
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(d.Dir, name), data, privateFileMode); err != nil {
			return fmt.Errorf("testdaemon: write to the daemon's directory: %w", err)
		}
	}
	return nil
}
