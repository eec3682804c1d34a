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

// Alias is a name for an image. A name stands for one image of a project: a
// container's and a virtual machine's image cannot share one (LXD 5.0.2 and
// Incus 6.0.4 refuse the second with ErrExists), other than the aliases of a
// simplestreams server.
type Alias struct {
	// Name may hold any character, also "/", "?", "#", "%" and space.
	Name        string `json:"name"`
	Description string `json:"description"`
	// Target is the fingerprint that the alias stands for. It is empty in
	// Image.Aliases, and where an alias is asked for.
	Target string `json:"target,omitempty"`
	// Type is container or virtual-machine. It is empty in Image.Aliases.
	Type ImageType `json:"type,omitempty"`
}

// Aliases manages the names of the images of a client's project.
type Aliases struct {
	client *Client
}

func (a *Aliases) path(name ...string) string {
	return path(append([]string{"images", "aliases"}, name...)...)
}

// All lists the aliases.
func (a *Aliases) All(ctx context.Context) ([]Alias, error) {
	query := url.Values{"recursion": {"1"}}
	for name, values := range a.client.query() {
		query[name] = values
	}
	return getAll(ctx, a.client.t, &request{method: http.MethodGet, path: a.path(), query: query}, func(alias *Alias) error {
		return alias.hold("")
	})
}

// hold checks that what a server sent is an alias, and the one of the name that
// was asked for; "" is any.
func (a *Alias) hold(asked string) error {
	a.Target = strings.ToLower(a.Target)
	switch {
	case a.Name == "":
		return errors.New("it is not an alias: it has no name")
	case asked != "" && a.Name != asked:
		return fmt.Errorf("it is alias %.80q, not %q", a.Name, asked)
	}
	if err := holdFingerprint(a.Target); err != nil {
		return fmt.Errorf("the target of alias %.80q: %w", a.Name, err)
	}
	return nil
}

// Get reads one alias. It is an [ErrNotFound] if there is none of that name.
func (a *Aliases) Get(ctx context.Context, name string) (Alias, error) {
	alias, _, err := a.get(ctx, name)
	return alias, err
}

func (a *Aliases) get(ctx context.Context, name string) (Alias, string, error) {
	if err := checkAlias("alias", name); err != nil {
		return Alias{}, "", err
	}
	req := &request{method: http.MethodGet, path: a.path(name), query: a.client.query()}
	alias, ans, err := get(ctx, a.client.t, req, func(alias *Alias) error { return alias.hold(name) })
	if err != nil {
		return Alias{}, "", err
	}
	return *alias, ans.etag, nil
}

// Create makes an alias; Name and Target must be set. It is an [ErrExists] if
// there is one of that name.
func (a *Aliases) Create(ctx context.Context, alias Alias) error {
	if err := checkAlias("Alias.Name", alias.Name); err != nil {
		return err
	}
	if err := checkFingerprint("Alias.Target", alias.Target); err != nil {
		return err
	}
	_, err := a.client.t.call(ctx, &request{
		method: http.MethodPost, path: a.path(), query: a.client.query(),
		body: &jsonBody{wire.Alias{Name: alias.Name, Description: alias.Description, Target: alias.Target, Type: string(alias.Type)}},
	}, nil)
	return err
}

// Update changes an alias: fn receives it as it is now, and changes its
// Description or Target. The change is lost by nobody: if somebody else changes
// the alias in between, the error is an [ErrConflict].
func (a *Aliases) Update(ctx context.Context, name string, fn func(*Alias)) error {
	alias, etag, err := a.get(ctx, name)
	if err != nil {
		return err
	}
	fn(&alias)
	return a.put(ctx, name, alias, etag)
}

func (a *Aliases) put(ctx context.Context, name string, alias Alias, etag string) error {
	if err := checkFingerprint("Alias.Target", alias.Target); err != nil {
		return err
	}
	req := &request{
		method: http.MethodPut, path: a.path(name), query: a.client.query(),
		body: &jsonBody{wire.Alias{Description: alias.Description, Target: alias.Target}},
	}
	if etag != "" {
		req.header = http.Header{"If-Match": {etag}}
	}
	_, err := a.client.t.call(ctx, req, nil)
	return err
}

// Set makes an alias, or moves the one of that name to the target.
func (a *Aliases) Set(ctx context.Context, alias Alias) error {
	if err := checkAlias("Alias.Name", alias.Name); err != nil {
		return err
	}
	// Most often it is there already: that is what Set is for.
	err := a.put(ctx, alias.Name, alias, "")
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	// Not found may be the target too; creating tells, and is right otherwise.
	err = a.Create(ctx, alias)
	if errors.Is(err, ErrExists) {
		// Somebody else made it in between.
		return a.put(ctx, alias.Name, alias, "")
	}
	return err
}

// Rename gives an alias another name. It is an [ErrExists] if that is taken.
func (a *Aliases) Rename(ctx context.Context, name, newName string) error {
	if err := checkAlias("alias", name); err != nil {
		return err
	}
	if err := checkAlias("new alias", newName); err != nil {
		return err
	}
	_, err := a.client.t.call(ctx, &request{
		method: http.MethodPost, path: a.path(name), query: a.client.query(), body: &jsonBody{wire.Rename{Name: newName}},
	}, nil)
	return err
}

// Delete removes an alias, not the image.
func (a *Aliases) Delete(ctx context.Context, name string) error {
	if err := checkAlias("alias", name); err != nil {
		return err
	}
	_, err := a.client.t.call(ctx, &request{method: http.MethodDelete, path: a.path(name), query: a.client.query()}, nil)
	if errors.Is(err, errDeletedBefore) {
		return nil
	}
	return err
}

// checkFree errors where one of the names stands for another image than the
// one that is to get it. An empty fingerprint is any image.
func (a *Aliases) checkFree(ctx context.Context, aliases []Alias, fingerprint string) error {
	for _, want := range aliases {
		is, err := a.Get(ctx, want.Name)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return err
		case fingerprint == "" || is.Target != fingerprint:
			return fmt.Errorf("alias %q stands for image %.12s: %w: set ReuseAliases to move it", want.Name, is.Target, ErrExists)
		}
	}
	return nil
}

// assign makes the names stand for the image: moved there if reuse is set.
func (a *Aliases) assign(ctx context.Context, aliases []Alias, fingerprint string, reuse bool) error {
	for _, want := range aliases {
		want.Target = fingerprint
		want.Type = ""
		if reuse {
			if err := a.Set(ctx, want); err != nil {
				return fmt.Errorf("set alias %q: %w", want.Name, err)
			}
			continue
		}
		err := a.Create(ctx, want)
		if errors.Is(err, ErrExists) {
			if is, gerr := a.Get(ctx, want.Name); gerr == nil && is.Target == fingerprint {
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("add alias %q: %w", want.Name, err)
		}
	}
	return nil
}

func wireAliases(aliases []Alias) []wire.Alias {
	out := make([]wire.Alias, len(aliases))
	for i, a := range aliases {
		out[i] = wire.Alias{Name: a.Name, Description: a.Description}
	}
	return out
}
