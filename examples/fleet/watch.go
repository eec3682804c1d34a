package main

import (
	"context"
	"maps"
	"slices"

	"github.com/golxd/lxd"
)

// watch notes what the aliases are on a server, until ctx ends.
func (c *controller) watch(ctx context.Context, s *server) {
	for pause := c.pause; ctx.Err() == nil; pause = min(2*pause, c.longest) {
		has, synced := map[string]string{}, false
		for change, err := range s.client.Images.Watch(ctx, nil) {
			if err != nil {
				_ = c.failure(ctx, s, "watch", err)
				break
			}
			changed := c.follow(has, change)
			if change.Kind == lxd.ImagesSynced {
				synced, changed, pause = true, true, c.pause
			}
			if synced && changed {
				c.note(s, has)
			}
		}
		c.note(s, nil)
		wait(ctx, pause)
	}
}

// follow applies a change to the aliases of a server, and reports whether it changes one of
// the file.
func (c *controller) follow(has map[string]string, change lxd.ImageChange) bool {
	changed := false
	for _, a := range c.Aliases {
		now := has[a.Name]
		switch {
		case change.Image != nil && hasAlias(change.Image, a.Name):
			now = change.Image.Fingerprint
		case change.Image != nil && change.Image.Fingerprint == now, change.Kind == lxd.ImageRemoved && change.Former.Fingerprint == now:
			now = ""
		}
		if now != has[a.Name] {
			has[a.Name], changed = now, true
		}
	}
	return changed
}

func hasAlias(image *lxd.Image, name string) bool {
	return slices.ContainsFunc(image.Aliases, func(a lxd.Alias) bool { return a.Name == name })
}

// note notes what the aliases are on a server now, and wakes run.
func (c *controller) note(s *server, has map[string]string) {
	c.mu.Lock()
	s.has = maps.Clone(has)
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// drifted reports whether a server is known not to have what the last pass has brought.
func (c *controller) drifted(s *server, a *alias) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.has != nil && s.has[a.Name] != a.wanted
}

// inStep returns how many aliases of a server are in step.
func (c *controller) inStep(s *server) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.Aliases {
		if a.wanted != "" && s.has[a.Name] == a.wanted {
			n++
		}
	}
	return n
}
