package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// report returns the text of docs/performance.md; watched is the section about Watch.
func (b *bench) report(ctx context.Context, results []*result, watched string, began time.Time) string {
	var w strings.Builder
	fmt.Fprintf(&w, `# Performance

Written by `+"`make bench`"+` on %s, in %s; do not edit it by hand.

| | |
|---|---|
`, began.UTC().Format("2 January 2006"), time.Since(began).Round(time.Second))
	for _, line := range b.machine(ctx) {
		fmt.Fprintf(&w, "| %s | %s |\n", line[0], line[1])
	}
	fmt.Fprintf(&w, `
The image is incompressible and has %d MiB; it and the written files are in the
page cache. Clients and daemons share the machine. Each transfer runs in a
separate process and is measured from its start to its end: wall time, the
client's processor time (user and system), its peak resident memory. The
contenders of a table take turns. Before each transfer, as much of the page cache
as two images take is filled and freed, because the host of a virtual machine is
slow to provide unused memory, and that time would be added to some contender's.
Over a link nothing is filled, and each contender has one turn. Figures are
medians; the range is the interquartile range. "Ratio" is wall time and processor
time divided by those of the first row.

No client can change that the daemon hashes an upload again after receiving it,
which is most of an upload's wall time, and creates one image after another.

## Targets

| work | client | target | measured | |
|---|---|---|---|---|
`, b.size>>20)
	for _, r := range results {
		for _, t := range r.targets {
			got, ok := r.check(t)
			verdict := "met"
			if !ok {
				verdict = "**missed**"
			}
			fmt.Fprintf(&w, "| %s | %s | %s | %.2f | %s |\n", r.name, r.contenders[t.who].name, t, got, verdict)
		}
	}
	w.WriteString("\n## All figures\n")
	for _, r := range results {
		r.markdown(&w)
	}
	w.WriteString(watched)
	return w.String()
}

func (r *result) markdown(w *strings.Builder) {
	fmt.Fprintf(w, "\n### %s%s\n\n", strings.ToUpper(r.name[:1]), r.name[1:])
	if r.note != "" {
		fmt.Fprintf(w, "%s%s.\n\n", strings.ToUpper(r.note[:1]), r.note[1:])
	}
	w.WriteString("| client | wall | range | CPU | ratio wall | ratio CPU | peak memory | allocated | runs |\n|---|---|---|---|---|---|---|---|---|\n")
	first := r.sums[0]
	for n, c := range r.contenders {
		s := r.sums[n]
		cpu, ratio := "–", "–" // not measured
		if s.cpu > 0 {
			cpu, ratio = seconds(s.cpu), fmt.Sprintf("%.2f", s.cpu.Seconds()/first.cpu.Seconds())
		}
		fmt.Fprintf(w, "| %s | %s | %s – %s | %s | %.2f | %s | %s | %s | %d |\n", c.name, seconds(s.wall), seconds(s.low), seconds(s.high), cpu,
			s.wall.Seconds()/first.wall.Seconds(), ratio, mebibytes(s.peak), mebibytes(int64(s.allocated)), s.runs)
	}
}

// machine describes the machine and the programs.
func (b *bench) machine(ctx context.Context) [][2]string {
	output := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return "not installed"
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return line
	}
	kernel, _, _ := strings.Cut(output("uname", "-sr"), "-") // without the builder's suffix
	lines := [][2]string{
		{"Processor", fmt.Sprintf("%s, %d cores", fieldOf("/proc/cpuinfo", "model name"), runtime.NumCPU())},
		{"SHA-256 on one core", fmt.Sprintf("%.2f s for the image", hashTime(b.size).Seconds())},
		{"Memory", fieldOf("/proc/meminfo", "MemTotal")},
		{"Kernel", kernel},
		{"Load at the start", b.load},
		{"net.core.wmem_max", contentOf("/proc/sys/net/core/wmem_max") + " bytes"},
		{"Go", runtime.Version()},
		{"LXD", output("lxd", "--version")},
		{"curl", output("curl", "--version")},
	}
	if b.lxc != "" {
		lines = append(lines, [2]string{"lxc", output(b.lxc, "--version")})
	}
	if b.python != "" {
		lines = append(lines, [2]string{"pylxd", output(b.python, "-c", "import importlib.metadata as m; print(m.version('pylxd'))")})
	}
	return lines
}

// hashTime returns how long hashing size bytes takes, the best of three. No verified
// transfer can be faster.
func hashTime(size int64) time.Duration {
	block := make([]byte, 256<<10)
	best := time.Duration(math.MaxInt64)
	for range 3 {
		sum := sha256.New()
		begin := time.Now()
		for n := int64(0); n < size; n += int64(len(block)) {
			sum.Write(block)
		}
		best = min(best, time.Since(begin))
	}
	return best
}

func contentOf(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(data))
}

func fieldOf(path, name string) string {
	for line := range strings.SplitSeq(contentOf(path), "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
