package simplestreams

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/golxd/lxd/internal/near"
)

// ResolveOptions restrict the images that a reference can resolve to.
type ResolveOptions struct {
	// Architecture is that of the host that the image is for, in any spelling ("amd64", "x86_64"). If there is no image
	// for it, one for a 32-bit architecture that the host also runs is returned. The default is the architecture of this
	// program and, as in the daemons, any other if there is no image for it.
	Architecture string

	// Type is the type of the image. The default is a container, or a virtual machine if there is no container.
	Type ImageType

	// Version is the version of the image, such as "20240101_07:42". The default is the newest.
	Version string
}

// Resolve returns the image of a reference, as LXD and Incus resolve it: an alias such as "debian/12", an alias and
// architecture such as "debian/12/arm64" (the architecture overrides the options), or a fingerprint or a prefix of one.
// An alias takes precedence over a fingerprint.
//
// The error is a *ResolveError that matches ErrInvalid, ErrNotFound, ErrAmbiguous (a prefix of several fingerprints) or
// ErrBadData (the image's description in the index is invalid), or else says why the index could not be read.
func (c *Client) Resolve(ctx context.Context, ref string, options *ResolveOptions) (*Image, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	var set ResolveOptions
	if options != nil {
		set = *options
	}
	if ref == "" {
		return nil, &ResolveError{Ref: ref, Err: invalid("ref", "is empty")}
	}
	if set.Type != "" && set.Type != Container && set.Type != VirtualMachine {
		return nil, &ResolveError{Ref: ref, Err: invalid("ResolveOptions.Type", "is %.80q, not one of \"\", %q, %q", set.Type, Container, VirtualMachine)}
	}
	hosts, strict, err := hostArchitectures(set.Architecture)
	if err != nil {
		return nil, &ResolveError{Ref: ref, Err: err}
	}

	index, err := c.load(ctx, false)
	if err != nil {
		return nil, err
	}
	found, err := index.resolve(strings.TrimPrefix(ref, c.aliasPrefix()), &set, hosts, strict)
	if err != nil {
		return nil, err
	}
	if found.broken != nil {
		return nil, &ResolveError{Ref: ref, Err: fmt.Errorf("product %q, version %q: %w", found.product.name, found.serial, found.broken)}
	}

	return found.image(), nil
}

// hostArchitectures returns the architectures that a host runs, best first, and whether no other is allowed.
func hostArchitectures(name string) (hosts []string, strict bool, err error) {
	native := localArchitecture()
	if name != "" {
		known, ok := ArchitectureName(name)
		if !ok {
			return nil, false, invalid("ResolveOptions.Architecture", "is %.80q, not one of %s", name, strings.Join(slices.Sorted(maps.Keys(architectures)), ", "))
		}
		native, strict = known, true
	}

	return append([]string{native}, personalities[native]...), strict, nil
}

func (c *catalog) resolve(ref string, o *ResolveOptions, hosts []string, strict bool) (*listEntry, error) {
	if found := c.byAlias(ref, o, hosts, strict); found != nil {
		return found, nil
	}
	// Daemons accept "alias/amd64" but not "alias/x86_64", which means the same.
	if alias, arch, ok := cutLast(ref, "/"); ok {
		if known, ok := ArchitectureName(arch); ok {
			if found := c.byAlias(alias, o, []string{known}, true); found != nil {
				return found, nil
			}
		}
	}

	matches := c.byFingerprint(ref, o, hosts, strict)
	switch {
	case len(matches) == 1:
		return matches[0], nil
	case len(matches) > 1:
		ambiguous := &ResolveError{Ref: ref, Err: fmt.Errorf("%w: %d fingerprints have this prefix", ErrAmbiguous, len(matches))}
		for _, e := range matches[:min(len(matches), 10)] {
			ambiguous.Matches = append(ambiguous.Matches, e.fingerprint.String())
		}

		return nil, ambiguous
	}

	return nil, c.notFound(ref, o)
}

