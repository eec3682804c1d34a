package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/golxd/lxd/lxdtest"
)

// settings are what the flags say.
type settings struct {
	servers       []serverSetting
	dir           string
	socket        string
	tls           string // "" for none
	control       string
	trustPassword string
	withParent    bool
	log           bool
}

// serverSetting is a server of -dialect and what the other flags put on it.
type serverSetting struct {
	name     string
	dialect  lxdtest.Dialect
	images   []imageSetting
	projects []string
	profiles []string
	faults   []lxdtest.Fault
}

// validName is what a server can be called: it is a remote of the commands, a directory
// and part of the control socket's paths.
var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

// reserved are the names that no server can have, as something else is called so.
var reserved = []string{"images", "incus", "local", "lxc", "servers", "stop"}

// texts collects the values of a flag that may be repeated.
type texts []string

func (t *texts) add(value string) error {
	*t = append(*t, value)
	return nil
}

// parse returns the settings. It prints the help if the error is flag.ErrHelp.
func parse(args []string, help io.Writer) (*settings, error) {
	s := &settings{}
	var dialects, images, projects, profiles, faults texts
	flags := flag.NewFlagSet("lxdtest", flag.ContinueOnError)
	flags.Func("dialect", "serve the `[NAME=]DIALECT`: lxd40, lxd50 (the default), lxd69, incus60 or incus70; may be repeated, or be a list with commas", dialects.add)
	flags.StringVar(&s.dir, "dir", "", "put sockets, certificates and configuration into this `directory` (default a temporary one)")
	flags.StringVar(&s.socket, "socket", "", "the `path` of the unix socket (default DIR/NAME/unix.socket)")
	flags.StringVar(&s.tls, "tls", "127.0.0.1:0", "the `address` of https; port 0 is a free one, and \"none\" is no https")
	flags.StringVar(&s.control, "control", "", "the `address or path` of the control socket (default DIR/control.socket)")
	flags.Func("image", "add the image `[NAME:]ALIAS[,ALIAS…]=SPEC`: a made one, debian/13, or files, FILE or METADATA+ROOTFS, and options; may be repeated", images.add)
	flags.Func("project", "add the project `[NAME:]PROJECT`, with images and profiles of its own; may be repeated", projects.add)
	flags.Func("profile", "add the profile `[NAME:]PROFILE`; may be repeated", profiles.add)
	flags.Func("fault", "inject the fault `[NAME:]FAULT`, as in \"cut-response bytes=1000 path=/1.0/images/*/export times=2\"; may be repeated", faults.add)
	flags.StringVar(&s.trustPassword, "trust-password", "", "the trust `password` of the LXD before 6")
	flags.BoolVar(&s.withParent, "with-parent", false, "end when the parent process has ended")
	flags.BoolVar(&s.log, "log", false, "log each request on standard error")
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(help)
		fmt.Fprintln(help, "usage: lxdtest [flags]\n\nLXD and Incus image servers for tests. It prints a line of JSON when they serve, and ends with SIGTERM.")
		flags.PrintDefaults()
		return nil, err
	case err != nil:
		return nil, err
	case flags.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if len(dialects) == 0 {
		dialects = texts{"lxd50"}
	}
	for _, list := range dialects {
		for text := range strings.SplitSeq(list, ",") {
			if err := s.addServer(text); err != nil {
				return nil, err
			}
		}
	}
	return s, errors.Join(
		s.checkAddresses(),
		s.each("image", images, func(server *serverSetting, text string) error {
			image, err := parseImage(text)
			server.images = append(server.images, image)
			for _, alias := range image.opts.Aliases {
				// It would most likely be an image of a server whose name is misspelled.
				if before, _, ok := strings.Cut(alias, ":"); ok && err == nil {
					err = fmt.Errorf("%q is not a server of -dialect, and an alias cannot contain a colon here", before)
				}
			}
			return err
		}),
		s.each("project", projects, func(server *serverSetting, name string) error {
			server.projects = append(server.projects, name)
			return checkName(name)
		}),
		s.each("profile", profiles, func(server *serverSetting, name string) error {
			server.profiles = append(server.profiles, name)
			return checkName(name)
		}),
		s.each("fault", faults, func(server *serverSetting, text string) error {
			fault, err := lxdtest.ParseFault(text)
			server.faults = append(server.faults, fault)
			return err
		}))
}

// addServer adds a server of -dialect.
func (s *settings) addServer(text string) error {
	name, dialect, named := strings.Cut(text, "=")
	if !named {
		dialect = text
	}
	d, err := lxdtest.ParseDialect(dialect)
	if err != nil {
		return fmt.Errorf("-dialect: %w", err)
	}
	if !named {
		name = s.freeName(d)
	}
	switch {
	case !validName.MatchString(name):
		return fmt.Errorf("-dialect: a server cannot be called %q: the characters are a to z, 0 to 9 and -", name)
	case slices.Contains(reserved, name):
		return fmt.Errorf("-dialect: a server cannot be called %q, which has another meaning", name)
	case s.server(name) != nil:
		return fmt.Errorf("-dialect: two servers are called %q", name)
	}
	s.servers = append(s.servers, serverSetting{name: name, dialect: d})
	return nil
}

// freeName returns the name of a server that -dialect does not name: lxd50, then lxd50-2.
func (s *settings) freeName(d lxdtest.Dialect) string {
	name := d.Name()
	for n := 2; s.server(name) != nil; n++ {
		name = fmt.Sprintf("%s-%d", d.Name(), n)
	}
	return name
}

// server returns the server of that name, or nil.
func (s *settings) server(name string) *serverSetting {
	for n := range s.servers {
		if s.servers[n].name == name {
			return &s.servers[n]
		}
	}
	return nil
}

// each calls add with each value of a flag: for the server whose name is before a colon,
// or for all.
func (s *settings) each(name string, values texts, add func(server *serverSetting, text string) error) error {
	for _, text := range values {
		servers := s.servers
		if before, rest, ok := strings.Cut(text, ":"); ok && s.server(before) != nil {
			servers, text = []serverSetting{*s.server(before)}, rest
		}
		for n := range servers {
			server := s.server(servers[n].name)
			if err := add(server, text); err != nil {
				return fmt.Errorf("-%s %q: %w", name, text, err)
			}
		}
	}
	return nil
}

// checkName checks the name of a project or a profile.
func checkName(name string) error {
	if name == "" || strings.ContainsAny(name, "/ :'\"") {
		return errors.New("is not a name, nor one after that of a server of -dialect and a colon")
	}
	return nil
}

// checkAddresses checks the flags of which a fleet has only one.
func (s *settings) checkAddresses() error {
	if s.tls == "none" {
		s.tls = ""
	} else if _, port, err := net.SplitHostPort(s.tls); err != nil {
		return fmt.Errorf("-tls %q is neither host:port nor none", s.tls)
	} else if port != "0" && len(s.servers) > 1 {
		return fmt.Errorf("-tls %s: %d servers cannot have one address; use port 0", s.tls, len(s.servers))
	}
	if s.socket != "" && len(s.servers) > 1 {
		return fmt.Errorf("-socket %s: %d servers cannot have one socket; leave it out, and each has one in its directory", s.socket, len(s.servers))
	}
	// Clients in other directories use them.
	for _, path := range []*string{&s.socket, &s.control} {
		if *path == "" || path == &s.control && isAddress(*path) {
			continue
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	return nil
}
