package simplestreams

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/partfile"
)

// partialSuffix is that of the files in the scratch directory.
const partialSuffix = ".partial"

// openScratch opens the directory for partial files, and waits until no other Mirror uses it. release removes it if it is
// temporary.
func (m *mirror) openScratch(ctx context.Context) (release func(), err error) {
	temporary := ""
	switch dir, ok := m.tree.store.(*DirStore); {
	case ok:
		if m.scratch, err = dir.scratch(); err != nil {
			return nil, fmt.Errorf("simplestreams: %w", err)
		}
	case m.options.Scratch != "":
		m.scratch = m.options.Scratch
	default:
		if temporary, err = os.MkdirTemp("", "golxd-mirror-*"); err != nil {
			return nil, fmt.Errorf("simplestreams: %w", err)
		}
		m.scratch = temporary
	}
	if err := os.MkdirAll(m.scratch, 0o755); err != nil {
		return nil, fmt.Errorf("simplestreams: %w", err)
	}
	lock, err := (&partfile.Image{Dir: m.scratch, Fingerprint: "mirror"}).Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("simplestreams: lock the scratch directory: %w", err)
	}

	return func() {
		_ = lock.Close()
		if temporary != "" {
			_ = os.RemoveAll(temporary)
		}
	}, nil
}

// discardPartials removes the partial files that are not needed any longer: all but those of versions that have failed, and of
// upstreams that were not read. It ignores errors: they are removed the next time.
func (m *mirror) discardPartials() {
	if len(m.failed) > 0 {
		return
	}
	needed := map[string]bool{}
	for _, o := range m.offers {
		for _, product := range o.products {
			for _, version := range product.versions {
				for i := range version.items {
					if version.failed != nil {
						needed[version.items[i].sha256.String()] = true
					}
				}
			}
		}
	}
	entries, _ := os.ReadDir(m.scratch)
	for _, entry := range entries {
		if name, ok := strings.CutSuffix(entry.Name(), partialSuffix); ok && isHash(name) && !needed[name] {
			_ = os.Remove(filepath.Join(m.scratch, entry.Name()))
		}
	}
}

// fileJob is a file of missing versions that is to be downloaded, or only to be verified if it is in the store.
type fileJob struct {
	upstream *upstreamReader
	item     *item // as the upstream describes it
	target   part  // in the store; its size is 0 until it is known
	stored   bool
	versions []*missingVersion
	checks   []*combinedCheck
	done     int64 // bytes that were reported as progress
}

// combinedCheck is the hash of a metadata file followed by a root filesystem.
type combinedCheck struct {
	metadata digest
	expected digest
	versions []*missingVersion
	hash     hash.Hash
}

// fail says that the file cannot be mirrored.
func (j *fileJob) fail(err error) {
	for _, version := range j.versions {
		version.fail(j.item.path, err)
	}
}

// needless reports whether none of the versions needs the file, as other files of them have failed.
func (j *fileJob) needless() bool {
	for _, version := range j.versions {
		if version.offered.failed == nil {
			return false
		}
	}

	return true
}

// jobs returns the files of the missing versions: first those with metadata, then the root filesystems.
func (m *mirror) jobs(missing []*missingVersion, copies map[digest]part) (metadata, roots []*fileJob) {
	type key struct {
		upstream *upstreamReader
		sha256   digest
		root     bool // A root filesystem is verified with metadata: after that, even if it is the metadata of another image.
	}
	known := map[key]*fileJob{}
	for _, version := range missing {
		items := version.offered.items
		for i := range items {
			it := &items[i]
			file := key{version.upstream, it.sha256, it.family == ""}
			job := known[file]
			if job == nil {
				job = &fileJob{upstream: version.upstream, item: it}
				if job.target, job.stored = copies[it.sha256]; !job.stored {
					job.target = part{path: newPath(it.fileName()), size: it.size, sha256: it.sha256}
				}
				known[file] = job
				if it.family != "" {
					metadata = append(metadata, job)
				} else {
					roots = append(roots, job)
				}
			}
			job.versions = append(job.versions, version)
			for k := range items {
				if meta := &items[k]; it.family == "" && meta.fingerprint(it) != (digest{}) {
					job.check(version, meta.sha256, meta.fingerprint(it))
				}
			}
		}
	}

	return metadata, roots
}

// fileName returns the name of the file in the store.
func (it *item) fileName() string {
	if it.family == "" && it.rootType == rootSquashfs {
		return "rootfs.squashfs"
	}

	return it.ftype()
}

