package lxd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// AddAlias adds an alias to the image. If the image has it, it succeeds, and sets the
// description unless it is empty. If another image has it, the error matches
// [ErrExists]; see SetAlias.
func (i *Image) AddAlias(ctx context.Context, name, description string) error {
	aliases := i.aliases()
	return i.changeAlias(ctx, name, description, func(ctx context.Context, alias Alias) (Alias, error) {
		err := aliases.Create(ctx, alias)
		if !errors.Is(err, ErrExists) {
			return alias, err
		}
		existing, etag, gerr := aliases.get(ctx, name)
		switch {
		case gerr != nil || existing.Target != strings.ToLower(alias.Target):
			return alias, err
		case description == "" || description == existing.Description:
			return existing, nil
		}
		return alias, aliases.put(ctx, name, alias, etag)
	})
}

// SetAlias makes the alias point to this image, whether it is new or points to
// another one. An empty description keeps that of an existing alias.
func (i *Image) SetAlias(ctx context.Context, name, description string) error {
	return i.changeAlias(ctx, name, description, i.aliases().set)
}

func (i *Image) changeAlias(ctx context.Context, name, description string, change func(context.Context, Alias) (Alias, error)) error {
	if err := i.checkExists(); err != nil {
		return err
	}
	alias, err := change(ctx, Alias{Name: name, Description: description, Target: i.Fingerprint})
	if err != nil {
		return err
	}
	i.Aliases = slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == name })
	i.setAliases(append(i.Aliases, Alias{Name: name, Description: alias.Description}))
	return nil
}

// setAliases sets Aliases to what the server has.
func (i *Image) setAliases(aliases []Alias) {
	i.Aliases = aliases
	if i.fixed != (fixed{}) {
		i.fixed.aliases = i.fixedFields().aliases
	}
}

// DeleteAlias deletes an alias of the image. If there is no alias of that name,
// the error matches [ErrNotFound]; if it points to another image, [ErrConflict]. The
// daemons delete without a condition: an alias that somebody else moves between the
// look and the deletion is deleted too.
func (i *Image) DeleteAlias(ctx context.Context, name string) error {
	if err := i.check(); err != nil {
		return err
	}
	alias, err := i.aliases().Get(ctx, name)
	if err != nil {
		return err
	}
	if alias.Target != i.Fingerprint {
		return fmt.Errorf("alias %q points to image %.12s, not %.12s: %w", name, alias.Target, i.Fingerprint, ErrConflict)
	}
	if err := i.aliases().Delete(ctx, name); err != nil {
		return err
	}
	i.setAliases(slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == name }))
	return nil
}

func (i *Image) aliases() *Aliases {
	if i == nil || i.client == nil {
		return &Aliases{} // unused: check returns an error first
	}
	return i.client.Aliases
}
