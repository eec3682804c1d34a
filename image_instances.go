package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/wire"
)

// Instance is an instance that was created from an image.
type Instance struct {
	Name     string
	Project  string
	Type     ImageType
	Status   string // such as "Running" or "Stopped"
	Location string // the cluster member; "none" outside of a cluster
}

// UsedBy returns the instances that were created from the image, or from the same
// image of another server, in all projects that the client may use. Copies of such an
// instance are among them. An image can be deleted even if it is used.
func (i *Image) UsedBy(ctx context.Context) ([]Instance, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := i.checkExists(); err != nil {
		return nil, err
	}
	used, err := i.client.instances(ctx, func(fingerprint string) bool { return fingerprint == i.Fingerprint })
	return used[i.Fingerprint], err
}

// instances returns the instances of images, by the fingerprint of the image, in all
// projects that the client may use.
func (c *Client) instances(ctx context.Context, of func(fingerprint string) bool) (map[string][]Instance, error) {
	server, err := c.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	if server.Has("instance_all_projects") {
		found, err := c.instancesIn(ctx, url.Values{"all-projects": {"true"}}, of)
		if !errors.Is(err, ErrForbidden) {
			return found, err
		}
		// The client may use some projects only.
	}
	projects, err := c.Projects(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string][]Instance{}
	for _, project := range projects {
		found, err := c.instancesIn(ctx, url.Values{"project": {project.Name}}, of)
		if err != nil {
			return nil, fmt.Errorf("project %q: %w", project.Name, err)
		}
		for fingerprint, instances := range found {
			all[fingerprint] = append(all[fingerprint], instances...)
		}
	}
	return all, nil
}

// instancesIn returns the instances of the projects of query. Filters of the server
// cannot select those of an image: the name of the property, volatile.base_image,
// contains a dot.
func (c *Client) instancesIn(ctx context.Context, query url.Values, of func(fingerprint string) bool) (map[string][]Instance, error) {
	query.Set("recursion", "1")
	var all map[string][]Instance
	var found wire.Instance
	_, err := c.t.call(ctx, &request{method: http.MethodGet, path: path("instances"), query: query}, &list{
		begin: func() { all = map[string][]Instance{} },
		element: func(dec *jsontext.Decoder) error {
			found = wire.Instance{}
			if err := wire.UnmarshalElement(dec, &found); err != nil {
				return err
			}
			if found.Name == "" {
				return badElement(errors.New("it is not an instance: it has no name"))
			}
			if image := found.Config["volatile.base_image"]; of(image) {
				all[image] = append(all[image], Instance{Name: found.Name, Project: found.Project, Type: ImageType(found.Type), Status: found.Status, Location: found.Location})
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// InstanceSource is the source of a request that creates an instance from an image:
//
//	client.Do(ctx, "POST", "/1.0/instances", map[string]any{"name": "web1", "source": source}, nil)
//
// See [Image.InstanceSource]. It is encoded as the API documents it.
type InstanceSource struct {
	Type        string `json:"type"`                  // "image"
	Mode        string `json:"mode,omitempty"`        // "pull", from another server
	Server      string `json:"server,omitempty"`      // the URL of the other server or registry; it may contain credentials
	Protocol    string `json:"protocol,omitempty"`    // "lxd", "incus", "simplestreams" or "oci"
	Certificate string `json:"certificate,omitempty"` // of the other server, PEM
	Fingerprint string `json:"fingerprint,omitempty"`
	Alias       string `json:"alias,omitempty"`
	Secret      string `json:"secret,omitempty"` // see InstanceSource.Revoke
	// ImageRegistry is the registry of a server that allows no other sources
	// (extension image_registries).
	ImageRegistry string `json:"image_registry,omitempty"`

	secret *Secret
}

// InstanceSourceOptions say for which server an InstanceSource is.
type InstanceSourceOptions struct {
	// Target is the client of the server, and of the project, that creates the
	// instance. The default is that of the image.
	Target *Client
}

// InstanceSource returns what a request that creates an instance from the image must
// contain. On the image's own server it is the fingerprint, which is valid as long as
// the image exists. Another server fetches the image from an address of the image's
// server, and keeps it as a cached image; it must be able to connect to it. Of a private
// image the source then contains a new secret: it is valid for one instance, until the
// image's server restarts, or until it is revoked, which an unused one should be.
func (i *Image) InstanceSource(ctx context.Context, opts *InstanceSourceOptions) (*InstanceSource, error) {
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := i.checkExists(); err != nil {
		return nil, err
	}
	var o InstanceSourceOptions
	if opts != nil {
		o = *opts
	}
	target := i.client
	if o.Target != nil {
		target = o.Target
		if err := target.check(ctx); err != nil {
			return nil, err
		}
	}
	local := &InstanceSource{Type: "image", Fingerprint: i.Fingerprint}
	if target.t == i.client.t && target.Project() == i.client.Project() {
		return local, nil
	}
	switch _, err := target.Images.Get(ctx, i.Fingerprint); {
	case err == nil:
		return local, nil
	case !errors.Is(err, ErrNotFound):
		return nil, err
	}
	if i.client.Project() != "default" {
		// A request for an instance cannot name the project of its image.
		return nil, fmt.Errorf("create an instance from image %.12s of project %q elsewhere: %w; copy the image with Image.Copy first", i.Fingerprint, i.client.Project(), ErrUnsupported)
	}
	from, err := i.client.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	to, err := target.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	addresses := i.client.addresses(from)
	if len(addresses) == 0 {
		return nil, fmt.Errorf("the image's server does not listen on the network (core.https_address): %w; copy the image with Image.Copy first", ErrUnsupported)
	}
	source, secret, err := i.pullSource(ctx, addresses[0], from, to)
	if err != nil {
		return nil, err
	}
	return &InstanceSource{
		Type: source.Type, Mode: source.Mode, Server: source.Server, Protocol: source.Protocol, Certificate: source.Certificate,
		Fingerprint: source.Fingerprint, Secret: source.Secret, secret: secret,
	}, nil
}

// Revoke invalidates the secret of the source, if it has one. A used secret is no error.
func (s *InstanceSource) Revoke(ctx context.Context) error {
	if s == nil || s.secret == nil {
		return nil
	}
	return s.secret.Revoke(ctx)
}
