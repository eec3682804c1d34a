package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/golxd/lxd"
)

// plan prints what a full pass would change.
func (c *controller) plan(ctx context.Context, out io.Writer) error {
	up, down := c.reach(ctx)
	if len(up) == 0 {
		return down
	}
	errs := []error{down}
	for _, a := range c.Aliases {
		errs = append(errs, c.planAlias(ctx, out, a, up[0], up[1:]))
		if a.Keep == 0 {
			continue
		}
		for _, s := range up {
			o := a.pruneOptions()
			o.DryRun = true
			pruned, err := s.client.Images.Prune(ctx, o)
			if err != nil {
				errs = append(errs, c.failure(ctx, s, "prune", a.wrap(err)))
				continue
			}
			for _, image := range pruned.Deleted {
				fmt.Fprintf(out, "%s: delete %s\n", s.Name, image)
			}
		}
	}
	return errors.Join(errs...)
}

// planAlias prints what would be brought to the servers.
func (c *controller) planAlias(ctx context.Context, out io.Writer, a *alias, seed *server, others []*server) error {
	o := a.ensureOptions()
	o.DryRun = true
	ensured, err := seed.client.Images.Ensure(ctx, a.source, o)
	if err != nil {
		return c.failure(ctx, seed, "ensure", a.wrap(err))
	}
	for _, change := range ensured.Changes {
		fmt.Fprintf(out, "%s: %s\n", seed.Name, change)
	}
	image := ensured.Image
	if image == nil { // it would be created
		for _, s := range others {
			fmt.Fprintf(out, "%s: bring the new image to alias %q\n", s.Name, a.Name)
		}
		return nil
	}
	var errs []error
	if o.Public != nil {
		image.Public = *o.Public
	}
	maps.Copy(image.Properties, o.Properties)
	do := a.distributeOptions(image)
	do.DryRun = true
	for d, err := range image.Distribute(ctx, clients(others), do) {
		if d.Target == nil {
			return a.wrap(err)
		}
		s := others[d.Index]
		if err != nil {
			errs = append(errs, c.failure(ctx, s, "distribute", a.wrap(err)))
			continue
		}
		if d.Mode != "" && d.SameAs == nil {
			fmt.Fprintf(out, "%s: copy image %.12s from %s (%s)\n", s.Name, image.Fingerprint, c.name(d.Source), d.Mode)
		}
		if d.Image != nil && (d.Image.Public != image.Public || !maps.Equal(d.Image.Properties, image.Properties)) {
			fmt.Fprintf(out, "%s: update image %.12s\n", s.Name, image.Fingerprint)
		}
		old, err := s.client.Aliases.Get(ctx, a.Name)
		switch {
		case errors.Is(err, lxd.ErrNotFound):
			fmt.Fprintf(out, "%s: create alias %q for image %.12s\n", s.Name, a.Name, image.Fingerprint)
		case err != nil:
			errs = append(errs, c.failure(ctx, s, "distribute", a.wrap(err)))
		case old.Target != image.Fingerprint:
			fmt.Fprintf(out, "%s: move alias %q from image %.12s to image %.12s\n", s.Name, a.Name, old.Target, image.Fingerprint)
		}
	}
	return errors.Join(errs...)
}
