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

	"go.yaml.in/yaml/v3"
)

// maxFile bounds each file that is read.
const maxFile = 4 << 20

// Config is what the command line knows.
type Config struct {
	Place
	Default string // the remote of commands that name none
	Remotes map[string]Remote
}

// Remote is one server. What the file leaves out is empty.
type Remote struct {
	Addr     string `yaml:"addr"`
	AuthType string `yaml:"auth_type"`
	Project  string `yaml:"project"`
	Protocol string `yaml:"protocol"`
	Public   bool   `yaml:"public"`

	Global bool `yaml:"-"` // it is of the system-wide configuration
	Static bool `yaml:"-"` // it is built in and cannot be removed
}

// file is a config.yml. What else is in it is of no interest here.
type file struct {
	Default string            `yaml:"default-remote"`
	Remotes map[string]Remote `yaml:"remotes"`
}

// SyntaxError says that a file is not what it should be.
type SyntaxError struct {
	File string
	Line int // 0 where it is not known
	Err  error
}

// Error names the file and the line.
func (e *SyntaxError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%s line %d: %v", e.File, e.Line, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.File, e.Err)
}

// Unwrap gives the cause.
func (e *SyntaxError) Unwrap() error { return e.Err }

// Load reads the configuration of a place. Without a config.yml it is what the
// command line starts with.
func Load(place Place) (*Config, error) {
	c := &Config{Place: place, Remotes: map[string]Remote{}}
	own, err := readFile(filepath.Join(place.Dir, "config.yml"))
	switch {
	case err == nil:
		maps.Copy(c.Remotes, own.Remotes)
		c.Default = own.Default
	case errors.Is(err, fs.ErrNotExist):
		c.Remotes["images"] = firstImages(place.Family)
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
		written, ok := c.Remotes[name]
		if ok && name != "local" {
			continue // the user's own, on a version without this one
		}
		r.Static, r.Project = true, written.Project
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

// ReadFile is os.ReadFile for files of a reasonable size.
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

// syntaxError takes the line out of the parser's text, the only place where it
// tells it.
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
