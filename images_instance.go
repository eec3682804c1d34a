package lxd

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/wire"
)

// CreateFromInstanceOptions describe an image to make of an instance.
type CreateFromInstanceOptions struct {
	Public   bool
	Filename string
	// Properties of the image, such as "description".
	Properties map[string]string
	// Profiles of the image (extension image_profiles). Default: "default".
	Profiles []string
	Aliases  []Alias
	// ReuseAliases moves aliases here that stand for other images. Default:
	// they are an ErrExists.
	ReuseAliases bool
	// ExpiresAt is when the image expires (extension images_expiry). Default:
	// never.
	ExpiresAt time.Time
	// Compression is the server's name of an algorithm, such as "gzip", "zstd"
	// or "none". Default: the server's images.compression_algorithm.
	Compression string

	// Wait returns when the image is there. Default: when the server has
	// accepted the work; Image.Wait does the rest.
	Wait bool

	// Progress is told of the phase server.
	Progress func(Progress)
}

// CreateFromInstance publishes an instance as an image. The instance must be
// stopped; a snapshot of it, "web1/snap0", needs not. The Image knows its
// fingerprint when it is made.
func (m *Images) CreateFromInstance(ctx context.Context, instance string, opts *CreateFromInstanceOptions) (*Image, error) {
	var o CreateFromInstanceOptions
	if opts != nil {
		o = *opts
	}
	name, snapshot, isSnapshot := strings.Cut(instance, "/")
	switch {
	case name == "":
		return nil, invalid("instance", "is empty")
	case isSnapshot && (snapshot == "" || strings.Contains(snapshot, "/")):
		return nil, invalid("instance", "%q is not a snapshot's name: instance/snapshot", instance)
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
			asked     bool
			what      string
			extension string
		}{
			{o.Compression != "", "choose the compression of an image", "image_compression_algorithm"},
			{!o.ExpiresAt.IsZero(), "set the expiry of a published image", "images_expiry"},
		} {
			if needed.asked {
				if err := m.client.need(ctx, needed.what, needed.extension); err != nil {
					return nil, err
				}
			}
		}
		kind := "instance"
		if isSnapshot {
			kind = "snapshot"
		}
		return m.importImage(ctx, &wire.ImagePost{
			Source: &wire.ImageSource{Type: kind, Name: instance}, Compression: o.Compression,
		}, &imp.spec, nil)
	}
	imp.meter, imp.report = meter(PhaseServer, -1, o.Progress), o.Progress
	defer imp.meter.Stop()
	return imp.run(ctx, o.Wait)
}
