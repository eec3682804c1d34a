package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/wire"
)

// Via is who fetches an image from its source: the server or the client.
type Via string

// The values of Via.
const (
	// ViaAuto lets the server fetch the image, and if that fails the client. An
	// error that the client would get too, such as an alias that is taken, is
	// final. It is the default.
	ViaAuto Via = ""
	// ViaServer lets the server fetch it. The server's error is final.
	ViaServer Via = "server"
	// ViaClient streams it through this client.
	ViaClient Via = "client"
)

// importJob is one call that imports an image from a source, by the server or by
// the client.
type importJob struct {
	images      *Images
	via         Via
	fingerprint string // the required one; "" for any
	spec        imageSpec
	server      func(context.Context) (*Image, error) // starts the import by the server
	client      func(context.Context) (*Image, error) // imports by the client
	// resolve reads the image's fingerprint from the source.
	resolve  func(context.Context) (string, error)
	meter    *progress.Meter
	report   func(Progress) // for a later Image.Wait; nil for none
	transfer Transfer

	mu      sync.Mutex
	settled string // the fingerprint of the image that a forgotten operation has created
	// explains allows explain to ask the source.
	explains bool
	// updates requires an image that the server can update.
	updates bool
	// cached says that the server may determine the image by an old index.
	cached bool
	// explained takes the place of explain; nil for explain.
	explained func(failure error) error
}

func (imp *importJob) check(options string) error {
	if err := checkOneOf(options+".Via", imp.via, ViaAuto, ViaServer, ViaClient); err != nil {
		return err
	}
	if imp.updates && imp.via == ViaClient {
		return invalid(options+".AutoUpdate", "needs the server to fetch the image, but Via is ViaClient")
	}
	if imp.fingerprint != "" {
		if err := checkFullFingerprint(options+".Fingerprint", imp.fingerprint); err != nil {
			return err
		}
	}
	return imp.spec.check(options)
}

func (imp *importJob) run(ctx context.Context, wait, cancelOnDone bool) (*Image, error) {
	defer imp.meter.Stop()
	image, err := imp.start(ctx)
	if image != nil {
		image.transfer = imp
	}
	if err != nil || !wait || image.pending == nil { // nil if the server had the image
		return image, err
	}
	return image.pending.waitInCall(ctx, image, imp.meter, cancelOnDone)
}

// transferred returns the result for Image.Transfer.
func (imp *importJob) transferred() Transfer {
	return Transfer{Way: imp.transfer.Way, Failed: slices.Clone(imp.transfer.Failed)}
}

// start starts the import by the server, or imports by the client. It does not wait
// for the operation.
func (imp *importJob) start(ctx context.Context) (*Image, error) {
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
		return imp.byClient(ctx)
	}
	image, err := imp.server(ctx)
	if err != nil {
		if !imp.mayFallBack(ctx, err) {
			return nil, imp.explain(ctx, err)
		}
		return imp.fallBack(ctx, err)
	}
	image.pending.report = imp.report
	imp.transfer.Way = string(ViaServer)
	return image, nil
}

// checkTarget returns an error, before anything is fetched, if the server would
// refuse the image no matter who fetches it.
func (imp *importJob) checkTarget(ctx context.Context) error {
	if imp.fingerprint == "" && imp.spec.ifExists == ErrorIfExists && imp.resolve != nil {
		if existing := imp.images.existing(ctx, imp.resolved(ctx)); existing != nil {
			return fmt.Errorf("image %s: %w", existing.Fingerprint, ErrExists)
		}
	}
	find := func() (string, error) { return imp.resolved(ctx), ctx.Err() }
	if imp.resolve == nil {
		find = nil
	}
	return imp.spec.checkTarget(ctx, imp.images.client, imp.fingerprint, find)
}

// useExisting applies the options to an image that the server already has, as the
// servers' own imports do.
func (imp *importJob) useExisting(ctx context.Context, existing *Image) (*Image, error) {
	image, err := imp.spec.useExisting(ctx, imp.images, existing)
	if err != nil {
		return image, err
	}
	return image, imp.checkUpdates(image)
}

// checkUpdates returns an error if the image must be updated and the server cannot
// do that.
func (imp *importJob) checkUpdates(image *Image) error {
	if !imp.updates || image.UpdateSource != nil {
		return nil
	}
	return fmt.Errorf("update image %.12s: %w: the server had the image already, without a source; delete it and import it again",
		image.Fingerprint, ErrUnsupported)
}

// begin makes the server fetch the image.
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

// sentAliases returns the aliases that the server itself sets. If it may fetch
// another image than the wanted one, there are none: they are set when the image
// is known to be the right one.
func (imp *importJob) sentAliases() []Alias {
	if imp.spec.reuse || imp.fingerprint != "" {
		return nil
	}
	return imp.spec.aliases
}

// finish does the client's work after the server's operation has finished.
func (imp *importJob) finish(ctx context.Context, op *Operation, failure error, m *progress.Meter) (*Image, error) {
	// An operation that failed has created the image, but not its aliases (LXD 5.0.2,
	// Incus 6.0.4), or another call has created it in the same moment.
	if failure != nil && imp.images.existing(ctx, op.fingerprint()) == nil {
		if !imp.mayFallBack(ctx, failure) {
			return nil, imp.explain(ctx, failure)
		}
		return imp.finishByClient(ctx, failure, m)
	}
	fingerprint, err := imp.images.createdFingerprint(ctx, op, op.fingerprint(), cmp.Or(imp.fingerprint, imp.settledFingerprint()))
	var other *FingerprintError
	switch {
	case errors.As(err, &other) && imp.cached:
		err = fmt.Errorf("%w: the server reads an index once in an hour, and has read this one before the client did", err)
		if imp.via == ViaAuto && ctx.Err() == nil {
			return imp.finishByClient(ctx, err, m)
		}
		return nil, err
	case err != nil:
		return nil, err
	}
	if fingerprint == "" {
		return nil, fmt.Errorf("operation %s does not contain the image's fingerprint: %w", op.ID(), ErrOutcomeUnknown)
	}
	image, err := imp.spec.complete(ctx, imp.images, op, fingerprint)
	if err != nil {
		return image, err
	}
	return image, imp.checkUpdates(image)
}

