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

// Alias is a name of an image. A name points to one image of a project: a
// container's and a virtual machine's image cannot share one (LXD 5.0.2 and
// Incus 6.0.4 refuse the second with ErrExists), unlike the aliases of a
// simplestreams server.
type Alias struct {
	// Name may contain any character, even "/", "?", "#", "%" and space.
	Name        string `json:"name"`
	Description string `json:"description"`
	// Target is the fingerprint of the image. It is empty in Image.Aliases, and
	// ignored in options such as CreateOptions.Aliases.
	Target string `json:"target,omitempty"`
	// Type is "container" or "virtual-machine". It is empty in Image.Aliases.
	Type ImageType `json:"type,omitempty"`
}

// Aliases manages the image aliases of a client's project.
type Aliases struct {
	client *Client
}

func (a *Aliases) path(name ...string) string {
	return path(append([]string{"images", "aliases"}, name...)...)
}

// All returns all aliases.
func (a *Aliases) All(ctx context.Context) ([]Alias, error) {
	if err := a.check(ctx); err != nil {
		return nil, err
	}
	query := url.Values{"recursion": {"1"}}
	for name, values := range a.client.query() {
		query[name] = values
	}
	return getAll(ctx, a.client.t, &request{method: http.MethodGet, path: a.path(), query: query}, func(alias *Alias) error {
		return alias.check("")
	})
}

// check checks that a response is an alias, and has the requested name; "" allows
// any.
func (a *Alias) check(want string) error {
	a.Target = strings.ToLower(a.Target)
	switch {
	case a.Name == "":
		return errors.New("it is not an alias: it has no name")
	case want != "" && a.Name != want:
		return fmt.Errorf("it is alias %.80q, not %q", a.Name, want)
	}
	if err := checkServerFingerprint(a.Target); err != nil {
		return fmt.Errorf("the target of alias %.80q: %w", a.Name, err)
	}
	return nil
}

// Get returns one alias. If there is none of that name, the error matches
// [ErrNotFound].
func (a *Aliases) Get(ctx context.Context, name string) (Alias, error) {
	if err := a.check(ctx); err != nil {
		return Alias{}, err
	}
	alias, _, err := a.get(ctx, name)
	return alias, err
}

func (a *Aliases) get(ctx context.Context, name string) (Alias, string, error) {
	if err := checkAlias("alias", name); err != nil {
		return Alias{}, "", err
	}
	req := &request{method: http.MethodGet, path: a.path(name), query: a.client.query()}
	alias, resp, err := get(ctx, a.client.t, req, func(alias *Alias) error { return alias.check(name) })
	if err != nil {
		return Alias{}, "", err
	}
	return *alias, resp.etag, nil
}

// Create creates an alias; Name and Target must be set. If the name is taken, the
// error matches [ErrExists]. If the response is lost, Create looks whether the alias
// was created.
func (a *Aliases) Create(ctx context.Context, alias Alias) error {
	if err := a.check(ctx); err != nil {
		return err
	}
	if err := checkAlias("Alias.Name", alias.Name); err != nil {
		return err
	}
	if err := checkFingerprint("Alias.Target", alias.Target); err != nil {
		return err
	}
	alias.Target = strings.ToLower(alias.Target)
	err := a.post(ctx, alias)
	if err == nil || !maybeSeen(err) {
		return err
	}
	existing, gerr := a.Get(ctx, alias.Name)
	if isMissing(gerr) && a.client.t.retry.Timeout >= 0 {
		if err = a.post(ctx, alias); errors.Is(err, ErrExists) {
			// The first request has arrived later.
			existing, gerr = a.Get(ctx, alias.Name)
		}
	}
	if err != nil && gerr == nil && existing.Target == alias.Target && existing.Description == alias.Description {
		return nil
	}
	return err
}

// post sends the request that creates an alias.
func (a *Aliases) post(ctx context.Context, alias Alias) error {
	_, err := a.client.t.call(ctx, &request{
		method: http.MethodPost, path: a.path(), query: a.client.query(),
		body: &jsonBody{wire.Alias{Name: alias.Name, Description: alias.Description, Target: alias.Target, Type: string(alias.Type)}},
	}, nil)
	return err
}

// Update changes an alias: fn receives its current state, and changes its
// Description or Target; a change of Name or Type is an [*InputError]. If the alias is
// seen to be changed by somebody else in between, nothing is written and the error
// matches [ErrConflict]; see [Image.Update] for what the daemons cannot see.
func (a *Aliases) Update(ctx context.Context, name string, fn func(*Alias)) error {
	if err := a.check(ctx); err != nil {
		return err
	}
	if fn == nil {
		return invalid("fn", "is nil")
	}
	alias, etag, err := a.get(ctx, name)
	if err != nil {
		return err
	}
	before := alias
	fn(&alias)
	switch {
	case alias.Name != before.Name:
		return invalid("Alias.Name", "was changed, which Update does not send; use Rename")
	case alias.Type != before.Type:
		return invalid("Alias.Type", "was changed, but it is that of the image")
	}
	return a.put(ctx, name, alias, etag)
}

