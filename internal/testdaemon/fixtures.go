package testdaemon

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
)

// PoolName is the storage pool of [Daemon.CreatePool].
const PoolName = "default"

// CreatePool creates a storage pool named [PoolName] with the driver "dir",
// unless it exists. In a cluster, each member gets one.
func (d *Daemon) CreatePool(ctx context.Context) error {
	err := d.Do(ctx, "GET", "/1.0/storage-pools/"+PoolName, nil, nil)
	var refusal *Error
	if !errors.As(err, &refusal) || refusal.Code != http.StatusNotFound {
		return err
	}
	pool := map[string]any{"name": PoolName, "driver": "dir"}
	for _, name := range d.members {
		if err := d.Do(ctx, "POST", "/1.0/storage-pools?target="+url.QueryEscape(name), pool, nil); err != nil {
			return err
		}
	}
	return d.Do(ctx, "POST", "/1.0/storage-pools", pool, nil)
}

// Upload creates an image in the default project from a unified tarball and
// returns its fingerprint.
func (d *Daemon) Upload(ctx context.Context, tarball io.Reader) (string, error) {
	var image struct {
		Fingerprint string `json:"fingerprint"`
	}
	err := d.Do(ctx, "POST", "/1.0/images", tarball, &image)
	return image.Fingerprint, err
}

// CreateInstance creates a stopped container from an image of the default
// project, and the storage pool if it does not exist. The container is never
// started, so the image needs nothing but its metadata.
func (d *Daemon) CreateInstance(ctx context.Context, name, fingerprint string) error {
	if err := d.CreatePool(ctx); err != nil {
		return err
	}
	return d.Do(ctx, "POST", "/1.0/instances", map[string]any{
		"name":     name,
		"type":     "container",
		"source":   map[string]any{"type": "image", "fingerprint": fingerprint},
		"profiles": []string{},
		"devices": map[string]any{
			"root": map[string]any{"type": "disk", "path": "/", "pool": PoolName},
		},
	}, nil)
}

// CreateSnapshot creates a snapshot of an instance.
func (d *Daemon) CreateSnapshot(ctx context.Context, instance, name string) error {
	return d.Do(ctx, "POST", "/1.0/instances/"+url.PathEscape(instance)+"/snapshots", map[string]any{"name": name}, nil)
}

// DeleteInstance deletes a stopped instance and its snapshots.
func (d *Daemon) DeleteInstance(ctx context.Context, name string) error {
	return d.Do(ctx, "DELETE", "/1.0/instances/"+url.PathEscape(name), nil, nil)
}

// CreateProject creates a project with its own images and profiles.
func (d *Daemon) CreateProject(ctx context.Context, name string) error {
	return d.Do(ctx, "POST", "/1.0/projects", map[string]any{
		"name": name,
		"config": map[string]string{
			"features.images":   "true",
			"features.profiles": "true",
		},
	}, nil)
}

// CreateSharedProject creates a project with the images and profiles of the default
// one.
func (d *Daemon) CreateSharedProject(ctx context.Context, name string) error {
	return d.Do(ctx, "POST", "/1.0/projects", map[string]any{
		"name": name,
		"config": map[string]string{
			"features.images":   "false",
			"features.profiles": "false",
		},
	}, nil)
}

// DeleteProject deletes an empty project.
func (d *Daemon) DeleteProject(ctx context.Context, name string) error {
	return d.Do(ctx, "DELETE", "/1.0/projects/"+url.PathEscape(name), nil, nil)
}

// CreateProfile creates an empty profile in a project; "" is the default project.
func (d *Daemon) CreateProfile(ctx context.Context, project, name string) error {
	return d.Do(ctx, "POST", "/1.0/profiles"+projectQuery(project), map[string]any{"name": name}, nil)
}

// DeleteProfile deletes a profile from a project; "" is the default project.
func (d *Daemon) DeleteProfile(ctx context.Context, project, name string) error {
	return d.Do(ctx, "DELETE", "/1.0/profiles/"+url.PathEscape(name)+projectQuery(project), nil, nil)
}

func projectQuery(project string) string {
	if project == "" {
		return ""
	}
	return "?project=" + url.QueryEscape(project)
}
