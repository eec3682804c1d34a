package simplestreams

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// Upstream is an image server to mirror, and what to mirror of it.
type Upstream struct {
	// Client reads the server. With Options.Family, only what this family's daemons need is mirrored. Its Cache and TTL are
	// not used.
	Client *Client

	// Select are the images to mirror: those that any of the selections has. The default is everything: the newest version
	// of each product.
	Select []Selection
}

// Selection selects images of an upstream. An image must match all the fields that are not empty. The patterns are those of
// [path.Match]: "*" matches anything but "/".
type Selection struct {
	// Aliases are patterns for the product's aliases, such as "debian/12" or "ubuntu/*", without an architecture.
	Aliases []string

	// Products are patterns for the product's name, such as "debian:12:amd64:*".
	Products []string

	// Architectures are names of architectures in any spelling, such as "amd64" or "x86_64".
	Architectures []string

	// Types are the types of images; the default is both.
	Types []ImageType

	// Versions is the number of versions of each product, the newest ones, that have an image of these types. The default
	// is 1.
	Versions int
}

// MirrorOptions configure [Tree.Mirror].
type MirrorOptions struct {
	// Parallel is the number of files that are downloaded at once. The default is 4.
	Parallel int

	// AllFormats mirrors each image in all the formats that the upstream has. The default is one for each type: of the
	// images of a version that have the same aliases, daemons use the first of squashfs, unified and root.tar.xz as the
	// container, and the first of disk-kvm.img, uefi1.img and disk1.img as the virtual machine.
	AllFormats bool

	// DryRun changes nothing. The report says what would be done, if all files can be downloaded.
	DryRun bool

	// Scratch is a directory for partial files, from which another call, or another process, resumes. It is created if it
	// does not exist. A [DirStore] has one of its own, and does not need this. The default for other stores is a temporary
	// directory that is removed before Mirror returns, with which nothing is resumed later.
	Scratch string

	// Progress is called after each block of a file, by one goroutine at a time. It must not block. It may be nil.
	Progress func(MirrorProgress)
}

const defaultParallel = 4

// MirrorProgress is the state of a [Tree.Mirror]. Done and Total may begin anew, once, if an upstream has changed
// meanwhile.
type MirrorProgress struct {
	Product, Version string // of the file that has advanced
	File             string // its path on the upstream
	Files            int    // files that are complete
	TotalFiles       int    // files that are missing in the tree
	Done, Total      int64  // bytes of these files; those of files whose size the upstream does not say count once they arrive
}

// MirrorReport says what a [Tree.Mirror] has done.
type MirrorReport struct {
	// Added are the versions that the tree did not list, or listed with other content.
	Added []MirrorChange

	// Removed are the versions that the tree does not list any longer. Their files are deleted when the grace period is over.
	Removed []MirrorChange

	// Kept is the number of mirrored versions that the tree listed before, and still does.
	Kept int

	// Failed are the failures; Mirror returns them joined.
	Failed []*MirrorError

	// Files and Bytes are the number and the size of the files that were downloaded, or that a dry run would download. A
	// file that a previous call has downloaded in part counts as a whole.
	Files int
	Bytes int64

	// Unmodified says that nothing has changed since the last Mirror with the same arguments, which is all that the upstreams
	// were asked.
	Unmodified bool
}

// MirrorChange is a version of a product that was added or removed.
type MirrorChange struct {
	Upstream string // its URL, without user name and password
	Product  string
	Version  string
	Files    int
	Bytes    int64 // the sum of the files' sizes in the index
}

// MirrorError is a failure of a [Tree.Mirror]: of one file, of a product, or of an upstream; the fields that do not apply
// are empty. The cause is matched with [errors.Is] and [errors.As].
type MirrorError struct {
	Upstream string // its URL, without user name and password
	Product  string
	Version  string
	File     string // its path on the upstream
	Err      error
}

// Error returns the upstream, product, version and file, and the cause.
func (e *MirrorError) Error() string {
	text := "simplestreams: mirror " + e.Upstream
	for _, each := range []struct{ name, value string }{{"product", e.Product}, {"version", e.Version}, {"file", e.File}} {
		if each.value != "" {
			text += fmt.Sprintf(": %s %q", each.name, each.value)
		}
	}

	return text + ": " + strings.TrimPrefix(e.Err.Error(), "simplestreams: ")
}

// Unwrap returns the cause.
func (e *MirrorError) Unwrap() error { return e.Err }