// finishByClient imports by the client, and waits, after the server's operation has
// failed with cause.
func (imp *importJob) finishByClient(ctx context.Context, cause error, m *progress.Meter) (*Image, error) {
	imp.meter = m
	image, err := imp.fallBack(ctx, cause)
	if err != nil || image.pending == nil { // nil if the server had the image
		return image, err
	}
	return imageIfUploaded(image, image.pending.wait(ctx, image, m))
}

// resolveTimeout is the timeout of reading, from the source, the fingerprint of the
// image that a forgotten operation should have created.
const resolveTimeout = 10 * time.Second

// settle determines the outcome of an operation that the server has forgotten: it
// looks for the image.
func (imp *importJob) settle(ctx context.Context) error {
	fingerprint, err := imp.expectedFingerprint(ctx)
	if err != nil {
		return err
	}
	if err := imp.images.settleImage(ctx, fingerprint); err != nil {
		return err
	}
	imp.mu.Lock()
	imp.settled = fingerprint
	imp.mu.Unlock()
	return nil
}

// expectedFingerprint returns the fingerprint of the image that the server should
// have created: the required one, or that of an alias that was free before, or the
// one that the source reports.
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
	if fingerprint := imp.resolved(ctx); fingerprint != "" {
		return fingerprint, nil
	}
	return "", errUnsettled
}

// resolved returns the fingerprint that the source reports; "" if it reports none in
// time.
func (imp *importJob) resolved(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	fingerprint, err := imp.resolve(ctx)
	if err != nil {
		return ""
	}
	return fingerprint
}

// explain adds to the server's error that the source does not have the image, if that
// is so: the server's words differ between the daemons. Otherwise it adds a hint.
func (imp *importJob) explain(ctx context.Context, failure error) error {
	if imp.explained != nil {
		return imp.explained(failure)
	}
	if errors.Is(failure, ErrNotFound) || errors.Is(failure, ErrCancelled) || errors.Is(failure, ErrForbidden) {
		return failure
	}
	if imp.explains {
		resolve, cancel := context.WithTimeout(ctx, resolveTimeout)
		defer cancel()
		if _, err := imp.resolve(resolve); errors.Is(err, ErrNotFound) {
			return fmt.Errorf("%w (by the server: %w)", err, failure)
		}
	}
	return withHint(failure, "the server must be able to fetch the image; with ViaClient, this client does it")
}

// settledFingerprint returns the fingerprint that settle has found; "" for none.
func (imp *importJob) settledFingerprint() string {
	imp.mu.Lock()
	defer imp.mu.Unlock()
	return imp.settled
}

// byClient downloads the image and uploads it to the server. If the connection to
// the server breaks, it starts over.
func (imp *importJob) byClient(ctx context.Context) (image *Image, err error) {
	err = imp.images.client.t.untilClosed(ctx, func(ctx context.Context) error {
		image, err = imp.fetch(ctx)
		return err
	})
	return image, err
}

func (imp *importJob) fetch(ctx context.Context) (*Image, error) {
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
	if image.pending != nil { // nil if the server had the image
		imp.transfer.Way = string(ViaClient)
	}
	return image, nil
}

// mayFallBack reports whether the client may succeed after the server has failed.
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
		// LXD 6.9 refuses URLs with 400. With the same status it refuses all public
		// images outside the default project, which an upload would not change.
		project := imp.images.client.project
		return refused.StatusCode == http.StatusNotImplemented ||
			(refused.StatusCode == http.StatusBadRequest && !(imp.spec.Public && project != "" && project != "default"))
	}
	return errors.Is(err, ErrUnsupported)
}

// fallBack imports by the client after the server has failed with cause.
func (imp *importJob) fallBack(ctx context.Context, cause error) (*Image, error) {
	if imp.updates {
		if explained := imp.explain(ctx, cause); errors.Is(explained, ErrNotFound) {
			return nil, explained
		}
		return nil, fmt.Errorf("%w: the client could fetch the image, but the server could not update it: %w", cause, ErrUnsupported)
	}
	if err := imp.checkTarget(ctx); err != nil {
		return nil, fmt.Errorf("%w (by the server: %w)", err, cause)
	}
	imp.images.client.t.log.DebugContext(ctx, "lxd server cannot import, the client does", "error", cause)
	imp.transfer = Transfer{Failed: []TransferAttempt{{string(ViaServer), cause}}}
	image, err := imp.byClient(ctx)
	if err != nil {
		return image, fmt.Errorf("by the client: %w (and by the server: %w)", err, cause)
	}
	return image, nil
}

// upload uploads what the client downloads.
func (imp *importJob) upload(ctx context.Context, body *content.Content, fingerprint string, spec imageSpec) (*Image, error) {
	u := &upload{
		images: imp.images, content: body, fingerprint: fingerprint, hash: true, spec: spec, meter: imp.meter, report: imp.report,
	}
	return u.run(ctx)
}
