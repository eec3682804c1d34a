// Package daemon is the one table of what differs between the families of
// daemons. A new family is a row here, and a dialect in lxdtest. What differs
// between the versions of a family is told by their API extensions.
package daemon

import "slices"

// Family is a row of the table.
type Family struct {
	// Name is what GET /1.0 calls the server, and what the family calls its own
	// protocol as a source of images. It is empty where a server does not tell;
	// servers take "" as the protocol for their own.
	Name string
	// Prefix is what the names of the family's headers hold: X-LXD-public,
	// LXD-Image-Hash. Empty where the family is unknown.
	Prefix string
	// Mark is an API extension that all versions of the family have, and no other
	// family has; empty for none.
	Mark string
	// TokenExtension is the API extension without which the family takes a join
	// token as a trust password; empty where it never does.
	TokenExtension string
	// NoTrustPasswords says that the family has none, in no version.
	NoTrustPasswords bool
}

// The rows. LXD and Incus were tried from 4.0 to 6.9 and from 0.1 to 7.3.
var (
	LXD = &Family{Name: "lxd", Prefix: "LXD", TokenExtension: "explicit_trust_token"}
	// dev_incus_events is an extension of every Incus since 0.1 and of no LXD.
	Incus = &Family{Name: "incus", Prefix: "Incus", Mark: "dev_incus_events", NoTrustPasswords: true}
	// Unknown is the family of a server that does not tell this client what it
	// is: Incus 7.0.2 and 7.3 tell a client that they do not trust neither their
	// name nor their extensions. All LXD that have trust passwords tell theirs.
	Unknown = &Family{NoTrustPasswords: true}
)

// Known are the families that have a name, in the order in which they are
// preferred.
func Known() []*Family { return []*Family{LXD, Incus} }

// Named returns the family of that name; Unknown for another one.
func Named(name string) *Family {
	for _, f := range Known() {
		if f.Name == name {
			return f
		}
	}
	return Unknown
}

// Of returns the family of a server that calls itself name, "" for nothing, and
// tells these API extensions, nil for none.
func Of(name string, extensions []string) *Family {
	if f := Named(name); f != Unknown {
		return f
	}
	for _, f := range Known() {
		if f.Mark != "" && slices.Contains(extensions, f.Mark) {
			return f
		}
	}
	if len(extensions) > 0 {
		return LXD
	}
	return Unknown
}

// Prefixes are the prefixes of this family's headers: all that there are where
// it is unknown, as each family ignores the others'.
func (f *Family) Prefixes() []string {
	if f != Unknown {
		return []string{f.Prefix}
	}
	var all []string
	for _, known := range Known() {
		all = append(all, known.Prefix)
	}
	return all
}

// Preferred are all known families, this one first.
func (f *Family) Preferred() []*Family {
	families := Known()
	slices.SortStableFunc(families, func(a, b *Family) int {
		switch f {
		case a:
			return -1
		case b:
			return 1
		}
		return 0
	})
	return families
}

// TokenIsPassword says whether a server with these extensions takes a join token
// as a trust password: LXD 5.0.2 and older do. LXD 6.9 refuses a request that
// has both.
func (f *Family) TokenIsPassword(extensions []string) bool {
	return f.TokenExtension != "" && !slices.Contains(extensions, f.TokenExtension)
}
