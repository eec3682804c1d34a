package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/golxd/lxd/internal/wire"
)

// Registry is a source of images that a server knows by name.
type Registry struct {
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Protocol    string            `json:"protocol"` // "simplestreams" or "lxd"
	Public      bool              `json:"public"`
	Builtin     bool              `json:"builtin"`
	Config      map[string]string `json:"config"` // "url" among others
}

// Registries manages the image registries of a server. On servers without the
// extension image_registries (LXD before 6.9, Incus) its calls fail with
// [ErrUnsupported].
type Registries struct {
	client *Client
}

func (r *Registries) need(ctx context.Context) error {
	return r.client.need(ctx, "image registries", "image_registries")
}

// All returns all registries.
func (r *Registries) All(ctx context.Context) ([]Registry, error) {
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	if err := r.need(ctx); err != nil {
		return nil, err
	}
	req := &request{method: http.MethodGet, path: path("image-registries"), query: url.Values{"recursion": {"1"}}}
	return getAll(ctx, r.client.t, req, func(registry *Registry) error { return registry.check("") })
}

// check checks that a response is a registry, and has the requested name; ""
// allows any.
func (r *Registry) check(want string) error {
	switch {
	case r.Name == "":
		return errors.New("it is not an image registry: it has no name")
	case want != "" && r.Name != want:
		return fmt.Errorf("it is image registry %.80q, not %q", r.Name, want)
	}
	return nil
}

// Get returns one registry. If there is none of that name, the error matches
// [ErrNotFound].
func (r *Registries) Get(ctx context.Context, name string) (*Registry, error) {
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	if name == "" {
		return nil, invalid("registry", "is empty")
	}
	if err := r.need(ctx); err != nil {
		return nil, err
	}
	req := &request{method: http.MethodGet, path: path("image-registries", name)}
	registry, _, err := get(ctx, r.client.t, req, func(registry *Registry) error { return registry.check(name) })
	return registry, err
}

// Create creates a registry; Name, Protocol and Config["url"] must be set.
func (r *Registries) Create(ctx context.Context, registry Registry) error {
	if err := r.check(ctx); err != nil {
		return err
	}
	switch {
	case registry.Name == "":
		return invalid("Registry.Name", "is empty")
	case registry.Protocol == "":
		return invalid("Registry.Protocol", "is empty")
	case registry.Config["url"] == "":
		return invalid(`Registry.Config["url"]`, "is empty")
	}
	if err := r.need(ctx); err != nil {
		return err
	}
	return r.change(ctx, &request{method: http.MethodPost, path: path("image-registries"), body: &jsonBody{&wire.ImageRegistry{
		Name: registry.Name, Description: registry.Description, Protocol: registry.Protocol, Config: registry.Config,
	}}})
}

// change sends a request to which LXD 6.9 responds when the change is made, and
// its successors with an operation.
func (r *Registries) change(ctx context.Context, req *request) error {
	req.expect = expectEither
	resp, err := r.client.t.call(ctx, req, nil)
	if err != nil || resp.Type == wire.TypeSync {
		return err
	}
	id, _, _ := strings.Cut(resp.Operation[strings.LastIndexByte(resp.Operation, '/')+1:], "?")
	return r.client.operation(wire.Operation{ID: id}, nil, nil).Wait(ctx)
}

// Delete deletes a registry, not the images that came from it.
func (r *Registries) Delete(ctx context.Context, name string) error {
	if err := r.check(ctx); err != nil {
		return err
	}
	if name == "" {
		return invalid("registry", "is empty")
	}
	if err := r.need(ctx); err != nil {
		return err
	}
	err := r.change(ctx, &request{method: http.MethodDelete, path: path("image-registries", name)})
	if errors.Is(err, errDeletedBefore) {
		return nil
	}
	return err
}

// withURL returns the name of the simplestreams registry of a URL; "" if there
// is none.
func (r *Registries) withURL(ctx context.Context, server string) (name string, err error) {
	all, err := r.All(ctx)
	if err != nil {
		return "", err
	}
	for _, registry := range all {
		if registry.Protocol == "simplestreams" && strings.TrimRight(registry.Config["url"], "/") == strings.TrimRight(server, "/") {
			return registry.Name, nil
		}
	}
	return "", nil
}
