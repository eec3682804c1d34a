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
	"strconv"
	"strings"
	"time"
)

// sample is what one run took. Of a run of several processes the times add up.
type sample struct {
	wall, cpu time.Duration
	peak      int64 // bytes of memory at most
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
	own  bool     // it is a child of this program, and tells of its allocations
}

// peakInterval is how often the peak of a process is looked at. The kernel
// keeps it, so that only what is added just before the end can be missed. Ten
// times as often takes so much of two cores that it shows in the figures.
const peakInterval = 20 * time.Millisecond

// run measures one process from its start to its end, and gives its output.
//
// The peak is read from /proc and not from the process's rusage: that would be
// no less than the peak of this program, which the new process is split off.
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
			return s, nil, fmt.Errorf("the child said %q: %w", out.Bytes(), err)
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
			peak = max(peak, readPeak(pid))
		}
	}
}

// readPeak is the largest resident set that the process has had, 0 where the
// system does not tell.
func readPeak(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err == nil {
				return kib << 10
			}
		}
	}
	return 0
}

// touchMemory has another process fill so much of the page cache and free it
// again. The host of a virtual machine takes back what is free, and whoever is
// given it next waits for every page of it: without this, that time falls to one
// contender or another, and is up to twice that of the transfer.
func (b *bench) touchMemory(ctx context.Context, n int64) error {
	if n == 0 {
		return nil
	}
	cmd, err := (&job{Do: "touch", Bytes: n, Out: filepath.Join(b.folder, "touched")}).command(ctx, b.self)
	if err != nil {
		return err
	}
	return cmd.Run()
}

// summary is the median of each figure of some samples, and the spread of the
// wall time: the middle half of the runs lies within it.
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