// byAlias returns the image that an alias resolves to. Entries are in order of preference, so the first of several with
// the same rank is the right one.
func (c *catalog) byAlias(name string, o *ResolveOptions, hosts []string, strict bool) *listEntry {
	var best *listEntry
	bestRank := -1
	for i := range c.entries {
		e := &c.entries[i]
		if o.Version != "" && e.serial != o.Version || o.Type != "" && e.kind() != o.Type || !e.product.named(name) {
			continue
		}
		rank := slices.Index(hosts, e.product.architecture)
		if rank < 0 {
			rank = len(hosts)
			// A name that contains the architecture is allowed: it selects that one.
			if strict && slices.Contains(e.product.aliases, name) {
				continue
			}
		}
		if e.rootType.virtualMachine() {
			rank += len(hosts) + 1
		}
		if best == nil || rank < bestRank {
			best, bestRank = e, rank
		}
	}

	return best
}

// byFingerprint returns the images whose fingerprints begin with a prefix, each fingerprint once.
func (c *catalog) byFingerprint(prefix string, o *ResolveOptions, hosts []string, strict bool) []*listEntry {
	prefix = strings.ToLower(prefix)
	if len(prefix) > hex.EncodedLen(len(digest{})) || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil
	}

	var matches []*listEntry
	var text [2 * len(digest{})]byte
	for i := range c.entries {
		e := &c.entries[i]
		hex.Encode(text[:], e.fingerprint[:])
		switch {
		case e.fingerprint == digest{},
			string(text[:len(prefix)]) != prefix,
			o.Version != "" && e.serial != o.Version,
			o.Type != "" && e.kind() != o.Type,
			strict && !slices.Contains(hosts, e.product.architecture):
			continue
		}
		if !slices.ContainsFunc(matches, func(m *listEntry) bool { return m.fingerprint == e.fingerprint }) {
			matches = append(matches, e)
		}
	}

	return matches
}

// notFound returns the error for a reference that nothing matches, with the reason if it is known.
func (c *catalog) notFound(ref string, o *ResolveOptions) error {
	var have []string
	for i := range c.entries {
		e := &c.entries[i]
		if e.product.named(ref) {
			have = append(have, fmt.Sprintf("%s %s %s", e.kind(), e.product.architecture, e.serial))
		}
	}
	if len(have) > 0 {
		more := ""
		if len(have) > 5 {
			have, more = have[:5], " and more"
		}
		return &ResolveError{Ref: ref, Err: fmt.Errorf("%w with %s: the server has %s%s", ErrNotFound, o, strings.Join(have, ", "), more)}
	}
	for _, s := range c.omitted {
		if s.product.named(ref) {
			version := ""
			if s.serial != "" {
				version = fmt.Sprintf(", version %q", s.serial)
			}
			return &ResolveError{Ref: ref, Err: badDataf("product %q%s: %s", s.product.name, version, s.reason)}
		}
	}

	return &ResolveError{Ref: ref, Err: ErrNotFound, Near: c.near(ref)}
}

// String returns the options in words.
func (o *ResolveOptions) String() string {
	var parts []string
	for _, field := range [][2]string{{"type", string(o.Type)}, {"architecture", o.Architecture}, {"version", o.Version}} {
		if field[1] != "" {
			parts = append(parts, field[0]+" "+field[1])
		}
	}

	return cmp.Or(strings.Join(parts, ", "), "these options")
}

// near returns aliases that are similar to a name.
func (c *catalog) near(name string) []string {
	return near.Names(name, func(yield func(string) bool) {
		for i := range c.entries {
			for _, alias := range c.entries[i].product.aliases {
				if !yield(alias) {
					return
				}
			}
		}
	})
}

func cutLast(s, separator string) (before, after string, found bool) {
	at := strings.LastIndex(s, separator)
	if at < 0 {
		return s, "", false
	}

	return s[:at], s[at+len(separator):], true
}
