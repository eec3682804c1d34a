package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/procmem"
)

// sample are the measurements of one run. For a run of several processes the times
// are added.
type sample struct {
	wall, cpu time.Duration
	peak      int64 // of the memory, in bytes
	allocated uint64
}

func (s sample) and(o sample) sample {
	return sample{wall: s.wall + o.wall, cpu: s.cpu + o.cpu, peak: max(s.peak, o.peak), allocated: s.allocated + o.allocated}
}

// command is a program to measure.
type command struct {
	path string
	args []string
	env  []string // added to the environment
	own  bool     // a child of this program, which prints its work
}

// peakInterval is how often the peak of a process is read. The kernel keeps the
// peak, so that only growth just before the end can be missed. Reading it ten times
// as often affects the figures on two cores.
const peakInterval = 20 * time.Millisecond

// run measures one process from its start to its end, and returns its output.
//
// The peak is read from /proc and not from the process's rusage, which is at least
// the peak of this program, from which the process is forked.
func run(ctx context.Context, c command) (sample, []byte, error) {
	cmd := exec.CommandContext(ctx, c.path, c.args...)
	cmd.Env = append(os.Environ(), c.env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return sample{}, nil, err
	}
	ended, watched := make(chan struct{}), make(chan int64)
	go func() { watched <- watchPeak(cmd.Process.Pid, ended) }()
	err := cmd.Wait()
	s := sample{wall: time.Since(begin)}
	close(ended)
	s.peak = <-watched
	if err != nil {
		return s, nil, fmt.Errorf("%s %s: %w: %s", c.path, strings.Join(c.args, " "), err, bytes.TrimSpace(errOut.Bytes()))
	}
	s.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if c.own {
		var w work
		if err := json.Unmarshal(out.Bytes(), &w); err != nil {
			return s, nil, fmt.Errorf("the child printed %q: %w", out.Bytes(), err)
		}
		s.allocated, s.peak = w.Allocated, max(s.peak, w.Peak)
	}
	return s, out.Bytes(), nil
}

func watchPeak(pid int, ended <-chan struct{}) int64 {
	ticker := time.NewTicker(peakInterval)
	defer ticker.Stop()
	var peak int64
	for {
		select {
		case <-ended:
			return peak
		case <-ticker.C:
			peak = max(peak, procmem.Peak(pid))
		}
	}
}

// touchMemory has another process fill and free n bytes of the page cache. The host
// of a virtual machine reclaims free memory, and the next process that uses it waits
// for every page: without this, that time, up to twice that of the transfer, would
// be added to some contender's time.
func (b *bench) touchMemory(ctx context.Context, n int64) error {
	if n == 0 {
		return nil
	}
	cmd, err := (&job{Do: "touch", Bytes: n, Out: filepath.Join(b.dir, "touched")}).command(ctx, b.self)
	if err != nil {
		return err
	}
	return cmd.Run()
}

// summary has the median of each figure of some samples, and the interquartile range
// of the wall time.
type summary struct {
	sample
	low, high time.Duration
	runs      int
}

func summarize(samples []sample) summary {
	s := summary{runs: len(samples)}
	s.wall, s.low, s.high = quartiles(samples, func(s sample) time.Duration { return s.wall })
	s.cpu, _, _ = quartiles(samples, func(s sample) time.Duration { return s.cpu })
	s.peak, _, _ = quartiles(samples, func(s sample) int64 { return s.peak })
	s.allocated, _, _ = quartiles(samples, func(s sample) uint64 { return s.allocated })
	return s
}

func quartiles[T cmp.Ordered](samples []sample, of func(sample) T) (median, low, high T) {
	values := make([]T, len(samples))
	for n, s := range samples {
		values[n] = of(s)
	}
	slices.Sort(values)
	at := func(q int) T { return values[(len(values)-1)*q/4] }
	return at(2), at(1), at(3)
}
