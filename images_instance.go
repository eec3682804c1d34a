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
	// Properties of the image, such as "description".
	Properties map[string]string
	// Profiles are the default profiles of instances created from the image
	// (extension image_profiles). The default is "default".
	Profiles []string
	Aliases  []Alias
	// ReuseAliases moves aliases that point to other images to this one. By
	// default such an alias is an error that matches ErrExists.
	ReuseAliases bool
	// ExpiresAt is when the image expires (extension images_expiry). The default
	// is never.
	ExpiresAt time.Time
	// Compression is the server's name of an algorithm, such as "gzip", "zstd"
	// or "none". The default is the server's images.compression_algorithm.
	Compression string
	// Split creates an image in two files, metadata and rootfs (extension
	// instance_publish_split: Incus 7). The default is one file.
	Split bool

	// Wait makes the call return when the image is complete. The default is to
	// return when the server has accepted the work; Image.Wait does the rest.
	Wait bool

	// Progress receives the phase server.
	Progress func(Progress)
}

// CreateFromInstance publishes an instance, or a snapshot such as "web1/snap0", as
// an image. The instance must be stopped, except to publish a snapshot. The Image
// has its fingerprint when the operation has finished.
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
		filename:   o.Filename, aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases,
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
			return nil, err
		}
		image.pending.then(func(ctx context.Context, image *Image, err error, _ *progress.Meter) (*Image, error) {
			var failed *OperationError
			if errors.As(err, &failed) && image == nil && m.lacksInstance(ctx, name, snapshot) {
				err = failed.missing(fmt.Sprintf("there is no %s %q in this project", kind, instance))
			}
			return image, err
		})
		return image, nil
	}
	imp.meter, imp.report = meter(PhaseServer, -1, o.Progress), o.Progress
	defer imp.meter.Stop()
	return imp.run(ctx, o.Wait)
}

// lacksInstance reports whether the project has no such instance, or the instance no
// such snapshot ("" for none).
func (m *Images) lacksInstance(ctx context.Context, name, snapshot string) bool {
	at := path("instances", name)
	if snapshot != "" {
		at = path("instances", name, "snapshots", snapshot)
	}
	type instance struct {
		Name string `json:"name"`
	}
	_, _, err := get(ctx, m.client.t, &request{method: http.MethodGet, path: at, query: m.client.query()}, func(*instance) error { return nil })
	return isMissing(err)
}