func (j *fileJob) check(version *missingVersion, metadata, expected digest) {
	for _, check := range j.checks {
		if check.metadata == metadata && check.expected == expected {
			check.versions = append(check.versions, version)
			return
		}
	}
	j.checks = append(j.checks, &combinedCheck{metadata: metadata, expected: expected, versions: []*missingVersion{version}})
}

// fetch downloads the missing files, and returns the plan. If some are not as the index says, it reads the index again and
// plans anew, once.
func (m *mirror) fetch(ctx context.Context) (plan *mirrorPlan, err error) {
	for again := true; ; again = false {
		_, current, err := m.tree.current(ctx)
		if err != nil {
			return nil, err
		}
		if plan, err = planMirror(current, m.offers, m.isReady); err != nil {
			return nil, err
		}
		if len(plan.missing) == 0 {
			return plan, nil
		}
		metadata, roots, err := m.reserve(ctx, plan.missing)
		if err != nil {
			return nil, err
		}
		if m.options.DryRun {
			return planMirror(current, m.offers, m.isReady)
		}
		for _, jobs := range [][]*fileJob{metadata, roots} {
			if err := m.runJobs(ctx, jobs); err != nil {
				return nil, err
			}
		}
		if !again || !m.reread(ctx, plan.missing) {
			return plan, m.keep(ctx)
		}
		clear(m.ready) // The index may combine the same files in another way: that is to be verified.
	}
}

// reserve returns the jobs for the missing versions, and reserves the files before they are stored. In a dry run it counts
// them instead.
func (m *mirror) reserve(ctx context.Context, missing []*missingVersion) (metadata, roots []*fileJob, err error) {
	lost := map[string]bool{} // the paths of files that are deleted, also of those that are still listed
	for {
		copies, err := m.tree.copies(ctx)
		if err != nil {
			return nil, nil, err
		}
		maps.DeleteFunc(copies, func(_ digest, file part) bool { return lost[file.path] })
		metadata, roots = m.jobs(missing, copies)
		var used, fresh []part
		m.progress = MirrorProgress{}
		for _, job := range append(metadata, roots...) {
			if job.stored {
				used = append(used, job.target)
				continue
			}
			fresh = append(fresh, job.target)
			m.progress.TotalFiles++
			m.progress.Total += job.item.size
		}
		if m.options.DryRun {
			for _, job := range append(metadata, roots...) {
				m.ready[job.item.sha256] = job.target
			}
			m.fetched.Files, m.fetched.Bytes = m.progress.TotalFiles, m.progress.Total
			return metadata, roots, nil
		}
		m.reserved, m.files = m.tree.now(), slices.Concat(fresh, used)
		err = m.tree.reserve(ctx, fresh...)
		if err == nil {
			err = m.tree.reuse(ctx, used...)
		}
		var deleted *Error
		if !errors.Is(err, errDeleted) || !errors.As(err, &deleted) {
			return metadata, roots, err
		}
		lost[deleted.URL] = true
	}
}

// keep reserves the files again that are not listed yet, if that was long ago. It must be called before a file is stored.
func (m *mirror) keep(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tree.now().Sub(m.reserved) < reserveFor/2 {
		return nil
	}
	m.reserved = m.tree.now()

	return m.tree.reserve(ctx, m.files...)
}

