// Package cliconfig reads the configuration of the lxc and incus command lines.
// It writes nothing.
package cliconfig

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile is the maximum size of a file, in bytes.
const maxFile = 4 << 20

// Config is the configuration of a command line.
type Config struct {
	Place
	Default string // the remote that commands use if they name none
	Remotes map[string]Remote
}

// Remote is a remote. Fields that are not in the file are empty.
type Remote struct {
	Addr     string `yaml:"addr"` // Incus 7: a list, separated by commas
	AuthType string `yaml:"auth_type"`
	Project  string `yaml:"project"`
	Protocol string `yaml:"protocol"`
	Public   bool   `yaml:"public"`

	LastWorkingAddress string `yaml:"last_working_address"` // one of Addr (Incus 7)
	CredentialsHelper  string `yaml:"credentials_helper"`   // a command; of an OCI registry (Incus 7)

	Global bool `yaml:"-"` // from the system-wide configuration
	Static bool `yaml:"-"` // built in; it cannot be removed
}

// Addresses returns the addresses in the order in which the command tries them: the
// last working one, those after it, and those before it.
func (r *Remote) Addresses() []string {
	var all []string
	first := 0
	for addr := range strings.SplitSeq(r.Addr, ",") {
		if addr = strings.TrimSpace(addr); addr == "" {
			continue
		}
		if addr == strings.TrimSpace(r.LastWorkingAddress) {
			first = len(all)
		}
		all = append(all, addr)
	}
	return append(all[first:len(all):len(all)], all[:first]...)
}

// file is the relevant content of a config.yml.
type file struct {
	Default string            `yaml:"default-remote"`
	Remotes map[string]Remote `yaml:"remotes"`
}

// SyntaxError says that a file is malformed or too large.
type SyntaxError struct {
	File string
	Line int // 0 if unknown
	Err  error
}

// Error returns the file, the line and the cause.
func (e *SyntaxError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%s line %d: %v", e.File, e.Line, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.File, e.Err)
}

// Unwrap returns the cause.
func (e *SyntaxError) Unwrap() error { return e.Err }

// Load reads the configuration at a place. If there is no config.yml, it returns
// the command line's initial configuration.
func Load(place Place) (*Config, error) {
	c := &Config{Place: place, Remotes: map[string]Remote{}}
	own, err := readFile(filepath.Join(place.Dir, "config.yml"))
	switch {
	case err == nil:
		maps.Copy(c.Remotes, own.Remotes)
		c.Default = own.Default
	case errors.Is(err, fs.ErrNotExist):
		c.Remotes["images"] = defaultImages(place.Family)
	default:
		return nil, err
	}
	system, err := readFile(filepath.Join(place.Global, "config.yml"))
	switch {
	case err == nil:
		for name, r := range system.Remotes {
			if _, ok := c.Remotes[name]; !ok {
				r.Global = true
				c.Remotes[name] = r
			}
		}
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission):
		return nil, err
	}
	for name, r := range static(place.Family) {
		configured, ok := c.Remotes[name]
		if ok && name != "local" {
			continue // the user's own: older versions do not have this static one
		}
		r.Static, r.Project = true, configured.Project
		c.Remotes[name] = r
	}
	for name, r := range c.Remotes {
		if r.Protocol == "" {
			r.Protocol = place.Family
			c.Remotes[name] = r
		}
	}
	if env := os.Getenv(remoteVariable(place.Family)); env != "" {
		c.Default = env
	}
	if c.Default == "" {
		c.Default = "local"
	}
	return c, nil
}

func readFile(path string) (*file, error) {
	data, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	var f file
	if err := yaml.Unmarshal(data, &f); err != nil {
		return nil, syntaxError(path, err)
	}
	return &f, nil
}

// ReadFile is os.ReadFile, but returns a SyntaxError for a file of more than 4 MiB.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxFile {
		return nil, &SyntaxError{File: path, Err: fmt.Errorf("is larger than %d bytes", maxFile)}
	}
	return data, nil
}

var (
	yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)
	// The errors of yaml's parser, unlike those of its scanner and decoder,
	// count lines from 0 (go.yaml.in/yaml/v3 3.0.6).
	yamlParser = regexp.MustCompile(`did not find expected (<document start>|node content|'-' indicator|key|',' or)`)
)

// syntaxError extracts the line from the parser's text; it is in no field of the
// error.
func syntaxError(path string, err error) error {
	text := err.Error()
	var mismatch *yaml.TypeError
	if errors.As(err, &mismatch) && len(mismatch.Errors) > 0 {
		text = mismatch.Errors[0]
	}
	match := yamlLine.FindStringSubmatch(text)
	if match == nil {
		return &SyntaxError{File: path, Err: err}
	}
	line, convErr := strconv.Atoi(match[1])
	if convErr != nil {
		return &SyntaxError{File: path, Err: err}
	}
	text = text[len(match[0]):]
	if yamlParser.MatchString(text) {
		line++
	}
	return &SyntaxError{File: path, Line: line, Err: errors.New(text)}
}
