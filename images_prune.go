package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	patterns "path"
	"slices"
	"strings"
	"time"
)

// PruneOptions are the rules of [Images.Prune]. An image is deleted if it meets all the
// conditions that are set, is not kept by Keep, and is not protected. At least one of
// Keep, OlderThan, UnusedFor, Unnamed and CachedOnly must be set.
type PruneOptions struct {
	// Type, Architecture and Properties select the images that are considered. The
	// default is all.
	Type         ImageType
	Architecture string            // in any spelling, such as "aarch64" or "arm64"
	Properties   map[string]string // must all exist with these values

	// Keep is how many images of each group remain, those that were uploaded last. The
	// images of a group have one type, one architecture, and the same values of the
	// properties GroupBy. With AliasPrefixes only images with such an alias are
	// considered, and each prefix has groups of its own. An image remains if it is kept
	// in one of its groups.
	Keep          int
	GroupBy       []string // names of properties
	AliasPrefixes []string // such as "build/"

	// OlderThan is met by images that were uploaded longer ago.
	OlderThan time.Duration
	// UnusedFor is met by images from which no instance was created for that long, and
	// that were uploaded before. Only the use by this server counts.
	UnusedFor time.Duration
	// Unnamed is met by images that have no alias.
	Unnamed bool
	// CachedOnly is met by images that the server has fetched for an instance by
	// itself.
	CachedOnly bool

	// Named deletes images that have an alias, whatever it is. By default an image remains
	// if it has an alias that does not begin with one of AliasPrefixes.
	Named bool
	// Protect are aliases, or patterns of them as in path.Match, such as "prod/*".
	// Images that have one remain.
	Protect []string
	// Used deletes images from which instances, in all projects that the client may
	// use, were created, too. By default they remain.
	Used bool

	// DryRun deletes nothing: the result is what would be done.
	DryRun bool
}

// Pruned is the result of Prune.
type Pruned struct {
	// Deleted are the images that were deleted, the oldest first; with DryRun those that
	// would be.
	Deleted []PrunedImage
	// Kept are the images that meet the conditions, but remain because they are among
	// the newest, protected or used, or because they changed before they were deleted.
	Kept []PrunedImage
}

// PrunedImage is an image, and why it was deleted or kept.
type PrunedImage struct {
	*Image
	// Reason has the conditions that are met, and the groups of Keep, such as `uploaded
	// more than 720h0m0s ago, not one of the newest 2 of "build/", container, x86_64`.
	Reason string
}

// String returns the image and the reason.
func (p PrunedImage) String() string {
	names := make([]string, len(p.Aliases))
	for n, alias := range p.Aliases {
		names[n] = alias.Name
	}
	name := ""
	if len(names) > 0 {
		name = fmt.Sprintf(" (%s)", strings.Join(names, ", "))
	}
	return fmt.Sprintf("image %.12s%s: %s", p.Fingerprint, name, p.Reason)
}

// Prune deletes images by rules, one after another, the oldest first. Ages are those by
// the server's clock (the header Date), so that a wrong clock of the client deletes
// nothing. Each image is read again before it is deleted, and remains if it was used or
// uploaded again since, or if its aliases, properties or Cached have changed; the daemons'
// deletion itself has no condition. If an image
// cannot be deleted, the others are, and the error joins those of all that remain.
//
// Deletion does not affect the instances that were created from an image.
func (m *Images) Prune(ctx context.Context, opts *PruneOptions) (*Pruned, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	job := &pruneJob{images: m, done: &Pruned{}}
	if opts != nil {
		job.PruneOptions = *opts
	}
	if err := job.check(); err != nil {
		return nil, err
	}
	return job.done, job.run(ctx)
}

// pruneJob is one call of Prune.
type pruneJob struct {
	PruneOptions

	images *Images
	now    time.Time // of the server
	done   *Pruned
}