// Mirror makes the tree list what the upstreams have of the selections. It downloads the files that the tree does not have,
// and then replaces the index; versions that are not selected any longer are removed from it at once, and their files
// when the grace period of [TreeOptions] is over. The tree may be served meanwhile.
//
// Only products that a Mirror of the same upstream has added are replaced or removed: in the products file they have the
// field golxd_mirror with its URL. If a selected product has the name of another product of the tree, it is not mirrored,
// and the report says so. Of two upstreams with a product of the same name, the first has it. Fields of products
// and versions that this package does not know are kept.
//
// Every file is verified: its size, its SHA-256, and the combined hashes with it. A download resumes after a break, as with
// [Client.DownloadTo], and from partial files of earlier calls and processes. If a file is missing, or another than the
// index says, the upstream's index is read again, once. If files of a version still fail, the tree keeps what it has of
// that product; the others are mirrored. An upstream that cannot be read, or of which nothing is selected, changes nothing.
// The error is that of all failures, which are [*MirrorError]; the report is complete, and nil only if ctx ends,
// the tree itself cannot be read or written, or an argument is wrong.
//
// If no upstream has changed since the last Mirror that had no failure, and neither have the selections and the tree, one
// conditional request for each of their metadata files is all that is sent, and nothing is written, but that a tree that is
// not signed by its Signer yet is signed, and files whose time is over are deleted.
//
// Mirrors of one scratch directory, in one process or several, run one after another. Other changes of the tree may be made
// at the same time.
func (t *Tree) Mirror(ctx context.Context, upstreams []Upstream, options *MirrorOptions) (*MirrorReport, error) {
	m, err := t.newMirror(ctx, upstreams, options)
	if err != nil {
		return nil, err
	}

	return m.run(ctx)
}

// newMirror checks the arguments.
func (t *Tree) newMirror(ctx context.Context, upstreams []Upstream, options *MirrorOptions) (*mirror, error) {
	if err := t.check(ctx); err != nil {
		return nil, err
	}
	m := &mirror{tree: t, ready: map[digest]part{}}
	if options != nil {
		m.options = *options
	}
	if m.options.Parallel < 0 {
		return nil, invalid("MirrorOptions.Parallel", "is %d", m.options.Parallel)
	}
	if m.options.Parallel == 0 {
		m.options.Parallel = defaultParallel
	}
	if len(upstreams) == 0 {
		return nil, invalid("upstreams", "is empty")
	}
	for i, upstream := range upstreams {
		field := fmt.Sprintf("upstreams[%d].", i)
		if upstream.Client.checkMade() != nil {
			return nil, invalid(field+"Client", "is not from New")
		}
		reader := &upstreamReader{client: upstream.Client.withoutCache(), all: m.options.AllFormats}
		for _, other := range m.upstreams {
			if other.url() == reader.url() {
				return nil, invalid(field+"Client", "is of %s, as an earlier upstream: put the selections of one server together", reader.url())
			}
		}
		if len(upstream.Select) == 0 {
			upstream.Select = []Selection{{}}
		}
		for k, selection := range upstream.Select {
			checked, err := selection.check(fmt.Sprintf("%sSelect[%d].", field, k))
			if err != nil {
				return nil, err
			}
			reader.selections = append(reader.selections, checked)
		}
		m.upstreams = append(m.upstreams, reader)
	}

	return m, nil
}

// check returns a copy with daemons' names of architectures and the defaults.
func (s *Selection) check(field string) (Selection, error) {
	set := *s
	for name, patterns := range map[string][]string{"Aliases": s.Aliases, "Products": s.Products} {
		for _, pattern := range patterns {
			if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
				return set, invalid(field+name, "has %q, which is not a pattern", pattern)
			}
		}
	}
	architectures := slices.Clone(s.Architectures)
	for i, name := range architectures {
		known, ok := ArchitectureName(name)
		if !ok {
			return set, invalid(field+"Architectures", "has %q, which is not an architecture", name)
		}
		architectures[i] = known
	}
	set.Architectures = architectures
	for _, kind := range s.Types {
		if kind != Container && kind != VirtualMachine {
			return set, invalid(field+"Types", "has %q, not one of %q, %q", kind, Container, VirtualMachine)
		}
	}
	if s.Versions < 0 {
		return set, invalid(field+"Versions", "is %d", s.Versions)
	}
	set.Versions = max(s.Versions, 1)

	return set, nil
}

