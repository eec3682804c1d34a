package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/golxd/lxd"
)

// controller keeps the servers in step.
type controller struct {
	*config
	log     *slog.Logger
	metrics *metrics

	settle         time.Duration // from a change that was watched to its repair
	pause, longest time.Duration // from a failure to the first, and to any further retry
	patience       time.Duration // with a server that does not respond

	changed chan struct{} // a watch has seen a change of an alias
	mu      sync.Mutex    // guards server.has and alias.wanted
}

func newController(conf *config, log *slog.Logger) *controller {
	c := &controller{
		config: conf, log: log, changed: make(chan struct{}, 1),
		settle: 2 * time.Second, pause: time.Second, longest: time.Minute, patience: 5 * time.Second,
	}
	c.metrics = newMetrics(c)
	return c
}

// run makes passes until ctx ends: a full one each interval, and one of what failed or was
// changed in between.
func (c *controller) run(ctx context.Context) {
	var watches sync.WaitGroup
	defer watches.Wait()
	for _, s := range c.Servers {
		watches.Go(func() { c.watch(ctx, s) })
	}
	interval := time.NewTicker(c.Interval)
	defer interval.Stop()
	pause := c.pause
	for full := true; ctx.Err() == nil; {
		var retry <-chan time.Time
		if err := c.pass(ctx, full); err == nil {
			pause = c.pause
		} else {
			retry = time.After(pause)
			pause = min(2*pause, c.longest)
		}
		full = false
		select {
		case <-ctx.Done():
		case <-interval.C:
			full = true
		case <-retry:
		case <-c.changed:
			wait(ctx, c.settle) // changes in short succession are repaired together
		}
	}
}

// wait waits until the time is over, or ctx has ended.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// pass brings all aliases to all servers if it is full, else those aliases of which the
// last pass failed, or which servers do not have any more.
func (c *controller) pass(ctx context.Context, full bool) error {
	var due []*alias
	for _, a := range c.Aliases {
		if full || a.failed || slices.ContainsFunc(c.Servers, func(s *server) bool { return c.drifted(s, a) }) {
			due = append(due, a)
		}
	}
	if len(due) == 0 {
		return nil
	}
	began := time.Now()
	up, down := c.reach(ctx)
	var errs []error
	for _, a := range due {
		err := c.bring(ctx, a, up, full)
		if a.failed = err != nil || down != nil; a.failed {
			errs = append(errs, err)
			continue
		}
		c.metrics.lastSuccess.WithLabelValues(a.Name).SetToCurrentTime()
	}
	c.log.Info("pass", "full", full, "aliases", len(due), "servers", len(up), "failed", len(errs), "took", time.Since(began).Round(time.Millisecond))
	return errors.Join(append(errs, down)...)
}

// reach returns the servers that respond and trust this client, and why the others do not.
func (c *controller) reach(ctx context.Context) (up []*server, down error) {
	reached := make([]bool, len(c.Servers))
	down = c.each(ctx, c.Servers, "connect", func(n int, s *server) error {
		limited, cancel := context.WithTimeout(ctx, c.patience)
		defer cancel()
		trusted, err := s.client.Trusted(limited)
		if err == nil && !trusted {
			err = errors.New("the server does not trust this client")
		}
		up := 0.0
		if reached[n] = err == nil; reached[n] {
			up = 1
		}
		if ctx.Err() == nil {
			c.metrics.up.WithLabelValues(s.Name).Set(up)
		}
		return err
	})
	for n, s := range c.Servers {
		if reached[n] {
			up = append(up, s)
		}
	}
	return up, down
}

// bring brings the image of an alias to the servers.
func (c *controller) bring(ctx context.Context, a *alias, up []*server, full bool) error {
	if len(up) == 0 {
		return fmt.Errorf("alias %q: no server responds", a.Name)
	}
	var image *lxd.Image
	var source *server // of the others
	var err error
	if !full && a.ensured {
		image, source = c.find(ctx, a, up)
	}
	if image == nil {
		image, source, err = c.ensure(ctx, a, up)
	}
	if image == nil {
		return err
	}
	c.mu.Lock()
	a.wanted = image.Fingerprint
	targets := slices.DeleteFunc(slices.Clone(up), func(s *server) bool {
		return s == source || !full && s.has[a.Name] == a.wanted
	})
	c.mu.Unlock()
	err = errors.Join(err, c.distribute(ctx, a, image, targets))
	if a.Keep > 0 && ctx.Err() == nil {
		err = errors.Join(err, c.prune(ctx, a, up))
	}
	return err
}