func (p *pruneJob) check() error {
	if err := checkOneOf("PruneOptions.Type", p.Type, "", Container, VirtualMachine); err != nil {
		return err
	}
	var err error
	if p.Architecture, err = checkArchitecture("PruneOptions.Architecture", p.Architecture); err != nil {
		return err
	}
	switch {
	case p.Keep < 0:
		return invalid("PruneOptions.Keep", "is negative")
	case p.OlderThan < 0:
		return invalid("PruneOptions.OlderThan", "is negative")
	case p.UnusedFor < 0:
		return invalid("PruneOptions.UnusedFor", "is negative")
	case p.Keep == 0 && len(p.GroupBy) > 0:
		return invalid("PruneOptions.GroupBy", "is set without Keep")
	case slices.Contains(p.AliasPrefixes, ""):
		return invalid("PruneOptions.AliasPrefixes", "has an empty prefix; leave it out for all images")
	case len(p.AliasPrefixes) > 0 && p.Unnamed:
		return invalid("PruneOptions.Unnamed", "is set with AliasPrefixes, which only images with an alias have")
	case p.Named && p.Unnamed:
		return invalid("PruneOptions.Named", "is set with Unnamed")
	case p.Keep == 0 && p.OlderThan == 0 && p.UnusedFor == 0 && !p.Unnamed && !p.CachedOnly:
		return invalid("PruneOptions", "has no rule: set Keep, OlderThan, UnusedFor, Unnamed or CachedOnly")
	}
	for _, pattern := range p.Protect {
		if pattern == "" {
			return invalid("PruneOptions.Protect", "has an empty pattern, which no alias matches")
		}
		if _, err := patterns.Match(pattern, ""); err != nil {
			return invalid("PruneOptions.Protect", "%q is no pattern: %v", pattern, err)
		}
	}
	return nil
}

func (p *pruneJob) run(ctx context.Context) error {
	if p.OlderThan > 0 || p.UnusedFor > 0 {
		if err := p.readClock(ctx); err != nil {
			return err
		}
	}
	images, err := p.images.All(ctx, &ListOptions{Type: p.Type, Architecture: p.Architecture, Properties: p.Properties})
	if err != nil {
		return err
	}
	slices.SortFunc(images, func(a, b *Image) int {
		return cmp.Or(a.UploadedAt.Compare(b.UploadedAt), strings.Compare(a.Fingerprint, b.Fingerprint))
	})
	newest := p.newest(images)
	used, err := p.usedBy(ctx, images)
	if err != nil {
		return err
	}
	var errs []error
	for _, image := range images {
		reason, met := p.meets(image)
		if !met {
			continue
		}
		if kept := cmp.Or(newest[image], p.protects(image), used[image.Fingerprint]); kept != "" {
			p.keep(image, kept)
			continue
		}
		if err := p.prune(ctx, image, reason); err != nil {
			if ctx.Err() != nil {
				return errors.Join(append(errs, err)...)
			}
			errs = append(errs, fmt.Errorf("image %.12s: %w", image.Fingerprint, err))
		}
	}
	return errors.Join(errs...)
}

// readClock reads the server's clock.
func (p *pruneJob) readClock(ctx context.Context) error {
	res, err := p.images.client.t.call(ctx, &request{method: http.MethodGet, path: path()}, nil)
	if err != nil {
		return err
	}
	if p.now, err = http.ParseTime(res.date); err != nil {
		return fmt.Errorf("the time of the server: %w: the response has no header Date", ErrUnsupported)
	}
	return nil
}

// group is what the images have in common of which Keep remain.
type group struct {
	kind         ImageType
	architecture string
	prefix       string // of an alias
	values       string // of the properties
}

// newest returns why the last images of each group remain. images are sorted by age.
func (p *pruneJob) newest(images []*Image) map[*Image]string {
	kept := map[*Image]string{}
	if p.Keep == 0 {
		return kept
	}
	counts := map[group]int{}
	for _, image := range slices.Backward(images) {
		for _, g := range p.groups(image) {
			if counts[g]++; counts[g] <= p.Keep {
				kept[image] = fmt.Sprintf("one of the newest %d of %s", p.Keep, g)
			}
		}
	}
	return kept
}

// groups returns the groups of an image: one for each prefix of an alias, or one.
func (p *pruneJob) groups(image *Image) []group {
	g := group{kind: image.Type, architecture: image.Architecture}
	values := make([]string, len(p.GroupBy))
	for n, name := range p.GroupBy {
		values[n] = fmt.Sprintf("%s=%q", name, image.Properties[name])
	}
	g.values = strings.Join(values, " ")
	if len(p.AliasPrefixes) == 0 {
		return []group{g}
	}
	var all []group
	for _, prefix := range p.AliasPrefixes {
		if slices.ContainsFunc(image.Aliases, func(a Alias) bool { return strings.HasPrefix(a.Name, prefix) }) {
			g.prefix = prefix
			all = append(all, g)
		}
	}
	return all
}

