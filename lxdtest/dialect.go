package lxdtest

import (
	_ "embed"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Dialect is the daemon that a Server imitates, down to its headers, its API
// extensions, what it refuses and how it reports a failed wait.
type Dialect int

const (
	// LXD50 imitates LXD 5.0.2.
	LXD50 Dialect = iota
	// LXD69 imitates LXD 6.9: it refuses fingerprint prefixes shorter than 12
	// characters, imports from a URL and public images outside the default
	// project, and uses simplestreams servers only through image registries.
	LXD69
	// Incus60 imitates Incus 6.0.4.
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

// traits holds everything in which the dialects differ.
type traits struct {
	family     string
	version    string
	extensions []string

	uploadHeader string // the prefix of an upload's headers
	importHeader string // the prefix of the headers used by imports from a URL

	never time.Time // the encoding of "never expires"

	shortestPrefix  int  // the minimum length of a fingerprint prefix
	urlImport       bool // imports from a URL are supported
	publicAnywhere  bool // images may be public outside the default project
	bearer          bool // bearer tokens are accepted
	password        bool // a trust password is accepted
	refusesPassword bool // a request for trust that has a password gets a 501
	hidesProgress   bool // GET of an operation omits its progress

	waitFailsAsError   bool // a failed wait returns HTTP 200 with type error
	waitFlushesHeaders bool // the header is sent before waiting

	imageProject        bool // an image includes its project
	typedFilter         bool // filters compare booleans and numbers
	dropsProfiles       bool // the profiles header of an upload is ignored
	nullTokenCrash      bool // an upload with properties that uses a token without any crashes the daemon
	escapesTwice        bool // URLs of aliases in responses are escaped twice
	slowAliasPatch      bool // PATCH of an alias hangs for 20 seconds and fails
	badProfile          int  // the status for a profile that does not exist in an update
	pushesVMAsContainer bool // a push sends a virtual machine's disk under the form name of a container's root
	emptyResources      bool // missing resources of an operation are {}, not null
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

// projectExists returns the error for a project whose name already exists.
func (t *traits) projectExists(name string) error {
	if t.family == "incus" {
		return statusErrorf(http.StatusInternalServerError, "Failed creating project %q: Failed adding database record: "+
			"Failed to create \"projects\" entry: UNIQUE constraint failed: projects.name", name)
	}
	return statusErrorf(http.StatusConflict, "Failed creating project %q: Failed adding database record: "+
		"This \"projects\" entry already exists", name)
}

// traits returns the traits of the dialect; an unknown one is treated as LXD50.
func (d Dialect) traits() *traits {
	if d < 0 || int(d) >= len(dialects) {
		d = LXD50
	}
	return &dialects[d]
}