// ensure gives one server the image of the source. If that fails, the image is the one
// that the servers have.
func (c *controller) ensure(ctx context.Context, a *alias, up []*server) (*lxd.Image, *server, error) {
	seed := up[a.seed%len(up)]
	ensured, err := seed.client.Images.Ensure(ctx, a.source, a.ensureOptions())
	if a.ensured = err == nil; a.ensured {
		for _, change := range ensured.Changes {
			c.log.Info("ensured", "server", seed.Name, "alias", a.Name, "change", change.String())
		}
		return ensured.Image, seed, nil
	}
	a.seed++ // it may be the server's fault
	err = c.failure(ctx, seed, "ensure", a.wrap(err))
	image, source := c.find(ctx, a, up)
	return image, source, err
}

// find returns the image that the alias has on the first server that is in step; before
// the first pass, on the first server that has the alias.
func (c *controller) find(ctx context.Context, a *alias, up []*server) (*lxd.Image, *server) {
	for _, s := range up {
		image, err := s.client.Images.GetByAlias(ctx, a.Name)
		if err == nil && (a.wanted == "" || image.Fingerprint == a.wanted) {
			return image, s
		}
	}
	return nil, nil
}

// distribute brings the image to the targets.
func (c *controller) distribute(ctx context.Context, a *alias, image *lxd.Image, targets []*server) error {
	var errs []error
	for d, err := range image.Distribute(ctx, clients(targets), a.distributeOptions(image)) {
		if d.Target == nil {
			return a.wrap(err) // the call itself is wrong
		}
		s := targets[d.Index]
		if err != nil {
			errs = append(errs, c.failure(ctx, s, "distribute", a.wrap(err)))
		}
		if d.Mode != "" && d.SameAs == nil {
			c.metrics.transferred(s, d)
			c.log.Info("distributed", "server", s.Name, "alias", a.Name, "image", image.Fingerprint[:12], "mode", d.Mode,
				"source", c.name(d.Source), "bytes", d.Bytes, "took", d.Took.Round(time.Millisecond))
		}
	}
	return errors.Join(errs...)
}

// prune deletes the images that the alias had before, but for the newest.
func (c *controller) prune(ctx context.Context, a *alias, up []*server) error {
	return c.each(ctx, up, "prune", func(_ int, s *server) error {
		pruned, err := s.client.Images.Prune(ctx, a.pruneOptions())
		if pruned != nil {
			for _, image := range pruned.Deleted {
				c.log.Info("deleted", "server", s.Name, "alias", a.Name, "image", image.String())
			}
		}
		if err != nil {
			return a.wrap(err)
		}
		return nil
	})
}

// each calls f for all servers at the same time, and joins their failures in a step.
func (c *controller) each(ctx context.Context, servers []*server, step string, f func(n int, s *server) error) error {
	errs := make([]error, len(servers))
	var all sync.WaitGroup
	for n, s := range servers {
		all.Go(func() {
			if err := f(n, s); err != nil {
				errs[n] = c.failure(ctx, s, step, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// failure returns the error of a step. It logs and counts it, unless the program ends.
func (c *controller) failure(ctx context.Context, s *server, step string, err error) error {
	if ctx.Err() == nil {
		c.metrics.failures.WithLabelValues(s.Name, step).Inc()
		c.log.Error("failed", "server", s.Name, "step", step, "error", err)
	}
	return fmt.Errorf("server %q: %s: %w", s.Name, step, err)
}

// name returns the name of a client's server.
func (c *controller) name(client *lxd.Client) string {
	for _, s := range c.Servers {
		if s.client == client {
			return s.Name
		}
	}
	return client.Endpoint()
}

func clients(servers []*server) []*lxd.Client {
	list := make([]*lxd.Client, len(servers))
	for n, s := range servers {
		list[n] = s.client
	}
	return list
}
