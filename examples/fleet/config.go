package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/golxd/lxd"
)

// config is the file.
type config struct {
	Interval time.Duration
	Servers  []*server
	Aliases  []*alias
}

// server is a server of the file.
type server struct {
	Name    string
	Remote  string // of the command line; or
	URL     string
	Project string

	ServerCertificate string `yaml:"server_certificate"` // paths of PEM files
	ClientCertificate string `yaml:"client_certificate"`
	ClientKey         string `yaml:"client_key"`

	client *lxd.Client
	// has is what Watch has yielded: the fingerprints of the aliases. It is nil while
	// that is not known, and guarded by controller.mu.
	has map[string]string
}

// alias is an alias of the file.
type alias struct {
	Name         string
	Source       string
	Rootfs       string // the second file of a split image
	Type         lxd.ImageType
	Architecture string
	Public       *bool
	Properties   map[string]string
	Keep         int

	source  lxd.Source
	seed    int    // index of the server that gets the image of the source
	ensured bool   // by the last pass that asked the source
	failed  bool   // the last pass
	wanted  string // fingerprint; "" before the first pass. It is guarded by controller.mu
}

// load reads the file, opens the sources, and makes the clients; nothing is sent. The
// error has all that is wrong, each with its line.
func load(path string) (*config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c := &config{Interval: 15 * time.Minute}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var errs []error
	names := map[string]bool{}
	check := func(key string, n int, name string, err error) {
		id := key + " " + name
		switch {
		case name == "":
			err = errors.Join(errors.New("name is missing"), err)
		case names[id]:
			err = errors.Join(errors.New("the name is a duplicate"), err)
		}
		names[id] = true
		if err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %s: %w", path, line(&document, key, n), id, err))
		}
	}
	dir := filepath.Dir(path)
	for n, s := range c.Servers {
		check("servers", n, s.Name, s.connect(dir))
	}
	for n, a := range c.Aliases {
		check("aliases", n, a.Name, a.open(dir))
	}
	for _, list := range []struct {
		key     string
		entries int
	}{{"servers", len(c.Servers)}, {"aliases", len(c.Aliases)}} {
		if list.entries == 0 {
			errs = append(errs, fmt.Errorf("%s: %s is empty", path, list.key))
		}
	}
	if c.Interval <= 0 {
		errs = append(errs, fmt.Errorf("%s: interval is not positive", path))
	}
	if err := errors.Join(errs...); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// line returns the line of an entry of a list.
func line(document *yaml.Node, key string, n int) int {
	top := document.Content[0].Content // keys and values
	for i := 0; i+1 < len(top); i += 2 {
		if top[i].Value == key {
			return top[i+1].Content[n].Line
		}
	}
	return 0
}

// close closes the clients and the sources.
func (c *config) close() {
	for _, s := range c.Servers {
		if s.client != nil {
			_ = s.client.Close()
		}
	}
	for _, a := range c.Aliases {
		if opened, ok := a.source.(*lxd.OpenedSource); ok {
			_ = opened.Close()
		}
	}
}

// connect makes the client.
func (s *server) connect(dir string) (err error) {
	// A longer outage is that of the next pass.
	opts := &lxd.Options{Project: s.Project, UserAgent: "fleet", RetryTimeout: 5 * time.Second}
	for _, file := range []struct {
		path string
		data *[]byte
	}{{s.ServerCertificate, &opts.ServerCertificate}, {s.ClientCertificate, &opts.ClientCertificate}, {s.ClientKey, &opts.ClientKey}} {
		if file.path == "" {
			continue
		}
		if *file.data, err = os.ReadFile(within(dir, file.path)); err != nil {
			return err
		}
	}
	switch {
	case (s.Remote == "") == (s.URL == ""):
		return errors.New("it needs either remote or url")
	case s.Remote != "":
		s.client, err = lxd.Remote(s.Remote, opts)
	default:
		s.client, err = lxd.New(s.URL, opts)
	}
	return err
}

// open opens the source, and checks the other fields.
func (a *alias) open(dir string) error {
	switch {
	case a.Source == "":
		return errors.New("source is missing")
	case strings.Contains(a.Source, "://"):
		a.source = lxd.FromURL(a.Source, nil)
	case strings.Contains(strings.SplitN(a.Source, ":", 2)[0], "/"):
		opts := &lxd.FromFileOptions{Type: a.Type}
		if a.Rootfs != "" {
			opts.Rootfs = within(dir, a.Rootfs)
		}
		a.source = lxd.FromFile(within(dir, a.Source), opts)
	default:
		opened, err := lxd.OpenSource(a.Source, &lxd.OpenSourceOptions{Type: a.Type, Architecture: a.Architecture})
		if err != nil {
			return err
		}
		a.source = opened
	}
	// The package checks its options before it connects.
	nowhere, err := lxd.New("unix:///", &lxd.Options{RetryTimeout: -1, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, net.ErrClosed
	}})
	if err != nil {
		return err
	}
	defer func() { _ = nowhere.Close() }()
	_, err = nowhere.Images.Ensure(context.Background(), a.source, a.ensureOptions())
	if a.Keep != 0 {
		_, perr := nowhere.Images.Prune(context.Background(), a.pruneOptions())
		err = errors.Join(err, perr)
	}
	if errors.Is(err, lxd.ErrInvalid) {
		return err
	}
	return nil
}

// within returns the path; a relative one is relative to the directory of the file.
func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// mark is the property of the images that this program has brought for the alias, by
// which old ones are found. Two aliases may have the same image.
func (a *alias) mark() (name, value string) { return "user.fleet." + a.Name, "true" }

// wrap adds the alias to an error.
func (a *alias) wrap(err error) error { return fmt.Errorf("alias %q: %w", a.Name, err) }

func (a *alias) ensureOptions() *lxd.EnsureOptions {
	name, value := a.mark()
	properties := map[string]string{name: value}
	for name, value := range a.Properties {
		properties[name] = value
	}
	return &lxd.EnsureOptions{
		Aliases: []lxd.Alias{{Name: a.Name}}, Type: a.Type, Architecture: a.Architecture,
		Public: a.Public, Properties: properties, CancelOnDone: true,
	}
}

// distributeOptions make a copy like the image that Ensure has made.
func (a *alias) distributeOptions(image *lxd.Image) *lxd.DistributeOptions {
	return &lxd.DistributeOptions{Copy: lxd.CopyOptions{
		Aliases: []lxd.Alias{{Name: a.Name}}, ReuseAliases: true, Public: &image.Public, Properties: image.Properties,
	}}
}

// pruneOptions delete only images that were brought for the alias and have no alias now.
func (a *alias) pruneOptions() *lxd.PruneOptions {
	name, value := a.mark()
	return &lxd.PruneOptions{Properties: map[string]string{name: value}, Keep: a.Keep, Unnamed: true}
}