// mirror is one call of Tree.Mirror.
type mirror struct {
	tree      *Tree
	options   MirrorOptions
	upstreams []*upstreamReader
	scratch   string

	offers []*offer       // of the upstreams that were read
	failed []*MirrorError // of those that were not

	mu       sync.Mutex // guards what follows
	ready    map[digest]part
	files    []part    // those of the jobs
	reserved time.Time // when the files were reserved
	fetched  MirrorReport
	progress MirrorProgress
}

// run does the work of Tree.Mirror.
func (m *mirror) run(ctx context.Context) (report *MirrorReport, err error) {
	if !m.options.DryRun {
		release, err := m.openScratch(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	state, err := m.loadState(ctx)
	if err != nil {
		return nil, err
	}
	if kept, err := m.read(ctx, state); err != nil {
		return nil, err
	} else if kept >= 0 {
		report = &MirrorReport{Unmodified: true, Kept: kept}
		if m.options.DryRun {
			return report, nil
		}
		if err := m.tree.sign(ctx); err != nil {
			return nil, err
		}
		_, err = m.tree.collect(ctx, false)
		return report, err
	}

	plan, err := m.fetch(ctx)
	if err != nil {
		return nil, err
	}
	if !m.options.DryRun {
		err := m.tree.update(ctx, func(l *listing) (err error) {
			plan, err = planMirror(l, m.offers, m.isReady)
			if err == nil {
				*l = *plan.next
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	report = &m.fetched
	report.Added, report.Removed, report.Kept = plan.added, plan.removed, plan.kept
	report.Failed = append(m.failed, plan.failed...)
	for _, version := range plan.missing {
		// Somebody else has changed the tree meanwhile.
		version.fail("", fmt.Errorf("%w: its files; call Mirror again", ErrConflict))
		report.Failed = append(report.Failed, version.offered.failed)
	}
	if m.options.DryRun {
		return report, joined(report.Failed)
	}
	m.discardPartials()
	if len(report.Failed) == 0 {
		if err := m.saveState(ctx, report); err != nil {
			return nil, err
		}
	}

	return report, joined(report.Failed)
}

// read reads the upstreams. If none of them has changed since the state was saved, it returns the number of versions kept,
// and otherwise -1.
func (m *mirror) read(ctx context.Context, state *mirrorState) (kept int, err error) {
	offers := make([]*offer, len(m.upstreams))
	unmodified := state != nil
	for i, upstream := range m.upstreams {
		var known *upstreamMetadata
		if unmodified {
			known = &state.Upstreams[i]
		}
		offers[i], err = upstream.read(ctx, known)
		if err := ctxerr.Of(ctx); err != nil {
			return 0, err
		}
		if err != nil {
			m.failed = append(m.failed, upstream.failure(err))
		}
		unmodified = unmodified && err == nil && offers[i] == nil
	}
	if unmodified {
		return state.Kept, nil
	}
	for i, upstream := range m.upstreams {
		failed := slices.ContainsFunc(m.failed, func(f *MirrorError) bool { return f.Upstream == upstream.url() })
		if offers[i] == nil && !failed {
			// It is unmodified, but what it has must be weighed against what others have.
			if offers[i], err = upstream.read(ctx, nil); err != nil {
				if err := ctxerr.Of(ctx); err != nil {
					return 0, err
				}
				m.failed = append(m.failed, upstream.failure(err))
			}
		}
		if offers[i] != nil {
			m.offers = append(m.offers, offers[i])
		}
	}

	return -1, nil
}

// reread reads the upstreams again whose files were not as the index says, and reports whether there are any.
func (m *mirror) reread(ctx context.Context, missing []*missingVersion) bool {
	found := false
	for i, o := range m.offers {
		doubtful := slices.ContainsFunc(missing, func(v *missingVersion) bool {
			failed := v.offered.failed
			return v.upstream == o.upstream && failed != nil && (errors.Is(failed, ErrNotFound) || errors.Is(failed, ErrBadData))
		})
		if !doubtful {
			continue
		}
		if next, err := o.upstream.read(ctx, nil); err == nil {
			m.offers[i], found = next, true
		}
	}

	return found
}

// isReady returns a file that is in the store and may be listed.
func (m *mirror) isReady(sum digest) (part, bool) {
	file, ok := m.ready[sum]
	return file, ok
}

// joined returns the failures as one error, or nil.
func joined(failed []*MirrorError) error {
	errs := make([]error, len(failed))
	for i, each := range failed {
		errs[i] = each
	}

	return errors.Join(errs...)
}
