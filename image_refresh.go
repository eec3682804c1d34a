package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/golxd/lxd/internal/progress"
)

// RefreshOptions are the options of [Image.Refresh].
type RefreshOptions struct {
	// Wait makes Refresh return when the server has looked for a newer image, and
	// fetched it if there is one. The default is to return when the server has
	// accepted the work.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while Refresh waits for it (with Wait). By default it continues.
	CancelOnDone bool
	// Fresh makes the client look for a newer image in the index of a simplestreams
	// source, as the server may read the index from its cache; see Refresh. Refresh
	// then returns when it is done, as with Wait. If the server's cache does not have
	// the newer image, the client uploads it; it then has no UpdateSource, and is not
	// updated. For a source with another protocol, which the servers do not cache,
	// Fresh changes nothing.
	Fresh bool
}

// Refresh makes the server look for a newer version of the image at its source
// (UpdateSource), and fetch it if there is one. The newer version is another
// image: it has another fingerprint, and receives this one's aliases; the server
// deletes this one.
//
// With Wait, Refresh returns the newer image, or this one if there is none. Without
// Wait, it returns an Image that has this one's attributes, and after its Wait those
// of the newer image, if there is one. If the image has no source, the error (with
// Wait, or of Image.Wait) matches [ErrNotFound].
//
// LXD 5.0.2, 6.9, Incus 6.0.4 and 7.0.2 keep the index of a simplestreams server for an
// hour: a newer image may be found only then. See RefreshOptions.Fresh. [Images.Ensure]
// reads the source itself, and also sources that the server does not know.
func (i *Image) Refresh(ctx context.Context, opts *RefreshOptions) (*Image, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	var o RefreshOptions
	if opts != nil {
		o = *opts
	}
	if err := i.client.need(ctx, "refresh an image", "image_force_refresh"); err != nil {
		return nil, err
	}
	if o.Fresh {
		if newer, err := i.refreshFresh(ctx); newer != nil || err != nil {
			return newer, err
		}
	}
	op, err := i.client.start(ctx, &request{method: http.MethodPost, path: path("images", i.Fingerprint, "refresh"), query: i.client.query()}, nil)
	if err != nil {
		return nil, err
	}
	old := *i
	work := newPending(op, -1, func(_ context.Context, failure error, _ *progress.Meter) (*Image, error) {
		return nil, old.refreshFailure(failure)
	})
	work.before = i.pending
	i.pending = work
	current := old
	current.pending = newPending(op, -1, func(ctx context.Context, failure error, _ *progress.Meter) (*Image, error) {
		if refreshed, _ := op.Status().Metadata["refreshed"].(bool); failure != nil || !refreshed {
			return nil, old.refreshFailure(failure)
		}
		return old.newer(ctx)
	})
	current.pending.before = old.pending
	if !o.Wait {
		return &current, nil
	}
	if _, err = current.pending.waitInCall(ctx, &current, nil, o.CancelOnDone); err != nil {
		return nil, err
	}
	if current.Fingerprint == i.Fingerprint {
		return i, nil
	}
	return &current, nil
}

// refreshFailure adds to the failure of a refresh that the image has no source: the
// daemons' statuses differ (LXD 404; Incus 6.0.4 and 7.0.2 400 or 404).
func (i *Image) refreshFailure(failure error) error {
	if failure == nil || i.UpdateSource != nil || i.UploadedAt.IsZero() || errors.Is(failure, ErrCancelled) {
		return failure
	}
	var failed *OperationError
	if errors.As(failure, &failed) {
		return failed.missing("the image has no source: the server has not imported it")
	}
	return fmt.Errorf("image %s has no source: %w: %w", i.Fingerprint, ErrNotFound, failure)
}

// newer returns the image that has replaced this one in a refresh. The operation
// does not contain its fingerprint (LXD 5.0.2, 6.9, Incus 6.0.4, 7.0.2): it has the
// aliases, and otherwise the source.
func (i *Image) newer(ctx context.Context) (*Image, error) {
	for _, alias := range i.Aliases {
		found, err := i.client.Images.GetByAlias(ctx, alias.Name)
		if err == nil && found.Fingerprint != i.Fingerprint {
			return found, nil
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	var newest *Image
	for image, err := range i.client.Images.Each(ctx, nil) {
		if err != nil {
			return nil, err
		}
		same := image.UpdateSource != nil && i.UpdateSource != nil && *image.UpdateSource == *i.UpdateSource && image.Type == i.Type
		if same && image.Fingerprint != i.Fingerprint && (newest == nil || image.UploadedAt.After(newest.UploadedAt)) {
			newest = image
		}
	}
	if newest == nil {
		return nil, fmt.Errorf("image %s was refreshed, but the newer image: %w", i.Fingerprint, ErrNotFound)
	}
	return newest, nil
}

// refreshFresh replaces the image by the newer one of a simplestreams index that the
// client reads now, and returns it, or i if there is none. It returns nil if the
// source is none whose index is cached.
func (i *Image) refreshFresh(ctx context.Context) (*Image, error) {
	m := i.client.Images
	now, err := m.Get(ctx, i.Fingerprint)
	if err != nil {
		return nil, err
	}
	if now.UpdateSource == nil {
		return nil, fmt.Errorf("refresh image %s, which has no source: %w", i.Fingerprint, ErrNotFound)
	}
	source := *now.UpdateSource
	if source.ImageRegistry != "" {
		registry, err := m.client.Registries.Get(ctx, source.ImageRegistry)
		if err != nil {
			return nil, err
		}
		source.Server, source.Protocol = registry.Config["url"], registry.Protocol
	}
	if source.Protocol != "simplestreams" {
		return nil, nil
	}
	o := &CreateFromSimplestreamsOptions{
		Type: now.Type, Certificate: source.Certificate, AllowHTTP: strings.HasPrefix(source.Server, "http://"),
		Public: now.Public, Profiles: now.Profiles, Aliases: now.Aliases, ReuseAliases: true, Via: ViaServer, Wait: true,
	}
	streams, found, err := m.resolveStream(ctx, source.Server, source.Alias, o, true)
	if err != nil {
		return nil, streamError(err)
	}
	if err := streams.Close(); err != nil {
		return nil, err
	}
	if found.Fingerprint == i.Fingerprint {
		return i, nil
	}
	byServer := *o
	byServer.AutoUpdate = now.AutoUpdate
	newer, err := m.createFromStream(ctx, source.Server, source.Alias, found.Fingerprint, &byServer)
	var wrong *FingerprintError
	var failed *OperationError
	if errors.As(err, &wrong) || errors.As(err, &failed) && !errors.Is(err, ErrCancelled) {
		// Its cached index has the old image.
		byClient := *o
		byClient.Via = ViaClient
		newer, err = m.createFromStream(ctx, source.Server, source.Alias, found.Fingerprint, &byClient)
	}
	if err != nil {
		return nil, err
	}
	if err := now.Delete(ctx, &DeleteOptions{Wait: true}); err != nil && !errors.Is(err, ErrNotFound) {
		return newer, fmt.Errorf("delete the replaced image %.12s: %w", i.Fingerprint, err)
	}
	return newer, nil
}
