package lxd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/cliconfig"
	"github.com/golxd/lxd/internal/redact"
)

// SimplestreamsProtocol is the [RemoteInfo.Protocol] of a simplestreams server,
// which only serves images.
const SimplestreamsProtocol = "simplestreams"

// RemoteInfo is a remote of the lxc or incus command line.
type RemoteInfo struct {
	Name     string
	Address  string // such as "unix://" or "https://10.0.0.7:8443"; several are separated by commas (Incus 7); as configured, even with a user name in it
	Protocol string // "lxd", "incus", "simplestreams" or "oci"
	Project  string // that commands on it work in; "" for the default one
	AuthType string // "tls", "oidc" or "" for none
	Public   bool   // images can only be read
	Default  bool   // commands use it if they name no remote
	Global   bool   // from the system's configuration, not the user's
	Static   bool   // built into the command

	// CredentialsHelper is the command that has the credentials of an OCI registry
	// (Incus 7); "" for none. See OpenSource.
	CredentialsHelper string

	Family     Family // of the command line
	ConfigPath string // the directory of the configuration
}

// RemotesOptions select the configuration for [Remotes].
type RemotesOptions struct {
	// Family selects the command line whose configuration is read. The default
	// is LXD if it has a configuration, else Incus.
	Family Family
	// ConfigDir is the directory of the configuration. The default is the
	// command line's own, see [Remote].
	ConfigDir string
}

// RemoteError says why a remote cannot be used. It matches [ErrNotFound] if the
// remote does not exist, [ErrUnsupported] if [Remote] does not support its
// protocol or authentication, and [fs.ErrNotExist] if a file is missing.
type RemoteError struct {
	Name  string      // of the remote; empty if the whole configuration is broken
	File  string      // that the error is about; may be empty
	Line  int         // in a broken config.yml; 0 if unknown
	Known []string    // the existing remotes, if this one does not exist
	Info  *RemoteInfo // the remote's configuration; may be nil
	Err   error
}

// Error returns the remote's name, the cause and the existing remotes.
func (e *RemoteError) Error() string {
	if e.Name == "" {
		return "configuration of the command line: " + e.Err.Error()
	}
	s := fmt.Sprintf("remote %q: %v", e.Name, e.Err)
	if len(e.Known) > 0 {
		s += "; the remotes are " + strings.Join(e.Known, ", ")
	}
	return s
}

// Unwrap returns the cause.
func (e *RemoteError) Unwrap() error { return e.Err }

