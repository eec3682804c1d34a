package lxdtest

import (
	_ "embed"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Dialect is the daemon that a Server imitates, down to its headers, its API
// extensions, what it refuses and how it reports a failed wait.
type Dialect int

const (
	// LXD50 imitates LXD 5.0.2.
	LXD50 Dialect = iota
	// LXD40 imitates LXD 4.0.13: it has no join tokens, no push copies, and
	// filters compare values literally.
	LXD40
	// LXD69 imitates LXD 6.9: it refuses fingerprint prefixes shorter than 12
	// characters, imports from a URL, public images outside the default project
	// and trust passwords, and does not forget finished operations.
	LXD69
	// Incus60 imitates Incus 6.0.4.
	Incus60
	// Incus70 imitates Incus 7.0.2: it tells untrusted clients neither its
	// extensions nor its version, and refuses some names of aliases.
	Incus70
)

// String returns the daemon and its version, as in "LXD 5.0.2".
func (d Dialect) String() string {
	t := d.traits()
	if t.family == "incus" {
		return "Incus " + t.version
	}
	return "LXD " + t.version
}

// Name returns the short name of the dialect, which is that of its constant in lower
// case: "lxd50".
func (d Dialect) Name() string {
	t := d.traits()
	parts := strings.Split(t.version, ".")
	return t.family + parts[0] + parts[1]
}

// Dialects returns all dialects, the oldest of each family first.
func Dialects() []Dialect { return []Dialect{LXD40, LXD50, LXD69, Incus60, Incus70} }

// ParseDialect returns the dialect with a name, such as "lxd50", "LXD 5.0", "lxd-5.0.2" or
// "Incus60": case and punctuation do not matter. The error lists the names.
func ParseDialect(name string) (Dialect, error) {
	plain := func(s string) string {
		return strings.Map(func(r rune) rune {
			if strings.ContainsRune(" .-_", r) {
				return -1
			}
			return unicode.ToLower(r)
		}, s)
	}
	var names []string
	for _, d := range Dialects() {
		if given := plain(name); given == d.Name() || given == plain(d.String()) {
			return d, nil
		}
		names = append(names, fmt.Sprintf("%s (%s)", d.Name(), d))
	}
	return 0, fmt.Errorf("lxdtest: no dialect %q; the dialects are %s", name, strings.Join(names, ", "))
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
	hidesInfo       bool // GET /1.0 tells untrusted clients no extensions
	checksAliases   bool // names of aliases are validated
	strictYAML      bool // in metadata.yaml, duplicate fields and fractional dates are refused

	waitFailsAsError   bool // a failed wait returns HTTP 200 with type error
	waitFlushesHeaders bool // the header is sent before waiting

	imageProject        bool // an image includes its project
	typedFilter         bool // filters compare booleans and numbers
	literalFilter       bool // filters compare values literally, not as regular expressions
	imageLocations      bool // an image includes its locations
	imageTypeOfSource   bool // an update source includes the image's type and registry
	refusesAllOfProject bool // a request for the images of all projects must not have a project
	dropsProfiles       bool // the profiles of an upload or import are ignored
	nullTokenCrash      bool // an upload with properties that uses a token without any crashes the daemon
	escapesTwice        bool // URLs of aliases in responses are escaped twice
	slowAliasPatch      bool // PATCH of an alias hangs for 20 seconds and fails
	badProfile          int  // the status for a profile that does not exist in an update
	pushesVMAsContainer bool // a push sends a virtual machine's disk under the form name of a container's root
	plainAliasURLs      bool // URLs of aliases in responses are not escaped
	emptyResources      bool // missing resources of an operation are {}, not null
	namesImageLast      bool // the operation of an upload names the image only once it is stored
	emptyMetadata       bool // missing metadata of an operation is {}, not null
	storesOperations    bool // operations are stored: they are kept, and name their requestor and entity
	checksInstanceLater bool // publishing an instance that does not exist fails as an operation
	deletesLater        bool // deleting an image that does not exist fails as an operation
	hidesMissing        bool // GET of an image or alias that does not exist says as little as to an untrusted client
	aliasETagByName     bool // the ETag of an alias hashes its fields in another order

	texts *texts
}

// texts are the error messages in which the dialects differ.
type texts struct {
	refusals map[error]string // those without arguments
	quote    string           // the format of names
	etag     string           // formats of the others
	hash     string
	profile  string
	instance string
	refresh  string
	fields   string // of an alias without a name or target
	insert   string // of an image that another request stored at the same moment
}

var commonTexts = texts{
	quote:    "%q",
	etag:     "ETag doesn't match: %s vs %s",
	hash:     "fingerprints don't match, got %s expected %s",
	profile:  "Profile '%s' doesn't exist",
	instance: "Failed to fetch instance %q in project %q: %v",
	refresh:  "Failed to update image %q in project %q: %v",
	fields:   "name and target are required",
	insert:   uniqueFailed,
}

const uniqueFailed = "UNIQUE constraint failed: images.project_id, images.fingerprint"

var incus70Texts = func() *texts {
	t := commonTexts
	t.fields = "Alias name and target are required"
	t.insert = "Image record already exists"
	return &t
}()

// refusal returns the error in the dialect's words. One that wraps another has its
// own.
func (t *traits) refusal(err error) error {
	refused, ok := err.(*apiError) //nolint:errorlint // See above.
	if !ok {
		return err
	}
	if text, ok := t.texts.refusals[refused]; ok {
		return &apiError{refused.code, text}
	}
	return err
}

// noImageNamed returns the error for an image that the client cannot see.
func (t *traits) noImageNamed(name string) error {
	return statusErrorf(http.StatusNotFound, "Image "+t.texts.quote+" not found", name)
}

//go:embed extensions/lxd40.txt
var extensionsLXD40 string

//go:embed extensions/lxd50.txt
var extensionsLXD50 string

//go:embed extensions/lxd69.txt
var extensionsLXD69 string

//go:embed extensions/incus60.txt
var extensionsIncus60 string

//go:embed extensions/incus70.txt
var extensionsIncus70 string

var dialects = [...]traits{
	LXD50: {
		family: "lxd", version: "5.0.2", extensions: strings.Fields(extensionsLXD50),
		uploadHeader: "X-LXD-", importHeader: "LXD-",
		never:          time.Unix(0, 0).UTC(),
		shortestPrefix: 1, urlImport: true, publicAnywhere: true, password: true,
		dropsProfiles: true, nullTokenCrash: true, escapesTwice: true, slowAliasPatch: true, pushesVMAsContainer: true, badProfile: 400,
		texts: &commonTexts,
	},
	LXD40: {
		family: "lxd", version: "4.0.13", extensions: strings.Fields(extensionsLXD40),
		uploadHeader: "X-LXD-", importHeader: "LXD-",
		never:          time.Unix(0, 0).UTC(),
		shortestPrefix: 1, urlImport: true, publicAnywhere: true, password: true,
		dropsProfiles: true, plainAliasURLs: true, slowAliasPatch: true, badProfile: 400,
		literalFilter: true, deletesLater: true,
		texts: &texts{
			refusals: map[error]string{
				errNoImage: "Not Found", errNoAlias: "Not Found", errNoOperation: "Not Found", errNoSource: "Not Found", errNoInstance: "Not Found",
				errNoImages: "Check if project has images: fetch project: No such object",
			},
			quote: "'%s'", etag: commonTexts.etag, hash: commonTexts.hash, profile: commonTexts.profile, instance: commonTexts.instance, refresh: "%[3]v",
			fields: commonTexts.fields, insert: uniqueFailed,
		},
	},
	LXD69: {
		family: "lxd", version: "6.9", extensions: strings.Fields(extensionsLXD69),
		uploadHeader: "X-LXD-", importHeader: "LXD-",
		never:          time.Unix(0, 0).UTC(),
		shortestPrefix: 12, bearer: true, refusesPassword: true,
		waitFailsAsError: true, waitFlushesHeaders: true,
		imageProject: true, typedFilter: true, badProfile: 400, emptyResources: true,
		imageTypeOfSource: true, storesOperations: true, checksInstanceLater: true, hidesMissing: true, aliasETagByName: true,
		refusesAllOfProject: true,
		texts: &texts{
			refusals: map[error]string{
				errNotFound: "Not Found", errForbidden: "Forbidden", errNotImplemented: "Not Implemented",
				errNoImages: "Not Found",
			},
			quote: "%q",
			etag: "ETag does not match: %s vs %s. The configuration has been modified since this change began. " +
				"Please retrieve the updated configuration before proceeding.",
			hash:     "Fingerprints do not match, got %s expected %s",
			profile:  "Profile %q does not exist",
			instance: "Failed fetching instance %q in project %q: %v",
			refresh:  "Failed updating image %q in project %q: %v",
			fields:   commonTexts.fields,
			insert:   uniqueFailed,
		},
	},
	Incus60: {
		family: "incus", version: "6.0.4", extensions: strings.Fields(extensionsIncus60),
		uploadHeader: "X-Incus-", importHeader: "Incus-",
		shortestPrefix: 1, urlImport: true, publicAnywhere: true,
		waitFailsAsError: true, waitFlushesHeaders: true,
		imageProject: true, typedFilter: true, nullTokenCrash: true, pushesVMAsContainer: true, badProfile: 500, emptyResources: true,
		checksInstanceLater: true, texts: &commonTexts,
	},
	Incus70: {
		family: "incus", version: "7.0.2", extensions: strings.Fields(extensionsIncus70),
		uploadHeader: "X-Incus-", importHeader: "Incus-",
		shortestPrefix: 1, urlImport: true, publicAnywhere: true,
		imageProject: true, typedFilter: true, nullTokenCrash: true, pushesVMAsContainer: true, badProfile: 500, emptyResources: true,
		hidesInfo: true, checksAliases: true, strictYAML: true, imageLocations: true, emptyMetadata: true, namesImageLast: true,
		checksInstanceLater: true, texts: incus70Texts,
	},
}

// projectExists returns the error for a project whose name already exists.
func (t *traits) projectExists(name string) error {
	switch {
	case t.version == "7.0.2":
		return statusErrorf(http.StatusConflict, "Failed creating project %q: Failed adding database record: "+
			"This \"Project\" entry already exists", name)
	case t.family == "incus":
		return statusErrorf(http.StatusInternalServerError, "Failed creating project %q: Failed adding database record: "+
			"Failed to create \"projects\" entry: UNIQUE constraint failed: projects.name", name)
	}
	return statusErrorf(http.StatusConflict, "Failed creating project %q: Failed adding database record: "+
		"This \"projects\" entry already exists", name)
}

// contentMissing returns the error for the export of an image whose file does not exist.
func (t *traits) contentMissing(fingerprint, file string) error {
	if t.version == "7.0.2" {
		return statusErrorf(http.StatusNotFound, "Image %q file is missing on this cluster member", fingerprint)
	}
	status := http.StatusInternalServerError
	if t.family == "incus" {
		status = http.StatusNotFound
	}
	return statusErrorf(status, "open %s: no such file or directory", file)
}

// traits returns the traits of the dialect; an unknown one is treated as LXD50.
func (d Dialect) traits() *traits {
	if d < 0 || int(d) >= len(dialects) {
		d = LXD50
	}
	return &dialects[d]
}
