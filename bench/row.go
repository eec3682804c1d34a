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

// row is a kind of work and its contenders. The first one is package lxd.
type row struct {
	name       string
	note       string
	runs       int   // instead of 5, if -runs has its default; else in proportion
	touch      int64 // bytes of memory for touchMemory before each run
	contenders []contender
	targets    []target
}

// contender is a program that does the work once per run. before and after are not
// measured.
type contender struct {
	name   string
	before func(context.Context) error
	run    func(context.Context) (sample, error)
	after  func(context.Context) error
}

// few reports whether a contender takes part only in every other round: the slow
// ones, for which no target needs exact figures.
func (c *contender) few() bool { return c.name == lxcCommand || c.name == pylxdName }

// target is a limit for a figure of package lxd.
type target struct {
	who     int    // index of the contender in the row
	against string // the other contender; empty for an absolute limit
	more    bool   // limits the difference instead of the ratio
	what    figure
	most    float64
}

// figure is a measurement that a target can limit.
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

// result are the measurements of a row.
type result struct {
	*row
	sums []summary
}

// measure lets the contenders take turns, in a random order in each round: the state
// that one leaves in caches and memory must not always affect the same other one.
// The first round is a warm-up and does not count, unless time is short.
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
	// Writing back the data of earlier runs must not slow down this one. If there is
	// no sync command, it does.
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

// check returns the figure that a target limits, and whether the target is met.
func (r *result) check(t target) (value float64, ok bool) {
	value = t.what.of(r.sums[t.who])
	for n, c := range r.contenders {
		switch {
		case c.name != t.against:
		case t.more:
			value -= t.what.of(r.sums[n])
		default:
			value /= t.what.of(r.sums[n])
		}
	}
	return value, value <= t.most
}

// text returns the result for a terminal.
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
