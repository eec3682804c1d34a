package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/wire"
)

// Via says who fetches an image from elsewhere.
type Via string

// The ways of an import.
const (
	// ViaAuto lets the server fetch the image, and where that fails the client.
	// An error that the client would meet too, such as an alias that is taken,
	// is final. It is the default.
	ViaAuto Via = ""
	// ViaServer lets the server fetch it, or gives the server's error.
	ViaServer Via = "server"
	// ViaClient streams it through this client.
	ViaClient Via = "client"
)

// importing is an image on its way from elsewhere, by the server or by the
// client.
type importJob struct {
	images      *Images
	via         Via
	fingerprint string // that it must have; "" for any
	spec        imageSpec
	server      func(context.Context) (*Image, error) // begins it by the server
	client      func(context.Context) (*Image, error) // does it by the client
	// resolve tells the fingerprint that the image will have.
	resolve func(context.Context) (string, error)
	meter   *progress.Meter
	report  func(Progress) // for a later Image.Wait; nil for none

	mu      sync.Mutex
	settled string // the fingerprint of what the forgotten operation has made
	// updates says that the image must be one that its server can update.
	updates bool
}

func (imp *importJob) check(options string) error {
	switch imp.via {
	case ViaAuto, ViaServer, ViaClient:
	default:
		return invalid(options+".Via", "is %q", imp.via)
	}
	if imp.updates && imp.via == ViaClient {
		return invalid(options+".AutoUpdate", "needs the server to fetch the image; it is set with Via: ViaClient")
	}
	if imp.fingerprint != "" {
		if err := checkFullFingerprint(options+".Fingerprint", imp.fingerprint); err != nil {
			return err
		}
	}
	if err := checkFilename(options+".Filename", imp.spec.filename); err != nil {
		return err
	}
	if err := checkNames(options+".Profiles", imp.spec.Profiles); err != nil {
		return err
	}
	if _, ok := imp.spec.Properties[""]; ok {
		return invalid(options+".Properties", "has an empty name")
	}
	return checkAliases(options+".Aliases", imp.spec.aliases)
}