// String returns the group in words.
func (g group) String() string {
	s := fmt.Sprintf("%s, %s", g.kind, g.architecture)
	if g.prefix != "" {
		s = fmt.Sprintf("%q, %s", g.prefix, s)
	}
	if g.values != "" {
		s += ", " + g.values
	}
	return s
}

// meets reports whether an image meets all conditions, and which.
func (p *pruneJob) meets(image *Image) (reason string, met bool) {
	var reasons []string
	groups := p.groups(image)
	condition := func(set, met bool, format string, args ...any) bool {
		if set && met {
			reasons = append(reasons, fmt.Sprintf(format, args...))
		}
		return !set || met
	}
	used, never := image.LastUsedAt, ""
	if used.IsZero() {
		never = ", and never used"
	}
	if used.Before(image.UploadedAt) { // a refreshed image has the use of its predecessor (LXD 5.0.2, Incus 6.0.4 and 7.0.2)
		used = image.UploadedAt
	}
	met = condition(p.Unnamed, len(image.Aliases) == 0, "without an alias") &&
		condition(p.CachedOnly, image.Cached, "cached") &&
		condition(p.OlderThan > 0, p.now.Sub(image.UploadedAt) > p.OlderThan, "uploaded more than %s ago", p.OlderThan) &&
		condition(p.UnusedFor > 0, p.now.Sub(used) > p.UnusedFor, "not used for %s%s", p.UnusedFor, never) &&
		len(groups) > 0
	if p.Keep > 0 {
		for _, g := range groups {
			reasons = append(reasons, fmt.Sprintf("not one of the newest %d of %s", p.Keep, g))
		}
	}
	return strings.Join(reasons, ", "), met
}

// protects returns why an image remains; "" if it does not.
func (p *pruneJob) protects(image *Image) string {
	for _, alias := range image.Aliases {
		if !p.Named && !slices.ContainsFunc(p.AliasPrefixes, func(prefix string) bool { return strings.HasPrefix(alias.Name, prefix) }) {
			return fmt.Sprintf("it has the alias %q", alias.Name)
		}
		for _, pattern := range p.Protect {
			if matches, _ := patterns.Match(pattern, alias.Name); matches || pattern == alias.Name {
				return fmt.Sprintf("its alias %q is protected", alias.Name)
			}
		}
	}
	return ""
}

func (p *pruneJob) keep(image *Image, reason string) {
	p.done.Kept = append(p.done.Kept, PrunedImage{image, reason})
}

// usedBy returns, by fingerprint, why images remain that instances use.
func (p *pruneJob) usedBy(ctx context.Context, images []*Image) (map[string]string, error) {
	if p.Used || len(images) == 0 {
		return nil, nil
	}
	listed := map[string]bool{}
	for _, image := range images {
		listed[image.Fingerprint] = true
	}
	instances, err := p.images.client.instances(ctx, func(fingerprint string) bool { return listed[fingerprint] })
	if err != nil {
		return nil, err
	}
	reasons := map[string]string{}
	for fingerprint, users := range instances {
		reasons[fingerprint] = fmt.Sprintf("instance %q of project %q was created from it", users[0].Name, users[0].Project)
	}
	return reasons, nil
}

// prune deletes an image, unless it has changed since it was listed.
func (p *pruneJob) prune(ctx context.Context, image *Image, reason string) error {
	if !p.DryRun {
		now, err := p.images.Get(ctx, image.Fingerprint)
		if err == nil {
			if p.hasChanged(image, now) {
				p.keep(now, "it was used, uploaded again or changed since")
				return nil
			}
			err = now.Delete(ctx, &DeleteOptions{Wait: true})
		}
		switch {
		case isMissing(err):
			return nil // somebody else has deleted it
		case err != nil:
			return err
		}
	}
	p.done.Deleted = append(p.done.Deleted, PrunedImage{image, reason})
	return nil
}

// hasChanged reports whether an image is not any more what was decided about.
func (p *pruneJob) hasChanged(image, now *Image) bool {
	return !now.LastUsedAt.Equal(image.LastUsedAt) || !now.UploadedAt.Equal(image.UploadedAt) || now.Cached != image.Cached ||
		!maps.Equal(now.Properties, image.Properties) ||
		!slices.EqualFunc(now.Aliases, image.Aliases, func(a, b Alias) bool { return a.Name == b.Name })
}
