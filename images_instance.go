package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/wire"
)

// CreateFromInstanceOptions describe an image to create from an instance.
type CreateFromInstanceOptions struct {
	Public   bool
	Filename string
	// Properties are added to those of the instance's image, and override them. They
	// are set when the image exists, before the aliases.
	Properties map[string]string
	// Profiles are the default profiles of instances created from the image
	// (extension image_profiles). The default is "default".
	Profiles []string
	Aliases  []Alias
	// ReuseAliases moves aliases that point to other images to this one. Those images
	// remain, without the alias. By default such an alias is an error that matches
	// ErrExists.
	ReuseAliases bool
	// DeleteReplaced deletes the images that have lost their last alias to
	// ReuseAliases, which must be set.
	DeleteReplaced bool
	// ExpiresAt is when the image expires (extension images_expiry). The default
	// is never.
	ExpiresAt time.Time
	// Compression is the server's name of an algorithm, such as "gzip", "zstd"
	// or "none". The default is the server's images.compression_algorithm.
	Compression string
	// Split creates an image in two files, metadata and rootfs (extension
	// instance_publish_split: Incus 7). The default is one file.
	Split bool

	// IfExists is what happens if the server already has the image. The default is to
	// apply the options that are set to it.
	IfExists IfExists

	// Wait makes the call return when the image is complete. The default is to
	// return when the server has accepted the work; Image.Wait does the rest.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while the call waits for it (with Wait). By default it continues; the call
	// returns the Image beside the error, with the operation.
	CancelOnDone bool

	// Progress receives the phase server.
	Progress func(Progress)
}

// mayHaveLostInsert reports whether a publication may have failed because another one
// stored the same content in the same moment. The daemons then do not name the image,
// but there is one that is newer than the operation.
func (m *Images) mayHaveLostInsert(ctx context.Context, op *Operation, failure error) bool {
	var failed *OperationError
	if !errors.As(failure, &failed) || errors.Is(failure, ErrCancelled) || errors.Is(failure, ErrNotFound) {
		return false
	}
	images, err := m.All(ctx, nil)
	return err == nil && slices.ContainsFunc(images, func(i *Image) bool { return i.isNewOf(op) })
}

// publishAgain repeats a publication, and waits for it.
func (m *Images) publishAgain(ctx context.Context, post *wire.ImagePost, spec *imageSpec, meter *progress.Meter) (*Image, error) {
	image, err := m.importImage(ctx, post, spec, nil)
	if err != nil {
		return nil, err
	}
	return imageIfUploaded(image, image.pending.wait(ctx, image, meter))
}

// explainInstance makes an error match ErrNotFound if the instance or snapshot does
// not exist: Incus 7.0.2 does not say it with a status.
func (m *Images) explainInstance(ctx context.Context, name, snapshot string, failure error) error {
	var failed *OperationError
	isOperation := errors.As(failure, &failed)
	if failure == nil || ctx.Err() != nil || errors.Is(failure, ErrCancelled) || (!isOperation && errors.Is(failure, ErrNotFound)) {
		return failure
	}
	at, kind, what := path("instances", name), "instance", name
	if snapshot != "" {
		at, kind, what = path("instances", name, "snapshots", snapshot), "snapshot", name+"/"+snapshot
	}
	type instance struct {
		Status string `json:"status"` // of an instance, not of a snapshot
	}
	found, _, err := get(ctx, m.client.t, &request{method: http.MethodGet, path: at, query: m.client.query()}, func(*instance) error { return nil })
	if err == nil && found.Status != "" && found.Status != "Stopped" {
		return withHint(failure, "the instance is %s; stop it, or publish a snapshot", strings.ToLower(found.Status))
	}
	if !isMissing(err) {
		return failure
	}
	if isOperation {
		return failed.missing(fmt.Sprintf("there is no %s %q in this project", kind, what))
	}
	return fmt.Errorf("%w: %w", failure, err)
}

// CreateFromInstance publishes an instance, or a snapshot such as "web1/snap0", as
// an image. The instance must be stopped, except to publish a snapshot. The Image
// has its fingerprint when the operation has finished. To move an alias to it, and delete
// the image that it had before, see [Images.Ensure] and [FromInstance].
func (m *Images) CreateFromInstance(ctx context.Context, instance string, opts *CreateFromInstanceOptions) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	var o CreateFromInstanceOptions
	if opts != nil {
		o = *opts
	}
	name, snapshot, isSnapshot := strings.Cut(instance, "/")
	switch {
	case name == "":
		return nil, invalid("instance", "is empty")
	case isSnapshot && (snapshot == "" || strings.Contains(snapshot, "/")):
		return nil, invalid("instance", "%q is not the name of a snapshot (instance/snapshot)", instance)
	}
	imp := &importJob{images: m, via: ViaServer, spec: imageSpec{
		attributes: attributes{ExpiresAt: o.ExpiresAt, Profiles: o.Profiles, Properties: o.Properties, Public: o.Public}.clone(),
		filename:   o.Filename, aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases, replaced: o.DeleteReplaced, ifExists: o.IfExists,
	}}
	if err := imp.check("CreateFromInstanceOptions"); err != nil {
		return nil, err
	}
	imp.server = func(ctx context.Context) (*Image, error) {
		for _, needed := range []struct {
			set       bool
			what      string
			extension string
		}{
			{imp.spec.setsProfiles(), "set the profiles of an image", "image_profiles"},
			{o.Compression != "", "choose the compression of an image", "image_compression_algorithm"},
			{!o.ExpiresAt.IsZero(), "set the expiry of a published image", "images_expiry"},
			{o.Split, "publish a split image", "instance_publish_split"},
		} {
			if needed.set {
				if err := m.client.need(ctx, needed.what, needed.extension); err != nil {
					return nil, err
				}
			}
		}
		kind := "instance"
		if isSnapshot {
			kind = "snapshot"
		}
		post := &wire.ImagePost{Source: &wire.ImageSource{Type: kind, Name: instance}, Compression: o.Compression}
		if o.Split {
			post.Format = "split"
		}
		image, err := m.importImage(ctx, post, &imp.spec, nil)
		if err != nil {
			return nil, m.explainInstance(ctx, name, snapshot, err)
		}
		op := image.Operation()
		image.pending.then(func(ctx context.Context, created *Image, err error, meter *progress.Meter) (*Image, error) {
			if err != nil && created == nil && m.mayHaveLostInsert(ctx, op, err) {
				created, err = m.publishAgain(ctx, post, &imp.spec, meter)
			}
			return created, m.explainInstance(ctx, name, snapshot, err)
		})
		return image, nil
	}
	imp.meter, imp.report = meter(PhaseServer, -1, o.Progress), o.Progress
	return imp.run(ctx, o.Wait, o.CancelOnDone)
}