func (imp *importJob) run(ctx context.Context, wait bool) (*Image, error) {
	if imp.fingerprint != "" {
		existing, err := imp.images.Get(ctx, imp.fingerprint)
		if err == nil {
			return imp.useExisting(ctx, existing)
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	if err := imp.checkTarget(ctx); err != nil {
		return nil, err
	}
	if imp.via == ViaClient {
		return imp.byClient(ctx, wait)
	}
	image, err := imp.server(ctx)
	if err != nil {
		if !imp.mayFallBack(ctx, err) {
			return nil, err
		}
		return imp.fallBack(ctx, err, wait)
	}
	image.pending.report = imp.report
	if !wait {
		return image, nil
	}
	return imageIfUploaded(image, image.pending.wait(ctx, image, imp.meter))
}

// checkTarget errors where the server would refuse the image whoever fetches
// it, before anything is fetched.
func (imp *importJob) checkTarget(ctx context.Context) error {
	c := imp.images.client
	for _, name := range imp.spec.Profiles {
		type profile struct {
			Name string `json:"name"`
		}
		_, _, err := get(ctx, c.t, &request{method: http.MethodGet, path: path("profiles", name), query: c.query()}, func(p *profile) error {
			if p.Name != name {
				return fmt.Errorf("it is profile %.80q", p.Name)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("profile %q: %w", name, err)
		}
	}
	if imp.spec.reuse {
		return nil
	}
	return c.Aliases.checkFree(ctx, imp.spec.aliases, imp.fingerprint)
}

// adopt gives an image that the server has already what the options ask for, as
// the servers' own imports do.
func (imp *importJob) useExisting(ctx context.Context, existing *Image) (*Image, error) {
	image, err := imp.spec.complete(ctx, imp.images, nil, existing.Fingerprint)
	if err != nil {
		return existing, err
	}
	return image, imp.checkUpdates(image)
}

// checkUpdates errors where the server cannot keep an image up to date.
func (imp *importJob) checkUpdates(image *Image) error {
	if !imp.updates || image.UpdateSource != nil {
		return nil
	}
	return fmt.Errorf("update image %.12s: %w: the server had the image before, and keeps no source for it; delete it to have it imported anew",
		image.Fingerprint, ErrUnsupported)
}

// begin has the server fetch the image.
func (imp *importJob) begin(ctx context.Context, source *wire.ImageSource) (*Image, error) {
	server, err := imp.images.client.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := imp.spec.checkSupported(server); err != nil {
		return nil, err
	}
	post := &wire.ImagePost{Source: source, Aliases: wireAliases(imp.sentAliases())}
	image, err := imp.images.post(ctx, post, &imp.spec, imp.settle, imp.finish)
	if err != nil {
		return nil, err
	}
	image.Fingerprint = imp.fingerprint
	return image, nil
}

// sentAliases are those that the server gives the image itself. Where it may
// fetch another image than the one that is wanted, they wait until that is
// known.
func (imp *importJob) sentAliases() []Alias {
	if imp.spec.reuse || imp.fingerprint != "" {
		return nil
	}
	return imp.spec.aliases
}

// finish does what is left once the server's operation has ended.
func (imp *importJob) finish(ctx context.Context, op *Operation, failure error, m *progress.Meter) (*Image, error) {
	if failure != nil && !imp.imageExists(ctx, op.fingerprint()) {
		if !imp.mayFallBack(ctx, failure) {
			return nil, failure
		}
		imp.meter = m
		return imp.fallBack(ctx, failure, true)
	}
	fingerprint, err := imp.images.createdFingerprint(ctx, op, op.fingerprint(), cmp.Or(imp.fingerprint, imp.settledFingerprint()))
	if err != nil {
		return nil, err
	}
	if fingerprint == "" {
		return nil, fmt.Errorf("operation %s does not tell the image: %w", op.ID(), ErrOutcomeUnknown)
	}
	image, err := imp.spec.complete(ctx, imp.images, op, fingerprint)
	if err != nil {
		return image, err
	}
	return image, imp.checkUpdates(image)
}

// has says whether an operation that failed has made the image all the same:
// then it could not give it the aliases (LXD 5.0.2, Incus 6.0.4).
func (imp *importJob) imageExists(ctx context.Context, fingerprint string) bool {
	if checkServerFingerprint(fingerprint) != nil {
		return false
	}
	_, err := imp.images.Get(ctx, fingerprint)
	return err == nil
}

// resolveTimeout bounds the look at the source that tells what a forgotten
// operation should have made.
const resolveTimeout = 10 * time.Second

// settle looks for the image whose operation the server has forgotten.
func (imp *importJob) settle(ctx context.Context) error {
	fingerprint, err := imp.expectedFingerprint(ctx)
	if err != nil {
		return err
	}
	_, err = imp.images.Get(ctx, fingerprint)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("the server has neither the operation nor image %s any more: %w", fingerprint, ErrOutcomeUnknown)
	}
	if err == nil {
		imp.mu.Lock()
		imp.settled = fingerprint
		imp.mu.Unlock()
	}
	return err
}

// expected is the image that the server should have made: it is known, or an
// alias that was free leads to it, or the source tells.
func (imp *importJob) expectedFingerprint(ctx context.Context) (string, error) {
	if imp.fingerprint != "" {
		return imp.fingerprint, nil
	}
	if sent := imp.sentAliases(); len(sent) > 0 {
		alias, err := imp.images.client.Aliases.Get(ctx, sent[0].Name)
		if err == nil {
			return alias.Target, nil
		}
		if !errors.Is(err, ErrNotFound) {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	fingerprint, err := imp.resolve(ctx)
	if err != nil || fingerprint == "" {
		return "", errUnsettled
	}
	return fingerprint, nil
}

func (imp *importJob) settledFingerprint() string {
	imp.mu.Lock()
	defer imp.mu.Unlock()
	return imp.settled
}

// byClient fetches the image and sends it on. Where the way to the server
// breaks, it is fetched again.
func (imp *importJob) byClient(ctx context.Context, wait bool) (*Image, error) {
	retries := imp.images.client.t.retry.Begin()
	image, err := imp.client(ctx)
	for err != nil {
		if errors.Is(err, ErrNotReplayable) {
			err = retries.Pause(ctx, err)
		}
		if err != nil {
			return image, err
		}
		image, err = imp.client(ctx)
	}
	if !wait || image.pending == nil { // it was there
		return image, nil
	}
	return imageIfUploaded(image, image.pending.wait(ctx, image, imp.meter))
}

// mayFallBack says whether the client may do better than the server did.
func (imp *importJob) mayFallBack(ctx context.Context, err error) bool {
	if imp.via != ViaAuto || ctx.Err() != nil {
		return false
	}
	var refused *Error
	var failed *OperationError
	switch {
	case errors.As(err, &failed):
		return !errors.Is(err, ErrCancelled) && !errors.Is(err, ErrExists) && !errors.Is(err, ErrForbidden)
	case errors.As(err, &refused):
		// LXD 6.9 refuses URLs with 400. It refuses public images outside the
		// default project so too, whoever brings them.
		project := imp.images.client.project
		return refused.StatusCode == http.StatusNotImplemented ||
			(refused.StatusCode == http.StatusBadRequest && !(imp.spec.Public && project != "" && project != "default"))
	}
	return errors.Is(err, ErrUnsupported)
}

func (imp *importJob) fallBack(ctx context.Context, cause error, wait bool) (*Image, error) {
	if imp.updates {
		return nil, fmt.Errorf("%w: the client could fetch the image, but the server could not update it: %w", cause, ErrUnsupported)
	}
	if err := imp.checkTarget(ctx); err != nil {
		return nil, fmt.Errorf("%w (by the server: %w)", err, cause)
	}
	imp.images.client.t.log.DebugContext(ctx, "lxd server cannot import, the client does", "error", cause)
	image, err := imp.byClient(ctx, wait)
	if err != nil {
		return image, fmt.Errorf("by the client: %w (and by the server: %w)", err, cause)
	}
	return image, nil
}

// upload sends what the client fetches.
func (imp *importJob) upload(ctx context.Context, body *content.Content, fingerprint string, spec imageSpec) (*Image, error) {
	u := &upload{
		images: imp.images, content: body, fingerprint: fingerprint, hash: true, completeExisting: true, spec: spec, meter: imp.meter, report: imp.report,
	}
	return u.run(ctx, false)
}
