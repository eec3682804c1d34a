package simplestreams

import (
	"fmt"
	"maps"
	"net/url"
	"strings"
)

// rules are what the daemons of one family, up to or from a version, read in an index differently from the others. Tried
// with LXD 5.0.2, Incus 6.0.4 and 7.0.2; for LXD 6.9, from reports.
type rules struct {
	family Family

	// spellings are names of architectures beside those of the table.
	spellings map[string]string

	// sharedRequirements says that the requirements are "requirements" where a product has no "lxd_requirements".
	sharedRequirements bool

	// variant says that the description contains the variant, unless that is "default".
	variant bool

	// escaped says that a path in the index is escaped as in a URL.
	escaped bool
}

var (
	oldLXD   = &rules{family: LXD}
	newLXD   = &rules{family: LXD, sharedRequirements: true, spellings: map[string]string{"amd64v3": "x86_64"}}
	oldIncus = &rules{family: Incus, escaped: true}
	newIncus = &rules{family: Incus, escaped: true, variant: true, spellings: map[string]string{
		"x86_64_v1": "x86_64", "x86_64_v2": "x86_64", "x86_64_v3": "x86_64", "x86_64_v4": "x86_64",
	}}
)

// rules returns the rules of the daemons that the options are for, by family.
func (o *Options) rules() map[Family]*rules {
	lxd, incus := newLXD, newIncus
	if upTo(o.DaemonVersion, 5, 0) {
		lxd = oldLXD
	}
	if upTo(o.DaemonVersion, 6, 0) {
		incus = oldIncus
	}
	all := map[Family]*rules{LXD: lxd, Incus: incus}
	if o.Family != "" {
		maps.DeleteFunc(all, func(family Family, _ *rules) bool { return family != o.Family })
	}

	return all
}

// upTo reports whether a version is of the given release, such as 5.0, or older. One that is not known is not.
func upTo(version string, major, minor int) bool {
	var have [2]int
	if _, err := fmt.Sscanf(version, "%d.%d", &have[0], &have[1]); err != nil {
		return false
	}

	return have[0] < major || have[0] == major && have[1] <= minor
}

// path returns the path of a file below the server's address, as the daemons understand the one in the index.
func (r *rules) path(path string) (string, error) {
	if r.escaped {
		decoded, err := url.PathUnescape(path)
		if err != nil {
			return path, fmt.Errorf("path %q: %w", path, err)
		}
		path = decoded
	}
	path = strings.TrimLeft(path, "/")

	return path, checkPath(path)
}

// architecture returns the daemons' name of an architecture.
func (r *rules) architecture(spelling string) (string, bool) {
	if known, ok := r.spellings[spelling]; ok {
		return known, true
	}

	return ArchitectureName(spelling)
}
