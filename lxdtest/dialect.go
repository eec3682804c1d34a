package lxdtest

import (
	_ "embed"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Dialect is the daemon that a Server speaks like, down to its headers, its
// API extensions, what it refuses and how it reports a failed wait.
type Dialect int

const (
	// LXD50 speaks like LXD 5.0.2.
	LXD50 Dialect = iota
	// LXD69 speaks like LXD 6.9: it refuses prefixes of fingerprints under 12
	// characters, imports from a URL and public images outside the default
	// project, and takes simplestreams servers only as image registries.
	LXD69
	// Incus60 speaks like Incus 6.0.4.
	Incus60
)

// String returns the daemon and its version, as in "LXD 5.0.2".
func (d Dialect) String() string {
	t := d.traits()
	if t.family == "incus" {
		return "Incus " + t.version
	}
	return "LXD " + t.version
}

// Family returns the environment.server of the daemon: "lxd" or "incus".
func (d Dialect) Family() string { return d.traits().family }

// Version returns the version of the daemon, as in "5.0.2".
func (d Dialect) Version() string { return d.traits().version }

// Extensions returns the API extensions of the daemon.
func (d Dialect) Extensions() []string { return slices.Clone(d.traits().extensions) }

// traits is all in which the dialects differ.
type traits struct {
	family     string
	version    string
	extensions []string

	uploadHeader string // the prefix of the headers of an upload
	importHeader string // the prefix of the headers of an import from a URL

	never time.Time // how "never expires" is written

	shortestPrefix  int  // the shortest prefix that names an image
	urlImport       bool // imports from a URL are done
	publicAnywhere  bool // images may be public outside the default project
	bearer          bool // bearer tokens are taken
	password        bool // a trust password is taken
	refusesPassword bool // a request to be trusted that has a password is not implemented
	hidesProgress   bool // GET of an operation leaves out its progress

	waitFailsAsError   bool // a failed wait is HTTP 200 with type error
	waitFlushesHeaders bool // and its header is sent before the waiting

	imageProject        bool // an image tells its project
	typedFilter         bool // filters compare booleans and numbers
	dropsProfiles       bool // the profiles header of an upload is ignored
	nullTokenCrash      bool // an upload for a token without properties ends the daemon
	escapesTwice        bool // URLs of aliases in answers are escaped twice
	slowAliasPatch      bool // PATCH of an alias hangs for 20 seconds and fails
	badProfile          int  // the status for a profile that does not exist in an update
	pushesVMAsContainer bool // a push names the disk of a virtual machine like the root of a container
	emptyResources      bool // an operation without resources has {} and not null
}

//go:embed extensions/lxd50.txt
var extensionsLXD50 string

//go:embed extensions/lxd69.txt
var extensionsLXD69 string

//go:embed extensions/incus60.txt
var extensionsIncus60 string

var dialects = [...]traits{
	LXD50: {
		family: "lxd", version: "5.0.2", extensions: strings.Fields(extensionsLXD50),
		uploadHeader: "X-LXD-", importHeader: "LXD-",
		never:          time.Unix(0, 0).UTC(),
		shortestPrefix: 1, urlImport: true, publicAnywhere: true, password: true,
		dropsProfiles: true, nullTokenCrash: true, escapesTwice: true, slowAliasPatch: true, pushesVMAsContainer: true, badProfile: 400,
	},
	LXD69: {
		family: "lxd", version: "6.9", extensions: strings.Fields(extensionsLXD69),
		uploadHeader: "X-LXD-", importHeader: "LXD-",
		shortestPrefix: 12, hidesProgress: true, bearer: true, refusesPassword: true,
		waitFailsAsError: true, waitFlushesHeaders: true,
		imageProject: true, typedFilter: true, badProfile: 400, emptyResources: true,
	},
	Incus60: {
		family: "incus", version: "6.0.4", extensions: strings.Fields(extensionsIncus60),
		uploadHeader: "X-Incus-", importHeader: "Incus-",
		shortestPrefix: 1, urlImport: true, publicAnywhere: true,
		waitFailsAsError: true, waitFlushesHeaders: true,
		imageProject: true, typedFilter: true, nullTokenCrash: true, pushesVMAsContainer: true, badProfile: 500, emptyResources: true,
	},
}

// projectExists is the refusal of a project whose name is taken.
func (t *traits) projectExists(name string) error {
	if t.family == "incus" {
		return statusErrorf(http.StatusInternalServerError, "Failed creating project %q: Failed adding database record: "+
			"Failed to create \"projects\" entry: UNIQUE constraint failed: projects.name", name)
	}
	return statusErrorf(http.StatusConflict, "Failed creating project %q: Failed adding database record: "+
		"This \"projects\" entry already exists", name)
}

// traits returns the differences of the dialect; an unknown one is LXD50.
func (d Dialect) traits() *traits {
	if d < 0 || int(d) >= len(dialects) {
		d = LXD50
	}
	return &dialects[d]
}