// runJobs runs the jobs, several at once. Failures of files are those of their versions; the error is of ctx or of the tree.
func (m *mirror) runJobs(ctx context.Context, jobs []*fileJob) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan *fileJob)
	var running sync.WaitGroup
	for range min(m.options.Parallel, len(jobs)) {
		running.Go(func() {
			for job := range queue {
				if err := m.runJob(ctx, job); err != nil {
					m.mu.Lock()
					job.fail(err)
					m.mu.Unlock()
				}
				if err := m.keep(ctx); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, job := range jobs {
		if ctx.Err() != nil {
			break
		}
		queue <- job
	}
	close(queue)
	running.Wait()

	return ctxerr.Of(ctx)
}

// runJob downloads the file of a job, or verifies it if it is in the store.
func (m *mirror) runJob(ctx context.Context, job *fileJob) error {
	m.mu.Lock()
	stored, ready := m.ready[job.item.sha256]
	needless := job.needless()
	m.mu.Unlock()
	switch {
	case needless:
		return nil
	case ready: // from another upstream, or by the first attempt
		job.target, job.stored = stored, true
	}
	hashes, err := m.begin(ctx, job)
	if err != nil {
		return err
	}
	if !job.stored {
		return m.download(ctx, job, hashes)
	}
	if len(hashes) > 0 {
		writers := make([]io.Writer, len(hashes))
		for i := range hashes {
			writers[i] = hashes[i]
		}
		if err := m.copyStored(ctx, io.MultiWriter(writers...), job.target.path); err != nil {
			return err
		}
	}
	if m.check(job) {
		m.finish(job)
	}

	return nil
}

// begin begins the combined hashes of a job with the metadata.
func (m *mirror) begin(ctx context.Context, job *fileJob) ([]hash.Hash, error) {
	var hashes []hash.Hash
	for _, check := range job.checks {
		m.mu.Lock()
		metadata, ok := m.ready[check.metadata]
		m.mu.Unlock()
		check.hash = nil
		if !ok {
			continue // The metadata failed, and so have the versions.
		}
		check.hash = sha256.New()
		if err := m.copyStored(ctx, check.hash, metadata.path); err != nil {
			return nil, err
		}
		hashes = append(hashes, check.hash)
	}

	return hashes, nil
}

func (m *mirror) copyStored(ctx context.Context, w io.Writer, path string) error {
	content, err := m.tree.store.Open(ctx, path)
	if err != nil {
		return treeError(path, err)
	}
	defer content.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, &ctxReader{ctx, content}, make([]byte, copyBlock)); err != nil {
		return treeError(path, err)
	}

	return nil
}

// check compares the combined hashes of a job. It reports whether a version is left that needs the file.
func (m *mirror) check(job *fileJob) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, check := range job.checks {
		if check.hash == nil {
			continue
		}
		if sum := digest(check.hash.Sum(nil)); sum != check.expected {
			for _, version := range check.versions {
				version.fail(job.item.path, &HashError{
					File: "the metadata followed by " + job.upstream.client.publicURL(job.item.path), Expected: check.expected.String(), Actual: sum.String(),
				})
			}
		}
	}

	return !job.needless()
}

// finish says that the file of a job is in the store.
func (m *mirror) finish(job *fileJob) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready[job.item.sha256] = job.target
	if !job.stored {
		m.fetched.Files++
		m.fetched.Bytes += job.target.size
		m.progress.Files++
	}
}

// download downloads the file of a job and stores it.
func (m *mirror) download(ctx context.Context, job *fileJob, hashes []hash.Hash) error {
	file := job.item.file(job.item.ftype())
	for again := true; ; {
		d, err := job.upstream.client.newDownload(ctx, &Image{Fingerprint: file.SHA256, Files: []File{file}}, func(done, _ int64) {
			m.report(job, done)
		})
		if err != nil {
			return err
		}
		d.Metadata.hashing.hashes = append(d.Metadata.hashing.hashes, hashes...)
		again, err = m.save(ctx, job, d, again)
		_ = d.Close()
		if err == nil || !again {
			return err
		}
		// What an earlier call has left was wrong.
		if hashes, err = m.begin(ctx, job); err != nil {
			return err
		}
	}
}

// save downloads the file of a job once. If it fails, it reports whether that is because of what an earlier call has left.
func (m *mirror) save(ctx context.Context, job *fileJob, d *Download, resume bool) (again bool, err error) {
	r := d.Metadata
	if r.size < 0 {
		if err := r.learnSize(); err != nil {
			return false, err
		}
		if r.size < 0 {
			return false, badDataf("neither the index nor the server says how long the file is")
		}
	}
	job.target.size = r.size
	partial, err := (&partfile.Image{
		Dir: m.scratch, Fingerprint: r.File.SHA256, Size: r.size, Public: true,
		Verifying: func(int64) func(int) { return d.count },
	}).Open(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = partial.Close() }()
	if !resume {
		if err := partial.Begin(0); err != nil {
			return false, err
		}
	}
	var resumed bool
	err = save(ctx, r, partial, &resumed)
	var wrong *HashError
	if errors.As(err, &wrong) {
		return resumed, errors.Join(err, partial.Begin(0))
	}
	if err != nil {
		return false, err
	}
	if !m.check(job) {
		return false, nil
	}
	if err := m.keep(ctx); err != nil {
		return false, err
	}
	if dir, ok := m.tree.store.(*DirStore); ok {
		err = dir.adopt(ctx, job.target.path, r.File.SHA256+partialSuffix, partial)
	} else {
		err = m.tree.store.Put(ctx, job.target.path, &ctxReader{ctx, partial.Content(r.size)})
		if err == nil {
			partial.Remove()
		}
	}
	if err != nil {
		return false, treeError(job.target.path, err)
	}
	m.finish(job)

	return false, nil
}

// report reports the progress of a job.
func (m *mirror) report(job *fileJob, done int64) {
	if m.options.Progress == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if job.item.size == 0 {
		m.progress.Total += done - job.done
	}
	m.progress.Done += done - job.done
	job.done = done
	m.progress.Product, m.progress.Version, m.progress.File = job.versions[0].product, job.versions[0].serial, job.item.path
	m.options.Progress(m.progress)
}
