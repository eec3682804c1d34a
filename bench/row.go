package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// row is one kind of work and those who do it. The first contender is package
// lxd.
type row struct {
	name       string
	note       string
	runs       int   // in place of 5, of the default
	touch      int64 // bytes of memory for touchMemory before each run
	contenders []contender
	targets    []target
}

// contender does the work once per run. before and after are not measured.
type contender struct {
	name   string
	before func(context.Context) error
	run    func(context.Context) (sample, error)
	after  func(context.Context) error
}

// few says whether a contender takes part in every other round only: those that
// are slow, and that no target needs exactly.
func (c *contender) few() bool { return c.name == lxcCommand || c.name == pylxdName }

// target is what package lxd is to reach.
type target struct {
	who     int    // which contender of the row
	against string // the other one; empty: the figure itself is meant
	more    bool   // it is about the difference, and not the ratio
	what    figure
	most    float64
}

// figure is one that a target is about.
type figure struct {
	name string
	of   func(summary) float64
	unit string // of an absolute target
}

var (
	wallTime  = figure{"wall", func(s summary) float64 { return s.wall.Seconds() }, "s"}
	cpuTime   = figure{"CPU", func(s summary) float64 { return s.cpu.Seconds() }, "s"}
	peakMiB   = figure{"peak memory", func(s summary) float64 { return float64(s.peak) / (1 << 20) }, "MiB"}
	allocated = figure{"bytes allocated", func(s summary) float64 { return float64(s.allocated) }, ""}
)

// result is a row measured.
type result struct {
	*row
	sums []summary
}

// measure lets the contenders take turns, in another order in each round: what
// one leaves behind, in caches and in memory, is not always for the same next.
// The first round warms up and does not count, unless time is short.
func (r *row) measure(ctx context.Context, b *bench, runs int, deadline time.Time) (*result, error) {
	samples := make([][]sample, len(r.contenders))
	for round := -1; round < runs; round++ {
		late := time.Now().After(deadline)
		if late && !slices.ContainsFunc(samples, func(s []sample) bool { return len(s) == 0 }) {
			break
		}
		for _, n := range rand.Perm(len(r.contenders)) {
			c := r.contenders[n]
			if c.few() && runs >= 4 && round%2 != 0 && !late {
				continue
			}
			s, err := c.once(ctx, b, r.touch)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if round >= 0 || runs == 1 || late {
				samples[n] = append(samples[n], s)
			}
		}
		if runs == 1 {
			break
		}
	}
	res := &result{row: r}
	for _, s := range samples {
		res.sums = append(res.sums, summarize(s))
	}
	return res, nil
}

func (c *contender) once(ctx context.Context, b *bench, touch int64) (sample, error) {
	if c.before != nil {
		if err := c.before(ctx); err != nil {
			return sample{}, err
		}
	}
	// What earlier runs wrote must not be paid for by this one. Where there is
	// no such command, it is.
	_ = exec.CommandContext(ctx, "sync").Run()
	if err := b.touchMemory(ctx, touch); err != nil {
		return sample{}, err
	}
	s, err := c.run(ctx)
	if err != nil {
		return s, err
	}
	if c.after != nil {
		err = c.after(ctx)
	}
	return s, err
}

// check gives the figure that a target is about, and whether it is reached.
func (r *result) check(t target) (got float64, ok bool) {
	got = t.what.of(r.sums[t.who])
	for n, c := range r.contenders {
		switch {
		case c.name != t.against:
		case t.more:
			got -= t.what.of(r.sums[n])
		default:
			got /= t.what.of(r.sums[n])
		}
	}
	return got, got <= t.most
}

// text is the result as lines for a terminal.
func (r *result) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", r.name)
	for n, c := range r.contenders {
		s := r.sums[n]
		fmt.Fprintf(&b, "  %-34s wall %s (%s to %s)  CPU %s  peak %s  allocated %s  n=%d\n",
			c.name, seconds(s.wall), seconds(s.low), seconds(s.high), seconds(s.cpu), mebibytes(s.peak), mebibytes(int64(s.allocated)), s.runs)
	}
	for _, t := range r.targets {
		got, ok := r.check(t)
		fmt.Fprintf(&b, "  target: %s: %s, is %.2f: %v\n", r.contenders[t.who].name, t, got, ok)
	}
	return b.String()
}

func (t target) String() string {
	switch {
	case t.against == "":
		return fmt.Sprintf("%s at most %g %s", t.what.name, t.most, t.what.unit)
	case t.more:
		return fmt.Sprintf("%s at most %g %s over %s", t.what.name, t.most, t.what.unit, t.against)
	}
	return fmt.Sprintf("%s at most %g of %s", t.what.name, t.most, t.against)
}

func seconds(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.3f s", d.Seconds())
}

func mebibytes(n int64) string {
	if n == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