// Remote returns a client for a remote of the user's own lxc or incus command
// line: the same server, the same trust and the same project. The command line's
// files are read, never written. The name "" is the default remote.
//
// The configuration is in $LXD_CONF, ~/.config/lxc or
// ~/snap/lxd/common/config, and for Incus in $INCUS_CONF or ~/.config/incus;
// Options.Family and Options.ConfigDir select one of several. The remotes of
// /etc/lxd ($LXD_GLOBAL_CONF) and /etc/incus ($INCUS_GLOBAL_CONF) and the
// built-in ones are included. $LXC_REMOTE or $INCUS_REMOTE names the default
// remote, $LXD_PROJECT or $INCUS_PROJECT the project.
//
// If the remote has several addresses (Incus 7), the client has all of them, and
// begins with the last one that has worked for the command line; see [New].
//
// The options take precedence over the configuration. A public remote implies
// [Options.PublicOnly]. For a remote of auth type "oidc" the client sends the
// access token that the command line has stored; this package does not renew it.
// If the server shows another certificate than the stored one, calls fail with a
// [*PinError]. For a remote of protocol simplestreams the error is a
// [*RemoteError] that matches [ErrUnsupported], with the address in its Info:
// read it with package simplestreams, or let a server import from it with
// [Images.CreateFromSimplestreams]. So it is for one of protocol oci: see [OpenSource].
func Remote(name string, opts *Options) (*Client, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	config, err := loadConfig(o.Family, o.ConfigDir)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = config.Default
	}
	name = strings.TrimSuffix(name, ":")
	r, ok := config.Remotes[name]
	if !ok {
		return nil, &RemoteError{
			Name: name, File: config.Dir, Known: slices.Sorted(maps.Keys(config.Remotes)),
			Err: fmt.Errorf("%w in the configuration of the %s command", ErrNotFound, cliconfig.Command(config.Family)),
		}
	}
	info := remoteInfo(config, name)
	fail := func(file string, err error) error {
		e := &RemoteError{Name: name, File: file, Info: &info, Err: err}
		var broken *cliconfig.SyntaxError
		if errors.As(err, &broken) {
			e.File, e.Line = broken.File, broken.Line
		}
		return e
	}
	switch {
	case len(r.Addresses()) == 0:
		return nil, fail(config.Dir, errors.New("the configuration has no address for it"))
	case r.Protocol == SimplestreamsProtocol:
		return nil, fail("", fmt.Errorf("%w: %s is a simplestreams server, which only serves images; use package simplestreams or Images.CreateFromSimplestreams", ErrUnsupported, redact.URL(r.Addr)))
	case r.Protocol == OCIProtocol:
		return nil, fail("", fmt.Errorf("%w: %s is an OCI registry, which only serves images; use OpenSource or FromOCI", ErrUnsupported, redact.URL(r.Addr)))
	case r.Protocol != string(LXD) && r.Protocol != string(Incus):
		return nil, fail("", fmt.Errorf("%w: unknown protocol %q", ErrUnsupported, r.Protocol))
	case r.AuthType == "candid":
		return nil, fail("", fmt.Errorf("%w: authentication with candid is only for old servers; add the remote again with a certificate", ErrUnsupported))
	}
	if o.Project == "" {
		o.Project = cliconfig.Project(config.Family)
	}
	if o.Project == "" && r.Project != "default" {
		o.Project = r.Project
	}
	o.PublicOnly = o.PublicOnly || r.Public
	endpoint := strings.Join(r.Addresses(), ",")
	if strings.HasPrefix(endpoint, "unix:") {
		if endpoint == "unix:" || endpoint == "unix://" {
			endpoint = ""
			if o.Family == "" && (config.Found || someExists(localSockets(Family(config.Family)))) {
				o.Family = Family(config.Family)
			}
		}
	} else if file, err := o.trustOf(config, name); err != nil {
		return nil, fail(file, err)
	}
	client, err := New(endpoint, &o)
	if err != nil {
		return nil, fail("", err)
	}
	return client, nil
}

// Remotes returns the remotes of the user's own lxc or incus command line,
// including the built-in ones, sorted by name; see [Remote] for where they are
// read from.
func Remotes(opts *RemotesOptions) ([]RemoteInfo, error) {
	var o RemotesOptions
	if opts != nil {
		o = *opts
	}
	config, err := loadConfig(o.Family, o.ConfigDir)
	if err != nil {
		return nil, err
	}
	remotes := make([]RemoteInfo, 0, len(config.Remotes))
	for _, name := range slices.Sorted(maps.Keys(config.Remotes)) {
		remotes = append(remotes, remoteInfo(config, name))
	}
	return remotes, nil
}

func remoteInfo(c *cliconfig.Config, name string) RemoteInfo {
	r := c.Remotes[name]
	info := RemoteInfo{
		Name: name, Address: r.Addr, Protocol: r.Protocol, Project: r.Project, AuthType: r.AuthType,
		Public: r.Public, Default: name == c.Default, Global: r.Global, Static: r.Static,
		CredentialsHelper: r.CredentialsHelper, Family: Family(c.Family), ConfigPath: c.Dir,
	}
	if info.AuthType == "" && !r.Public && strings.HasPrefix(r.Addr, "https:") {
		info.AuthType = "tls"
	}
	return info
}

func loadConfig(family Family, dir string) (*cliconfig.Config, error) {
	switch family {
	case "", LXD, Incus:
	default:
		return nil, invalid("Options.Family", "is %q, not %q or %q", family, LXD, Incus)
	}
	var place cliconfig.Place
	if dir != "" {
		place = cliconfig.At(string(family), dir)
		if family == "" {
			place = cliconfig.At(cliconfig.LXD, dir)
		}
	} else {
		places, err := cliconfig.Find(string(family))
		if err != nil {
			return nil, &RemoteError{Err: err}
		}
		place = places[0]
		if len(places) == 2 && !place.Found && !someExists(localSockets(LXD)) && someExists(localSockets(Incus)) {
			// Neither command has ever been used, and only Incus is installed.
			place = places[1]
		}
	}
	config, err := cliconfig.Load(place)
	if err != nil {
		e := &RemoteError{Err: err}
		var broken *cliconfig.SyntaxError
		var path *fs.PathError
		switch {
		case errors.As(err, &broken):
			e.File, e.Line = broken.File, broken.Line
		case errors.As(err, &path):
			e.File = path.Path
		}
		return nil, e
	}
	return config, nil
}

