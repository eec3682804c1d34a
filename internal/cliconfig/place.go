package cliconfig

import (
	"fmt"
	"os"
	"path/filepath"
)

// The families of command lines.
const (
	LXD   = "lxd"
	Incus = "incus"
)

// Place is where a command line's configuration is.
type Place struct {
	Family string
	Dir    string // of the user
	Global string // of the whole system
	// Found reports whether there is a configuration, or a variable that names
	// its directory.
	Found bool
}

// Find returns the places of the family, or of both if family is "": first those
// that are found, LXD before Incus. The directory is that of the environment
// variable, else the first that contains a config.yml, else the first.
func Find(family string) ([]Place, error) {
	families := []string{LXD, Incus}
	if family != "" {
		families = []string{family}
	}
	places := make([]Place, len(families))
	for n, f := range families {
		var err error
		if places[n], err = find(f); err != nil {
			return nil, err
		}
	}
	if len(places) == 2 && places[1].Found && !places[0].Found {
		places[0], places[1] = places[1], places[0]
	}
	return places, nil
}

// At returns the place with that directory.
func At(family, dir string) Place {
	return Place{Family: family, Dir: dir, Global: global(family), Found: true}
}

func find(family string) (Place, error) {
	variable := "LXD_CONF"
	if family == Incus {
		variable = "INCUS_CONF"
	}
	if dir := os.Getenv(variable); dir != "" {
		return At(family, dir), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return Place{}, fmt.Errorf("find the configuration of the %s command: %w", Command(family), err)
	}
	classic := filepath.Join(home, ".config", Command(family))
	dirs := []string{classic, filepath.Join(home, "snap", "lxd", "common", "config")}
	if family == Incus {
		dirs = []string{classic}
		if config, err := os.UserConfigDir(); err == nil && filepath.Join(config, Command(family)) != classic {
			dirs = []string{filepath.Join(config, Command(family)), classic}
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "config.yml")); err == nil {
			return At(family, dir), nil
		}
	}
	return Place{Family: family, Dir: dirs[0], Global: global(family)}, nil
}

// Command returns the name of the family's program.
func Command(family string) string {
	if family == Incus {
		return "incus"
	}
	return "lxc"
}

func global(family string) string {
	variable, dir := "LXD_GLOBAL_CONF", "/etc/lxd"
	if family == Incus {
		variable, dir = "INCUS_GLOBAL_CONF", "/etc/incus"
	}
	if env := os.Getenv(variable); env != "" {
		return env
	}
	return dir
}

// remoteVariable returns the environment variable of the default remote (LXD
// 5.0.2, Incus 6.0.4).
func remoteVariable(family string) string {
	if family == Incus {
		return "INCUS_REMOTE"
	}
	return "LXC_REMOTE"
}

// Project returns the project that the environment selects. The incus command
// reads INCUS_PROJECT (Incus 6.0.4); lxc has no such variable (LXD 5.0.2), and
// LXD_PROJECT is this package's own.
func Project(family string) string {
	if family == Incus {
		return os.Getenv("INCUS_PROJECT")
	}
	return os.Getenv("LXD_PROJECT")
}