// put sends the request that changes an alias. If the response is lost, it looks
// whether the alias was changed.
func (a *Aliases) put(ctx context.Context, name string, alias Alias, etag string) error {
	if err := checkFingerprint("Alias.Target", alias.Target); err != nil {
		return err
	}
	req := &request{
		method: http.MethodPut, path: a.path(name), query: a.client.query(),
		body: &jsonBody{wire.Alias{Description: alias.Description, Target: strings.ToLower(alias.Target)}},
	}
	if etag != "" {
		req.header = http.Header{"If-Match": {etag}}
	}
	_, err := a.client.t.call(ctx, req, nil)
	if maybeSeen(err) {
		now, gerr := a.Get(ctx, name)
		if gerr == nil && strings.EqualFold(now.Target, alias.Target) && now.Description == alias.Description {
			return nil
		}
	}
	return err
}

// Set creates an alias, or makes an existing one point to Target. An empty Description
// keeps that of an existing alias; Update can remove it.
func (a *Aliases) Set(ctx context.Context, alias Alias) error {
	_, err := a.set(ctx, alias)
	return err
}

// set does Set, and returns the alias as it is then.
func (a *Aliases) set(ctx context.Context, alias Alias) (Alias, error) {
	if err := a.check(ctx); err != nil {
		return Alias{}, err
	}
	if err := checkAlias("Alias.Name", alias.Name); err != nil {
		return Alias{}, err
	}
	if err := checkFingerprint("Alias.Target", alias.Target); err != nil {
		return Alias{}, err
	}
	// Most calls move an existing alias, so try that first.
	moved, err := a.move(ctx, alias)
	if !errors.Is(err, ErrNotFound) {
		return moved, err
	}
	// The alias or its target is missing; if it is the target, Create fails too.
	err = a.Create(ctx, alias)
	if errors.Is(err, ErrExists) {
		// Somebody else created it in between.
		return a.move(ctx, alias)
	}
	return alias, err
}

// move changes an existing alias. Without a description, it reads the existing one, and
// does so again after a conflict, until the retry timeout has passed.
func (a *Aliases) move(ctx context.Context, alias Alias) (Alias, error) {
	if alias.Description != "" {
		return alias, a.put(ctx, alias.Name, alias, "")
	}
	retries := a.client.t.retry.Begin()
	for {
		existing, etag, err := a.get(ctx, alias.Name)
		if err != nil {
			return Alias{}, err
		}
		target := existing.Target
		if existing.Target = strings.ToLower(alias.Target); existing.Target == target {
			return existing, nil
		}
		err = a.put(ctx, alias.Name, existing, etag)
		if !errors.Is(err, ErrConflict) {
			return existing, err
		}
		if err := retries.Pause(ctx, err); err != nil {
			return Alias{}, err
		}
	}
}

// Rename changes the name of an alias. If the new name is taken, the error matches
// [ErrExists]. If the response is lost, Rename looks whether the alias was renamed. LXD
// 5.0.2 takes 10 seconds for it.
func (a *Aliases) Rename(ctx context.Context, name, newName string) error {
	if err := a.check(ctx); err != nil {
		return err
	}
	if err := checkAlias("alias", name); err != nil {
		return err
	}
	if err := checkAlias("new alias", newName); err != nil {
		return err
	}
	before, err := a.Get(ctx, name)
	if err != nil {
		return err
	}
	_, err = a.client.t.call(ctx, &request{
		method: http.MethodPost, path: a.path(name), query: a.client.query(), body: &jsonBody{wire.Rename{Name: newName}},
	}, nil)
	if maybeSeen(err) {
		now, nerr := a.Get(ctx, newName)
		if _, oerr := a.Get(ctx, name); nerr == nil && isMissing(oerr) && now.Target == before.Target {
			return nil
		}
	}
	return err
}

// Delete deletes an alias, not the image.
func (a *Aliases) Delete(ctx context.Context, name string) error {
	if err := a.check(ctx); err != nil {
		return err
	}
	if err := checkAlias("alias", name); err != nil {
		return err
	}
	_, err := a.client.t.call(ctx, &request{method: http.MethodDelete, path: a.path(name), query: a.client.query()}, nil)
	if errors.Is(err, errDeletedBefore) {
		return nil
	}
	return err
}

// checkFree returns ErrExists if one of the aliases points to another image than
// that of the fingerprint. If that is empty and an alias exists, find determines it;
// if it cannot, the alias is not an error.
func (a *Aliases) checkFree(ctx context.Context, aliases []Alias, fingerprint string, find func() (string, error)) error {
	for _, want := range aliases {
		existing, err := a.Get(ctx, want.Name)
		if isMissing(err) {
			continue
		}
		if err == nil && fingerprint == "" && find != nil {
			fingerprint, err = find()
			find = nil
		}
		switch {
		case err != nil:
			return err
		case fingerprint != "" && existing.Target != fingerprint:
			return fmt.Errorf("alias %q points to image %.12s: %w: set ReuseAliases to move it", want.Name, existing.Target, ErrExists)
		}
	}
	return nil
}

// assign creates the aliases for an image. With reuse, it moves those that
// exist.
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
			if existing, gerr := a.Get(ctx, want.Name); gerr == nil && existing.Target == fingerprint {
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