func someExists(sockets []localSocket) bool {
	return slices.ContainsFunc(sockets, func(s localSocket) bool {
		_, err := os.Stat(s.path)
		_, uerr := os.Stat(s.forUsers)
		return err == nil || uerr == nil
	})
}

// trustOf sets the certificates, key and token of an https remote that the
// options do not set. file is the one that an error is about.
func (o *Options) trustOf(c *cliconfig.Config, name string) (file string, err error) {
	trust, err := c.Trust(name)
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			file = path.Path
		}
		return file, err
	}
	if len(o.ServerCertificate) == 0 && o.ServerFingerprint == "" && o.RootCAs == nil {
		switch {
		case trust.ServerCertificate != nil:
			o.ServerCertificate = trust.ServerCertificate
		case trust.CA != nil:
			o.RootCAs = x509.NewCertPool()
			if !o.RootCAs.AppendCertsFromPEM(trust.CA) {
				return strings.TrimSuffix(trust.CertificateFile, ".crt") + ".ca", errors.New("the certificate authority's file contains no PEM certificate")
			}
		}
	}
	r := c.Remotes[name]
	switch {
	case r.Public, o.Token != "", o.TokenSource != nil, len(o.ClientCertificate) > 0, len(o.ClientKey) > 0:
		return "", nil
	case r.AuthType == "oidc":
		o.TokenSource = func(context.Context) (string, error) { return storedToken(c, name) }
		return "", nil
	}
	for _, f := range []struct {
		path string
		data []byte
	}{{trust.CertificateFile, trust.Certificate}, {trust.KeyFile, trust.Key}} {
		if f.data == nil {
			return f.path, fmt.Errorf("%s is missing; \"%s remote add\" creates it, or set Options.ClientCertificate and ClientKey: %w", f.path, cliconfig.Command(c.Family), fs.ErrNotExist)
		}
	}
	if err := checkKey(trust.Key); err != nil {
		return trust.KeyFile, fmt.Errorf("%s %w", trust.KeyFile, err)
	}
	if _, err := tls.X509KeyPair(trust.Certificate, trust.Key); err != nil {
		return trust.KeyFile, fmt.Errorf("%s does not match %s: %w", trust.KeyFile, trust.CertificateFile, err)
	}
	if trust.Exposed && o.Logger != nil {
		o.Logger.Warn("the private key is accessible to other users; run chmod 600 on it", slog.String("file", trust.KeyFile))
	}
	o.ClientCertificate, o.ClientKey = trust.Certificate, trust.Key
	return "", nil
}

// checkKey refuses a key for which the command lines would ask a password.
func checkKey(data []byte) error {
	block, _ := pem.Decode(data)
	switch {
	case block == nil:
		return errors.New("contains no PEM key")
	case block.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
		return errors.New("is protected by a password; decrypt the key and set Options.ClientKey")
	}
	return nil
}

// storedToken reads the token that the command line has stored. It is called for
// each request, as the command may have renewed the token meanwhile.
func storedToken(c *cliconfig.Config, name string) (string, error) {
	token, expiry, err := c.OIDCToken(name)
	renew := fmt.Sprintf("; log in with \"%s image list %s:\"", cliconfig.Command(c.Family), name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", &RemoteError{Name: name, Err: fmt.Errorf("%w: the command line has no token for it%s: %w", ErrUnauthorized, renew, err)}
	case err != nil:
		return "", &RemoteError{Name: name, Err: err}
	case !expiry.IsZero() && time.Now().After(expiry):
		return "", &RemoteError{Name: name, Err: fmt.Errorf("%w: the command line's token expired at %s%s", ErrUnauthorized, expiry.Format(time.RFC3339), renew)}
	}
	return token, nil
}
