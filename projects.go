package lxd

import (
	"context"
	"errors"
	"net/http"
	"net/url"
)

// Project is a project of a server. See [Client.InProject].
type Project struct {
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Config      map[string]string `json:"config"`
}

// OwnImages reports whether the project has images of its own. Otherwise it uses
// those of the project "default" (features.images=false).
func (p *Project) OwnImages() bool {
	return p != nil && (p.Name == "default" || p.Config["features.images"] == "true")
}

// Projects returns the projects that this client may use. Every LXD from 4.0 and every
// Incus has at least the project "default".
func (c *Client) Projects(ctx context.Context) ([]Project, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	req := &request{method: http.MethodGet, path: path("projects"), query: url.Values{"recursion": {"1"}}}
	return getAll(ctx, c.t, req, func(p *Project) error {
		if p.Name == "" {
			return errors.New("it is not a project: it has no name")
		}
		return nil
	})
}
