// Package daemon is the table of the differences between the families of daemons.
// A new family is a row here, and a dialect in lxdtest. Differences between the
// versions of a family are found by their API extensions.
package daemon

import "slices"

// Family is a row of the table.
type Family struct {
	// Name is the server's name in GET /1.0, and the family's name of its own
	// protocol for image sources. It is empty if the family is unknown; for
	// servers the protocol "" means their own.
	Name string
	// Prefix is the part of the names of the family's headers that differs:
	// X-LXD-public, LXD-Image-Hash. It is empty if the family is unknown.
	Prefix string
	// Mark is an API extension that all versions of the family have, and no other
	// family has; empty for none.
	Mark string
	// TokenExtension is the API extension without which the family accepts a join
	// token only as a trust password; empty if it never does.
	TokenExtension string
	// NoTrustPasswords says that no version of the family has trust passwords.
	NoTrustPasswords bool
}

// The rows. They were verified with LXD 4.0 to 6.9 and Incus 0.1 to 7.3.
var (
	LXD = &Family{Name: "lxd", Prefix: "LXD", TokenExtension: "explicit_trust_token"}
	// dev_incus_events is an extension of every Incus since 0.1 and of no LXD.
	Incus = &Family{Name: "incus", Prefix: "Incus", Mark: "dev_incus_events", NoTrustPasswords: true}
	// Unknown is the family of a server that hides what it is: Incus 7.0.2 and 7.3
	// send a client that they do not trust neither their name nor their extensions.
	// All versions of LXD with trust passwords send their extensions.
	Unknown = &Family{NoTrustPasswords: true}
)

// Known returns the families that have a name, in order of preference.
func Known() []*Family { return []*Family{LXD, Incus} }

// Named returns the family of that name; Unknown for any other name.
func Named(name string) *Family {
	for _, f := range Known() {
		if f.Name == name {
			return f
		}
	}
	return Unknown
}

// Of returns the family of a server that sends this name and these API
// extensions; either may be empty.
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

// Prefixes returns the prefixes of this family's headers. For Unknown it returns
// those of all families, as each ignores the headers of the others.
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

// Preferred returns all known families, this one first.
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

// TokenIsPassword reports whether a server with these extensions accepts a join
// token only as a trust password: LXD 5.0.2 and older do. LXD 6.9 refuses a
// request that has both.
func (f *Family) TokenIsPassword(extensions []string) bool {
	return f.TokenExtension != "" && !slices.Contains(extensions, f.TokenExtension)
}
